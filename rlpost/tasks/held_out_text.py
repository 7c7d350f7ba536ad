"""The text of `retention.text`, as rows for the learner's loss: the bundled model's own corpus, or a user's file.

auto   conversations that the bundled model's recipe writes, fresh ones; as in its training, the answers count
FILE   the file's documents in windows of a row's length; every token counts that has another before it
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from rlpost.config.schema import Config
from rlpost.pretrain import corpus
from rlpost.record.text_file import AUTO, documents
from rlpost.rollout.chat import Chat
from rlpost.types import Example

# The seed of the corpus' held-out part. Training has drawn from whole numbers (rlpost/assets/tiny/README.md).
HELD_OUT_SEED = "held-out text of the corpus"
CHARACTERS_A_TOKEN = 32  # read of a file at most; a token of ordinary text has about 4


def examples(cfg: Config, model_folder: Path) -> list[Example]:
    """Rows with `retention.text_tokens` loss tokens together, the same at every stage; fewer if the text is short.

    Raises OSError or ValueError if the file can no longer be read.
    """
    wanted = cfg.retention.text_tokens
    assert cfg.retention.text is not None, "asked only if there is a text"
    longest = min(cfg.rollout.max_model_len, cfg.learner.micro_batch_tokens)
    if cfg.retention.text == AUTO:
        return list(within(_corpus(Chat.load(model_folder), longest), wanted))
    texts = documents(Path(cfg.retention.text), CHARACTERS_A_TOKEN * wanted)
    return list(within(_windows(model_folder, texts, longest), wanted))


def within(rows: Iterable[Example], wanted: int) -> Iterator[Example]:
    """Rows until they have `wanted` loss tokens together; the last one is cut after the last of these."""
    for row in rows:
        places = [i for i, counts in enumerate(row.loss_mask) if counts]
        if len(places) >= wanted:
            end = places[wanted - 1] + 1
            yield Example(row.token_ids[:end], row.loss_mask[:end])
            return
        if places:
            yield row
            wanted -= len(places)


def _corpus(chat: Chat, longest: int) -> Iterator[Example]:
    """Conversations without end; those that are longer than a row may be are left out."""
    rng = random.Random(HELD_OUT_SEED)
    while True:
        talk = [(each.user, each.assistant, each.learn) for each in corpus.conversation(rng)]
        if len((row := chat.example(talk)).token_ids) <= longest:
            yield row


def _windows(model_folder: Path, texts: Iterable[str], longest: int) -> Iterator[Example]:
    """Each document's tokens, with those that the tokenizer adds at its begin, cut into rows of `longest` tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for text in texts:
        ids = iter(tokenizer.encode(text, split_special_tokens=True))
        while window := tuple(islice(ids, longest)):
            yield Example(window, (0,) + (1,) * (len(window) - 1))
