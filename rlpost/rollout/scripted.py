"""A fake engine that answers from a script: for dry runs of an environment and tests without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlpost.errors import SwapError
from rlpost.rollout.chat import Chat
from rlpost.rollout.engine.protocol import Completion, Sampling, SwapReport
from rlpost.types import Canary, Finish, ModelInput
from rlpost.weights.adapters import Adapter, fingerprint

LOGPROB = -1.0  # log-prob of every token that a script "samples"

Script = Callable[[str, int], str]
"""Maps (conversation so far as text, seed) to an answer."""


class ScriptedEngine:
    """A `rlpost.rollout.engine.protocol.Engine` whose answers come from a function, cut where a model's would end."""

    def __init__(self, script: Script, chat: Chat, max_model_len: int = 1024) -> None:
        self.max_model_len = max_model_len
        self.versions: list[int] = []  # versions of the adapters swapped in, in order
        self._script, self._chat = script, chat
        self._queue: list[tuple[str, ModelInput, Sampling, int]] = []

    def submit(self, key: str, prompt: ModelInput, sampling: Sampling, seed: int) -> None:
        self._queue.append((key, prompt, sampling, seed))

    def step(self) -> list[tuple[str, Completion]]:
        queue, self._queue = self._queue, []
        return [(key, self._complete(prompt, sampling, seed)) for key, prompt, sampling, seed in queue]

    def abort(self, keys: Sequence[str]) -> None:
        self._queue = [request for request in self._queue if request[0] not in keys]

    def _complete(self, prompt: ModelInput, sampling: Sampling, seed: int) -> Completion:
        ids, finish = self._chat.written(self._script(self._chat.text(prompt.token_ids), seed), sampling.stop)
        kept = ids[: min(sampling.max_new_tokens, self.max_model_len - len(prompt))]
        return Completion(kept, (LOGPROB,) * len(kept), finish if len(kept) == len(ids) else Finish.LENGTH)

    def logprobs(self, token_ids: tuple[int, ...]) -> list[float]:
        return [LOGPROB] * (len(token_ids) - 1)

    def swap(self, adapter: Adapter, canary: Canary | None, max_gap: float) -> SwapReport:
        """Accept any adapter whose tensors match its fingerprint."""
        if fingerprint(adapter.tensors) != adapter.fingerprint:
            raise SwapError(f"version {adapter.version}: the tensors do not match their fingerprint")
        self.versions.append(adapter.version)
        modules = len(adapter.tensors) // 2
        return SwapReport(adapter.version, adapter.fingerprint, modules, modules, 0.0, 0.0, 0.0)

    def reset(self) -> None:
        self.versions, self._queue = [], []

    def sleep(self) -> None:
        """A script holds no memory of a device."""

    def wake(self) -> None:
        """See `sleep`."""
