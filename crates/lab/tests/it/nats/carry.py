# Sends so many bytes of chance to each of these members, over IPv4 and IPv6, and checks the checksum that comes back.
import hashlib, os, socket, sys

def own_prefix():
    for line in open("/proc/net/if_inet6"):
        address, *_, device = line.split()
        if device == "tun0" and address.startswith("fd"):
            return bytes.fromhex(address)[:12]
    raise SystemExit("this member has no address of IPv6")

prefix = own_prefix()
data = os.urandom(int(sys.argv[1]))
wanted = hashlib.sha256(data).hexdigest()
for peer in sys.argv[2:]:
    for address in (peer, socket.inet_ntop(socket.AF_INET6, prefix + socket.inet_aton(peer))):
        with socket.create_connection((address, 4000), timeout=60) as s:
            s.sendall(b"s" + data)
            s.shutdown(socket.SHUT_WR)
            got = b""
            while part := s.recv(100):
                got += part
        if got.decode() != wanted:
            raise SystemExit(f"{address} got something else: {got}")
print("whole")
