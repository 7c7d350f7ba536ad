"""Renders a comparison as self-contained pages: `write` makes report.html and report.md.

The report renders with any number of finished cells, and names failed and missing cells first. All text from models,
environments and failed runs is escaped.
"""

from __future__ import annotations

from pathlib import Path

from rlpost.compare.design.types import Comparison, Status
from rlpost.compare.report import sections
from rlpost.compare.report.findings import findings
from rlpost.compare.report.view import Section, View
from rlpost.pages import render
from rlpost.pages.replay import Gallery
from rlpost.pages.sample_episodes import Deal, choose
from rlpost.record.files import write_atomic
from rlpost.record.run_dir import RunDir, read_trajectories
from rlpost.record.summary import DECODINGS, STAGES
from rlpost.types import Trajectory

DEALS = 2  # instances shown per variant


def write(comparison: Comparison, folder: Path, own_code: bool = False) -> Path:
    """Write report.html and report.md to the comparison's folder; return the path of report.html.

    Without `own_code` no module named in the records is imported, so a user's own environment draws no pictures.

    Raises ComparisonError if the records contradict each other, and OutputError if a cell's record is damaged or a page
    cannot be written.
    """
    view = View(comparison, findings(comparison))
    results, set_up = list(sections.results(view)), list(sections.set_up(view))
    write_atomic(folder / "report.md", _markdown(view, results + set_up))
    write_atomic(folder / "report.html", _html(view, results, set_up, folder, own_code))
    return folder / "report.html"


def _html(view: View, results: list[Section], set_up: list[Section], folder: Path, own_code: bool) -> bytes:
    comparison = view.comparison
    gallery = _gallery(comparison, folder, own_code)
    return render.render(
        "comparison.html.jinja",
        title=comparison.name,
        problems=view.findings.problems,
        answers=view.findings.answers,
        results=results,
        set_up=set_up,
        deals=_deals(comparison, folder, gallery),
        no_pictures=gallery.failure if gallery else None,
    )


def _markdown(view: View, shown: list[Section]) -> bytes:
    return render.render(
        "comparison.md.jinja",
        title=view.comparison.name,
        problems=view.findings.problems,
        answers=view.findings.answers,
        sections=[section for section in shown if section.tables],
    )


def _run_dirs(comparison: Comparison, folder: Path) -> dict[str, RunDir]:
    """The run directories by arm, of the first seed that is done for as many arms as any; its episodes are shown."""
    by_seed = {
        seed: {
            cell.arm: RunDir(folder / cell.run_dir)
            for arm in (*comparison.starts, *comparison.arms)
            for cell in comparison.cells
            if (cell.arm, cell.seed, cell.status) == (arm, seed, Status.DONE)
        }
        for seed in comparison.seeds
    }
    return max(by_seed.values(), key=len, default={})


def _gallery(comparison: Comparison, folder: Path, own_code: bool) -> Gallery | None:
    """The gallery of the environment, which is the same for all cells."""
    run_dirs = _run_dirs(comparison, folder).values()
    played = next((run_dir for run_dir in run_dirs if run_dir.config.is_file()), None)
    return None if played is None else Gallery.of(played.read_config(), own_code)


def _deals(comparison: Comparison, folder: Path, gallery: Gallery | None) -> dict[str, list[Deal]]:
    """A few instances of each variant, as every arm played them at its end."""
    run_dirs, samples = _run_dirs(comparison, folder), {}
    for variant in comparison.variants:
        played = {arm: _last(run_dir, variant) for arm, run_dir in run_dirs.items()}
        deals = choose({arm: episodes for arm, episodes in played.items() if episodes}, DEALS)
        if deals:
            samples[variant] = [gallery.illustrated(deal) for deal in deals] if gallery else deals
    return samples


def _last(run_dir: RunDir, variant: str) -> list[Trajectory]:
    """The episodes of the last evaluation, sampled ones if there are both kinds; empty if there was no evaluation."""
    files = run_dir.evaluations()
    for stage in reversed(STAGES):
        for decoding in reversed(DECODINGS):
            if (stage, variant, decoding) in files:
                return read_trajectories(files[stage, variant, decoding])
    return []
