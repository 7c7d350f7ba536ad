"""error.json: what ends a run is kept in its folder, and goes when a later start gets going."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.config.schema import Config
from rlpost.errors import LearnerError, OutputError, RlpostError
from rlpost.record import run_error
from rlpost.record.run_error import RunError
from rlpost.tasks.session import run_folder


def fail(folder: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), run_error.kept(folder):
        raise error


def test_type_message_and_remedy_are_kept_apart(tmp_path: Path) -> None:
    fail(tmp_path, LearnerError("loss\n  reason: not finite\n  remedy: lower learner.lr,\n    or clip more"))
    assert json.loads((tmp_path / "error.json").read_text()) == {
        "type": "LearnerError",
        "message": ["loss", "reason: not finite"],
        "remedy": ["remedy: lower learner.lr,", "or clip more"],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["error.json"], "nothing half-written beside it"
    assert str(run_error.read(tmp_path)) == (
        "LearnerError: loss; reason: not finite; remedy: lower learner.lr,; or clip more"
    )


@given(st.text(), st.sampled_from([RlpostError, LearnerError, ValueError]))
def test_any_error_round_trips_as_one_line(tmp_path_factory: pytest.TempPathFactory, text: str, kind) -> None:
    folder = tmp_path_factory.mktemp("run")
    fail(folder, kind(text))
    found = run_error.read(folder)
    assert found == RunError.of(kind(text))
    assert len(str(found).splitlines()) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_was_stopped_has_not_failed(tmp_path: Path, stop: BaseException) -> None:
    fail(tmp_path, stop)
    assert run_error.read(tmp_path) is None


def test_the_error_of_an_earlier_start_goes(tmp_path: Path) -> None:
    fail(tmp_path, LearnerError("loss"))
    with run_error.kept(tmp_path):
        assert run_error.read(tmp_path) is None


def test_an_error_that_cannot_be_written_does_not_hide_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def fail_and_take_the_folder_along() -> None:
        folder.rmdir()
        raise LearnerError("loss")

    with pytest.raises(LearnerError), run_error.kept(folder):
        fail_and_take_the_folder_along()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": 1, "message": 2, "remedy": []}'])
def test_what_was_not_written_here_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "error.json").write_text(text)
    with pytest.raises(OutputError, match=r"error\.json[\s\S]*remedy: delete it"):
        run_error.read(tmp_path)


def test_every_task_with_a_run_directory_keeps_its_error_until_a_resume(tmp_path: Path) -> None:
    cfg = Config(output_dir=str(tmp_path / "run"))
    with pytest.raises(LearnerError), run_folder(cfg) as run_dir:
        raise LearnerError("loss")
    assert str(run_error.read(run_dir.path)) == "LearnerError: loss"
    with run_folder(Config(resume=str(run_dir.path))):
        assert run_error.read(run_dir.path) is None


def test_a_start_that_finds_the_folder_taken_leaves_it_alone(tmp_path: Path) -> None:
    with run_folder(Config(output_dir=str(tmp_path / "run"))) as run_dir:
        with (
            pytest.raises(OutputError, match="another process"),
            run_folder(Config(resume=str(run_dir.path))),
        ):
            pass
        assert run_error.read(run_dir.path) is None
