# A job of the bench: in turn, one plain TCP stream from the second member to the first, and one Ray object of the same
# size, between the same two addresses. One line of JSON: seconds of each, and the bytes.
import json
import socket
import sys
import time

import numpy
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

SIZE, ROUNDS = int(sys.argv[1]), int(sys.argv[2])
PIECE = 1 << 20
ray.init(address="auto", log_to_driver=False)
nodes = [node for node in ray.nodes() if node["Alive"]][:2]
here, there = (On(node_id=node["NodeID"], soft=False) for node in nodes)
address = nodes[0]["NodeManagerAddress"]


@ray.remote(num_cpus=0)
class Receiver:
    def listen(self):
        self.socket = socket.create_server((address, 0))
        return self.socket.getsockname()[1]

    def receive(self):
        peer, _ = self.socket.accept()
        into, left = bytearray(PIECE), SIZE
        begun = time.monotonic()
        while left:
            count = peer.recv_into(into, PIECE)
            if not count:
                raise EOFError
            left -= count
        return time.monotonic() - begun

    def get(self, boxed):
        begun = time.monotonic()
        value = ray.get(boxed[0])
        took = time.monotonic() - begun
        assert value.nbytes == SIZE
        return took


@ray.remote(num_cpus=0)
class Sender:
    def send(self, port):
        with socket.create_connection((address, port)) as peer:
            piece = bytes(PIECE)
            for _ in range(SIZE // PIECE):
                peer.sendall(piece)

    def put(self, value):
        return [ray.put(numpy.full(SIZE, value, dtype=numpy.uint8))]


receiver = Receiver.options(scheduling_strategy=here).remote()
sender = Sender.options(scheduling_strategy=there).remote()
streams, objects = [], []
for n in range(ROUNDS):
    port = ray.get(receiver.listen.remote())
    took = receiver.receive.remote()
    ray.get(sender.send.remote(port))
    streams.append(ray.get(took))
    boxed = ray.get(sender.put.remote(n))
    objects.append(ray.get(receiver.get.remote(boxed)))
    del boxed
print(json.dumps({"bytes": SIZE, "stream_s": streams, "object_s": objects}), flush=True)
