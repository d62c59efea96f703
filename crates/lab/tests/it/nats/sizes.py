# The sizes of so many packets in UDP that come from an address to one port, the first that has as many.
import collections, socket, sys

source, count = socket.inet_aton(sys.argv[1]), int(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
sizes = collections.defaultdict(list)
while all(len(of_port) < count for of_port in sizes.values()):
    packet = s.recv(65536)
    if packet[9] == socket.IPPROTO_UDP and packet[12:16] == source:
        header = 4 * (packet[0] & 15)
        sizes[packet[header + 2 : header + 4]].append(len(packet))
print(*sorted(set(max(sizes.values(), key=len))))
