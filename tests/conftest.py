"""Shared fixtures: a random tiny model for tests that need a real one but not its skill."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A shell that starts pytest in the background leaves Ctrl-C ignored, and the runs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Small tensors: on a busy machine threads that wait for one another take ten times as long.
torch.set_num_threads(1)
# Where several processes share the cores, the time that an example takes says nothing of the code.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: statsmodels asks for one at every correction of p."""
    gc.freeze()


SPECIAL_TOKENS = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_random_model(folder: Path, seed: int = 0, vocab_size: int = 512) -> Path:
    """Write a random Llama of the bundled model's shape, with a byte-level tokenizer, to `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=768,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A fast byte-level tokenizer: special tokens 0 to 3, then one token a byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 5M-parameter Llama (float32, seed 0) that transformers and vLLM load."""
    return write_random_model(tmp_path_factory.mktemp("random-model"))
