# Says each session of the overlay that this machine sends in, by whom the packets go to, once it is in use. A handshake
# is no session; nor is a connection in QUIC, whose first byte looks like one but changes with each packet.
import collections, socket, struct

IN_USE = 50

s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
firsts = collections.defaultdict(collections.Counter)
while True:
    packet, (_, protocol, kind, *_) = s.recvfrom(65536)
    header = 4 * (packet[0] & 15)
    if (protocol, kind) != (0x0800, socket.PACKET_OUTGOING) or packet[9] != socket.IPPROTO_UDP:
        continue
    if len(packet) < header + 16:
        continue
    to, (index,) = socket.inet_ntoa(packet[16:20]), struct.unpack_from(">I", packet, header + 8)
    if index >> 31:
        # Of a relay's channel: the packet is behind its number.
        (index,) = struct.unpack_from(">I", packet, header + 12)
        to = "a relay"
    if index >> 30 == 1:
        # QUIC protects five bits of the first byte; what follows it, its connection's name, stays.
        first = firsts[to, index & 0xFFFFFF]
        first[index >> 24] += 1
        if len(first) == 1 and first[index >> 24] == IN_USE:
            print(to, index, flush=True)
