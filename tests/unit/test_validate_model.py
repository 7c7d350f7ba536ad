"""What does not fit the model, with adapters that PEFT itself made of models of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import ray
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlpost import run
from rlpost.cluster import ray_cluster
from rlpost.config.schema import (
    AdapterKind,
    BaseKind,
    Config,
    LearnerConfig,
    LearningRate,
    LoraConfig,
    Optimizer,
    Task,
)
from rlpost.errors import AdapterError, ConfigError, ModelError
from rlpost.learner.model.peft_weights import peft_config
from rlpost.validate.model import check_model
from rlpost.weights import models, stored_model
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from rlpost.weights.parameters import parameters_of
from tests.adapter_kinds import ADAPTERS
from tests.adapter_kinds import small as small_lora
from tests.families import MIXTURES, write_family
from tests.families import targets as family_targets
from tests.learner_data import write_small_model
from tests.peft_kinds import MERGED, save, trained

LORA = LoraConfig(rank=4, alpha=8.0)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
PLAYING = (Task.rl, Task.sft, Task.eval, Task.compare, Task.dry_run)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture
def adapted(small: Path, tmp_path: Path) -> Callable[..., Path]:
    """Has PEFT save an adapter of a model folder (the small one)."""

    def saved(lora: LoraConfig = LORA, base: Path = small, **settings: Any) -> Path:
        config = peft_config(lora)
        for key, value in settings.items():
            setattr(config, key, value)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return saved


def llama(folder: Path, **changes: Any) -> Path:
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": True, **SMALL, **changes}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    return folder


def config(task: Task = Task.rl, lora: LoraConfig = LORA, adapter: Path | None = None) -> Config:
    return Config(
        task=task,
        model="small",
        lora=lora,
        adapter=None if adapter is None else str(adapter),
        env="generalpoints",
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_linear_layers_are_those_that_peft_finds(tied: bool, tmp_path: Path) -> None:
    folder = llama(tmp_path, tie_word_embeddings=tied)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder), peft_config(LORA))
    theirs = {
        name: tuple(module.weight.shape)
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert models.linear_layers(folder) == theirs


@pytest.mark.parametrize("task", [task for task in PLAYING if task is not Task.eval])
@pytest.mark.parametrize("names", ["q_proj,v_porj", "v_porj", "q_proj,v_porj,lm_head", "proj", "self_attn"])
def test_a_misspelt_module_is_named_with_what_the_model_has(task: Task, names: str, small: Path) -> None:
    wrong = [name for name in names.split(",") if name != "q_proj"]
    with pytest.raises(ConfigError) as refused:
        check_model(config(task, replace(LORA, target_modules=names)), small)
    for name in wrong:
        assert f"lora.target_modules={name}\n  reason: model=small has no linear layer" in str(refused.value)
    has = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert str(refused.value).count(f"choose from {has}") == len(wrong)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "input_layernorm"])
def test_embeddings_and_the_head_are_no_targets(tied: bool, name: str, tmp_path: Path) -> None:
    folder = llama(tmp_path, tie_word_embeddings=tied)
    for names in (name, f"q_proj,{name}"):
        with pytest.raises(ConfigError, match=f"lora.target_modules={name}\n"):
            check_model(config(lora=replace(LORA, target_modules=names)), folder)


@pytest.mark.parametrize("names", ["all-linear", "q_proj", "q_proj,v_proj", "down_proj,q_proj"])
@pytest.mark.parametrize("task", PLAYING)
def test_what_fits_is_taken(names: str, task: Task, small: Path, adapted: Callable[..., Path]) -> None:
    lora = replace(LORA, target_modules=names)
    check_model(config(task, lora), small)
    check_model(config(task, lora, adapted(lora)), small)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_is_taken_by_the_settings_that_name_it(
    kind: AdapterKind, small: Path, adapted: Callable[..., Path]
) -> None:
    lora = small_lora(kind, LORA)
    check_model(config(Task.sft, lora, adapted(lora)), small)


@pytest.mark.parametrize("case", ["rank pattern", "OFT", "VeRA"])
def test_a_kind_that_only_peft_merges_is_taken_to_evaluate_and_not_to_start_lora_from(
    case: str, small: Path, tmp_path: Path
) -> None:
    model = trained(AutoModelForCausalLM.from_pretrained(small), MERGED[case])
    adapter = save(model, tmp_path / "adapter")
    check_model(config(Task.eval, adapter=adapter), small)
    with pytest.raises(
        AdapterError, match=r"The start adapter .*Give those it was trained with: lora\.kind="
    ):
        check_model(config(Task.rl, adapter=adapter), small)
    for name, sizes in {"wider": {"hidden_size": 48}, "deeper": {"num_hidden_layers": 3}}.items():
        other = llama(tmp_path / name, **sizes)
        with pytest.raises(AdapterError, match=r"trained on .*small-model.* does not fit model=small\. PEFT"):
            check_model(config(Task.eval, adapter=adapter), other)


def test_an_adapter_that_peft_cannot_merge_is_refused_before_anything_starts(
    small: Path, tmp_path: Path
) -> None:
    model = trained(AutoModelForCausalLM.from_pretrained(small), {"peft_type": "LILY"})
    with pytest.raises(AdapterError, match="cannot merge an adapter of kind LILY"):
        check_model(config(Task.eval, adapter=save(model, tmp_path / "adapter")), small)


@pytest.mark.parametrize("task", PLAYING)
@pytest.mark.parametrize(
    "other",
    [
        {"hidden_size": 48},
        {"intermediate_size": 64},
        {"num_key_value_heads": 4},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},  # every layer that it has would fit
    ],
)
def test_an_adapter_of_another_model_is_refused_with_both_names(
    task: Task, other: dict[str, int], small: Path, adapted: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapted(base=llama(tmp_path / "the-other-model", **other))
    with pytest.raises(
        AdapterError, match=r"of another model than model=small\..*trained on .*the-other-model"
    ):
        check_model(config(task, adapter=adapter), small)


def test_an_adapter_of_a_shallower_model_by_names_is_refused(
    small: Path, adapted: Callable[..., Path], tmp_path: Path
) -> None:
    lora = replace(LORA, target_modules="q_proj,v_proj")
    adapter = adapted(lora, llama(tmp_path / "shallow", num_hidden_layers=1))
    with pytest.raises(AdapterError, match=r"first 1 of 2 blocks alone .*layers_to_transform = \[0\]"):
        check_model(config(Task.eval, lora, adapter), small)


def test_the_remedy_for_an_adapter_that_means_the_first_blocks_can_be_followed(
    small: Path, adapted: Callable[..., Path]
) -> None:
    adapter = adapted(target_modules={"layers.0.self_attn.q_proj"})
    with pytest.raises(AdapterError, match="first 1 of 2 blocks"):
        check_model(config(Task.eval, adapter=adapter), small)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layers_to_transform": [0]}))
    check_model(config(Task.eval, adapter=adapter), small)
    assert PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(small), adapter
    ).targeted_module_names == ["model.layers.0.self_attn.q_proj"]


def test_a_renamed_folder_of_the_same_model_is_no_other_model(
    small: Path, adapted: Callable[..., Path], tmp_path: Path
) -> None:
    moved = shutil.copytree(small, tmp_path / "moved")
    check_model(config(adapter=adapted(base=moved)), small)


def test_an_adapter_of_some_blocks_is_taken_where_it_says_so(
    small: Path, adapted: Callable[..., Path]
) -> None:
    adapter = adapted(replace(LORA, target_modules="q_proj,v_proj"), layers_to_transform=[1])
    check_model(config(Task.eval, adapter=adapter), small)
    with pytest.raises(AdapterError, match=r"differ in model\.layers\.0\.self_attn\.q_proj"):
        check_model(config(Task.rl, replace(LORA, target_modules="q_proj,v_proj"), adapter), small)


def test_an_adapter_by_a_regular_expression_or_with_exceptions_is_taken(
    small: Path, adapted: Callable[..., Path]
) -> None:
    settings = {"target_modules": r".*layers\.0.*(q|v)_proj"}
    check_model(config(Task.eval, adapter=adapted(**settings)), small)
    settings = {"target_modules": {"q_proj", "v_proj"}, "exclude_modules": {"layers.0.self_attn.q_proj"}}
    check_model(config(Task.eval, adapter=adapted(**settings)), small)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("task", PLAYING)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_an_adapter_of_the_head_or_the_embeddings_is_refused(
    target: str, task: Task, small: Path, adapted: Callable[..., Path]
) -> None:
    adapter = adapted(target_modules={"q_proj", target})
    with pytest.raises(AdapterError, match=target):
        check_model(config(task, replace(LORA, target_modules="q_proj"), adapter), small)


@pytest.mark.parametrize("task", [Task.rl, Task.sft, Task.compare])
def test_training_names_the_modules_that_the_start_has(
    task: Task, small: Path, adapted: Callable[..., Path]
) -> None:
    adapter = adapted(replace(LORA, target_modules="q_proj,v_proj"))
    for names in ("all-linear", "q_proj", "q_proj,v_proj,k_proj"):
        with pytest.raises(AdapterError, match=r"lora\.target_modules='q_proj,v_proj'$"):
            check_model(config(task, replace(LORA, target_modules=names), adapter), small)
    with pytest.raises(AdapterError, match="r=4"):
        check_model(config(task, replace(LORA, rank=8), adapter), small)
    for unread in (LoraConfig(), replace(LORA, target_modules="v_porj")):
        check_model(config(Task.eval, unread, adapter), small)


@pytest.mark.parametrize("task", PLAYING)
def test_every_task_asks_before_ray_starts_and_anything_is_written(
    task: Task, adapted: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray_cluster, "connect", started)
    cfg = replace(config(task, adapter=adapted()), model=str(TINY), output_dir=str(tmp_path / "run"))
    with pytest.raises(AdapterError, match=f"of another model than model={TINY}"):
        run.dispatch(cfg)
    if task is not Task.eval:
        cfg = replace(cfg, adapter=None, lora=replace(LORA, target_modules="q_proj,v_porj"))
        with pytest.raises(ConfigError, match="v_porj"):
            run.dispatch(cfg)
    assert not ray.is_initialized()
    assert not (tmp_path / "run").exists()


FULL = replace(LORA, kind=AdapterKind.full)
BITFIT = replace(LORA, kind=AdapterKind.bitfit)


def whole(folder: Path, names: dict[str, tuple[int, ...]], targets: str = "all-linear") -> Path:
    """Whole weights of the given names and shapes, as full fine-tuning leaves them."""
    tensors = {name: torch.ones(shape) for name, shape in names.items()}
    Adapter.create({"peft_type": "FULL", "target_modules": targets}, tensors, 1).save(folder)
    return folder


@pytest.mark.parametrize("targets", ["all-linear", "embed_tokens", "norm,q_proj", "input_layernorm"])
def test_full_fine_tuning_takes_any_module(targets: str, small: Path) -> None:
    check_model(config(lora=replace(FULL, target_modules=targets)), small)


def test_full_fine_tuning_of_a_module_that_the_model_lacks_is_refused(small: Path) -> None:
    """A tied head has no parameter of its own."""
    for targets, told in (("q_proj,qproj", "qproj"), ("lm_head", "lm_head")):
        with pytest.raises(
            ConfigError, match=rf"{told}\n  reason: lora.kind=full.*\n  remedy: .*embed_tokens"
        ):
            check_model(config(lora=replace(FULL, target_modules=targets)), small)


def test_bitfit_of_a_model_without_biases_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora.kind=bitfit\n  reason: .* has no bias"):
        check_model(config(lora=BITFIT), small)
    biased = llama(tmp_path / "biased", attention_bias=True)
    check_model(config(lora=BITFIT), biased)
    check_model(config(lora=replace(BITFIT, target_modules="q_proj")), biased)
    with pytest.raises(ConfigError, match="no bias in a module of that name"):
        check_model(config(lora=replace(BITFIT, target_modules="norm")), biased)


def test_whole_weights_and_adapters_do_not_start_each_other(
    small: Path, adapted: Callable[..., Path], tmp_path: Path
) -> None:
    weights = whole(tmp_path / "whole", models.parameter_shapes(small))
    check_model(config(lora=FULL, adapter=weights), small)
    check_model(config(Task.eval, adapter=weights), small)
    with pytest.raises(
        AdapterError, match=r"holds whole weights, and lora.kind=lora trains an adapter.*rlpost merge"
    ):
        check_model(config(adapter=weights), small)
    with pytest.raises(AdapterError, match=r"holds an adapter, and lora.kind=full trains whole weights"):
        check_model(config(lora=FULL, adapter=adapted()), small)


def test_a_start_with_more_parameters_than_train_is_refused(small: Path, tmp_path: Path) -> None:
    weights = whole(tmp_path / "whole", models.parameter_shapes(small))
    with pytest.raises(AdapterError, match=r"leaves out .*lora.target_modules=all-linear"):
        check_model(config(lora=replace(FULL, target_modules="q_proj"), adapter=weights), small)


def test_a_start_with_fewer_weights_than_train_is_refused(small: Path, tmp_path: Path) -> None:
    shapes = {n: shape for n, shape in models.parameter_shapes(small).items() if ".q_proj." in n}
    weights = whole(tmp_path / "whole", shapes, "q_proj")
    check_model(config(lora=replace(FULL, target_modules="q_proj"), adapter=weights), small)
    with pytest.raises(AdapterError, match=r"also trains .*down_proj.*lora.target_modules=q_proj"):
        check_model(config(lora=FULL, adapter=weights), small)


@pytest.mark.parametrize("lacking", ["model.norm.weight", "model.embed_tokens.weight", "input_layernorm"])
def test_a_start_without_norms_or_embeddings_that_train_is_refused(
    lacking: str, small: Path, tmp_path: Path
) -> None:
    shapes = {name: shape for name, shape in models.parameter_shapes(small).items() if lacking not in name}
    weights = whole(tmp_path / "whole", shapes)
    check_model(config(Task.eval, lora=FULL, adapter=weights), small)
    with pytest.raises(AdapterError, match=rf"also trains .*{lacking}.*lora.target_modules=all-linear"):
        check_model(config(lora=FULL, adapter=weights), small)


def test_a_tied_head_and_buffers_beside_the_parameters_are_nothing_to_start_from(
    small: Path, tmp_path: Path
) -> None:
    """Checkpoints may have both."""
    folder, shapes = shutil.copytree(small, tmp_path / "model"), models.parameter_shapes(small)
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**tensors, **head, **buffer}, folder / "model.safetensors", {"format": "pt"})
    check_model(config(lora=FULL, adapter=whole(tmp_path / "whole", shapes)), folder)
    with pytest.raises(ConfigError, match=r"lora.target_modules=lm_head\n.*has no parameter in a module"):
        check_model(config(lora=replace(FULL, target_modules="q_proj,lm_head")), folder)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "gpt_neox", "mixtral"])
def test_the_parameters_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert parameters_of(folder) == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_a_model_that_transformers_does_not_know_is_named(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "own")
    settings = json.loads((folder / "config.json").read_text()) | {"model_type": "ownlm"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"transformers cannot build the model in .*own: .*ownlm"):
        check_model(config(lora=FULL), folder)


def test_whole_parameters_with_other_names_in_the_checkpoint_are_refused(tmp_path: Path) -> None:
    """transformers makes one tensor of Mixtral's experts."""
    folder = write_family(tmp_path, "mixtral")
    with pytest.raises(ModelError, match=r"parameters have other names in its checkpoint \(.*experts"):
        check_model(config(lora=FULL), folder)
    check_model(config(lora=replace(FULL, target_modules="q_proj,norm")), folder)


MUON = LearnerConfig(optimizer=Optimizer.muon)


@pytest.mark.parametrize(
    "lora",
    [
        replace(LORA, rank=1),
        replace(LORA, kind=AdapterKind.dora, rank=1),
        replace(LORA, rank=1, settings={"rank_pattern": {"v_proj": 1}}),
        small_lora(AdapterKind.ia3),
        small_lora(AdapterKind.vera),
        small_lora(AdapterKind.tinylora),
        replace(FULL, target_modules="embed_tokens,norm"),
    ],
)
def test_muon_without_a_matrix_is_refused_where_something_trains(lora: LoraConfig, small: Path) -> None:
    for task in (Task.sft, Task.rl, Task.compare):
        with pytest.raises(ConfigError, match=f"learner.optimizer=muon\n.*lora.kind={lora.kind.value}"):
            check_model(replace(config(task, lora), learner=MUON), small)
    check_model(replace(config(Task.dry_run, lora), learner=MUON), small)


@pytest.mark.parametrize(
    "lora",
    [
        LORA,
        replace(LORA, rank=1, settings={"rank_pattern": {"layers.1.mlp.down_proj": 2}}),
        small_lora(AdapterKind.oft),
        small_lora(AdapterKind.vblora),
        replace(FULL, target_modules="norm,q_proj"),
        FULL,
    ],
)
def test_muon_with_a_matrix_is_taken(lora: LoraConfig, small: Path) -> None:
    check_model(replace(config(lora=lora), learner=MUON), small)


def test_muon_of_biases_is_refused(tmp_path: Path) -> None:
    biased = llama(tmp_path / "biased", attention_bias=True)
    with pytest.raises(ConfigError, match=r"learner.optimizer=muon\n.*lora.kind=bitfit"):
        check_model(replace(config(lora=BITFIT), learner=MUON), biased)


def quantized(small: Path, folder: Path, key: str = "quantization_config", **settings: Any) -> Path:
    """The model with a config.json that says it is quantized."""
    shutil.copytree(small, folder)
    said = json.loads((folder / "config.json").read_text()) | {key: settings}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("task", PLAYING)
def test_a_model_that_is_quantized_is_refused_by_name(
    task: Task, key: str, small: Path, adapted: Callable[..., Path], tmp_path: Path
) -> None:
    folder = quantized(small, tmp_path / "coded", key, quant_method="gptq", bits=4)
    nf4 = replace(LORA, base=BaseKind.nf4)
    with pytest.raises(
        ConfigError, match=r"lora.base=nf4\n  reason: .*quantized already \(gptq\).*\n.*made from"
    ):
        check_model(config(task, nf4), folder)
    with pytest.raises(
        ModelError, match=r"model=small is quantized \(gptq\).*Give the model that it was made"
    ):
        check_model(config(task, adapter=adapted()), folder)
    if task is Task.eval:
        check_model(config(task), folder)
        return
    with pytest.raises(ModelError, match=r"model=small is quantized \(gptq\).*lora.base=nf4 then holds it"):
        check_model(config(task), folder)


def test_a_quantized_model_that_names_no_method_is_refused_too(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"quantized \(a method that it does not name"):
        check_model(config(), quantized(small, tmp_path / "coded", bits=4))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8])
def test_weights_in_codes_are_not_rounded_to_nf4(dtype: torch.dtype, small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "coded")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for task in PLAYING:
        with pytest.raises(ConfigError, match=r"lora.base=nf4\n  reason: .*as model.layers.1.mlp.up_proj is"):
            check_model(config(task, replace(LORA, base=BaseKind.nf4)), folder)


@pytest.mark.parametrize("lora", [LORA, FULL, small_lora(AdapterKind.ia3)])
def test_headers_and_the_configuration_are_read_once(
    lora: LoraConfig, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What merges reads the weights themselves, and their headers for that."""
    read: list[Path] = []
    header = stored_model._header

    def counted(path: Path) -> dict[str, Any]:
        read.append(path)
        return header(path)

    monkeypatch.setattr(stored_model, "_header", counted)
    monkeypatch.setattr("rlpost.weights.trial_merge.try_merge", lambda *_: {"a": (2, 2)})
    check_model(config(lora=lora), small)
    assert len(read) == 1


def test_learning_rates_without_a_rule_are_refused_with_the_model(small: Path, tmp_path: Path) -> None:
    """A cell of a comparison would refuse them only when it starts."""
    auto = replace(LORA, learning_rate=LearningRate.auto)
    other = write_family(tmp_path, "mistral")
    for task in (Task.rl, Task.sft, Task.compare):
        check_model(config(task, auto), small)
        with pytest.raises(ConfigError, match=r"lora.learning_rate=auto\n.*is a mistral"):
            check_model(config(task, auto), other)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_routers_are_no_targets(name: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, name)
    for names in ("all-linear", "gate", "q_proj,gate", "w1" if name == "mixtral" else "down_proj"):
        wrong = names.removeprefix("q_proj,")
        with pytest.raises(ConfigError) as refused:
            check_model(config(lora=replace(LORA, target_modules=names)), folder)
        assert f"lora.target_modules={wrong}\n  reason: model=small is a mixture of experts" in str(
            refused.value
        )
        assert "lora.target_modules='k_proj,o_proj,q_proj,v_proj'" in str(refused.value)
    for names in (family_targets(name), "q_proj", "self_attn.v_proj"):
        check_model(config(lora=replace(LORA, target_modules=names)), folder)


@pytest.mark.parametrize("task", [Task.eval, Task.rl])
def test_an_adapter_of_experts_is_refused(task: Task, tmp_path: Path) -> None:
    """As transformers 4 and PEFT saved it, where experts were linear layers."""
    folder = write_family(tmp_path / "model", "qwen3_moe")
    modules = [f"model.layers.{block}.mlp.experts.1.down_proj" for block in (0, 1)]
    rows, columns = models.linear_layers(folder)[modules[0]]
    lora = replace(LORA, target_modules="q_proj")
    tensors = {
        f"base_model.model.{module}.lora_{part}.weight": torch.zeros(shape)
        for module in modules
        for part, shape in (("A", (4, columns)), ("B", (rows, 4)))
    }
    Adapter.create(peft_config(lora).to_dict(), tensors, 1).save(tmp_path / "adapter")
    with pytest.raises(
        AdapterError, match=r"adapts experts or routers.*layers\.0\.mlp\.experts\.1\.down_proj"
    ):
        check_model(config(task, lora, tmp_path / "adapter"), folder)


@pytest.mark.parametrize("task", [task for task in PLAYING if task is not Task.eval])
def test_a_model_with_scaled_logits_is_refused_for_training(task: Task, small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "scaled")
    settings = json.loads((folder / "config.json").read_text()) | {"logit_scale": 0.5}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"model=small: its head scales the logits \(logit_scale\)"):
        check_model(config(task), folder)
    check_model(config(Task.eval), folder)
