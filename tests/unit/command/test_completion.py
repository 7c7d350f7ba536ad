"""Completion: the words themselves, and bash with the script that rlpost prints."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlpost.command.completion import SHELLS, candidates, main
from rlpost.command.verbs import VERBS
from rlpost.config.experiments import experiments
from rlpost.config.schema import AlgoName
from rlpost.envs import registry

ROOT = Path(__file__).parents[3]


def after(line: str) -> list[str]:
    *before, current = line.split(" ")
    return candidates(before, current)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("repo", ["report"]),
        ("generalpoints_pp", ["generalpoints_ppo", "generalpoints_ppo_turn"]),
        ("experiment=tiny", ["experiment=tiny_base"]),
        ("generalpoints_ppo algo=gr", ["algo=grpo"]),
        ("generalpoints_ppo algo.name=gr", ["algo.name=grpo"]),
        ("generalpoints_ppo lora.ki", ["lora.kind="]),
        ("generalpoints_ppo lora.kind=rs", ["lora.kind=rsdora", "lora.kind=rslora"]),
        ("generalpoints_ppo lora.kind=dora lora.ki", []),
        ("generalpoints_ppo eval.greedy=", ["eval.greedy=false", "eval.greedy=true"]),
        ("generalpoints_ppo quick=t", ["quick=true"]),
        ("own_ppo env=r", ["env=reasoning_gym:"]),
        ("generalpoints_ppo output_dir=ou", []),
        ("generalpoints_ppo xyzzy=", []),
        ("play gen", ["generalpoints"]),
        ("play generalpoints ", []),
        ("report ou", []),
        ("settings algo.kl_c", ["algo.kl_coef"]),
        ("completion z", ["zsh"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert after(line) == words


def test_nothing_typed_offers_verbs_experiments_and_settings() -> None:
    assert {*VERBS, *experiments(), "experiment=", "resume=", "seed="} <= set(after(""))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([shell]) == 0
    assert "completion words" in capsys.readouterr().out


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `rlpost` of this checkout, for the shell's path."""
    script = tmp_path_factory.mktemp("bin") / "rlpost"
    python, root = shlex.quote(sys.executable), shlex.quote(str(ROOT))
    script.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {python} -m rlpost "$@"\n')
    script.chmod(0o755)
    return script


# What readline does before it calls the function: it breaks the line at blanks and at COMP_WORDBREAKS.
BASH = r"""
eval "$(rlpost completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
function=$(complete -p rlpost | sed -E 's/.*-F ([^ ]+).*/\1/')
"$function"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("rlpost repo", ["report"]),
        ("rlpost generalpoints_ppo algo=g", ["grpo", "gspo"]),
        ("rlpost generalpoints_ppo algo=", sorted(AlgoName.__members__)),
        ("rlpost generalpoints_ppo seed=1 lora.ki", ["lora.kind="]),
        ("rlpost own_ppo env=reasoning_gy", ["reasoning_gym:"]),
        ("rlpost play ", sorted([*registry.names(), *registry.FAMILIES])),
    ],
)
def test_bash_replaces_what_follows_its_last_word_break(program: Path, line: str, replies: list[str]) -> None:
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run(
        [bash, "--norc", "-c", BASH, "bash", line],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": f"{program.parent}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == replies
    assert done.stderr == ""
