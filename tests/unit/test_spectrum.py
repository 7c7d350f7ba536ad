"""The spectrum of adapters on a model, with PEFT's merge and torch's SVD of full matrices as witnesses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from transformers import AutoModelForCausalLM

from rlpost.algorithms import spectrum as algebra
from rlpost.config.schema import Config, Dtype
from rlpost.errors import AdapterError, OutputError
from rlpost.record import spectrum as record
from rlpost.record.metrics import Clock
from rlpost.record.run_dir import RunDir
from rlpost.record.spectrum import ModuleSpectrum, Spectrum
from rlpost.tasks import spectrum as task
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.spectrum import Search, agreement, course, directions, measure, sampled, scale_intruders
from tests.learner_data import write_small_model
from tests.peft_kinds import MERGED, save, trained

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": False}
KINDS = {
    "lora": LORA,
    "rslora": {**LORA, "use_rslora": True},
    "dora": {**LORA, "use_dora": True},
    "OFT": MERGED["OFT"],
    "rank pattern": MERGED["rank pattern"],
}
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def adapter_of(small: Path, kind: str, folder: Path, seed: int = 0) -> tuple[PeftModel, Adapter]:
    model = trained(AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32), KINDS[kind], seed)
    return model, Adapter.load(save(model, folder))


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_against_full_decompositions_of_pefts_merge(
    kind: str, small: Path, tmp_path: Path
) -> None:
    model, adapter = adapter_of(small, kind, tmp_path)
    base = BaseWeights(small)
    found = measure(adapter, base, Search(), "bfloat16")
    merged = model.merge_and_unload().state_dict()
    assert len(found.modules) == 6  # q, v and down of two layers
    for module, ours in found.modules.items():
        W0, W = base[f"{module}.weight"].double(), merged[f"{module}.weight"].double()
        S = torch.linalg.svdvals(W - W0)
        S = S[1e-6 * W0.norm() < S]
        p = S / S.sum()
        assert ours.norm == pytest.approx(float((W - W0).norm()), rel=1e-4)
        assert ours.relative_norm == pytest.approx(float((W - W0).norm() / W0.norm()), rel=1e-4)
        assert ours.spectral_norm == pytest.approx(float(S[0]), rel=1e-4)
        assert ours.effective_rank == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-3)
        assert ours.stable_rank == pytest.approx(float((S**2).sum() / S[0] ** 2), rel=1e-3)
        U0, U = (torch.linalg.svd(each, full_matrices=False).U for each in (W0, W))
        assert ours.intruders == int(((U0.T @ U[:, :10]).abs().amax(dim=0) < 0.5).sum())
        U0, _, Vh0 = torch.linalg.svd(W0, full_matrices=False)
        inner = U0[:, :10].T @ (W - W0) @ Vh0[:10].T
        assert ours.principal_share == pytest.approx(float(inner.norm() / (W - W0).norm()) ** 2, abs=1e-4)
        assert ours.principal_by_chance == 100 / W.numel()
        lost = (W.float().bfloat16().double() - W).norm() / (W - W0).norm()
        assert ours.rounding_loss == pytest.approx(float(lost), rel=1e-3)
    if kind == "lora":
        assert course(adapter, small) == {
            name: pytest.approx(found.totals()[name])
            for name in ("relative_norm", "effective_rank", "stable_rank")
        }


def test_the_course_of_kinds_without_factors_is_not_measured(small: Path, tmp_path: Path) -> None:
    assert course(adapter_of(small, "dora", tmp_path)[1], small) == {}


def test_an_adapter_of_another_model_is_refused(small: Path, tmp_path: Path) -> None:
    _, adapter = adapter_of(small, "lora", tmp_path / "adapter")
    base = BaseWeights(small)
    base._tensors[f"{Q_PROJ}.weight"] = torch.zeros(3, 3)
    with pytest.raises(AdapterError, match="another model"):
        measure(adapter, base, Search(), None)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_directions_relative_to_a_start_are_those_of_the_difference(
    kind: str, small: Path, tmp_path: Path
) -> None:
    one, first = adapter_of(small, kind, tmp_path / "one")
    two, second = adapter_of(small, kind, tmp_path / "two", seed=1)
    W1, W2 = (model.merge_and_unload().state_dict() for model in (one, two))
    found = dict(directions(second, BaseWeights(small), first))
    for module, svd in found.items():
        D = (W2[f"{module}.weight"] - W1[f"{module}.weight"]).double()
        whole = svd.U_OK @ svd.S_K.diag() @ svd.V_IK.T
        torch.testing.assert_close(whole, D, rtol=0, atol=1e-5)
    assert len(found[Q_PROJ].S_K) == (8 if kind == "lora" else 32)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_agreement_against_full_decompositions(kind: str, small: Path, tmp_path: Path) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    one, first = adapter_of(small, kind, tmp_path / "one")
    two, second = adapter_of(small, kind, tmp_path / "two", seed=1)
    base = BaseWeights(small)
    W1, W2 = (model.merge_and_unload().state_dict() for model in (one, two))
    found = agreement(first, second, base, top=3)
    for module, ours in found.items():
        W0 = base[f"{module}.weight"].double()
        D1, D2 = (W[f"{module}.weight"].double() - W0 for W in (W1, W2))
        (U1, _, V1), (U2, _, V2) = (torch.linalg.svd(D) for D in (D1, D2))
        angles = linalg.subspace_angles(U1[:, :3].numpy(), U2[:, :3].numpy())[::-1]
        assert ours.angles == pytest.approx([math.degrees(a) for a in angles], abs=0.05)
        assert ours.columns == pytest.approx(sum(math.cos(a) ** 2 for a in angles) / 3, abs=1e-3)
        assert ours.rows == pytest.approx(float((V1[:3] @ V2[:3].T).square().sum()) / 3, abs=1e-3)
        assert (ours.columns_by_chance, ours.rows_by_chance) == (3 / len(D1), 3 / len(D1.T))
        assert ours.cosine == pytest.approx(float((D1 * D2).sum() / (D1.norm() * D2.norm())), abs=1e-4)
    means = record.mean_agreement(found)
    assert means["cosine"] == pytest.approx(sum(each.cosine for each in found.values()) / len(found))
    itself = record.mean_agreement(agreement(first, first, base))
    assert [itself[name] for name in ("columns", "rows", "cosine")] == pytest.approx([1, 1, 1])
    from_itself = agreement(first, first, base, start=first)
    assert record.mean_agreement(from_itself) == {}


SHAPES = {
    **{f"model.layers.{layer}.mlp.{name}": (4, 2) for layer in range(12) for name in ("up", "down")},
    "extra": (2, 2),
}


@pytest.mark.parametrize(
    ("budget", "layers"),
    [
        (None, [*range(12), None]),
        (12 * 32 + 8, [*range(12), None]),
        (7 * 32, [None, 1, 3, 5, 7, 9, 11]),
        (8, [None]),
    ],
)
def test_layers_are_sampled_evenly_within_the_budget(budget: int | None, layers: list[int | None]) -> None:
    """A layer has two modules of cost 16; `extra` costs 8."""
    chosen = sampled(SHAPES, budget)
    assert {record.place_of(module)[1] for module in chosen} == set(layers)
    assert len(chosen) == 2 * len(layers) - 1


def test_a_model_too_large_for_one_layer_is_not_searched() -> None:
    assert sampled(SHAPES, 7) == frozenset()


def test_outside_of_the_sample_nothing_is_made_up(small: Path, tmp_path: Path) -> None:
    _, adapter = adapter_of(small, "dora", tmp_path)
    found = measure(adapter, BaseWeights(small), Search(budget=1), None)
    assert {(each.intruders, each.effective_rank, each.rounding_loss) for each in found.modules.values()} == {
        (None, None, None)
    }
    assert found.totals().keys() == {"relative_norm"}


def module_of(
    norm: float, base: float, rank: float, intruders: int | None, lost: float | None
) -> ModuleSpectrum:
    return ModuleSpectrum(norm, base, norm, rank, rank, intruders, lost)


TWO = Spectrum(3, 10, 0.5, "bfloat16", {"a": module_of(3, 6, 2, 1, 0.1), "b": module_of(4, 8, 4, None, 0.2)})


def test_totals_by_hand() -> None:
    assert TWO.totals() == {
        "relative_norm": 0.5,
        "effective_rank": 3,
        "stable_rank": 3,
        "intruders": 1,
        "examined": 1,
        "rounding_loss": pytest.approx(math.hypot(0.3, 0.8) / 5),
    }
    nothing = Spectrum(0, 10, 0.5, None, {"a": module_of(0, 6, 0, 0, None)})
    assert nothing.totals() == {"relative_norm": 0, "intruders": 0, "examined": 1}


def test_the_principal_share_of_all_is_that_of_one_vector() -> None:
    """Squared norms 9 and 16; a module without an update, and one that was not searched, do not count."""
    known = module_of(3, 6, 2, 1, None), module_of(4, 8, 4, 0, None)
    shares = ((0.5, 0.01), (0.25, 0.02))
    modules = {
        str(i): replace(each, principal_share=share, principal_by_chance=chance)
        for i, (each, (share, chance)) in enumerate(zip(known, shares, strict=True))
    }
    totals = Spectrum(0, 10, 0.5, None, modules | {"not searched": module_of(9, 9, 1, None, None)}).totals()
    assert totals["principal_share"] == pytest.approx((9 * 0.5 + 16 * 0.25) / 25)
    assert totals["principal_by_chance"] == pytest.approx((9 * 0.01 + 16 * 0.02) / 25)


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    record.write(TWO, tmp_path)
    path = tmp_path / record.FILE
    old = json.loads(path.read_bytes())
    for each in old["modules"].values():
        del each["principal_share"], each["principal_by_chance"]
    path.write_text(json.dumps(old))
    assert record.read(tmp_path) == TWO


def test_the_file_there_and_back(tmp_path: Path) -> None:
    assert record.read(tmp_path) is None
    record.write(TWO, tmp_path)
    assert record.read(tmp_path) == TWO
    assert json.loads((tmp_path / record.FILE).read_bytes())["totals"] == TWO.totals()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"modules": {"a": {}}}'])
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / record.FILE).write_text(text)
    with pytest.raises(OutputError, match="holds no spectrum"):
        record.read(tmp_path)


def test_a_run_measures_on_the_way_and_at_its_end(small: Path, tmp_path: Path) -> None:
    _, adapter = adapter_of(small, "lora", tmp_path / "peft")
    run_dir = RunDir.create(tmp_path / "run", "name", 0, "name: x\n")
    adapter.save(run_dir.adapter)
    sent: list[tuple[dict[str, float], str]] = []
    parts: dict[str, Any] = {
        "run_dir": run_dir,
        "model_folder": small,
        "clock": Clock(),
        "cfg": Config(dtype=Dtype.bfloat16),
    }
    parts["tracker"] = SimpleNamespace(log=lambda figures, over: sent.append((figures, over)))
    parts["progress"] = SimpleNamespace(stage=lambda _: None)
    parts["book"] = lambda stage, measured: run_dir.append_metrics({"stage": stage, **measured})
    session: Any = SimpleNamespace(**parts)
    names = {f"spectrum/{name}" for name in ("relative_norm", "effective_rank", "stable_rank")}
    assert task.on_the_way(session).keys() == names
    task.at_the_end(session, "eval/iterations", 7)
    [line] = run_dir.read_metrics()
    names |= {f"spectrum/{name}" for name in ("intruders", "examined", "rounding_loss")}
    names |= {f"spectrum/principal_{name}" for name in ("share", "by_chance")}
    assert line.keys() == {"stage", "non_finite", *names}
    assert line["stage"] == "after"
    [(figures, over)] = sent
    assert (figures.pop("eval/iterations"), over) == (7, "eval/iterations")
    assert figures == {name: line[name] for name in names}
    assert record.read(run_dir.path) == measure(adapter, BaseWeights(small), Search(), "bfloat16")
    run_dir.truncate_metrics(3)
    assert record.read(run_dir.path) is None
    assert run_dir.read_metrics() == []


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_scaled_intruders_are_the_full_matrices_arithmetic_and_plain_peft_loads_them(
    kind: str, factor: float, small: Path, tmp_path: Path
) -> None:
    model, adapter = adapter_of(small, kind, tmp_path / "before", seed=3)
    base, search = BaseWeights(small), Search(epsilon=0.7)
    result = scale_intruders(adapter, base, search, factor)
    result.adapter.save(tmp_path / "after")
    assert sum(result.found.values()) > 0
    assert result.adapter.config["r"] == 4 + max(result.found.values())
    plain = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    scaled = PeftModel.from_pretrained(plain, tmp_path / "after").merge_and_unload().state_dict()
    merged = model.merge_and_unload().state_dict()
    for module, count in result.found.items():
        W0, W = (each[f"{module}.weight"].double() for each in (base, merged))
        U0 = torch.linalg.svd(W0, full_matrices=False).U
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        chosen = (U0.T @ U[:, :10]).abs().amax(dim=0) < 0.7
        assert int(chosen.sum()) == count
        index = chosen.nonzero().flatten()
        expected = W + (factor - 1) * U[:, index] @ S[index].diag() @ Vh[index]
        torch.testing.assert_close(scaled[f"{module}.weight"].double(), expected, rtol=0, atol=2e-5)


def test_pefts_own_reduction_is_the_same_but_for_its_cut_to_the_rank(small: Path, tmp_path: Path) -> None:
    """PEFT cuts the result to the adapter's rank (and so does the witness, by an SVD)."""
    model, adapter = adapter_of(small, "lora", tmp_path, seed=3)
    base = BaseWeights(small)
    result = scale_intruders(adapter, base, Search(epsilon=0.7), 0.25)
    reduce_intruder_dimension(model, threshold_epsilon=0.7, mitigation_lambda=0.25, logging_sink=None)
    theirs = model.merge_and_unload(adapter_names=["intruder_reduced"]).state_dict()
    for module in result.found:
        factors = result.adapter.factors(module)
        whole = algebra.of_factors(factors.A, factors.B, result.adapter.scaling).leading(4)
        ours = base[f"{module}.weight"].double() + whole.U_OK @ whole.S_K.diag() @ whole.V_IK.T
        torch.testing.assert_close(theirs[f"{module}.weight"].double(), ours, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["dora", "OFT", "rank pattern"])
def test_other_kinds_are_not_scaled(kind: str, small: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="LoRA or rsLoRA of one rank"):
        scale_intruders(adapter_of(small, kind, tmp_path)[1], BaseWeights(small), Search(), 0.5)


def test_without_intruders_there_is_nothing_to_scale(small: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no intruder dimension"):
        scale_intruders(adapter_of(small, "lora", tmp_path)[1], BaseWeights(small), Search(epsilon=0.01), 0.5)
