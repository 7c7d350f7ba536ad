"""Shows what an update did to the spectrum of the weights: rlpost spectrum ADAPTER [ADAPTER].

one adapter      norms, ranks and intruder dimensions of every module, and totals
two adapters     both, and how their updates agree: principal angles, cosine
--scale-intruders LAMBDA --out FOLDER   a new adapter with the intruder dimensions scaled down
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.envs.terminal import plain_console
from rlpost.errors import ConfigError
from rlpost.record.files import write_atomic
from rlpost.record.spectrum import Agreement, Spectrum, mean_agreement, place_of, to_json
from rlpost.verbs import policy
from rlpost.verbs.merge import DTYPES, refuse_existing

if TYPE_CHECKING:
    from rlpost.verbs.policy import Policy
    from rlpost.weights.adapters import Adapter
    from rlpost.weights.base_weights import BaseWeights
    from rlpost.weights.spectrum import Search

_NOT_MEASURED = "-"


@dataclass(frozen=True)
class Found:
    """What was measured: a spectrum an adapter, and of two how they agree."""

    spectra: Mapping[str, Spectrum]  # by the adapter's folder, as it was named
    agreement: Mapping[str, Agreement] | None


def main(argv: Sequence[str]) -> int:
    """Show what an update did to the spectrum of the weights; returns the exit code."""
    asked = _parser().parse_args(argv)
    _refuse(asked)
    if asked.scale_intruders is not None:
        _scale(asked)
    else:
        _show(asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlpost spectrum", description=main.__doc__)
    parser.add_argument(
        "adapters",
        type=Path,
        nargs="+",
        metavar="ADAPTER",
        help="one or two: runs, or folders of PEFT adapters",
    )
    parser.add_argument(
        "--start", type=Path, metavar="ADAPTER", help="of two: compare what they did since this one"
    )
    parser.add_argument("--model", help="the base, where the record's is not to be found")
    parser.add_argument("--top", type=int, default=10, help="leading singular vectors examined (10)")
    parser.add_argument(
        "--epsilon", type=float, default=0.5, help="|cosine| below which one is an intruder (0.5)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="measure the share lost to rounding to it; a run's: its own"
    )
    parser.add_argument("--sample", action="store_true", help="search only some layers, as a run does")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="write a page too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures too")
    parser.add_argument(
        "--scale-intruders",
        type=float,
        metavar="LAMBDA",
        help="scale the intruder dimensions: 0 removes them",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the new adapter's folder, to be made")
    return parser


def _refuse(asked: argparse.Namespace) -> None:
    scales = asked.scale_intruders is not None
    wrong = {
        "name one adapter, or two to compare": len(asked.adapters) > 2,
        f"{asked.adapters[0]} is named twice; name two adapters": (
            len({folder.resolve() for folder in asked.adapters}) < len(asked.adapters)
        ),
        "--start compares two adapters: name a second": asked.start is not None and len(asked.adapters) < 2,
        "--scale-intruders takes one adapter": scales and len(asked.adapters) > 1,
        "--scale-intruders and --out FOLDER go together": scales != (asked.out is not None),
        "--scale-intruders writes an adapter; ask for the figures (-o, --json) by a second command": (
            scales and (asked.output is not None or asked.json is not None)
        ),
        "-o: the page is HTML; give a name that ends with .html": (
            asked.output is not None and asked.output.suffix != ".html"
        ),
        f"--top {asked.top}: from 1": asked.top < 1,
        f"--epsilon {asked.epsilon:g}: above 0, at most 1": not 0 < asked.epsilon <= 1,
        f"--scale-intruders {asked.scale_intruders}: from 0 to 1": scales
        and not 0 <= asked.scale_intruders <= 1,
    }
    if found := [reason for reason, is_so in wrong.items() if is_so]:
        raise ConfigError(f"spectrum: {'; '.join(found)}")


def _search(asked: argparse.Namespace) -> Search:
    from rlpost.weights.spectrum import RUN_BUDGET, Search

    return Search(asked.top, asked.epsilon, RUN_BUDGET if asked.sample else None)


def _loaded(folder: Path, model: str | None) -> tuple[Policy, Adapter, BaseWeights]:
    from rlpost.weights.adapters import Adapter
    from rlpost.weights.base_weights import base_weights

    trained = policy.find(folder, model)
    adapter = Adapter.load(trained.adapter_folder)
    return trained, adapter, base_weights(trained.model_folder, adapter.base)


def _show(asked: argparse.Namespace) -> None:
    found = _measured(asked)
    for name, spectrum in found.spectra.items():
        _print_spectrum(name, spectrum)
    if found.agreement is not None:
        _print_agreement(found.agreement, asked.start)
    if asked.json is not None:
        write_atomic(asked.json, (json.dumps(_record(found), indent=1) + "\n").encode())
    if asked.output is not None:
        write_atomic(asked.output, _page(found, asked.start))
        print(asked.output)


def _measured(asked: argparse.Namespace) -> Found:
    from rlpost.weights.spectrum import agreement, measure

    loaded = {str(folder): _loaded(folder, asked.model) for folder in asked.adapters}
    models = {trained.model_folder.resolve() for trained, _, _ in loaded.values()}
    if len(models) > 1:
        raise ConfigError(
            f"spectrum: the adapters are of different models: {', '.join(map(str, sorted(models)))}"
        )
    spectra = {
        name: measure(adapter, base, _search(asked), asked.dtype or trained.dtype)
        for name, (trained, adapter, base) in loaded.items()
    }
    if len(loaded) == 1:
        return Found(spectra, None)
    (_, first, base), (_, second, _) = loaded.values()
    start = None if asked.start is None else _loaded(asked.start, asked.model)[1]
    return Found(spectra, agreement(first, second, base, start, asked.top))


def _print_spectrum(name: str, spectrum: Spectrum) -> None:
    from rlpost.pages import spectrum_figures

    head = (
        "module",
        "layer",
        "norm",
        "of W0's",
        "largest",
        "effective rank",
        "stable rank",
        "intruders",
        "principal",
        "by chance",
        "lost",
    )
    rows = [
        (
            *_place(module),
            f"{each.norm:.3g}",
            f"{each.relative_norm:.2%}",
            _number(each.spectral_norm, ".3g"),
            _number(each.effective_rank, ".1f"),
            _number(each.stable_rank, ".1f"),
            _number(each.intruders, "d"),
            _number(each.principal_share, ".2%"),
            _number(each.principal_by_chance, ".2%"),
            _number(each.rounding_loss, ".2%"),
        )
        for module, each in _by_type(spectrum.modules)
    ]
    _print_table(name, head, rows)
    print(f"{spectrum_figures.told(spectrum)}\n")


def _print_agreement(modules: Mapping[str, Agreement], start: Path | None) -> None:
    head = (
        "module",
        "layer",
        "columns",
        "by chance",
        "rows",
        "by chance",
        "cosine",
        "smallest angle",
        "largest",
    )
    rows = [
        (
            *_place(module),
            f"{each.columns:.3f}",
            f"{each.columns_by_chance:.3f}",
            f"{each.rows:.3f}",
            f"{each.rows_by_chance:.3f}",
            f"{each.cosine:+.3f}",
            _number(each.angles[0] if each.angles else None, ".1f"),
            _number(each.angles[-1] if each.angles else None, ".1f"),
        )
        for module, each in _by_type(modules)
    ]
    _print_table("how the two updates agree" + ("" if start is None else f", since {start}"), head, rows)
    print(_agreement_told(modules))


def _agreement_told(modules: Mapping[str, Agreement]) -> str:
    means = mean_agreement(modules)
    if not means:
        return "No module is changed by both."
    return (
        f"Means: the leading column spaces overlap by {means['columns']:.3f} (by chance"
        f" {means['columns_by_chance']:.3f}), the row spaces by {means['rows']:.3f} (by chance"
        f" {means['rows_by_chance']:.3f}); the updates have a cosine of {means['cosine']:+.3f}."
    )


def _print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    plain_console().print(table)


def _by_type(modules: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The modules by type, and within it by layer."""
    return sorted(
        modules.items(), key=lambda item: (place_of(item[0])[0], place_of(item[0])[1] or 0, item[0])
    )


def _place(module: str) -> tuple[str, str]:
    kind, layer = place_of(module)
    return kind, _NOT_MEASURED if layer is None else str(layer)


def _number(value: float | None, form: str) -> str:
    return _NOT_MEASURED if value is None else format(value, form)


def _record(found: Found) -> dict[str, Any]:
    record: dict[str, Any] = {"adapters": {name: to_json(each) for name, each in found.spectra.items()}}
    if found.agreement is not None:
        modules = {module: asdict(each) for module, each in found.agreement.items()}
        record["agreement"] = {"means": mean_agreement(found.agreement), "modules": modules}
    return record


def _page(found: Found, start: Path | None) -> bytes:
    from rlpost.pages import render
    from rlpost.pages.spectrum_figures import pictures, told

    return render.render(
        "spectrum.html.jinja",
        title="Spectrum of " + ", ".join(found.spectra),
        adapters={name: (told(each), list(pictures(each))) for name, each in found.spectra.items()},
        agreement=None if found.agreement is None else _agreement_told(found.agreement),
        start=start,
    )


def _scale(asked: argparse.Namespace) -> None:
    from rlpost.weights.spectrum import scale_intruders

    refuse_existing(asked.out)
    _, adapter, base = _loaded(asked.adapters[0], asked.model)
    scaled = scale_intruders(adapter, base, _search(asked), asked.scale_intruders)
    scaled.adapter.save(asked.out)
    modules = sum(count > 0 for count in scaled.found.values())
    print(
        f"{asked.out}: {sum(scaled.found.values())} intruder dimensions in {modules} of {len(scaled.found)} modules,"
        f" scaled by {asked.scale_intruders:g}; rank {scaled.adapter.config['r']}, before {adapter.config['r']}.\n"
        f"  evaluate it: python -m rlpost.run experiment=generalpoints_eval adapter={asked.out}"
    )
