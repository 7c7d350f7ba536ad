"""The command `rlpost`: its verbs, what it makes of a first word, and its exit codes."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rlpost
from rlpost import run
from rlpost.command import main as command
from rlpost.command.verbs import VERBS, Verb
from rlpost.config.experiments import experiments
from rlpost.envs.terminal import plain_console
from rlpost.errors import ConfigError, OutputError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that rlpost.run is given, instead of a run."""
    calls: list[list[str]] = []
    monkeypatch.setattr(run, "main", lambda words: calls.append(list(words)) or 0)
    return calls


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_has_its_function_a_sentence_and_its_own_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert VERBS[name].does
    with pytest.raises(SystemExit) as over:
        command.main([name, "--help"])
    assert over.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: rlpost {name} ")


def test_no_verb_hides_an_experiment_or_a_setting() -> None:
    assert not set(VERBS) & set(experiments())


def test_verbs_are_imported_only_when_chosen() -> None:
    program = (
        "import sys; from rlpost.command.main import main; main(['--help']);"
        "sys.exit(any(m.partition('.')[0] in ('torch', 'ray', 'vllm', 'matplotlib') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize(
    ("typed", "run_words"),
    [
        ("generalpoints_ppo seed=1", "experiment=generalpoints_ppo seed=1"),
        ("experiment=generalpoints_ppo seed=1", "experiment=generalpoints_ppo seed=1"),
        ("seed=1 experiment=generalpoints_ppo", "seed=1 experiment=generalpoints_ppo"),
        ("mine.yaml", "experiment=mine.yaml"),
        ("resume=RUN", "resume=RUN"),
        ("--version", "--version"),
    ],
)
def test_words_of_a_run_go_to_the_run(ran: list[list[str]], typed: str, run_words: str) -> None:
    assert command.main(typed.split()) == 0
    assert ran == [run_words.split()]


def test_a_verb_gets_the_words_after_it(monkeypatch: pytest.MonkeyPatch, ran: list[list[str]]) -> None:
    heard: list[list[str]] = []
    monkeypatch.setattr(Verb, "load", lambda _: lambda words: heard.append(list(words)) or 7)
    assert command.main(["report", "RUN", "key=value"]) == 7
    assert heard == [["RUN", "key=value"]]
    assert ran == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("repport", "did you mean report?"),
        ("generalpoint_ppo", "did you mean generalpoints_ppo"),
        ("algo", "write algo=VALUE"),
        ("xyzzy", "rlpost --help lists both"),
    ],
)
def test_an_unknown_word_is_refused_with_what_was_meant(
    ran: list[list[str]], capfd: pytest.CaptureFixture[str], typed: str, meant: str
) -> None:
    assert command.main([typed]) == 2
    assert ran == []
    assert meant in capfd.readouterr().err


def test_a_runs_folder_is_asked_what_to_do_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").touch()
    assert command.main([str(tmp_path)]) == 2
    told = re.sub(r"[\s│]+", "", capfd.readouterr().err)
    assert f"resume={tmp_path}" in told
    assert f"rlpostreport{tmp_path}" in told


@pytest.mark.parametrize(
    ("raised", "code"), [(ConfigError("no"), 2), (OutputError("no"), 1), (KeyboardInterrupt(), 130)]
)
def test_exit_codes_of_verbs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], raised: BaseException, code: int
) -> None:
    def fail(words: object) -> int:
        raise raised

    monkeypatch.setattr(Verb, "load", lambda _: fail)
    assert command.main(["report"]) == code
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["help"], 0)])
def test_help_fits_a_screen_and_has_every_verb_and_experiment(
    capfd: pytest.CaptureFixture[str], words: list[str], code: int
) -> None:
    assert command.main(words) == code
    out, err = capfd.readouterr()
    shown = out if code == 0 else err
    assert all(f"  {name} " in shown for name in (*VERBS, *experiments()))
    assert len(shown.splitlines()) <= len(VERBS) + len(experiments()) + 20


def test_the_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for main in (command.main, run.main):
        assert main(["--version"]) == 0
        assert capfd.readouterr().out == f"rlpost {project['version']}\n"
    assert rlpost.__version__ == project["version"]
    module, _, function = project["scripts"]["rlpost"].partition(":")
    assert importlib.util.find_spec(module)
    assert getattr(command, function) is command.script


def test_python_dash_m_rlpost_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlpost", "--version"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout == f"rlpost {rlpost.__version__}\n"


def test_the_working_directory_comes_last_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["rlpost", "--version"])
    assert command.script() == 0
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize("one_line", [True, False])
def test_what_is_cut_from_a_help_ends_in_an_ellipsis(one_line: bool) -> None:
    written = io.StringIO()
    rows = {"generalpoints_ppo": "word " * 40, "own_ppo": "short"}
    plain_console(file=written, width=60).print(run.two_columns(rows, one_line=one_line))
    lines = written.getvalue().splitlines()
    assert all(len(line) <= 60 for line in lines)
    if one_line:
        assert [line.rstrip()[-1] for line in lines] == ["…", "t"]
    else:
        assert written.getvalue().count("word") == 40


def test_a_runs_folder_in_a_remedy_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.yaml").touch()
    assert command.main(["my run"]) == 2
    assert "rlpost 'resume=my run'" in (told := capsys.readouterr().err)
    assert "rlpost report 'my run'" in told
