"""Real Ray: answers, deadlines, deaths, and that nothing is left behind however a run ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from rlpost.cluster import actor_calls, capacity, node_logs, node_tasks, ray_cluster
from rlpost.cluster.ray_folder import PREFIX
from rlpost.config.schema import RayConfig
from rlpost.doctor import cluster, probe
from rlpost.errors import ClusterError, SwapError

pytestmark = pytest.mark.integration


@ray.remote(num_cpus=0)
class Actor:
    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def stream(self) -> Iterator[str]:
        yield "begun"
        while not actor_calls.is_cancelled():
            time.sleep(0.01)

    def refuse(self) -> None:
        raise SwapError("the swap did not take")

    def stumble(self) -> None:
        raise ZeroDivisionError("a bug")

    def die(self, after_s: float = 0.0) -> None:
        time.sleep(after_s)
        os._exit(1)


@ray.remote(num_cpus=0)
class Stillborn:
    def __init__(self) -> None:
        raise ValueError("no such weights")

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture(scope="class")
def _ray(own_module: Path) -> Iterator[None]:
    with ray_cluster.connect(RayConfig(), ray_cluster.Needs(cpus=1, gpus=0), modules=[own_module]):
        yield


@pytest.fixture(scope="module")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module of a user's, in a folder that is on nobody's import path."""
    path = tmp_path_factory.mktemp("own") / "own_environment.py"
    path.write_text("import own_helper\n\nGREETING = own_helper.GREETING\n")
    path.with_name("own_helper.py").write_text("GREETING = 'hello'\n")
    return path


@ray.remote(num_cpus=0)
def greeting() -> tuple[str, str]:
    import own_environment  # type: ignore[import-not-found]

    return own_environment.GREETING, os.getcwd()


def listed(folder: str) -> list[str]:
    return sorted(os.listdir(folder))


def asleep(seconds: float) -> None:
    time.sleep(seconds)


Pair = tuple[ray.actor.ActorHandle, ray.actor.ActorHandle]


@pytest.fixture(scope="class")
def pair(_ray: None) -> Pair:
    one, other = Actor.remote(), Actor.remote()
    pids = actor_calls.get_all([one.pid.remote(), other.pid.remote()], 120, ["one", "other"])
    assert len({*pids, os.getpid()}) == 3
    return one, other


class TestGet:
    def test_answers_come_in_order_of_asking(self, pair: Pair) -> None:
        refs = [pair[0].sleep.remote(0.5), pair[1].sleep.remote(0.0)]
        assert actor_calls.get_all(refs, 30, ["slow", "fast"]) == [0.5, 0.0]

    def test_an_actor_goes_on_after_streams_that_were_cancelled_before_they_began(self, pair: Pair) -> None:
        """Cancelled by Ray alone, they mostly make the actor wait 30 s, and refuse all calls."""
        streams = [pair[0].stream.options(num_returns="streaming").remote() for _ in range(8)]
        for stream in streams:
            actor_calls.cancel({stream: False}, deadline=time.monotonic() + 20)
        assert actor_calls.get(pair[0].sleep.remote(0.0), 8, "one") == 0.0

    def test_deadline_names_who_is_silent_and_only_them(self, pair: Pair) -> None:
        with pytest.raises(actor_calls.DeadlineError, match="from: slow one") as caught:
            actor_calls.get_all(
                [pair[0].sleep.remote(4), pair[1].sleep.remote(0)], 1.0, ["slow one", "fast one"]
            )
        assert "fast one" not in str(caught.value)

    def test_errors_raised_on_purpose_keep_their_type_and_text(self, pair: Pair) -> None:
        with pytest.raises(SwapError, match=r"^the swap did not take$"):
            actor_calls.get(pair[0].refuse.remote(), 30, "worker")

    def test_bugs_keep_their_traceback(self, pair: Pair) -> None:
        with pytest.raises(ZeroDivisionError, match="in stumble"):
            actor_calls.get(pair[1].stumble.remote(), 30, "worker")

    def test_a_death_ends_the_wait_for_the_others(self, pair: Pair) -> None:
        start = time.monotonic()
        refs = [pair[0].sleep.remote(60), pair[1].die.remote()]
        with pytest.raises(actor_calls.ActorLostError, match="learner rank 1 died"):
            actor_calls.get_all(refs, 60, ["learner rank 0", "learner rank 1"])
        assert time.monotonic() - start < 30

    @pytest.mark.usefixtures("_ray")
    def test_a_death_is_found_behind_the_error_of_another(self) -> None:
        one, other = Actor.remote(), Actor.remote()
        refs, who = [one.stumble.remote(), other.die.remote(1.0)], ["rank 0", "rank 1"]
        with pytest.raises(ZeroDivisionError):
            actor_calls.get_all(refs, 60, who)
        with pytest.raises(actor_calls.ActorLostError, match="rank 1 died"):
            actor_calls.watch_for_deaths(refs, 30, who)

    @pytest.mark.usefixtures("_ray")
    def test_without_a_death_the_watch_ends_with_the_last_answer_or_in_time(self) -> None:
        one, other = Actor.remote(), Actor.remote()
        actor_calls.watch_for_deaths([one.refuse.remote(), other.sleep.remote(0.1)], 60, ["one", "other"])
        actor_calls.watch_for_deaths([one.stumble.remote(), other.sleep.remote(5)], 1.0, ["one", "other"])

    @pytest.mark.usefixtures("_ray")
    def test_workers_import_a_users_module_and_what_lies_beside_it(self, own_module: Path) -> None:
        heard, folder = actor_calls.get(greeting.remote(), 60, "worker")
        assert heard == "hello"
        assert folder != str(own_module.parent)

    @pytest.mark.usefixtures("_ray")
    def test_a_second_connection_is_refused_and_the_first_lives(self) -> None:
        with pytest.raises(ClusterError, match="already connected"):  # noqa: SIM117
            with ray_cluster.connect(RayConfig(), ray_cluster.Needs(cpus=1, gpus=0)):
                pytest.fail("the body must not run")
        assert ray.is_initialized()

    @pytest.mark.usefixtures("_ray")
    def test_nobody_else_reaches_the_files_of_a_private_ray(self) -> None:
        """Ray opens its own folders and sockets to everybody; the folder around them is closed."""
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        (around,) = [path for path in session.parents if path.name.startswith(PREFIX)]
        assert stat.S_IMODE(around.stat().st_mode) == 0o700
        assert list(session.glob("sockets/*"))

    @pytest.mark.usefixtures("_ray")
    def test_every_node_is_asked_and_named_if_it_fails_or_is_silent(self) -> None:
        [node] = capacity.nodes()
        assert node.label == node_tasks.this_node()
        assert node_tasks.ask_each([node], listed, "/", timeout_s=60) == {node: sorted(os.listdir("/"))}
        [failed] = node_tasks.ask_each([node], listed, "/no/such/folder", timeout_s=60).values()
        assert isinstance(failed, node_tasks.Failure)
        assert "/no/such/folder" in failed.reason
        silent = node_tasks.ask_each([node], asleep, 60, timeout_s=1.0)
        assert silent == {node: node_tasks.Failure("it did not answer within 1 s")}
        logs = node_tasks.ask_each(
            [node], node_logs.logs_here, ray.get_runtime_context().get_job_id(), timeout_s=60
        )
        assert isinstance(logs[node], dict)

    @pytest.mark.usefixtures("_ray")
    def test_the_doctor_looks_at_every_node(self) -> None:
        found = cluster.read(json.loads(json.dumps(probe.look(60.0))))
        [node], [there] = capacity.nodes(), found.nodes
        assert (there.name, there.cpus, there.gpus) == (node.label, node.total.cpus, node.total.gpus)
        assert there.facts is not None
        assert there.facts.host == node.name
        assert there.ahead_s is not None
        assert abs(there.ahead_s) <= there.doubt_s, "it is the same clock"
        assert found.links == []

    @pytest.mark.usefixtures("_ray")
    def test_an_actor_that_cannot_start_says_why(self) -> None:
        with pytest.raises(actor_calls.ActorLostError, match=r"worker died: .*no such weights"):
            actor_calls.get(Stillborn.remote().pid.remote(), 30, "worker")


DRIVER = """
import sys, time
from pathlib import Path
import psutil, ray
from rlpost.cluster import actor_calls, ray_cluster
from rlpost.config.schema import RayConfig

@ray.remote(num_cpus=1)
class Busy:
    def pid(self):
        return 0
    def spin(self):
        while True:
            pass

needs, logs = ray_cluster.Needs(1, 0), Path(sys.argv[2])
with ray_cluster.connect(RayConfig(), needs) as cluster, cluster.keeping_logs(logs):
    actor = Busy.remote()
    actor_calls.get(actor.pid.remote(), 60, "busy")
    ref = actor.spin.remote()
    print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
    if sys.argv[1] == "raise":
        raise ValueError("boom")
    actor_calls.get(ref, 60, "busy")
"""


def start_driver(tmp_path: Path, how: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(Path(ray_cluster.__file__).parents[2]),
    }
    driver = subprocess.Popen(
        [sys.executable, str(script), how, str(tmp_path / "logs")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert driver.stdout is not None
    return driver, [psutil.Process(int(pid)) for pid in driver.stdout.readline().split()]


@pytest.mark.parametrize("how", [pytest.param("raise", marks=pytest.mark.slow), "interrupt"])
def test_no_process_and_no_file_is_left_behind(how: str) -> None:
    # pytest's own temporary folders have paths too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="rlpost-", dir="/tmp") as folder:
        check_nothing_is_left(Path(folder), how)


def check_nothing_is_left(tmp_path: Path, how: str) -> None:
    driver, processes = start_driver(tmp_path, how)
    assert len(processes) >= 3, driver.stderr.read() if driver.stderr else ""  # gcs, raylet, the actor
    if how == "interrupt":
        driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=60)
    assert ("boom" if how == "raise" else "KeyboardInterrupt") in errors
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert sorted(path.name for path in tmp_path.iterdir()) in (["driver.py"], ["driver.py", "logs"])


def test_a_killed_driver_leaves_no_process_and_no_file() -> None:
    with tempfile.TemporaryDirectory(prefix="rlpost-", dir="/tmp") as folder:
        driver, processes = start_driver(Path(folder), "interrupt")
        assert len(processes) >= 3, driver.stderr.read() if driver.stderr else ""
        driver.kill()
        driver.communicate(timeout=60)
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert not alive
        assert not list(Path(folder).glob("rlpost-run-*"))


def test_what_is_left_of_a_driver_and_its_sweeper_goes_with_the_next_run() -> None:
    with tempfile.TemporaryDirectory(prefix="rlpost-", dir="/tmp") as folder:
        driver, processes = start_driver(Path(folder), "interrupt")
        [sweeper] = [each for each in processes if "sweeper.py" in " ".join(each.cmdline())]
        sweeper.kill()
        driver.kill()
        driver.communicate(timeout=60)
        for process in processes:  # Ray's end by themselves, the slowest after a minute
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)
        assert len(list(Path(folder).glob("rlpost-run-*/r/session_latest"))) == 1
        check_nothing_is_left(Path(folder), "raise")


def test_a_shortage_is_refused_with_figures() -> None:
    with pytest.raises(ClusterError, match=r"asks for 1000 CPUs .* has \d+\. Ask for less"):  # noqa: SIM117
        with ray_cluster.connect(RayConfig(), ray_cluster.Needs(cpus=1000, gpus=0)):
            pytest.fail("the body must not run")
    assert not ray.is_initialized()


HOST = """
import sys
import ray
from rlpost.cluster import ray_cluster
from rlpost.config.schema import RayConfig

with ray_cluster.connect(RayConfig(), ray_cluster.Needs(1, 0)):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""

GUEST = """
import sys
from pathlib import Path
import ray
from rlpost.cluster import actor_calls, precision, ray_cluster
from rlpost.config.schema import Config, RayConfig
from rlpost.weights.models import TINY

@ray.remote(num_cpus=1)
def shipped_packages():
    # What came with the job, as a node without a checkout would find it.
    import own_environment
    folders = [Path(folder) for folder in sys.path if "py_modules" in folder]
    found = sorted(path.parent.name for folder in folders for path in folder.glob("*/__init__.py"))
    envs = [path.name for folder in folders for path in folder.glob("rlpost/envs/base.py")]
    return [*envs, *found, own_environment.GREETING]

modules = [Path(sys.argv[2]), Path(sys.argv[2]).with_name("own_helper.py")]
for _ in range(2):  # leaving once does not end the cluster
    with ray_cluster.connect(RayConfig(address=sys.argv[1]), ray_cluster.Needs(cpus=1, gpus=0), modules=modules):
        print(*actor_calls.get(shipped_packages.remote(), 120, "a remote worker"))
print(precision.settle(Config(ray=RayConfig(address=sys.argv[1])), TINY).reason.partition(":")[0])
"""


def test_a_running_cluster_is_joined_with_this_code_and_left_running(
    tmp_path: Path, own_module: Path
) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "HOME": str(tmp_path)}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert host.stdout is not None
    try:
        command = [sys.executable, "-c", GUEST, host.stdout.readline().strip(), str(own_module)]
        guest = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=environment, check=False
        )
        assert guest.stdout.split() == [*["base.py", "rlpost", "hello"] * 2, "measured"], guest.stderr
        assert host.poll() is None
    finally:
        host.communicate(timeout=60)  # closes its standard input, upon which it ends
    assert host.returncode == 0
    assert not list(tmp_path.glob(".ray*"))


AFTER_RAY = """
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
ray.shutdown()

from rlpost.cluster import ray_cluster
from rlpost.config.schema import RayConfig

with ray_cluster.connect(RayConfig(), ray_cluster.Needs(cpus=1, gpus=0)):
    print(ray.get(ray.remote(lambda: "connected").remote(), timeout=60))
"""


def test_a_program_that_has_used_ray_before_can_start_a_run(tmp_path: Path) -> None:
    """Ray itself remembers the token of the earlier cluster, which it keeps in the home folder."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    done = subprocess.run(
        [sys.executable, "-c", AFTER_RAY],
        capture_output=True,
        text=True,
        timeout=240,
        env={**environment, "HOME": str(tmp_path)},
        check=False,
    )
    assert done.stdout.split() == ["connected"], done.stderr
