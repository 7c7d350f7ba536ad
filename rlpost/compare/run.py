"""`task=compare`: SFT against reinforcement learning from one start, on rules that neither was trained on.

plan ─▶ cells (runs of rlpost) ─▶ Comparison ─▶ results.json after every cell
                                           └▶ report.html, report.md, the findings on the console
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from rlpost.cluster import precision
from rlpost.compare import results
from rlpost.compare.design.plan import arms, named_contrasts, plan, quickened, starts
from rlpost.compare.design.types import Cell, ComparedVariant, Comparison, Status, is_start
from rlpost.compare.display import Display
from rlpost.compare.reading import evaluated_on, unread, without_step_accuracy
from rlpost.compare.runner import Runner
from rlpost.compare.served_cells import starter
from rlpost.config.adapter_kinds import FULL
from rlpost.config.compose import to_yaml, with_settings
from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.terminal import plain_console
from rlpost.errors import ConfigError, RlpostError
from rlpost.record import locks, run_error
from rlpost.record.compute import TRAINED, real_flops
from rlpost.record.files import write_atomic
from rlpost.record.folders import OUTPUTS, new_folder, time_stamp
from rlpost.record.summary import headline_decoding
from rlpost.record.versions import versions
from rlpost.validate.model import check_model
from rlpost.weights import models
from rlpost.weights.adapters import CONFIG_FILE


def run(cfg: Config) -> None:
    """Run the cells that are not done yet, then report. `cfg.resume` continues the comparison in that folder.

    Raises ConfigError, ModelError, AdapterError, OutputError and ClusterError; after the report, RlpostError if cells
    failed.
    """
    console = plain_console()
    cfg = quickened(cfg)
    model_folder = models.resolve(cfg.model)
    for settings in cfg.compare.settings.values() or [{}]:
        check_model(with_settings(cfg, settings), model_folder)
    folder = _folder(cfg)
    console.print(f"comparison: {folder}", soft_wrap=True)
    with locks.held(folder), run_error.kept(folder):
        cfg = precision.settled(cfg, model_folder, console)  # once, so that all cells use the same precision
        _keep_settings(cfg, folder)
        command = _command(folder)
        concurrency = _concurrency(cfg)
        total = len(cfg.compare.seeds) * (len(starts(cfg)) + len(arms(cfg)))
        display = Display(console, total, concurrency)

        def record(runner: Runner) -> None:
            results.write(_comparison(cfg, runner, model_folder, command), folder)

        try:
            with starter(cfg, concurrency) as start:
                runner = Runner(cfg, folder, models.parameters(model_folder), display, record, start)
                runner.run(concurrency)
        finally:
            display.close()
        comparison = _comparison(cfg, runner, model_folder, command)
        from rlpost.compare.agreement import agreements  # imports torch

        given = None if cfg.adapter is None else Path(cfg.adapter)
        found = agreements(comparison, folder, model_folder, given)
        _conclude(dataclasses.replace(comparison, agreements=found), folder, console)


def _conclude(comparison: Comparison, folder: Path, console: Console) -> None:
    """Write results and report, and print the answer. Raises RlpostError if there is nothing to report."""
    results.write(comparison, folder)
    failed = [cell for cell in comparison.cells if cell.status is Status.FAILED]
    if len(failed) == len(comparison.cells):
        raise RlpostError(f"{folder}: every cell failed; the first: {failed[0].error}")
    from rlpost.compare.report import findings, page

    page.write(comparison, folder, own_code=True)
    for sentence in findings.findings(comparison).sentences:
        console.print(sentence, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    if failed:
        raise RlpostError(
            f"{len(failed)} of {len(comparison.cells)} cells failed, and are shown as failed in the report:"
            f" {', '.join(Path(cell.run_dir).name for cell in failed)}."
            f"\n{shlex.quote(f'resume={folder}')} tries them again."
        )


def _folder(cfg: Config) -> Path:
    if cfg.resume is not None:
        return Path(cfg.resume)
    return new_folder(cfg.output_dir, OUTPUTS / cfg.name / time_stamp(), first="cells")


def _keep_settings(cfg: Config, folder: Path) -> None:
    """Write the current config.yaml, so that the next `resume=` has the seeds and arms of this start.

    Raises ConfigError if they leave out cells that were begun: no mean would count these, and nobody would notice.
    """
    wanted = {cell.name for cell in plan(cfg)}
    left_out = sorted(path.stem for path in (folder / "cells").glob("*.yaml") if path.stem not in wanted)
    if left_out:
        raise ConfigError(
            f"{folder}\n  reason: these seeds and arms leave out cells that were begun: {', '.join(left_out)}\n"
            "  remedy: name theirs too; to leave them out for good, move their files out of cells/"
        )
    write_atomic(folder / "config.yaml", to_yaml(dataclasses.replace(cfg, resume=None)).encode())


def _command(folder: Path) -> str:
    """The commands that began and resumed the comparison, one per line."""
    path, command = folder / "command.txt", f"python -m rlpost.run {shlex.join(sys.argv[1:])}"
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if command not in known:
        known.append(command)
        write_atomic(path, ("\n".join(known) + "\n").encode())
    return "\n".join(known)


def _concurrency(cfg: Config) -> int:
    """`compare.concurrency` if set; else as many runs as the cluster has room for, or one on this machine."""
    if cfg.compare.concurrency is not None:
        return cfg.compare.concurrency
    if cfg.ray.address is None:
        return 1
    from rlpost.cluster import ray_cluster

    needs = ray_cluster.Needs.of(cfg)
    with ray_cluster.connect(cfg.ray, needs):
        have = ray_cluster.total()
    rooms = [h / n for h, n in ((have.cpus, needs.cpus), (have.gpus, needs.gpus)) if n > 0]
    return max(1, math.floor(min(rooms, default=1)))


def _comparison(cfg: Config, runner: Runner, model_folder: Path, command: str) -> Comparison:
    stepwise = any(read.stepwise for read in runner.read.values())

    def cell_of(name: str, otherwise: Cell) -> Cell:
        if name not in runner.read:
            return otherwise
        cell = runner.read[name].cell
        return cell if stepwise else without_step_accuracy(cell)

    bases = [read.base for read in runner.read.values() if read.base is not None]
    known = {variant.name: variant for variant in registry.variants(cfg.env, **cfg.env_args)}
    return Comparison(
        name=cfg.name,
        env=cfg.env,
        model=cfg.model,
        train_variant=cfg.train_variant,
        variants={v: ComparedVariant.of(known[v], cfg.train_variant) for v in cfg.eval_variants},
        arms=arms(cfg),
        seeds=tuple(cfg.compare.seeds),
        matched_on=cfg.compare.match_on.value,
        cells=tuple(cell_of(c.name, unread(c, runner.ended.get(c.name))) for c in runner.cells),
        notes=_notes(cfg, runner, model_folder, command),
        causes=dict(registry.causes(cfg.env)),
        base=bases[0] if bases else None,
        contrasts=named_contrasts(cfg),
    )


def _notes(cfg: Config, runner: Runner, model_folder: Path, command: str) -> dict[str, str]:
    now = versions()
    named = ("rlpost", "torch", "vllm", "ray", "peft", "deepspeed", "git", "python")
    return {
        "command": command,
        "answers": _decoding(cfg),
        "held out": _held_out(runner),
        "parameters": _parameters(runner, model_folder),
        "versions": ", ".join(f"{name} {now[name]}" for name in named if now[name]),
        "machine": f"{now['platform']}, {os.cpu_count()} CPUs",
    }


def _decoding(cfg: Config) -> str:
    decoding = headline_decoding(cfg.eval)
    return f"{decoding}, temperature {cfg.rollout.temperature:g}" if decoding == "sampled" else decoding


def _held_out(runner: Runner) -> str:
    """A note with the counts of the disjointness checks of all cells."""
    reads = runner.read.values()
    trained = frozenset().union(*(read.trained for read in reads))
    scored = frozenset().union(*(evaluated_on(read.cell) for read in reads))
    return (
        f"{len(trained & scored)} of {len(scored):,} evaluation instances were trained on"
        f" ({len(trained):,} instances were)"
    )


def _parameters(runner: Runner, model_folder: Path) -> str:
    """A note with the model's parameters, and for each kind of weights what trains and what a pass really costs."""
    model = models.parameters(model_folder)
    folders = (runner.files(cell).run_dir.adapter for cell in runner.cells if not is_start(cell.arm))
    notes = dict.fromkeys(_trained(folder, model) for folder in folders if folder.is_dir())
    return "; ".join((f"{model:,}", *notes))


def _trained(adapter: Path, model: int) -> str:
    trained = models.parameters(adapter)
    whole = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))["peft_type"] == FULL
    real = real_flops({TRAINED: 1}, model, trained, 0 if whole else trained) / (6 * model)
    counted = f"{real:.0%} of the 6 N D that is counted"
    if whole:
        share = f"{trained:,} of them ({trained / model:.1%}) are trained"
        return f"{share}, so a training pass costs 4 N D + 2 T D, {counted}"
    return (
        f"the adapter, which alone is trained, has {trained:,} ({trained / model:.1%}): with a frozen base a training"
        f" pass costs 4 N D + 6 A D, {counted}"
    )
