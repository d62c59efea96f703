# Says each session of the overlay that this machine sends in, by whom the packets go to, once it is in use: a
# connection in QUIC is no session, nor is a handshake.
import collections, socket, struct

IN_USE = 50

s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
counts = collections.Counter()
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
        counts[to, index] += 1
        if counts[to, index] == IN_USE:
            print(to, index, flush=True)
