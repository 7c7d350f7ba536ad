"""The tracker's promise: wandb's files under the run directory, and never a run that stops because of wandb."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlpost.config.schema import Config
from rlpost.errors import ConfigError
from rlpost.record.tracking import DEADLINE_S, Tracker, has_wandb_key, resolve_mode
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
    tracker = Tracker(config, tmp_path / "run", {})
    tracker.log({"a": 1.0})
    tracker.finish()
    assert started == []


def test_metrics_reach_the_run(config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    run = FakeRun()
    started = install_fake(monkeypatch, run)
    tracker = Tracker(config, folder, {"seed": 3})
    tracker.log({"success": 0.5})
    tracker.finish()
    tracker.finish()
    assert run.logged == [{"success": 0.5}]
    assert run.axes == []
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
    tracker = Tracker(config, folder, {})
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
        Tracker(config, where, {}).finish()
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
        Tracker(config, folder, {}).finish()
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
    Tracker(config, folder, {}).log_evaluation(found)
    assert run.logged == [{"eval/a/greedy/success": 1.0, "eval/a/sampled/success": 0.5}]


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
        tracker = Tracker(config, folder, {})
        for _ in range(3):
            tracker.log({"a": 1.0})
        tracker.finish()
    assert len(caplog.records) == 1
    assert f"wandb could not {failing}" in caplog.text
    assert "the run goes on" in caplog.text


def test_a_broken_install_is_survived(
    config: Config, monkeypatch: pytest.MonkeyPatch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb raises ImportError
    Tracker(config, folder, {}).log({"a": 1.0})
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
        tracker = Tracker(config, folder, {"seed": 0})
        tracker.log({"sft/step": 0, "sft/loss": 2.0}, over="sft/step")
        tracker.log({"iteration": 0, "success": 0.5}, over="iteration")
        tracker.finish()
    assert len({path.name for path in folder.glob("wandb/offline-run-*/*.wandb")}) == 2, "an id each"
    assert not list(elsewhere.iterdir())
    out, err = capfd.readouterr()
    assert out == err == ""
