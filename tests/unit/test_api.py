"""The Python API without engines: `dispatch` is replaced at the boundary, all before it is real."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium
import pytest
from gymnasium.spaces import Text

import rlpost
from rlpost.api import execute
from rlpost.cluster import ray_cluster
from rlpost.cluster.user_modules import own_modules
from rlpost.config.compose import compose, to_yaml
from rlpost.config.schema import Config
from rlpost.envs import caches, given, own, registry
from rlpost.envs.errors import Refused
from rlpost.errors import ClusterError, ConfigError, OutputError, RlpostError, RolloutError, SwapError
from rlpost.record.run_dir import RunDir
from rlpost.record.tracking import Trackers
from rlpost.rollout.instances import evaluation_episodes
from tests.unit.test_imports import loaded_by

ROWS = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(6) for b in range(6)]
QUICK = {"model": "tiny", "algo.iterations": 2, "tracking.wandb": "disabled"}
QUICK_EVAL = {"model": "tiny", "tracking.wandb": "disabled"}
PPO = {**QUICK, "sft.steps": 0, "algo.critic_warmup": 0}


def right(answer: str, row: dict[str, Any]) -> float:
    return float(row["answer"] in answer)


class Dispatched:
    """Stands for the tasks: makes the record, and keeps what reached it."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.tables: list[dict[str, Any]] = []
        self.does: Callable[[Config], None] = lambda config: None

    def __call__(self, config: Config) -> None:
        self.configs.append(config)
        self.tables.append(given.table())
        if config.resume is None:
            RunDir.create(config.output_dir, config.name, config.seed, to_yaml(config))
        self.does(config)


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dispatched:
    fake = Dispatched()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execute, "dispatch", fake)
    return fake


def numbered(size: int) -> type[gymnasium.Env[str, str]]:
    """A class of a local scope with `size` instances."""

    class Counting(gymnasium.Env[str, str]):
        observation_space = action_space = Text(1000)
        variants = (rlpost.PlainVariant("default", False, "numbers"),)

        def instances(self, variant: str, split: str) -> int:
            return size

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            return "say a number", {"instance": str(self.np_random.integers(size))}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return "", 1.0, True, False, {"outcome": "CORRECT", "success": True}

    return Counting


def test_the_command_line_and_python_give_the_same_configuration(dispatched: Dispatched) -> None:
    run = rlpost.train("own_grpo", data=ROWS, settings={**QUICK, "rollout": {"episodes": 16}, "seed": 3})
    path = (run.path / "data.jsonl").resolve()
    words = [f"{key}={value}" for key, value in QUICK.items()]
    words += [f"env_args.path={path}", "rollout.episodes=16", "seed=3", f"output_dir={run.path}"]
    assert dispatched.configs == [compose(["experiment=own_grpo", *words])]


def test_rows_are_written_into_the_record(dispatched: Dispatched) -> None:
    run = rlpost.train("own_grpo", data=iter(ROWS), settings=QUICK)
    lines = (run.path / "data.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert Path(run.settings["env_args"]["path"]).is_absolute()


def test_functions_keep_their_name_or_are_given(dispatched: Dispatched) -> None:
    def short(answer: str) -> float:
        return -float(len(answer))

    run = rlpost.train("own_grpo", data=ROWS, reward=[right, short, "number"], settings=QUICK)
    assert run.settings["env_args"]["score"] == [f"{__name__}:right", "given:short", "number"]
    assert dispatched.tables == [{"short": short}]
    assert given.table() == {}  # nothing is left behind


def test_functions_of_one_name_are_told_apart(dispatched: Dispatched) -> None:
    functions = [lambda answer, k=k: float(k) for k in range(2)]
    run = rlpost.train("own_grpo", data=ROWS, reward=functions, settings=QUICK)
    assert run.settings["env_args"]["score"] == ["given:function", "given:function_2"]
    assert list(dispatched.tables[0].values()) == functions


def test_a_class_of_a_local_scope_is_an_environment(dispatched: Dispatched) -> None:
    env_class = numbered(3)
    run = rlpost.train("own_ppo", env=env_class, settings=PPO)
    assert run.settings["env"] == "given:Counting"
    assert dispatched.tables == [{"Counting": env_class}]


def test_a_reward_model_is_called_by_reference(dispatched: Dispatched) -> None:
    def judge(episodes: list[rlpost.Trajectory]) -> list[rlpost.Trajectory]:
        return episodes

    run = rlpost.train("generalpoints_grpo", reward_model=judge, settings={"tracking.wandb": "disabled"})
    assert run.settings["algo"]["reward_function"] == "given:judge"


def test_an_environment_that_is_defined_anew_is_not_taken_for_the_old_one(dispatched: Dispatched) -> None:
    sizes = []
    dispatched.does = lambda config: sizes.append(len(evaluation_episodes(config, "default")))
    for size in (3, 5):
        rlpost.train("own_ppo", env=numbered(size), settings=PPO)
    assert sizes == [3, 5]


LOCK = threading.Lock()


def _refusals() -> Iterator[tuple[dict[str, Any], str]]:
    def locked(answer: str, lock: Any = LOCK) -> float:
        return float(lock.locked())

    yield {"data": ROWS, "reward": locked}, r"given:locked=.*\n.*cannot be pickled.*\n  remedy: "
    yield {"data": [*ROWS, {"prompt": "x", "answer": {1}}]}, r"data\[36\]=.*\n.*field 'answer' is of type set"
    yield {"data": [*ROWS, {"prompt": "x", "answer": (1,)}]}, r"data\[36\]=.*\n.*of type tuple"
    yield {"data": [*ROWS, {"prompt": "x", "answer": float("nan")}]}, r"data\[36\]=.*\n.*is nan"
    yield {"data": [*ROWS, {1: "x"}]}, r"data\[36\]=.*\n.*its key 1 is no text"
    yield {"data": [*ROWS, "x"]}, r"data\[36\]=.*\n.*of type str, not a dict"
    yield {"data": [{"question": "x"}]}, r"rows cannot be used"
    yield {"data": ROWS, "reward": 3}, r"reward=3\n.*no function"
    yield {"data": ROWS, "reward": int}, r"reward=.*\n.*no function"
    yield {"data": ROWS, "env": "generalpoints"}, r"data=.*\n.*env=dataset"
    yield {"env": numbered(2)()}, r"env=an environment\n.*no class.*\n.*give the class"
    yield {"env": int}, r"env=.*\n.*no class"
    yield {"data": ROWS, "settings": {"algo.iteration": 3}}, r"algo.iteration=3\n.*no such setting"
    yield {"data": ROWS, "settings": {"algo.iterations": 0}}, r"algo.iterations=0\n.*out of range"
    yield {"data": ROWS, "settings": {"algo.iterations": right}}, r"algo.iterations=.*\n.*type function"
    yield {"data": ROWS, "settings": {"model": 1.10}}, r"model=1.1\n.*not as a text"
    yield {"data": ROWS, "settings": {"env": "dataset"}}, r"env=dataset\n.*given twice"
    yield {"data": ROWS, "settings": {"task": "compare"}}, r"task=compare\n.*rl and sft"
    yield {"data": ROWS, "reward": "given:nothing"}, r"nothing of this name was handed over"


@pytest.mark.parametrize(
    ("arguments", "message"), list(_refusals()), ids=lambda each: each if isinstance(each, str) else ""
)
def test_refusals_come_before_anything_starts_and_leave_nothing(
    dispatched: Dispatched, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rlpost.train("own_grpo", **arguments)
    assert dispatched.configs == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(tmp_path.glob("outputs/own_grpo/*")) == []


def test_a_folder_that_holds_something_is_refused_as_on_the_command_line(
    dispatched: Dispatched, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"output_dir=mine\n.*it holds files already"):
        rlpost.train("own_grpo", data=ROWS, settings={"output_dir": "mine"})
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_refused_run_leaves_the_users_empty_folder(dispatched: Dispatched, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="out of range"):
        rlpost.train("own_grpo", data=ROWS, settings={"output_dir": "mine", "algo.iterations": 0})
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_failure_keeps_its_type_and_the_record(dispatched: Dispatched) -> None:
    def fail(config: Config) -> None:
        raise RolloutError("no engine")

    dispatched.does = fail
    with pytest.raises(RolloutError, match="no engine"):
        rlpost.train("own_grpo", data=ROWS, settings={**QUICK, "output_dir": "mine"})
    assert rlpost.open_run("mine").settings["name"] == "own_grpo"
    assert Path("mine/data.jsonl").is_file()
    assert given.table() == {}


def test_a_second_run_in_the_same_process_is_refused(dispatched: Dispatched) -> None:
    dispatched.does = lambda config: void(rlpost.train("own_grpo", data=ROWS, settings=QUICK))
    with pytest.raises(ClusterError, match="Another run is in progress in this process"):
        rlpost.train("own_grpo", data=ROWS, settings=QUICK)
    dispatched.does = lambda config: None
    rlpost.train("own_grpo", data=ROWS, settings=QUICK)  # the first is over


def void(result: object) -> None:
    """Drops a result."""


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    """SIGTERM as a fresh process has it: a test that ran before in this one may have left a handler, as Ray does."""
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_ends_a_run_as_ctrl_c_does_and_has_its_old_meaning_afterwards(dispatched: Dispatched) -> None:
    dispatched.does = lambda config: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        rlpost.train("own_grpo", data=ROWS, settings=QUICK)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_thread_runs_without_signals(dispatched: Dispatched) -> None:
    def ray_as_it_is_closed(config: Config) -> None:
        with ray_cluster._uninterrupted():
            pass

    dispatched.does = ray_as_it_is_closed
    runs = list[rlpost.Run]()
    thread = threading.Thread(target=lambda: runs.append(rlpost.train("own_grpo", data=ROWS, settings=QUICK)))
    thread.start()
    thread.join(60)
    assert len(runs) == 1


def test_on_metrics_gets_training_lines_and_is_off_after_an_error(
    dispatched: Dispatched, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def watch(line: dict[str, Any]) -> None:
        seen.append(line)
        if line["iteration"] == 1:
            raise KeyError("reward_mean")

    def log(config: Config) -> None:
        trackers = Trackers.start(config, Path(str(config.output_dir)), {})
        trackers.log({"eval/iterations": 0, "eval/success": 0.5}, "eval/iterations")
        for iteration in range(4):
            trackers.log({"iteration": iteration, "reward": 0.5}, "iteration")
        trackers.finish()

    dispatched.does = log
    with caplog.at_level(logging.WARNING):
        rlpost.train("own_grpo", data=ROWS, settings=QUICK, on_metrics=watch)
        rlpost.train("own_grpo", data=ROWS, settings=QUICK)  # knows nothing of the first one's
    assert seen == [{"iteration": 0, "reward": 0.5}, {"iteration": 1, "reward": 0.5}]
    assert [record.message for record in caplog.records if "on_metrics" in record.message] == [
        "on_metrics could not log (KeyError: 'reward_mean'): it is off from here on, the run goes on and metrics.jsonl"
        " has every figure"
    ]


class TestResume:
    def test_objects_are_given_again(self, dispatched: Dispatched) -> None:
        def own(answer: str) -> float:
            return float(len(answer))

        first = rlpost.train("own_grpo", data=ROWS, reward=own, settings=QUICK)
        with pytest.raises(
            ConfigError, match=r"env_args.score=given:own\n.*\n  remedy: hand the object over again"
        ):
            rlpost.train(resume=first.path)
        run = rlpost.train(resume=first.path, reward=own, settings={"algo.iterations": 5})
        assert run.path == first.path
        assert dispatched.configs[-1].algo.iterations == 5
        assert dispatched.tables[-1] == {"own": own}

    def test_rows_are_those_of_the_record(self, dispatched: Dispatched) -> None:
        first = rlpost.train("own_grpo", data=ROWS, settings=QUICK)
        with pytest.raises(ConfigError, match="its rows in its record"):
            rlpost.train(resume=first.path, data=ROWS)
        assert rlpost.train(resume=first.path).path == first.path

    def test_the_command_line_cannot_bring_an_object(self, dispatched: Dispatched) -> None:
        def own(answer: str) -> float:
            return float(len(answer))

        first = rlpost.train("own_grpo", data=ROWS, reward=own, settings=QUICK)
        with pytest.raises(ConfigError, match="nothing of this name was handed over from Python"):
            execute.prepare([f"resume={first.path}", "env_args.score=given:own"])


@pytest.fixture
def trained(dispatched: Dispatched) -> rlpost.Run:
    """A run with an adapter, whose scorer is code of the user's."""

    def adapted(config: Config) -> None:
        if config.output_dir is not None and config.adapter is None:
            folder = RunDir(Path(config.output_dir)).adapter
            folder.mkdir()
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                (folder / name).write_text("{}")

    dispatched.does = adapted
    return rlpost.train("own_grpo", data=ROWS, reward=right, settings={**QUICK, "output_dir": "trained"})


class TestHandle:
    def test_evaluation_keeps_the_runs_settings_and_takes_its_adapter(
        self, dispatched: Dispatched, trained: rlpost.Run
    ) -> None:
        found = trained.evaluate(eval_variants=["default"], settings={"eval.episodes": 5})
        config = dispatched.configs[-1]
        assert (config.task.value, config.adapter, config.eval.episodes) == ("eval", str(trained.adapter), 5)
        assert config.env_args == trained.settings["env_args"]
        assert found.path != trained.path
        assert found.progress == rlpost.Progress("start", 0, None)

    def test_the_code_of_a_record_is_named_again_to_be_run(
        self, dispatched: Dispatched, trained: rlpost.Run
    ) -> None:
        opened = rlpost.open_run("trained")
        with pytest.raises(ConfigError, match=r"env_args.score=.*:right\n.*may come from anybody"):
            opened.evaluate()
        assert len(dispatched.configs) == 1
        opened.evaluate(reward=right)
        assert dispatched.configs[-1].env_args["score"] == f"{__name__}:right"

    def test_progress_follows_the_record(self, trained: rlpost.Run) -> None:
        record, handle = RunDir(trained.path), rlpost.open_run(trained.path)
        assert handle.progress == rlpost.Progress("start", 0, 2)
        record.append_metrics({"stage": "rl", "iteration": 0, "reward": 0.25})
        assert handle.progress == rlpost.Progress("rl", 1, 2)
        assert [line["reward"] for line in handle.metrics] == [0.25]
        (trained.path / "error.json").write_text('{"type": "RolloutError", "message": ["no"], "remedy": []}')
        assert handle.progress == rlpost.Progress("failed", 1, 2)
        assert str(handle.error) == "RolloutError: no"

    def test_what_is_not_there_yet_is_said(self, dispatched: Dispatched, tmp_path: Path) -> None:
        run = rlpost.train("own_grpo", data=ROWS, settings=QUICK)
        assert (run.summary, run.findings, run.error) == (None, [], None)
        for what in ("adapter", "report"):
            with pytest.raises(OutputError, match="the run is not finished"):
                getattr(run, what)
        with pytest.raises(OutputError, match="no such episodes\n  remedy: there are none"):
            run.episodes("../config")
        with pytest.raises(OutputError, match="no run directory"):
            rlpost.open_run(tmp_path)


class Ended:
    """Stands for a process that is over."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code

    def wait(self, timeout_s: float | None) -> int | None:
        return self.exit_code


class TestStarted:
    def started(self, folder: Path, exit_code: int | None) -> rlpost.Started:
        return rlpost.Started(folder, _process=cast("Any", Ended(exit_code)))

    def test_what_is_refused_is_refused_here(self, dispatched: Dispatched, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="out of range"):
            rlpost.start("own_grpo", data=ROWS, settings={"algo.iterations": 0})
        assert list(tmp_path.glob("outputs/own_grpo/*")) == []

    def test_words_and_objects_reach_the_process(
        self, dispatched: Dispatched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        monkeypatch.setattr("rlpost.api.background.Process", lambda *call: calls.append(call) or Ended(None))
        own = lambda answer: 1.0  # noqa: E731
        started = rlpost.start("own_grpo", data=ROWS, reward=own, settings=QUICK)
        (words, objects, folder) = calls[0]
        assert (objects, folder) == ({"function": own}, started.path)
        assert compose(words).env_args["path"] == str((folder / "data.jsonl").resolve())
        assert started.running
        assert started.progress == rlpost.Progress("start", 0, None)
        with pytest.raises(TimeoutError, match="not over after 2 s"):
            started.wait(2)

    def test_an_error_of_the_run_is_raised_as_its_kind(self, tmp_path: Path) -> None:
        (tmp_path / "error.json").write_text(
            '{"type": "SwapError", "message": ["layer 3", "is wrong"], "remedy": ["remedy: stop"]}'
        )
        with pytest.raises(SwapError, match="layer 3\nis wrong\n  remedy: stop"):
            self.started(tmp_path, 1).wait()
        (tmp_path / "error.json").write_text('{"type": "KeyError", "message": ["\'x\'"], "remedy": []}')
        with pytest.raises(RlpostError, match="KeyError: 'x'"):
            self.started(tmp_path, 1).wait()

    def test_a_run_that_was_stopped_says_how_it_goes_on(self, tmp_path: Path) -> None:
        with pytest.raises(RlpostError, match="the run was stopped, or killed"):
            self.started(tmp_path, 143).wait()
        assert self.started(tmp_path, 0).wait() == rlpost.Run(tmp_path)


class TestBare:
    def test_evaluate_needs_no_adapter(self, dispatched: Dispatched) -> None:
        rlpost.evaluate("own_grpo", data=ROWS, settings=QUICK_EVAL)
        assert (dispatched.configs[0].task.value, dispatched.configs[0].adapter) == ("eval", None)


def test_modules_beside_the_code_of_a_given_object_are_shipped() -> None:
    def local() -> None:
        """Its code travels; what it imports from beside this file does not."""

    with given.handed_over({"local": local}):
        assert Path(__file__).parents[1] in own_modules(Config())
    assert own_modules(Config()) == []


def test_what_was_not_given_is_refused() -> None:
    with pytest.raises(Refused, match=r"given:gone: nothing of this name.*; hand it over again"):
        own.load("given:gone")
    with pytest.raises(Refused, match="given:gone"):
        registry.make("given:gone")


def test_caches_are_emptied() -> None:
    calls = []
    remembered = caches.remembered(maxsize=2)(lambda key: calls.append(key))
    for _ in range(2):
        remembered(1)
    caches.forget()
    remembered(1)
    assert calls == [1, 1]


class TestPublicNames:
    def test_each_is_there_and_no_other(self) -> None:
        assert all(hasattr(rlpost, name) for name in rlpost.__all__)
        assert set(rlpost.__all__) <= set(dir(rlpost))
        with pytest.raises(AttributeError, match="no attribute 'trian'"):
            rlpost.__getattr__("trian")

    def test_the_page_has_each_of_them(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
        section = page.partition("## Public names\n")[2].partition("\n## ")[0]
        assert sorted(re.findall(r"^\| `(?:rlpost\.)?(\w+)", section, re.MULTILINE)) == sorted(rlpost.__all__)

    def test_the_page_has_each_part_of_a_run(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
        section = page.partition("## A run\n")[2].partition("\n## ")[0]
        public = {name for name in dir(rlpost.Run) if not name.startswith("_")} | {"path"}
        assert set(re.findall(r"^\| `run\.(\w+)", section, re.MULTILINE)) == public

    def test_the_import_is_light(self) -> None:
        heavy = {"torch", "vllm", "ray", "omegaconf", "gymnasium", "numpy"}
        assert not loaded_by("import rlpost; rlpost.errors") & heavy
        names = "rlpost.train, rlpost.Trajectory, rlpost.PlainVariant, rlpost.open_run"
        assert not loaded_by(f"import rlpost; {names}") & {
            "torch",
            "vllm",
            "ray",
            "transformers",
            "deepspeed",
        }
