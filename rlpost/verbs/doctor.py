"""What a run needs of this machine or of a cluster, looked at before it starts: rlpost doctor generalpoints_ppo."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rlpost.config.compose import compose, named_by
from rlpost.config.schema import Config, RayConfig
from rlpost.envs.terminal import plain_console

# Any experiment: without one, only settings of Ray are read.
_ANY = "experiment=generalpoints_ppo"


def main(argv: Sequence[str]) -> int:
    """Look at this machine, at an experiment's settings and memory on it, and at the cluster of ray.address.

    Returns 1 if a run would fail, else 0. Nothing is started here; a cluster gets one light task a node.
    """
    parser = argparse.ArgumentParser(prog="rlpost doctor", description=main.__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help="as for a run: [experiment=]NAME, ray.address=auto, any setting; none: this machine alone",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    asked = parser.parse_args(argv)
    cfg, ray, named = _read(asked.words)
    from rlpost.doctor.examine import examine  # brings torch and Ray
    from rlpost.doctor.finding import exit_code
    from rlpost.doctor.show import as_data, show
    from rlpost.record.files import write_atomic

    seen = examine(cfg, ray, named)
    show(seen, plain_console())
    if asked.json is not None:
        write_atomic(asked.json, json.dumps(as_data(seen), indent=1).encode())
    return exit_code(seen.findings)


def _read(words: Sequence[str]) -> tuple[Config | None, RayConfig, set[str]]:
    """The configuration, if the words name one; how to join Ray; and the settings that were named.

    Raises ConfigError for words that a run would refuse as well.
    """
    if words and "=" not in words[0]:
        words = [f"experiment={words[0]}", *words[1:]]
    if all(word.startswith("ray.") for word in words):
        return None, compose([_ANY, *words]).ray, set()
    cfg = compose(words)
    return cfg, cfg.ray, named_by(words)
