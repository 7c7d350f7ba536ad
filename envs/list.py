"""What environments there are, and their variants: python -m rlpost.envs.list [NAME] [--arg KEY=VALUE ...].

Without a name: every bundled environment with its variants, and how the others are named. `reasoning_gym` lists
the package's tasks. Any other name lists the variants of that environment, with who trains on them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from rich.table import Table

from rlpost.envs.base import VariantInfo
from rlpost.envs.command_line import env_arguments
from rlpost.envs.registry import ENTRIES, FAMILIES, names, variants
from rlpost.envs.terminal import plain_console


def _variants_table() -> Table:
    table = Table("environment", "variant", "use", "what it is")
    for column in table.columns:
        column.overflow = "fold"  # on a narrow terminal nothing is left out
    return table


def _add(table: Table, name: str, listed: Iterable[VariantInfo]) -> None:
    for each in listed:
        use = "held out" if each.held_out else "trained"
        table.add_row(name, each.name, use, each.summary)
    table.add_section()


def everything() -> Table:
    """The bundled environments' variants, and one line for every other kind of environment."""
    table = _variants_table()
    for name in names():
        table.add_row(name, "", "", ENTRIES[name].summary)
        _add(table, "", variants(name))
    for family in FAMILIES.values():
        table.add_row(family.form, "", "", family.summary)
    table.add_row(
        "my_module:MyEnv", "", "", "your own: any Gymnasium environment of texts (docs/tutorial.md)"
    )
    return table


def reasoning_gym_tasks() -> Table:
    """The package's tasks. Raises Refused if it is not installed."""
    from rlpost.envs.reasoning_gym.tasks import names as tasks

    table = Table("environment")
    for task in tasks():
        table.add_row(f"reasoning_gym:{task}")
    return table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="rlpost list", description=__doc__)
    parser.add_argument("env", nargs="?", help="of which environment; all, where left out")
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="of the environment")
    arguments = parser.parse_args(argv)
    try:
        if arguments.env is None:
            table = everything()
        elif arguments.env == "reasoning_gym":
            table = reasoning_gym_tasks()
        else:
            table = _variants_table()
            _add(table, arguments.env, variants(arguments.env, **env_arguments(arguments.arg)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    plain_console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
