# Asks a member over one TCP connection and over UDP, every 20 ms, for ever; says which answered.
import select, socket, sys, time

EVERY_S = 0.02
peer = (sys.argv[1], 4000)
tcp = socket.create_connection(peer, timeout=60)
tcp.sendall(b"e")
tcp.setblocking(False)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(peer)
udp.setblocking(False)
next_s, waiting = time.monotonic(), False
while True:
    now_s = time.monotonic()
    if now_s >= next_s:
        next_s = now_s + EVERY_S
        try:
            udp.send(b"ping")
        except OSError:
            pass  # there is no way to the peer at the moment
        if not waiting:
            tcp.send(b"ping")
            waiting = True
    ready, _, _ = select.select([tcp, udp], [], [], max(0, next_s - now_s))
    for s in ready:
        try:
            data = s.recv(100)
        except OSError as error:
            if s is tcp:
                raise
            continue
        if s is tcp:
            if not data:
                raise SystemExit("the connection ended")
            waiting = False
        print("tcp" if s is tcp else "udp", flush=True)
