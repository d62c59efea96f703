# Waits for a Ray cluster that was started by hand, runs one task on each of its nodes and says so in a line.
# ARGUMENTS, set above this text, are its address and how many nodes it has.
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

address, wanted = ARGUMENTS
while True:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        break
    except Exception:
        time.sleep(0.1)


@ray.remote(num_cpus=0)
def first():
    return True


def alive():
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


while len(alive()) < wanted:
    time.sleep(0.05)
ray.get([first.options(scheduling_strategy=On(node_id=node, soft=False)).remote() for node in alive()])
print("done", flush=True)
time.sleep(3600)
