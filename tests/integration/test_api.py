"""Runs from Python with engines: the page's example as `__main__`, Ctrl-C and resuming, a thread, the notebook."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 900
SMALL = """
SMALL = {
    "algo.iterations": 2, "rollout.episodes": 16, "rollout.group_size": 4, "rollout.max_new_tokens": 12,
    "rollout.kv_cache_gib": 0.25, "eval.episodes": 8, "eval.greedy": False, "learner.threads": 1, "dtype": "float32",
}
"""


def printed(folder: Path, program: str) -> str:
    """What a program prints that is started as a user's script, in its own folder."""
    script = folder / "script.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def example() -> str:
    """The program of docs/api.md, with fewer and shorter episodes."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    program, _ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    small = program.replace('"algo.iterations": 3,', "**SMALL,").replace(
        '"eval.episodes": 32', '"eval.episodes": 4'
    )
    assert small.count("SMALL") == 1
    return SMALL + small


AFTERWARDS = """
import json, psutil
from peft import PeftConfig

reopened = rlpost.open_run(run.path)
found = {
    "score": run.settings["env_args"]["score"],
    "rows": len((run.path / "data.jsonl").read_text().splitlines()),
    "progress": [reopened.progress.stage, reopened.progress.step, reopened.progress.total],
    "metrics": [line["reward"] for line in reopened.metrics if "iteration" in line],
    "rewards": [turn.reward for e in run.episodes("iteration-000001") for turn in e.turns],
    "again": [right(t.answer, {"answer": str(eval(t.observation.rstrip("= ")))})
              for e in run.episodes("iteration-000001") for t in e.turns],
    "adapter": PeftConfig.from_pretrained(run.adapter).peft_type,
    "findings": run.findings,
    "evaluated": evaluation.summary["eval"]["after"]["default"]["n"],
    "children": [child.name() for child in psutil.Process().children(recursive=True)],
}
print("FOUND", json.dumps(found))
"""


def found_in(output: str) -> Any:
    (line,) = [line for line in output.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


def test_the_pages_example_runs_with_a_function_of_main(tmp_path: Path) -> None:
    output = printed(tmp_path, example() + AFTERWARDS)
    found = found_in(output)
    assert found["score"] == "given:right"
    assert found["rows"] == 100
    assert found["progress"] == ["finished", 2, 2]
    assert len(found["metrics"]) == 2
    assert found["rewards"] == found["again"]  # the worker's function is this one
    assert len(found["rewards"]) == 16
    assert found["adapter"] == "LORA"
    assert len(found["findings"]) == 1
    assert found["evaluated"] == 4
    assert found["children"] == []
    lines = [line for line in output.splitlines() if re.fullmatch(r"[01] \d\.\d+", line)]
    assert [line.split()[0] for line in lines] == ["0", "1"]  # on_metrics


INTERRUPTED = f"""{SMALL}
import json, signal
import psutil
import rlpost

def in_a_local_scope():
    table = {{"4": 1.0}}
    return lambda answer: table.get(answer[:1], 0.25)

reward = in_a_local_scope()
rows = [{{"prompt": f"{{a}} + {{b}} ="}} for a in range(8) for b in range(8)]
settings = {{"model": "tiny", "tracking.wandb": "disabled", "output_dir": "mine", "eval.start": False, **SMALL}}

def stop(line):
    signal.raise_signal(signal.SIGINT)

try:
    rlpost.train("own_grpo", data=rows, reward=reward, settings=settings, on_metrics=stop)
    raise AssertionError("Ctrl-C ends a run")
except KeyboardInterrupt:
    children = [child.name() for child in psutil.Process().children(recursive=True)]
    at_the_stop = rlpost.open_run("mine").progress
run = rlpost.train(resume="mine", reward=reward)
print("FOUND", json.dumps({{
    "children": children,
    "step": at_the_stop.step,
    "stage": at_the_stop.stage,
    "iterations": [line["iteration"] for line in run.metrics if "iteration" in line],
    "rewards": sorted({{t.reward for e in run.episodes("iteration-000000") for t in e.turns}}),
    "left": [child.name() for child in psutil.Process().children(recursive=True)],
}}))
"""


@pytest.mark.slow
def test_ctrl_c_leaves_a_record_and_no_process_and_the_run_goes_on(tmp_path: Path) -> None:
    found = found_in(printed(tmp_path, INTERRUPTED))
    assert found["children"] == found["left"] == []
    assert (found["stage"], found["step"]) == ("rl", 1)
    assert found["iterations"] == [0, 1]
    assert set(found["rewards"]) <= {0.25, 1.0}
    assert found["rewards"]


THREADED = """
import json, threading
import gymnasium, psutil
import rlpost

def in_a_local_scope():
    table = {"heads": 0.5}

    class Coin(gymnasium.Env):
        observation_space = action_space = rlpost.AnyText(100)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return f"toss {self.np_random.integers(1000)}: heads or tails?", {}

        def step(self, action):
            return "", table["heads"], True, False, {}

    return Coin

settings = {"rollout.workers": 1, "rollout.kv_cache_gib": 0.25, "eval.episodes": 3, "eval.greedy": False}
settings |= {"tracking.wandb": "disabled", "dtype": "float32"}
runs = []
evaluate = lambda: runs.append(rlpost.evaluate("own_ppo", env=in_a_local_scope(), settings=settings))
thread = threading.Thread(target=evaluate)
thread.start()
thread.join()
(name,) = runs[0].episode_files
print("FOUND", json.dumps({
    "coins": [[t.observation.split()[0], t.reward] for e in runs[0].episodes(name) for t in e.turns],
    "left": [child.name() for child in psutil.Process().children(recursive=True)],
}))
"""


@pytest.mark.slow
def test_a_thread_runs_a_class_of_a_local_scope(tmp_path: Path) -> None:
    assert found_in(printed(tmp_path, THREADED)) == {"coins": [["toss", 0.5]] * 3, "left": []}


BACKGROUND = f"""{SMALL}
import json, time
import psutil
import rlpost

rows = [{{"prompt": f"{{a}} + {{b}} ="}} for a in range(8) for b in range(8)]

def half(answer):
    return 0.5

settings = {{"model": "tiny", "tracking.wandb": "disabled", "eval.start": False, **SMALL, "algo.iterations": 500}}
broken = rlpost.start("own_grpo", data=rows, reward=half, settings={{**settings, "model": "no/folder/here"}})
try:
    broken.wait(120)
except rlpost.errors.RlpostError as error:
    failed = [type(error).__name__, broken.progress.stage, str(error)]

run = rlpost.start("own_grpo", data=rows, reward=half, settings=settings)
deadline = time.monotonic() + 600
while run.progress.step < 1 and run.running and time.monotonic() < deadline:
    time.sleep(0.2)
try:
    run.wait(0.1)
except TimeoutError as error:
    waited = str(error)
below = psutil.Process().children(recursive=True)
run.stop()
try:
    run.wait(0)
except rlpost.errors.RlpostError as error:
    stopped = str(error)
print("FOUND", json.dumps({{
    "failed": failed,
    "waited": waited,
    "stopped": stopped,
    "rewards": sorted({{t.reward for e in run.episodes("iteration-000000") for t in e.turns}}),
    "left": [each.pid for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE],
    "console": "iteration 1" in (run.path / "console.log").read_text(),
}}))
"""


@pytest.mark.slow
def test_a_run_in_the_background_is_followed_and_stopped_and_tells_its_error(tmp_path: Path) -> None:
    found = found_in(printed(tmp_path, BACKGROUND))
    assert found["failed"][:2] == ["ModelError", "failed"]
    assert "no/folder/here" in found["failed"][2]
    assert "is not over after 0.1 s" in found["waited"]
    assert "the run was stopped" in found["stopped"]
    assert found["rewards"] == [0.5]
    assert found["left"] == []
    assert found["console"]


ORPHAN = f"""{SMALL}
import json, time
import rlpost

settings = {{"model": "tiny", "tracking.wandb": "disabled", "eval.start": False, **SMALL}}
settings["algo.iterations"] = 1000  # it does not come to its own end
rows = [{{"prompt": f"{{a}} + {{b}} =", "answer": str(a + b)}} for a in range(8) for b in range(8)]
run = rlpost.start("own_grpo", data=rows, settings=settings)
deadline = time.monotonic() + 300
while "starting Ray" not in (run.path / "console.log").read_text() and time.monotonic() < deadline:
    time.sleep(0.1)
print("FOUND", json.dumps({{"pid": run._own._process.pid, "running": run.running, "folder": str(run.path.resolve())}}))
"""


def test_a_run_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    found = found_in(printed(tmp_path, ORPHAN))
    assert found["running"]
    if process := _process(found["pid"]):
        psutil.wait_procs([process], timeout=90)
    assert _process(found["pid"]) is None
    folder = Path(found["folder"])
    assert (folder / "config.yaml").is_file()
    assert not (folder / "summary.json").exists()
    assert not (folder / "error.json").exists()  # it did not fail: it was stopped


def _process(pid: int) -> psutil.Process | None:
    """None where it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else found
    return None


def test_the_notebook_is_stored_without_results() -> None:
    for cell in notebook()["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Its cells in order as one program: no package that runs notebooks is among the requirements."""
    cells = ["".join(cell["source"]) for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    program = "import matplotlib\nmatplotlib.use('Agg')\n\n" + "\n\n".join(cells)
    output = printed(tmp_path, program)
    assert "success" in output
    assert list((tmp_path / "outputs").glob("*/*/report.html"))


def notebook() -> dict[str, Any]:
    path = ROOT / "docs" / "notebooks" / "first_run.ipynb"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
