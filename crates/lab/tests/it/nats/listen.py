# Reads every packet of its network and says each of these words once, when a packet holds it; "packets" after a hundred.
import socket, sys

words = [word.encode() for word in sys.argv[1:]]
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
print("ready", flush=True)
count = 0
while True:
    packet = s.recv(65536)
    count += 1
    if count == 100:
        print("packets", flush=True)
    for word in [word for word in words if word in packet]:
        words.remove(word)
        print(word.decode(), flush=True)
