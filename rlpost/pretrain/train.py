"""`experiment=tiny_base`: train the bundled base model from scratch and save it in the Hugging Face format.

The schedule follows the clock, so the recipe fits any machine: warm-up, constant, then a linear decay to zero over the
last third. Matrices are updated by Muon (Jordan et al. 2024), the rest by AdamW. Weights are kept in fp32, and a copy
in the precision of `dtype` computes; auto takes the one whose products are faster on this machine. The file is bf16.
"""

from __future__ import annotations

import copy
import ctypes
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlpost.cluster.precision import ROWS, TORCH_DTYPES, Choice, Shapes, choose, tell
from rlpost.config.schema import Config, Dtype, LoraConfig, TinyBaseConfig
from rlpost.envs.terminal import plain_console
from rlpost.pretrain import cards, corpus, streets
from rlpost.pretrain.talk import Conversation, draw
from rlpost.pretrain.tokenizer import ASSISTANT, END, USER, add_phrases, save_tokenizer, train_tokenizer
from rlpost.record.folders import OUTPUTS, new_folder, time_stamp

IGNORE = -100
POOL = 2048  # conversations sorted by length at a time, so that batches need little padding
WIDTHS = 8  # a batch's width is a multiple of it: shapes recur, and memory is used again
TOKENIZER_CONVERSATIONS = 3000
MAX_POSITIONS = 2048
TRIM_EVERY = 100  # optimizer steps
ATTENTION = "eager"  # rows are short: plain products are twice as fast as the CPU's fused attention


@dataclass(frozen=True)
class LabelledTokens:
    token_ids: list[int]
    labels: list[int]  # the token itself if it is trained on, else IGNORE


def encode(talk: Conversation, tokenizer: PreTrainedTokenizerFast) -> LabelledTokens:
    """Token ids in the chat template's layout. Answers that are trained on (with their end of turn) carry labels."""
    user, assistant, end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])

    def plain(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, split_special_tokens=True)
        return ids

    ids: list[int] = []
    labels: list[int] = []
    for message in talk:
        context = [user, *plain(message.user), end, assistant]
        reply = [*plain(message.assistant), end]
        ids += context + reply
        labels += [IGNORE] * len(context) + (reply if message.learn else [IGNORE] * len(reply))
    return LabelledTokens(ids, labels)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """An endless stream of (token_ids_BT, labels_BT), right-padded, of at most `batch_tokens` tokens with padding."""
    rng = random.Random(seed)
    while True:
        drawn = (encode(corpus.conversation(rng), tokenizer) for _ in range(POOL))
        rows = sorted(drawn, key=lambda row: len(row.labels))
        cuts = []
        while rows:
            width = math.ceil(len(rows[-1].labels) / WIDTHS) * WIDTHS
            count = max(1, batch_tokens // width)  # a row that is wider than a batch is one of its own
            cuts.append(_padded(rows[-count:], width, tokenizer.pad_token_id))
            del rows[-count:]
        rng.shuffle(cuts)
        yield from cuts


def _padded(rows: list[LabelledTokens], width: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([row.token_ids + [pad] * (width - len(row.labels)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORE] * (width - len(row.labels)) for row in rows])
    return ids, labels


def build_model(cfg: TinyBaseConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.hidden_size,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.heads,
        intermediate_size=cfg.intermediate_size,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attn_implementation=ATTENTION,
    )
    return LlamaForCausalLM(config)


def answer_loss(model: LlamaForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over trained tokens. The head is computed at their positions only."""
    hidden_BTD = model.model(input_ids=ids_BT).last_hidden_state[:, :-1]
    targets_BT = labels_BT[:, 1:]
    learnt_BT = targets_BT != IGNORE
    return F.cross_entropy(model.lm_head(hidden_BTD[learnt_BT]).float(), targets_BT[learnt_BT])


def precision(cfg: TinyBaseConfig, asked: Dtype) -> Choice:
    """The precision in which the model computes here, measured on products of its shapes."""
    rank = LoraConfig().rank  # no adapter is trained: products of this size hardly count
    shapes = Shapes(ROWS, ROWS, cfg.hidden_size, cfg.intermediate_size, rank, cfg.hidden_size // cfg.heads)
    return choose(asked, shapes, on_gpu=False)


class MasterOptimizer:
    """Keeps fp32 masters of a model that computes in `dtype`. Muon updates the layers' matrices, AdamW the rest."""

    def __init__(self, model: LlamaForCausalLM, learning_rate: float, dtype: torch.dtype) -> None:
        self.pairs = [(p, p.detach().float().clone().requires_grad_()) for p in model.parameters()]
        matrices = [m for p, m in self.pairs if p.ndim == 2 and p is not model.get_input_embeddings().weight]
        others = [m for p, m in self.pairs if p.ndim != 2 or p is model.get_input_embeddings().weight]
        muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
        self.optimizers = (muon, adamw)
        model.to(dtype)

    def step(self, learning_rate: float) -> None:
        for parameter, master in self.pairs:
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_([master for _, master in self.pairs], 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        for parameter, master in self.pairs:
            parameter.data.copy_(master)


def learning_rate_at(progress: float, peak: float) -> float:
    """Warm-up over the first 2%, constant, linear decay to zero over the last third. `progress` is in [0, 1]."""
    return peak * min(progress / 0.02, 1.0, (1.0 - progress) * 3.0)


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, record: dict[str, float]
) -> None:
    """Save bf16 safetensors, the tokenizer and the record of the training, as transformers and vLLM load them."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def run(cfg: Config) -> None:
    """Train for cfg.tiny_base.minutes and save the model in `<output_dir>/model`."""
    default = OUTPUTS / cfg.name / f"{time_stamp()}-{cfg.seed}"
    folder = new_folder(cfg.output_dir, default, first="model") / "model"
    torch.manual_seed(cfg.seed)
    console = plain_console()
    tokenizer, model = _start(cfg, console)
    chosen = precision(cfg.tiny_base, cfg.dtype)
    tell(chosen, console)
    optimizer = MasterOptimizer(model, cfg.tiny_base.learning_rate, TORCH_DTYPES[chosen.dtype])
    record = _train(cfg.tiny_base, model, tokenizer, optimizer, cfg.seed, folder, console)
    save(model, tokenizer, folder, record)
    console.print(f"model written to {folder}")


def _start(cfg: Config, console: Console) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """The tokenizer and the model, new or from an earlier training."""
    if cfg.tiny_base.start is not None:
        folder = Path(cfg.tiny_base.start)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ATTENTION)
        _learn_phrases(model, tokenizer)
        return tokenizer, model
    console.print("training the tokenizer")
    tokenizer = train_tokenizer(_card_texts(random.Random(cfg.seed)), cfg.tiny_base.vocab_size)
    add_phrases(tokenizer, streets.phrases())
    return tokenizer, build_model(cfg.tiny_base, tokenizer)


def _card_texts(rng: random.Random) -> Iterator[str]:
    """The texts from which the tokenizer learns its merges."""
    for _ in range(TOKENIZER_CONVERSATIONS):
        for message in draw(cards.MIXTURE, rng):
            yield from (message.user, message.assistant)


def _learn_phrases(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Add embeddings for phrases that an earlier tokenizer lacks: the mean of the tokens that spelled them before."""
    new = [phrase for phrase in streets.phrases() if phrase not in tokenizer.get_vocab()]
    spelled = [tokenizer.encode(phrase) for phrase in new]
    add_phrases(tokenizer, new)
    known = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.max_position_embeddings = MAX_POSITIONS
    with torch.no_grad():
        for phrase, ids in zip(new, spelled, strict=True):
            model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(phrase)] = known[ids].mean(0)


def _train(
    cfg: TinyBaseConfig,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: MasterOptimizer,
    seed: int,
    folder: Path,
    console: Console,
) -> dict[str, float]:
    start, tokens, average = time.monotonic(), 0, math.log(cfg.vocab_size)
    record: dict[str, float] = {}
    for step, (ids_BT, labels_BT) in enumerate(batches(tokenizer, seed + 1, cfg.batch_tokens)):
        minutes = (time.monotonic() - start) / 60
        if minutes >= cfg.minutes:
            break
        loss = answer_loss(model, ids_BT, labels_BT)
        loss.backward()
        optimizer.step(learning_rate_at(minutes / cfg.minutes, cfg.learning_rate))
        tokens += ids_BT.numel()
        average = 0.98 * average + 0.02 * loss.item()
        record = {"step": step, "minutes": minutes, "tokens": tokens, "loss": average, "seed": seed}
        if step % 50 == 0:
            console.print(f"step {step}  {minutes:.1f} min  {tokens / 1e6:.2f}M tokens  loss {average:.4f}")
        if step % TRIM_EVERY == 0:
            _return_free_memory()
        if step and step % 500 == 0:
            save(model, tokenizer, folder, record)
    return record


def _return_free_memory() -> None:
    """Return freed memory to the system: batches of changing shapes made glibc's heap grow to 10 GB in 20 minutes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
