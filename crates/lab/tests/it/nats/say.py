# Says a word to each of these addresses: in datagrams, to several ports, and in a connection if there can be one.
import socket, sys

word = sys.argv[1].encode()
for address in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in (9, 4000, 7842):
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                s.sendto(word, (address, port))
            except OSError:
                pass  # no way there: as good as unheard
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        try:
            s.connect((address, 4000))
            s.sendall(b"s" + word)
        except OSError:
            pass
