"""Names of a checkpoint and of an engine, with a stand-in for vLLM's map."""

from __future__ import annotations

from types import SimpleNamespace

from rlpost.rollout.engine.checkpoint_names import checkpoint_names


class Renames:
    """Only the part of vLLM's map that names modules."""

    def get_rename_mapper(self) -> Renames:
        return self

    def map_name(self, name: str) -> str | None:
        return None if "inv_freq" in name else name.replace("gpt_neox.", "model.", 1)


STORED = ["gpt_neox.layers.0.dense.weight", "gpt_neox.layers.0.dense.bias", "gpt_neox.inv_freq.weight"]


def test_a_model_without_a_map_has_the_checkpoint_s_names() -> None:
    assert checkpoint_names(SimpleNamespace(), ["a.b.weight", "scale"]) == {
        "a.b.weight": "a.b.weight",
        "scale": "scale",
    }


def test_parameters_are_found_by_the_model_s_own_map() -> None:
    model = SimpleNamespace(hf_to_vllm_mapper=Renames())
    assert checkpoint_names(model, STORED) == {
        "model.layers.0.dense.weight": "gpt_neox.layers.0.dense.weight",
        "model.layers.0.dense.bias": "gpt_neox.layers.0.dense.bias",
    }
