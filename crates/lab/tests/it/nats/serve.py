# What each member runs, in its box: over TCP it answers with what came, or with its checksum; over UDP with what came.
import hashlib, socket, threading

def answer(connection):
    with connection:
        if connection.recv(1) == b"e":
            while data := connection.recv(65536):
                connection.sendall(data)
        else:
            digest = hashlib.sha256()
            while data := connection.recv(65536):
                digest.update(data)
            connection.sendall(digest.hexdigest().encode())

def echo():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::", 4000))
    while True:
        data, peer = s.recvfrom(65536)
        try:
            s.sendto(data, peer)
        except OSError:
            pass  # there is no way to the peer at the moment

threading.Thread(target=echo, daemon=True).start()
listener = socket.create_server(("::", 4000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
