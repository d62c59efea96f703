# Says of each HOST,PORT whether a connection can be made to it.
import socket, sys

for target in sys.argv[1:]:
    host, port = target.rsplit(",", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=20):
            print("open")
    except OSError:
        print("shut")
