"""Starts one Ray node in a box and reports its progress.

The one file over Ray's private API. It is run as `python rayboot.py` in every box of a Ray cluster,
reads its settings (no secrets) from IONET_RAY_BOOT as JSON, and writes one JSON line per stage to
standard output: import, node, members, first_task, jobs_api, client, jupyter; fallback with its
reason; failed with a code. The token comes in RAY_AUTH_TOKEN and is never printed.

Fast start: the node's processes are built directly, without the autoscaler's monitor, the dashboard
and the two agents per node, which are started once a first task has run on every member. When Ray is
not the version this was written for, or anything of that fails before the node is up, everything is
killed and plain `ray start` is run instead.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import socket

TESTED_RAY = "2.60.0"
GCS, NODE_MANAGER, OBJECT_MANAGER = 6379, 6380, 6381
AGENT_HTTP, AGENT_GRPC, RUNTIME_ENV, METRICS = 52365, 52366, 52367, 52368
WORKER_MIN, WORKER_MAX = 20000, 20199
CLIENT, DASHBOARD, JUPYTER = 10001, 8265, 8888
# Written by the first task on each node.
USED = "/tmp/.ionet-used"
# Written by this script: from then on the real agents may start.
GO = "/tmp/.ionet-go"
# A node that gets no first task in this time starts its agents anyhow.
GO_WAIT_S = 30.0
# Members on the head's own machine leave it the processor until its services are up.
MEMBER_DELAY_S = 4.0


# --- the stand-in for the two agents ------------------------------------------------------------


def agent_stub(command):
    """Publishes the pinned ports at once; becomes the real agent when the node is in use."""
    option = {a.split("=", 1)[0]: a.split("=", 1)[1] for a in command if a.startswith("--") and "=" in a}
    node, session = option["--node-id"], option["--session-dir"]
    if any("runtime_env" in a for a in command[:4]):
        ports = {"runtime_env_agent_port": RUNTIME_ENV}
    else:
        ports = {
            "dashboard_agent_listen_port": AGENT_HTTP,
            "metrics_agent_port": AGENT_GRPC,
            "metrics_export_port": METRICS,
        }
    for name, port in ports.items():
        path = os.path.join(session, f"{name}_{node}")
        with open(path + ".tmp", "w") as file:
            file.write(str(port))
        os.rename(path + ".tmp", path)
    wait_for_file(GO, GO_WAIT_S + MEMBER_DELAY_S)
    os.execv(command[0], command)


def wait_for_file(path, seconds):
    end = time.monotonic() + seconds
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.1)


def touch(path):
    open(path, "w").close()


# --- reporting ----------------------------------------------------------------------------------

START = time.monotonic()
PROGRESS = None


def report(stage, **more):
    line = {"stage": stage, "ms": int((time.monotonic() - START) * 1000), **more}
    PROGRESS.write(json.dumps(line) + "\n")
    PROGRESS.flush()


def keep_progress_apart():
    """Standard output carries progress only; whatever Ray prints goes to the log."""
    global PROGRESS
    PROGRESS = os.fdopen(os.dup(1), "w")
    os.set_inheritable(PROGRESS.fileno(), False)
    os.dup2(2, 1)


def or_fail(steps):
    """Runs the steps; what goes wrong in them ends the node with a report."""

    def run():
        try:
            steps()
        except BaseException as error:
            report("failed", code="ray_start_failed", message=f"{type(error).__name__}: {error}"[:500])
            os._exit(1)

    return run


# --- fast start ---------------------------------------------------------------------------------


class Fast:
    """A node built over the private API."""

    def __init__(self, cfg):
        self.cfg = cfg
        import ray

        if ray.__version__ != TESTED_RAY:
            raise RuntimeError(f"Ray is {ray.__version__}, the fast start is for {TESTED_RAY}")
        from ray._private import node, parameter, services

        self.node_module, self.services = node, services
        report("import")
        self.delay_agents()
        params = self.params(parameter.RayParams)
        node.Node.start_api_server, self.start_api_server = (lambda *a, **k: None), node.Node.start_api_server
        self.node = node.Node(
            params, head=cfg["role"] == "head", shutdown_at_exit=False, spawn_reaper=False
        )

    def params(self, make):
        cfg = self.cfg
        head = cfg["role"] == "head"
        return make(
            node_ip_address=cfg["ip"],
            num_cpus=cfg["num_cpus"],
            num_gpus=cfg["num_gpus"],
            memory=cfg["memory"],
            object_store_memory=cfg["object_store_memory"],
            gcs_server_port=GCS if head else None,
            gcs_address=None if head else f"{cfg['head_ip']}:{GCS}",
            node_manager_port=NODE_MANAGER,
            object_manager_port=OBJECT_MANAGER,
            dashboard_agent_listen_port=AGENT_HTTP,
            metrics_agent_port=AGENT_GRPC,
            runtime_env_agent_port=RUNTIME_ENV,
            metrics_export_port=METRICS,
            min_worker_port=WORKER_MIN,
            max_worker_port=WORKER_MAX,
            dashboard_host="0.0.0.0",
            dashboard_port=DASHBOARD,
            include_dashboard=head,
            include_log_monitor=False,
            no_monitor=True,
        )

    def delay_agents(self):
        original = self.services.start_ray_process
        stub = subprocess.list2cmdline([sys.executable, "-S", "-E", os.path.abspath(__file__), "--agent-stub"])

        def start(command, *args, **kwargs):
            command = list(command)
            for i, word in enumerate(command):
                for option in ("--dashboard_agent_command=", "--runtime_env_agent_command="):
                    if word.startswith(option):
                        command[i] = f"{option}{stub} {word[len(option):]}"
            return original(command, *args, **kwargs)

        self.services.start_ray_process = start

    def start_early(self):
        """The slowest part of a head begins while the members are still starting."""
        self.dashboard = threading.Thread(target=or_fail(self.start_dashboard), daemon=True)
        self.dashboard.start()

    def start_rest(self):
        """What the first task did not need."""
        touch(GO)
        if self.cfg["role"] == "head":
            self.node._ray_params.ray_client_server_port = CLIENT
            self.node.start_ray_client_server()
        else:
            self.node.start_log_monitor()

    def start_dashboard(self):
        """It waits for the dashboard, which nothing else needs to do."""
        self.services.ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = 600
        self.start_api_server(self.node, include_dashboard=True, raise_on_failure=True)

    def start_last(self):
        """What only printed output and `ray status` need."""
        if self.cfg["role"] == "head":
            self.dashboard.join()
            self.node.start_log_monitor()
            self.node.start_monitor()

    def dead(self):
        needed = ("raylet", "gcs_server")
        return [name for name, _ in self.node.dead_processes() if name in needed]


# --- plain start --------------------------------------------------------------------------------


class Plain:
    """A node started by the `ray start` command, which stays until the node ends."""

    def __init__(self, cfg):
        self.cfg = cfg
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        shared = {
            "node-ip-address": cfg["ip"],
            "num-cpus": cfg["num_cpus"],
            "num-gpus": cfg["num_gpus"],
            "memory": cfg["memory"],
            "object-store-memory": cfg["object_store_memory"],
            "node-manager-port": NODE_MANAGER,
            "object-manager-port": OBJECT_MANAGER,
            "dashboard-agent-listen-port": AGENT_HTTP,
            "dashboard-agent-grpc-port": AGENT_GRPC,
            "runtime-env-agent-port": RUNTIME_ENV,
            "metrics-export-port": METRICS,
            "min-worker-port": WORKER_MIN,
            "max-worker-port": WORKER_MAX,
        }
        if cfg["role"] == "head":
            ray.append("--head")
            shared |= {
                "port": GCS,
                "ray-client-server-port": CLIENT,
                "dashboard-host": "0.0.0.0",
                "dashboard-port": DASHBOARD,
            }
        else:
            wait_for_port(cfg["head_ip"], GCS)
            shared["address"] = f"{cfg['head_ip']}:{GCS}"
        ray += [f"--{name}={value}" for name, value in shared.items()]
        self.process = subprocess.Popen(ray)
        wait_for_port(cfg["ip"], NODE_MANAGER, self.process)

    def start_early(self):
        pass

    def start_rest(self):
        pass

    def start_last(self):
        pass

    def dead(self):
        return [] if self.process.poll() is None else ["ray start"]


def wait_for_port(ip, port, process=None):
    while True:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"ray start ended with code {process.returncode}")
        try:
            socket.create_connection((ip, port), timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)


def kill_everything_else():
    """In this box every other process but the first belongs to the failed start."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid(), os.getppid()):
            try:
                os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass


def forget_earlier_start():
    """A box whose engine is started again keeps its files: what the last start left would mislead."""
    shutil.rmtree("/tmp/ray", ignore_errors=True)
    for path in (GO, USED):
        if os.path.exists(path):
            os.unlink(path)


def start_node(cfg):
    if cfg["fast"]:
        try:
            return Fast(cfg)
        except Exception as error:
            report("fallback", reason=f"{type(error).__name__}: {error}"[:500])
            # The private API may be half patched in this process: begin again in a new one.
            kill_everything_else()
            os.environ["IONET_RAY_BOOT"] = json.dumps({**cfg, "fast": False})
            os.dup2(PROGRESS.fileno(), 1)
            os.execv(sys.executable, [sys.executable, os.path.abspath(__file__)])
    return Plain(cfg)


# --- the head's checks --------------------------------------------------------------------------


def first_tasks(cfg, own_task_done):
    """Waits for every member and runs one task on each; calls back when this node's own is done."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    address = f"{cfg['head_ip']}:{GCS}"
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="ionet")
            break
        except Exception as error:
            print(f"waiting for the head: {error}", file=sys.stderr)
            time.sleep(0.5)

    @ray.remote(num_cpus=0)
    def first(path):
        open(path, "w").close()
        return True

    own, told = ray.get_runtime_context().get_node_id(), False
    started, seen = {}, 0
    while True:
        alive = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
        for node in alive:
            if node not in started:
                where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
                started[node] = first.options(scheduling_strategy=where, max_retries=3).remote(USED)
        if len(alive) != seen:
            seen = len(alive)
            report("members", alive=seen, wanted=cfg["members"])
        if not told and own in started and all_done(ray, started, [own]):
            told = True
            own_task_done()
        if len(alive) >= cfg["members"] and all_done(ray, started, alive):
            break
        time.sleep(0.05)
    report("first_task", members=len(started))


def all_done(ray, started, nodes):
    """Whether the tasks of these nodes are done; one that failed is forgotten, so that it is sent again."""
    tasks = [started[node] for node in nodes]
    _, waiting = ray.wait(tasks, num_returns=len(tasks), timeout=0.2)
    if waiting:
        return False
    for node in nodes:
        try:
            ray.get(started[node])
        except Exception as error:
            print(f"first task on {node}: {error}", file=sys.stderr)
            del started[node]
    return all(node in started for node in nodes)


def jobs_answer(cfg):
    request = urllib.request.Request(
        f"http://{cfg['ip']}:{DASHBOARD}/api/jobs/",
        headers={"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]},
    )
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def port_answers(ip, port):
    try:
        socket.create_connection((ip, port), timeout=1).close()
        return True
    except OSError:
        return False


def wait_for_services(cfg):
    """Reports each service once, in whichever order they come."""
    checks = {
        "jobs_api": lambda: jobs_answer(cfg) and port_answers(cfg["ip"], AGENT_HTTP),
        "client": lambda: port_answers(cfg["ip"], CLIENT),
    }
    while checks:
        for stage in [stage for stage, up in checks.items() if up()]:
            del checks[stage]
            report(stage)
        time.sleep(0.1)


def start_jupyter():
    env = {**os.environ, "JUPYTER_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--ip=0.0.0.0", f"--port={JUPYTER}", "--no-browser",
         "--ServerApp.port_retries=0", "--ServerApp.allow_remote_access=True"],
        env=env, cwd=os.environ.get("HOME", "/"),
    )


def lead(cfg, node):
    """The head's own steps, beside the watch over its processes."""
    first_tasks(cfg, node.start_early)
    node.start_rest()
    wait_for_services(cfg)
    node.start_last()
    # Not before: the wait for the dashboard uses this driver's connection.
    import ray

    ray.shutdown()
    if cfg["jupyter"]:
        start_jupyter()
        wait_for_port(cfg["ip"], JUPYTER)
        report("jupyter")


def follow(node):
    wait_for_file(USED, GO_WAIT_S)
    time.sleep(MEMBER_DELAY_S)
    node.start_rest()


def main():
    if sys.argv[1:2] == ["--agent-stub"]:
        agent_stub(sys.argv[2:])
    keep_progress_apart()
    forget_earlier_start()
    cfg = json.loads(os.environ["IONET_RAY_BOOT"])
    try:
        node = start_node(cfg)
    except Exception as error:
        report("failed", code="ray_start_failed", message=f"{type(error).__name__}: {error}"[:500])
        return 1
    report("node")
    steps = (lambda: lead(cfg, node)) if cfg["role"] == "head" else (lambda: follow(node))
    threading.Thread(target=or_fail(steps), daemon=True).start()
    while True:
        dead = node.dead()
        if dead:
            report("failed", code="ray_node_died", message=f"ended: {', '.join(dead)}; see the box's log")
            return 1
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
