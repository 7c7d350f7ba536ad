"""The trackers' promise: files under the run directory, series over iterations, and never a run that stops or waits
because of one. What TensorBoard, MLflow and wandb wrote is read back by their own readers."""

from __future__ import annotations

import json
import logging
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlpost.config.schema import Config
from rlpost.errors import ConfigError
from rlpost.record.trackers.backend import DEADLINE_S, plain_name
from rlpost.record.trackers.background import Background
from rlpost.record.trackers.secrets import HIDDEN, without_secrets
from rlpost.record.trackers.wandb_backend import has_wandb_key, resolve_mode
from rlpost.record.tracking import KINDS, Trackers, evaluation_figures
from rlpost.validate.checks import validate


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return Config()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


class FakeRun:
    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.logged: list[dict[str, float]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.finished = 0

    def log(self, metrics: dict[str, float]) -> None:
        if self.failing == "log":
            raise OSError(28, "No space left on device")
        self.logged.append(metrics)

    def define_metric(self, name: str, step_metric: str | None) -> None:
        self.axes.append((name, step_metric))

    def finish(self) -> None:
        self.finished += 1
        if self.failing == "finish":
            raise ConnectionError("no route to host")


def install_fake(monkeypatch: pytest.MonkeyPatch, run: FakeRun | Exception) -> list[dict[str, Any]]:
    started: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        started.append(options)
        if isinstance(run, Exception):
            raise run
        return run

    fake = SimpleNamespace(init=init, Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return started


class TestMode:
    @pytest.mark.usefixtures("config")
    def test_auto_is_offline_without_a_key(self) -> None:
        assert resolve_mode("auto") == "offline"

    @pytest.mark.usefixtures("config")
    def test_auto_is_online_with_a_key_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "x")
        assert resolve_mode("auto") == "online"
        assert resolve_mode("offline") == "offline"

    @pytest.mark.usefixtures("config")
    @pytest.mark.parametrize(
        ("said", "mode"),
        [
            ("offline", "offline"),
            ("dryrun", "offline"),
            ("disabled", "disabled"),
            ("online", "online"),
            ("run", "online"),
            ("", "online"),
        ],
    )
    def test_auto_obeys_wandbs_own_variable_also_with_a_key(
        self, said: str, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "x")
        monkeypatch.setenv("WANDB_MODE", said)
        assert resolve_mode("auto") == mode
        assert resolve_mode("offline") == "offline", "what is named is kept"

    @pytest.mark.usefixtures("config")
    def test_a_mode_that_is_none_or_lacks_its_key_is_refused_at_the_start(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "of")
        with pytest.raises(ConfigError, match=r"WANDB_MODE=of\n.*unknown\n.*dryrun"):
            validate(config)
        monkeypatch.setenv("WANDB_MODE", "online")
        with pytest.raises(ConfigError, match=r"no key"):
            validate(config)
        monkeypatch.setenv("WANDB_MODE", "disabled")
        validate(config)

    @pytest.mark.usefixtures("config")
    def test_a_key_in_netrc_counts_for_its_host_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
        assert has_wandb_key()
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
        assert not has_wandb_key()
        (tmp_path / "netrc").write_text("machine wandb.example.org login user password x\n")
        assert has_wandb_key()

    @pytest.mark.usefixtures("config")
    def test_a_broken_netrc_is_no_key(self, tmp_path: Path) -> None:
        (tmp_path / "netrc").write_text("machine\nmachine machine")
        assert not has_wandb_key()


def test_disabled_does_nothing(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = install_fake(monkeypatch, FakeRun())
    config.tracking.wandb = "disabled"
    tracker = Trackers.start(config, tmp_path / "run", {})
    tracker.log({"a": 1.0}, "a")
    tracker.finish()
    assert started == []


def test_metrics_reach_the_run(config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    run = FakeRun()
    started = install_fake(monkeypatch, run)
    tracker = Trackers.start(config, folder, {"seed": 3})
    tracker.log({"iteration": 0, "success": 0.5}, "iteration")
    tracker.finish()
    tracker.finish()
    assert run.logged == [{"iteration": 0, "success": 0.5}]
    assert run.finished == 1
    assert started[0]["mode"] == "offline"
    assert started[0]["dir"] == str(folder)
    assert started[0]["config"] == {"seed": 3}
    assert started[0]["settings"]["finish_timeout"] == DEADLINE_S


def test_each_kind_of_step_has_an_axis_of_its_own(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    run = FakeRun()
    install_fake(monkeypatch, run)
    tracker = Trackers.start(config, folder, {})
    for step in range(2):
        tracker.log({"sft/step": step, "sft/loss": 2.0}, over="sft/step")
    tracker.log({"iteration": 0, "success": 0.5}, over="iteration")
    assert run.axes == [
        ("sft/loss", "sft/step"),
        ("sft/step", None),
        ("iteration", None),
        ("success", "iteration"),
    ]
    assert [metrics.get("sft/step", "iteration") for metrics in run.logged] == [0, 1, "iteration"]


def test_a_run_resumed_online_goes_on_in_the_same_wandb_run(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    started, config.tracking.wandb = install_fake(monkeypatch, FakeRun()), "online"
    for where in (folder, folder, tmp_path):
        Trackers.start(config, where, {}).finish()
    first, resumed, another = (options["id"] for options in started)
    assert first == resumed != another
    assert [options["resume"] for options in started] == ["allow"] * 3
    assert started[0]["name"] == started[1]["name"] == "run"


@pytest.mark.parametrize(
    "modes", [("offline", "offline"), ("online", "offline", "online"), ("offline", "online")]
)
def test_what_is_synced_later_erases_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path, modes: tuple[str, ...]
) -> None:
    """Syncing sends a folder from line 0 on: what was written offline shares its id with nothing."""
    started = install_fake(monkeypatch, FakeRun())
    for number, mode in enumerate(modes):
        config.tracking.wandb = mode
        Trackers.start(config, folder, {}).finish()
        (folder / "wandb" / f"offline-run-{number}").mkdir(parents=True)
    offline = [options["id"] for options in started if options["mode"] == "offline"]
    online = {options["id"] for options in started if options["mode"] == "online"}
    assert len(set(offline)) == len(offline)
    assert not online & set(offline)
    assert len(online) <= 1
    offline_names = [options["name"] for options in started if options["mode"] == "offline"]
    assert offline_names == [
        f"run-{n + 1}" if n else "run" for n, mode in enumerate(modes) if mode == "offline"
    ]


def test_of_an_evaluation_success_is_sent(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    run = FakeRun()
    install_fake(monkeypatch, run)
    found = {"a": {"n": 2, "success": 0.5, "greedy": {"success": 1.0}, "sampled": {"success": 0.5}}}
    Trackers.start(config, folder, {}).log_evaluation(found, "eval/iterations", 7)
    assert run.logged == [{"eval/iterations": 7, "eval/a/greedy/success": 1.0, "eval/a/sampled/success": 0.5}]
    assert ("eval/a/greedy/success", "eval/iterations") in run.axes


@pytest.mark.parametrize("failing", ["start", "log", "finish"])
def test_failures_warn_once_and_never_raise(
    failing: str,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install_fake(monkeypatch, RuntimeError("bad key") if failing == "start" else FakeRun(failing))
    with caplog.at_level(logging.WARNING):
        tracker = Trackers.start(config, folder, {})
        for _ in range(3):
            tracker.log({"a": 1.0}, "a")
        tracker.finish()
    assert len(caplog.records) == 1
    assert f"wandb could not {failing}" in caplog.text
    assert "the run goes on" in caplog.text


def test_a_broken_install_is_survived(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb raises ImportError
    Trackers.start(config, folder, {}).log({"a": 1.0}, "a")
    assert "ModuleNotFoundError" in caplog.text or "ImportError" in caplog.text


def test_real_wandb_offline_keeps_to_the_run_directory(
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for _ in range(2):
        tracker = Trackers.start(config, folder, {"seed": 0})
        tracker.log({"sft/step": 0, "sft/loss": 2.0}, over="sft/step")
        tracker.log({"iteration": 0, "success": 0.5}, over="iteration")
        tracker.finish()
    assert len({path.name for path in folder.glob("wandb/offline-run-*/*.wandb")}) == 2, "an id each"
    assert not list(elsewhere.iterdir())
    out, err = capfd.readouterr()
    assert out == err == ""


def test_samples_are_sent_for_some_k() -> None:
    by_k = {str(k): {"value": k / 10} for k in range(1, 7)}
    entry = {"success": 0.1, "pass_at": by_k, "majority_at": None}
    figures = evaluation_figures({"a": {"sampled": entry}})
    assert figures == {"eval/a/sampled/success": 0.1} | {
        f"eval/a/sampled/pass_at_{k}": k / 10 for k in (1, 2, 4, 6)
    }


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log format (blocks of 32 KiB, of records with
    checksum, length and type, 1 whole, 2 first, 3 middle, 4 last). wandb 0.31 has no reader in Python."""
    data, at, whole = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole = (whole if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole


def history(file: Path) -> tuple[list[dict[str, float]], dict[str, str]]:
    """Every line of a wandb run that was written offline, and the axis of each key ("": none)."""
    from wandb.proto.wandb_internal_pb2 import Record

    records: list[Any] = []
    deadline = time.monotonic() + 30
    while not any(
        record.HasField("exit") for record in records
    ):  # wandb's own process writes to the end of it
        assert time.monotonic() < deadline, "wandb did not finish its file"
        records = [Record.FromString(data) for data in wandb_records(file)]
    lines = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    axes = {record.metric.name: record.metric.step_metric for record in records if record.HasField("metric")}
    return lines, axes


def evaluated(success: float) -> dict[str, Any]:
    return {"a b": {"sampled": {"success": success}}}


def play(config: Config, folder: Path, first: int, last: int) -> None:
    """One start of a run: the bare model's evaluation, iterations, an evaluation each second one and at the end."""
    tracker = Trackers.start(config, folder, {"seed": 3, "env_args": {"api_key": "hush"}})
    if first == 0:
        tracker.log({"sft/step": 0, "sft/loss": 2.0}, over="sft/step")
        tracker.log_evaluation(evaluated(0.0), "eval/iterations", 0)
    for i in range(first, last):
        tracker.log({"iteration": i, "success": i / 10, "outcome/Ä@": 1.0}, over="iteration")
        if (i + 1) % 2 == 0:
            tracker.log_evaluation(evaluated((i + 1) / 10), "eval/iterations", i + 1)
    tracker.finish()


def test_wandb_draws_evaluations_over_finished_iterations(config: Config, folder: Path) -> None:
    play(config, folder, 0, 4)
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    lines, axes = history(file)
    key = "eval/a b/sampled/success"
    assert [(line["eval/iterations"], line[key]) for line in lines if key in line] == [
        (0, 0.0),
        (2, 0.2),
        (4, 0.4),
    ]
    assert axes == {
        "sft/step": "",
        "sft/loss": "sft/step",
        "eval/iterations": "",
        key: "eval/iterations",
        "iteration": "",
        "success": "iteration",
        "outcome/Ä@": "iteration",
    }
    assert b"hush" not in file.read_bytes()


def test_tensorboard_draws_over_iterations_and_a_resumed_run_goes_on(config: Config, folder: Path) -> None:
    """A run that was killed after iteration 5 goes on from its checkpoint at 4: the two lines it plays again count."""
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config.tracking.backends = ["tensorboard"]
    play(config, folder, 0, 6)
    play(config, folder, 4, 8)

    def series(axis: str, key: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(folder / "tensorboard" / axis)).Reload()
        return [(event.step, round(event.value, 6)) for event in events.Scalars(key)]

    assert series("iteration", "success") == [(i, i / 10) for i in range(8)]
    assert series("iteration", "outcome/Ä_40_")[0] == (0, 1.0)
    assert series("eval-iterations", "eval/a_20_b/sampled/success") == [(i, i / 10) for i in (0, 2, 4, 6, 8)]
    assert series("sft-step", "sft/loss") == [(0, 2.0)]
    assert not any(b"hush" in path.read_bytes() for path in folder.rglob("events*"))


def test_mlflow_draws_over_iterations_and_a_resumed_run_goes_on(
    config: Config, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(module, reason="the extra `mlflow` is not installed")
    import mlflow

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config.tracking.backends = ["mlflow"]
    play(config, folder, 0, 4)
    play(config, folder, 4, 6)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rlpost")
    (run,) = client.search_runs([experiment.experiment_id])

    def series(key: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]

    assert series("success") == [(i, i / 10) for i in range(6)]
    assert series("eval/a_20_b/sampled/success") == [(i, i / 10) for i in (0, 2, 4, 6)]
    assert run.data.params == {"seed": "3", "env_args.api_key": HIDDEN}
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert not list((tmp_path / "elsewhere").iterdir())


class Waits:
    """A backend whose server never answers."""

    def __init__(self) -> None:
        self.answer = threading.Event()

    def log(self, metrics: Mapping[str, float], over: str) -> None:
        self.answer.wait(20)

    def finish(self) -> None:
        pass


def test_a_server_that_never_answers_holds_up_neither_the_run_nor_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Waits()
    tracker = Trackers({"slow": Background("slow", lambda: backend, deadline_s=0.2)})
    began = time.monotonic()
    for i in range(1000):
        tracker.log({"iteration": i}, "iteration")
    tracker.finish()
    assert time.monotonic() - began < 5
    assert [record.getMessage() for record in caplog.records] == [
        "slow could not finish (TimeoutError: slow did not take everything within 0.2 s): it is off from here on, the"
        " run goes on and metrics.jsonl has every figure"
    ]
    backend.answer.set()


def test_what_a_thread_fails_with_is_told_once_and_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused() -> Waits:
        raise ConnectionError("no way to https://me:word@host/api")

    tracker = Trackers({"far": Background("far", refused, deadline_s=5)})
    for _ in range(2):
        tracker.finish()
    assert len(caplog.records) == 1
    assert f"ConnectionError: no way to https://{HIDDEN}@host/api" in caplog.text


def test_one_tracker_that_fails_leaves_the_others(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun()
    install_fake(monkeypatch, run)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config.tracking.backends = ["mlflow", "wandb"]
    tracker = Trackers.start(config, folder, {})
    tracker.log({"iteration": 1}, "iteration")
    tracker.finish()
    assert run.logged == [{"iteration": 1}]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["mlflow"]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_whose_package_is_missing_is_refused_at_the_start(
    name: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlpost.record.tracking.find_spec", lambda module: None)
    config.tracking.wandb, config.tracking.backends = "disabled", ["wandb", name]
    with pytest.raises(
        ConfigError, match=rf"{name} needs what is not installed: {name}.*\n.*{KINDS[name].install}"
    ):
        validate(config)


@pytest.mark.parametrize(
    ("backends", "reason"),
    [(["comet"], r"unknown: comet\n.*wandb, tensorboard, mlflow"), (["wandb", "wandb"], "named twice")],
)
def test_other_backends_are_refused(config: Config, backends: list[str], reason: str) -> None:
    config.tracking.backends = backends
    with pytest.raises(ConfigError, match=reason):
        validate(config)


def test_an_address_that_mlflow_would_not_take_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlpost.record.tracking.find_spec", lambda module: module)
    config.tracking.backends, config.tracking.mlflow_uri = ["mlflow"], "mlruns"
    with pytest.raises(ConfigError, match=r"mlflow_uri=mlruns\n.*neither a server nor a database"):
        validate(config)
    config.tracking.mlflow_uri = "https://host:5000"
    validate(config)


def test_no_backend_is_allowed(config: Config, folder: Path) -> None:
    config.tracking.backends = []
    validate(config)
    Trackers.start(config, folder, {}).finish()
    assert not list(folder.iterdir())


def test_secrets_are_hidden_and_token_counts_are_not() -> None:
    settings = {
        "rollout": {"max_new_tokens": 128},
        "env_args": {
            "hub_token": "x",
            "password": ["a"],
            "url": "http://u:p@h/a",
            "key": "k",
            "api-key": None,
        },
        "tracking": {"mlflow_uri": "postgresql+psycopg2://me:word@host/db"},
    }
    assert without_secrets(settings) == {
        "rollout": {"max_new_tokens": 128},
        "env_args": {
            "hub_token": HIDDEN,
            "password": HIDDEN,
            "url": f"http://{HIDDEN}@h/a",
            "key": "k",
            "api-key": None,
        },
        "tracking": {"mlflow_uri": f"postgresql+psycopg2://{HIDDEN}@host/db"},
    }


def test_plain_names_keep_different_keys_apart() -> None:
    assert plain_name("eval/a b@2/x-1.5_y") == "eval/a_20_b_40_2/x-1.5_y"
    assert len({plain_name(key) for key in ("a b", "a+b", "a_b", "a@b")}) == 4
