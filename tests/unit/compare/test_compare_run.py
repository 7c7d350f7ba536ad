"""The whole of `task=compare` with runs that are over at once, and stand-ins for statistics and pictures."""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import filelock
import pytest

from rlpost.compare import results, run
from rlpost.compare.cells import CellFiles
from rlpost.compare.design.types import ComparedVariant, Comparison, Role, Status
from rlpost.compare.statistics.estimates import contrasts
from rlpost.config.compose import compose
from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.errors import ConfigError, OutputError, RlpostError
from rlpost.record import run_error
from rlpost.weights.models import TINY, parameters
from tests.unit.compare.fake_run import FakeRun, comparison


@pytest.fixture(autouse=True)
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    """The comparisons that were reported."""
    found: list[Comparison] = []

    def double(name: str, **functions: Any) -> None:
        module = ModuleType(f"rlpost.compare.report.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(import_module("rlpost.compare.report"), name, module, raising=False)

    double("page", write=lambda comparison, folder, own_code: found.append(comparison))
    double("findings", findings=lambda comparison: SimpleNamespace(sentences=("RL reads the rule.",)))
    return found


def compare(cfg: Config, monkeypatch: pytest.MonkeyPatch, failing: str | None = None) -> None:
    def start(files: CellFiles, settings: Config) -> FakeRun:
        return FakeRun(files, settings, "it broke" if files.name == failing else None)

    monkeypatch.setattr(run, "starter", lambda cfg, concurrency: contextlib.nullcontext(start))
    run.run(cfg)


def test_every_variant_has_its_role() -> None:
    def roles_in(env: str, train_variant: str) -> dict[str, Role]:
        return {each.name: ComparedVariant.of(each, train_variant).role for each in registry.variants(env)}

    roles = roles_in("generalpoints", "faces_10")
    assert roles["faces_10"] is Role.TRAINED
    assert roles["faces_11_12_13"] is Role.HELD_OUT
    assert roles["faces_10_reworded"] is Role.SAME_RULE
    assert {name for name, role in roles.items() if role is Role.FAKE_RULE} == {
        name for name in roles if name.startswith("fake_")
    }
    roles = roles_in("navigation", "another")
    assert (roles["absolute"], roles["fake_relative"]) == (Role.NOT_TRAINED, Role.FAKE_RULE)


def test_a_comparison_from_start_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[Comparison],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "a folder"
    compare(comparison(folder), monkeypatch)
    (found,) = reported
    assert results.read(folder / results.FILE) == found
    assert [cell.arm for cell in found.cells] == ["init", "ppo", "sft"]
    assert {cell.status for cell in found.cells} == {Status.DONE}
    assert found.variants["faces_11_12_13"].role is Role.HELD_OUT
    assert found.variants["faces_10"].role is Role.TRAINED
    assert found.base is not None
    assert found.notes["held out"].startswith("0 of 3 evaluation instances were trained on")
    assert found.notes["command"].startswith("python -m rlpost.run")
    assert found.notes["parameters"].startswith(
        f"{parameters(TINY):,}; the adapter, which alone is trained, has 512 "
    )
    assert found.cells[0].points[0].evaluations["faces_10"].step_accuracy is None
    assert "RL reads the rule." in capsys.readouterr().out


def test_settings_with_starts_of_their_own_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[Comparison]
) -> None:
    folder = tmp_path / "a folder"
    lengths = "compare.settings={short: {sft.steps: 1}, long: {sft.steps: 3}}"
    compare(
        comparison(folder, lengths, "arms=[ppo]", "compare.contrasts=[ppo.long - ppo.short]"), monkeypatch
    )
    (found,) = reported
    assert {cell.arm: cell.status for cell in found.cells} == dict.fromkeys(
        ("init.short", "init.long", "ppo.short", "ppo.long"), Status.DONE
    )
    assert (found.starts, found.arms) == (("init.short", "init.long"), ("ppo.short", "ppo.long"))
    assert found.start_of("ppo.long") == "init.long"
    assert found.contrasts == (("ppo.long", "ppo.short"),)
    assert found.base is not None
    assert contrasts(found) == [
        *(("ppo.short", "init.short"), ("ppo.long", "init.long")),
        *(("init.long", "init.short"), ("ppo.long", "ppo.short")),
    ]


@pytest.mark.parametrize(
    ("wanted", "solved", "said"),
    [
        (("eval.greedy=true", "eval.sampled=false"), False, "greedy"),
        (("eval.greedy=true", "eval.sampled=true"), True, "sampled, temperature 1"),
    ],
)
def test_the_decoding_that_is_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[Comparison],
    wanted: tuple[str, ...],
    solved: bool,
    said: str,
) -> None:
    compare(comparison(tmp_path, *wanted), monkeypatch)
    (found,) = reported
    assert found.notes["answers"] == said
    every = [e for cell in found.cells for point in cell.points for e in point.evaluations.values()]
    assert {success for evaluation in every for success in evaluation.successes} == {solved}


def test_a_failed_cell_is_shown_reported_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[Comparison]
) -> None:
    folder = tmp_path / "x"
    with pytest.raises(RlpostError, match=r"1 of 3 cells failed.*sft-0"):
        compare(comparison(folder), monkeypatch, failing="sft-0")
    (found,) = reported
    assert [(cell.status, cell.error) for cell in found.cells][-1] == (Status.FAILED, "it broke")
    assert "1 of 3 cells failed" in str(run_error.read(folder))
    compare(comparison(folder, f"resume={folder}"), monkeypatch)
    assert run_error.read(folder) is None
    assert {cell.status for cell in reported[-1].cells} == {Status.DONE}
    assert reported[-1].notes["command"] == found.notes["command"], "the same command, once"


def test_seeds_that_were_added_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[Comparison]
) -> None:
    folder = tmp_path / "x"
    compare(comparison(folder), monkeypatch)
    monkeypatch.setattr(sys, "argv", ["run", f"resume={folder}", "seeds=[0,1]"])
    compare(comparison(folder, f"resume={folder}", "seeds=[0,1]"), monkeypatch)
    assert len(reported[-1].notes["command"].splitlines()) == 2
    assert compose([f"resume={folder}"]).compare.seeds == [0, 1]
    with pytest.raises(ConfigError, match="leave out cells that were begun: init-1, ppo-1, sft-1"):
        compare(comparison(folder, f"resume={folder}"), monkeypatch)
    assert compose([f"resume={folder}"]).compare.seeds == [0, 1]


def test_the_record_is_kept_up_to_date_while_cells_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Status]] = []
    write = results.write

    def noted(found: Comparison, folder: Path) -> Path:
        seen.append([cell.status for cell in found.cells])
        return write(found, folder)

    monkeypatch.setattr(results, "write", noted)
    compare(comparison(tmp_path / "x"), monkeypatch)
    done, missing = Status.DONE, Status.MISSING
    assert seen[0] == [done, missing, missing]
    assert seen[1] == [done, done, missing]
    assert seen[-1] == [done, done, done]


def test_when_nothing_came_to_an_end_there_is_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[Comparison]
) -> None:
    with pytest.raises(RlpostError, match="every cell failed; the first: it broke"):
        compare(comparison(tmp_path / "x"), monkeypatch, failing="init-0")
    assert reported == []


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "x"
    compare(comparison(folder), monkeypatch)
    with (
        filelock.FileLock(folder / ".lock", is_singleton=False),
        pytest.raises(OutputError, match="another process"),
    ):
        compare(comparison(folder, f"resume={folder}"), monkeypatch)
