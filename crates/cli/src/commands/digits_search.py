"""A randomised hyper-parameter search over scikit-learn's handwritten digits, spread by Ray's joblib backend.

Run as a Ray job by `ionet quickstart`. Prints one JSON line per step; the last one is the result, with the
score on held-out digits and the node on which each fit ran.
"""

import json
import sys
import time

import joblib
import numpy
import ray
from ray.util.joblib import register_ray
from sklearn.datasets import load_digits
from sklearn.model_selection import RandomizedSearchCV, train_test_split
from sklearn.svm import SVC

TRIALS = int(sys.argv[1]) if len(sys.argv) > 1 else 8
MEMBERS = int(sys.argv[2]) if len(sys.argv) > 2 else 2
MEMBER_WAIT_S = 60


def say(**line):
    print(json.dumps(line), flush=True)


def wait_for_members():
    end = time.monotonic() + MEMBER_WAIT_S
    while True:
        alive = sorted((n["NodeManagerAddress"], n["NodeID"]) for n in ray.nodes() if n["Alive"])
        if len(alive) >= MEMBERS or time.monotonic() > end:
            return alive
        time.sleep(0.2)


def main():
    ray.init(logging_level="ERROR", log_to_driver=False)
    nodes = wait_for_members()
    ids = [node_id for _, node_id in nodes]
    say(step="cluster", nodes=[address for address, _ in nodes], cpus=ray.cluster_resources().get("CPU"))

    digits = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        digits.data / 16.0, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
    say(step="data", images=len(digits.data), classes=len(set(digits.target)))

    def scores(estimator, x, y):
        """The accuracy of one fit, and on which node it ran."""
        node = ray.get_runtime_context().get_node_id()
        return {"accuracy": estimator.score(x, y), "node": ids.index(node)}

    search = RandomizedSearchCV(
        SVC(),
        {"C": numpy.logspace(-1, 2, 40), "gamma": numpy.logspace(-3, 0, 40)},
        n_iter=TRIALS,
        cv=3,
        scoring=scores,
        refit="accuracy",
        random_state=7,
    )
    register_ray()
    started = time.monotonic()
    with joblib.parallel_backend("ray", ray_remote_args={"num_cpus": 1, "scheduling_strategy": "SPREAD"}):
        search.fit(train_x, train_y)
    took = time.monotonic() - started

    fits = {address: 0 for address, _ in nodes}
    for split in range(3):
        for index in search.cv_results_[f"split{split}_test_node"]:
            fits[nodes[int(index)][0]] += 1
    say(
        step="result",
        score=round(float(search.score(test_x, test_y)), 4),
        best={name: round(float(value), 5) for name, value in search.best_params_.items()},
        fits_by_node=fits,
        seconds=round(took, 2),
    )


main()
