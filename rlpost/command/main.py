"""The command line: `rlpost VERB ...`, or `rlpost experiment=NAME key=value ...` as for `python -m rlpost.run`.

The name of an experiment, or of an experiment's file, may come first without `experiment=`. Exit codes are those of
rlpost.run: 0 done, 1 failed with a stated reason, 2 the words are refused, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlpost import run
from rlpost.command.verbs import VERBS
from rlpost.config.experiments import experiments
from rlpost.config.keys import did_you_mean, schema
from rlpost.config.overrides import SHORT
from rlpost.envs.terminal import plain_console
from rlpost.errors import ConfigError, RlpostError

EXAMPLES = {
    "rlpost generalpoints_ppo": "train the bundled model with PPO, in minutes",
    "rlpost generalpoints_ppo task=dry_run": "see its prompts and their lengths, in seconds",
    "rlpost experiment=navigation_grpo seed=1": "the same words as for python -m rlpost.run",
    "rlpost resume=RUN": "go on with an earlier run",
    "rlpost settings algo.kl": "the settings that begin so, with their meaning",
}


def script() -> int:
    """The entry point that an installation puts on the path as `rlpost`."""
    _import_from_here()
    return main(sys.argv[1:])


def main(words: Sequence[str]) -> int:
    """Run one command line and return the exit code. Exceptions other than RlpostError keep their traceback."""
    if not words or words[0] in ("-h", "--help", "help"):
        _print_help(plain_console(stderr=not words))
        return 0 if words else 2
    first, *rest = words
    if first in VERBS:
        return _run_verb(first, rest)
    if "=" in first or first in run.FLAGS:
        return run.main(words)
    if first in experiments() or first.endswith(".yaml"):
        return run.main([f"experiment={first}", *rest])
    run.print_error(plain_console(stderr=True), "not understood", _unknown(first))
    return 2


def _import_from_here() -> None:
    """Let `env=my_module:MyEnv` name a module of the working directory, as under `python -m`.

    It comes last on the path, so a local file `yaml.py` or `torch.py` is not imported in place of the package.
    """
    if not sys.flags.safe_path:
        sys.path.append(os.getcwd())


def _run_verb(name: str, words: Sequence[str]) -> int:
    console = plain_console(stderr=True)
    try:
        return VERBS[name].load()(words)
    except ConfigError as error:
        run.print_error(console, "refused", str(error))
        return 2
    except RlpostError as error:
        run.print_error(console, type(error).__name__, str(error))
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.", style="yellow")
        return 130


def _unknown(word: str) -> str:
    """The reason why `word` is refused, and the words that are spelt alike or closest to it."""
    if (Path(word) / "config.yaml").is_file():
        resume, report = (shlex.join(["rlpost", *words]) for words in ([f"resume={word}"], ["report", word]))
        meant = f"{resume} goes on with this run; {report} writes its page"
    elif word in SHORT or word in schema():
        meant = f"it is a setting: write {word}=VALUE; rlpost settings {word} says which"
    else:
        meant = did_you_mean(word, [*VERBS, *experiments()]) or "rlpost --help lists both"
    return f"{word}\n  reason: it is neither a verb nor an experiment\n  remedy: {meant}"


def _print_help(console: Console) -> None:
    console.print("Usage: rlpost VERB ...   or   rlpost [experiment=]NAME [key=value ...]\n\nVerbs:")
    console.print(run.two_columns({name: verb.does for name, verb in VERBS.items()}))
    console.print("\nExperiments:")
    console.print(
        run.two_columns({each.name: each.summary for each in experiments().values()}, one_line=True)
    )
    console.print("\nExamples:")
    console.print(run.two_columns(EXAMPLES))
    console.print("\nrlpost VERB --help tells more of a verb; rlpost --version prints the version.")
