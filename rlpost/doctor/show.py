"""Shows an examination: tables on a console, or plain data for a JSON file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlpost.doctor.examine import Examination
from rlpost.doctor.finding import Finding, Level, exit_code
from rlpost.memory.parts import Part, Plan
from rlpost.validate.memory import gib

STYLES = {Level.ok: "green", Level.warning: "yellow", Level.error: "red"}


def show(seen: Examination, console: Console) -> None:
    """Print the findings, the memory plan and the settings that save memory."""
    console.print(_findings(seen.findings))
    if seen.plan is not None:
        console.print(_plan(seen.plan))
        if seen.saves:
            listed = "; ".join(f"{each.words} {gib(each.size)}" for each in seen.saves)
            console.print(f"less memory by one setting: {listed}", soft_wrap=True)
    counts = {level: sum(each.level is level for each in seen.findings) for level in Level}
    console.print(", ".join(f"{count} {level.value}" for level, count in counts.items()))


def as_data(seen: Examination) -> dict[str, Any]:
    """Plain data. Sizes are in bytes."""
    findings = [{**asdict(each), "level": each.level.value} for each in seen.findings]
    plan = None if seen.plan is None else [asdict(process) for process in seen.plan.processes]
    return {
        "exit_code": exit_code(seen.findings),
        "findings": findings,
        "facts": asdict(seen.facts),
        "plan": plan,
        "savings": [asdict(each) for each in seen.saves],
    }


def _findings(findings: list[Finding]) -> Table:
    table = Table(title=Text("doctor"), title_justify="left")
    for name in ("", "what", "found, and what to do"):
        table.add_column(name, overflow="fold")
    for each in findings:
        what = each.what if not each.node else f"{each.what}, {each.node}"
        text = Text(each.text)
        if each.remedy:
            text.append(f"\nremedy: {each.remedy}", style="bold")
        table.add_row(Text(each.level.value, style=STYLES[each.level]), Text(what), text)
    return table


def _plan(plan: Plan) -> Table:
    table = Table(title=Text("memory plan"), title_justify="left")
    for name in ("process", "of what", "in any run", "at most"):
        table.add_column(name, justify="left" if name in ("process", "of what") else "right")
    for process in plan.processes:
        name = f"{process.count} x {process.name}"
        for where, parts in (("", process.host), ("GPU: ", process.device)):
            for part in parts:
                if part.size:
                    table.add_row(name, f"{where}{part.name}", *_sizes(part))
                    name = ""
        table.add_row(
            name, "each", gib(process.size(certain_only=True)), gib(process.size()), end_section=True
        )
    table.add_row("all", "", gib(plan.size(certain_only=True)), gib(plan.size()))
    return table


def _sizes(part: Part) -> tuple[str, str]:
    return gib(part.size) if part.certain else "", gib(part.size)
