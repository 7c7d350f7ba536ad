"""rlpost spectrum: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlpost.command.main import main
from rlpost.record.spectrum import Spectrum, mean_agreement, to_json
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.models import TINY
from rlpost.weights.spectrum import Search, agreement, measure, scale_intruders
from tests.learner_data import write_small_model
from tests.unit.pages import Page, assert_inert, assert_told
from tests.unit.verbs import recorded


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_model(tmp_path_factory.mktemp("model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def adapters(small: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed in range(3):
        recorded.adapter_for(small, str(small), seed=seed, r=4).save(folder / f"adapter-{seed}")
    return sorted(folder.iterdir())


def measured(small: Path, folder: Path, dtype: str | None = None) -> Spectrum:
    return measure(Adapter.load(folder), BaseWeights(small), Search(), dtype)


def test_one_adapter(
    small: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page_file = tmp_path / "figures.json", tmp_path / "page.html"
    words = [str(adapters[0]), "--dtype", "bfloat16", "--json", str(file), "-o", str(page_file)]
    assert main(["spectrum", *words]) == 0
    spectrum = measured(small, adapters[0], "bfloat16")
    assert json.loads(file.read_bytes()) == {"adapters": {str(adapters[0]): to_json(spectrum)}}
    printed = capsys.readouterr().out
    assert printed.count("q_proj") == 2
    of_q = spectrum.modules["model.layers.1.self_attn.q_proj"]
    [row] = [line.split() for line in printed.splitlines() if line.split()[:2] == ["q_proj", "1"]]
    assert row[2:] == [
        f"{of_q.norm:.3g}",
        f"{of_q.relative_norm:.2%}",
        f"{of_q.spectral_norm:.3g}",
        f"{of_q.effective_rank:.1f}",
        f"{of_q.stable_rank:.1f}",
        f"{of_q.intruders}",
        f"{of_q.principal_share:.2%}",
        f"{of_q.principal_by_chance:.2%}",
        f"{of_q.rounding_loss:.2%}",
    ]
    assert f"The update's norm is {spectrum.totals()['relative_norm']:.2%}" in printed
    html = page_file.read_text()
    page = Page(html)
    assert_inert(page, html)
    assert_told(page)
    assert len(page.all("img")) == 3


def test_two_adapters_since_a_start(
    small: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, start = map(str, adapters)
    file = tmp_path / "figures.json"
    assert main(["spectrum", one, two, "--start", start, "--json", str(file)]) == 0
    expected = agreement(
        *(Adapter.load(folder) for folder in adapters[:2]), BaseWeights(small), Adapter.load(adapters[2])
    )
    record = json.loads(file.read_bytes())
    assert list(record["adapters"]) == [one, two]
    assert record["agreement"]["means"] == mean_agreement(expected)
    assert f"a cosine of {mean_agreement(expected)['cosine']:+.3f}" in capsys.readouterr().out


def test_intruders_scaled_into_a_new_adapter(
    small: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scaled"
    words = [str(adapters[0]), "--epsilon", "0.95", "--scale-intruders", "0.5", "--out", str(out)]
    assert main(["spectrum", *words]) == 0
    expected = scale_intruders(Adapter.load(adapters[0]), BaseWeights(small), Search(epsilon=0.95), 0.5)
    assert Adapter.load(out).fingerprint == expected.adapter.fingerprint
    assert f"{sum(expected.found.values())} intruder dimensions" in capsys.readouterr().out
    assert main(["spectrum", *words]) == 1
    assert "there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["A", "B", "C"], "name one adapter, or two"),
        (["A", "--start", "B"], "--start compares two"),
        (["A", "B", "--scale-intruders", "0.5", "--out", "F"], "takes one adapter"),
        (["A", "--scale-intruders", "0.5"], "go together"),
        (["A", "--out", "F"], "go together"),
        (["A", "--scale-intruders", "1.5", "--out", "F"], "from 0 to 1"),
        (["A", "--scale-intruders", "0", "--out", "F", "--json", "J"], "by a second command"),
        (["A", "--top", "0"], "--top 0: from 1"),
        (["A", "--epsilon", "0"], "above 0, at most 1"),
        (["A", "-o", "page.txt"], "ends with .html"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["spectrum", *words]) == 2
    assert reason in capsys.readouterr().err


def test_an_adapter_named_twice_is_refused(adapters: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spectrum", str(adapters[0]), str(adapters[0])]) == 2
    assert "named twice" in capsys.readouterr().err
