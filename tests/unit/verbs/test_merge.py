"""The merged model against PEFT's own forward pass, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpost.command.main import main
from rlpost.verbs import merge, policy
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY, name_for_loading
from tests.conftest import write_random_model
from tests.unit.verbs import recorded

IDS = torch.tensor([[5, 9, 300, 17, 44, 45, 46, 101]])


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float().log_softmax(-1)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model in several files with an index, as large models come."""
    folder = write_random_model(tmp_path_factory.mktemp("sharded"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5MB")
    (folder / "README.md").write_text("of the base")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module", params=["lora", "rsdora"])
def adapter(request: pytest.FixtureRequest, sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    kind = {"use_rslora": True, "use_dora": True} if request.param == "rsdora" else {}
    recorded.adapter_for(sharded, str(sharded), **kind).save(folder)
    return folder


def test_plain_transformers_load_the_policy(sharded: Path, adapter: Path, tmp_path: Path) -> None:
    """Against PEFT's forward pass, which merges nothing; and far from the base."""
    target = tmp_path / "merged"
    assert main(["merge", str(adapter), str(target)]) == 0
    base = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32)
    bare = logprobs(base)
    expected = logprobs(PeftModel.from_pretrained(base, adapter))
    merged, report = AutoModelForCausalLM.from_pretrained(
        target, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logprobs(merged), expected, rtol=0, atol=2e-5)
    assert (expected - bare).abs().max() > 0.1


def test_the_folder_is_laid_out_as_its_source(sharded: Path, adapter: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged"
    main(["merge", str(adapter), str(target), "--dtype", "bfloat16"])
    assert {path.name for path in target.iterdir()} == {p.name for p in sharded.iterdir()} - {"README.md"}
    ours, theirs = (json.loads((folder / merge.INDEX).read_bytes()) for folder in (target, sharded))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] * 2 == theirs["metadata"]["total_size"]
    assert json.loads((target / "config.json").read_bytes())["dtype"] == "bfloat16"
    assert (
        AutoTokenizer.from_pretrained(target).chat_template
        == AutoTokenizer.from_pretrained(sharded).chat_template
    )
    assert AutoModelForCausalLM.from_pretrained(target, dtype="auto").dtype == torch.bfloat16


def test_pefts_one_liner_loads_an_adapter_of_the_bundled_model(tmp_path: Path) -> None:
    """The base's name is the one that the learner's export writes."""
    adapter = recorded.adapter_for(TINY, name_for_loading("tiny", TINY))
    adapter.save(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    torch.testing.assert_close(
        logprobs(loaded), logprobs(PeftModel.from_pretrained(base, tmp_path / "adapter")), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tiny", str(TINY)), ("./models/mine", "/m"), ("owner/name", "owner/name"), ("smollm2-135m", "/m")],
)
def test_hub_models_keep_their_id_and_others_are_named_by_their_folder(name: str, expected: str) -> None:
    assert name_for_loading(name, TINY if name == "tiny" else Path("/m")) == expected


def test_a_folder_that_is_spelt_as_a_hub_id_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert name_for_loading("owner/name", tmp_path / "owner" / "name") == str(tmp_path / "owner" / "name")


def test_a_run_is_merged_in_the_precision_that_it_computed_in(tmp_path: Path) -> None:
    """The bundled model is stored in bfloat16, the run computed in float32: rounding would lose of the policy."""
    run_dir = recorded.run(tmp_path / "run")
    recorded.adapter_for(TINY, str(TINY)).save(run_dir.adapter)
    assert main(["merge", str(run_dir.path), str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.float32
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    expected = logprobs(PeftModel.from_pretrained(base, run_dir.adapter))
    torch.testing.assert_close(logprobs(merged), expected, rtol=0, atol=2e-5)


def refused(capsys: pytest.CaptureFixture[str], *argv: Path | str) -> str:
    assert main(["merge", *map(str, argv)]) == 1
    return capsys.readouterr().err


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    sharded: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "merged"
    assert "neither a run (config.yaml, trajectories/) nor an adapter" in refused(capsys, tmp_path, target)
    run_dir = recorded.run(tmp_path / "run")
    assert "the run has no adapter/" in refused(capsys, run_dir.path, target)
    deeper = Adapter.load(adapter)
    tensors = {name.replace("layers.5", "layers.6"): tensor for name, tensor in deeper.tensors.items()}
    Adapter.create(deeper.config, tensors, 1).save(tmp_path / "deeper")
    assert "is of another model than" in refused(capsys, tmp_path / "deeper", target)
    assert "There is no folder /no/where" in refused(capsys, adapter, target, "--model", "/no/where")
    (tmp_path / "broken").mkdir()
    shutil.copy(adapter / "adapter_config.json", tmp_path / "broken")
    assert "adapter_model.safetensors is missing" in refused(capsys, tmp_path / "broken", target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "deeper", "run"]
    target.mkdir()
    assert "it is there already" in refused(capsys, adapter, target)


def test_a_base_that_has_moved_is_named_with_the_way_out(
    sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = recorded.adapter_for(sharded, str(tmp_path / "gone"))
    moved.save(tmp_path / "adapter")
    said = refused(capsys, tmp_path / "adapter", tmp_path / "merged")
    assert f"it was trained on {tmp_path / 'gone'}, which is not there" in said
    assert "--model FOLDER" in said
    assert main(["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--model", str(sharded)]) == 0
    nameless = Adapter.create({**moved.config, "base_model_name_or_path": None}, moved.tensors, 0)
    nameless.save(tmp_path / "nameless")
    assert "it names no base model" in refused(capsys, tmp_path / "nameless", tmp_path / "other")


def test_a_write_that_fails_leaves_nothing(
    sharded: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge.shutil, "copyfile", full)
    assert main(["merge", str(adapter), str(tmp_path / "merged")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_record_are_read_without_importing_what_it_names(tmp_path: Path) -> None:
    run_dir = recorded.run(tmp_path / "run")
    text = run_dir.config.read_text()
    run_dir.config.write_text(text.replace("env: generalpoints", "env: no_such_module:Env"))
    assert policy.settings_of(run_dir).env == "no_such_module:Env"
