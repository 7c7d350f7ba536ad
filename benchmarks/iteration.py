"""A whole LoRA GRPO iteration on SmolLM2-135M against TRL's GRPOTrainer with the same prompts.

    python -m benchmarks.iteration --trl-python PATH [--iterations 4] [--steps 2] [overrides ...]

8 prompts x 8 answers x up to 64 tokens, rank 32 on all linear layers, two threads, both in the precision that
`dtype=auto` chooses here (or `dtype=...`). Our side is `rlpost.run` with rollouts, log-probs, update and a proven swap.
TRL's step generates with transformers, scores and updates. PATH is the Python of an environment with trl, datasets,
peft and torch (this project does not depend on TRL).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runs import ITERATIONS_ONLY, run
from benchmarks.timing import spread
from rlpost.envs import registry
from rlpost.rollout.chat import Chat
from rlpost.seeds import derive
from rlpost.weights import models

MODEL, PROMPTS, GROUP, NEW_TOKENS, RANK, THREADS = "smollm2-135m", 8, 8, 64, 32, 2
OURS = (
    "experiment=generalpoints_grpo",
    f"model={MODEL}",
    f"rollout.episodes={PROMPTS * GROUP}",
    f"rollout.group_size={GROUP}",
    f"rollout.max_new_tokens={NEW_TOKENS}",
    "rollout.max_model_len=512",
    f"lora.rank={RANK}",
    "env_args.verify_iter=1",
    "env_args.prompt=published",
    *ITERATIONS_ONLY,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=4, help="of ours; the first does not count")
    parser.add_argument("--steps", type=int, default=2, help="of TRL's; all count")
    parser.add_argument("overrides", nargs="*", help="further settings of ours")
    args = parser.parse_args()
    ours = run([*OURS, f"algo.iterations={args.iterations}", *args.overrides])
    parts = ", ".join(
        f"{part} {statistics.median(ours.seconds(part)):.2f}"
        for part in ("rollout", "logprobs", "update", "swap")
    )
    tokens = [round(line["tokens/sampled"]) for line in ours.iterations[1:]]
    print(f"precision: {ours.settings['dtype']}")
    print(f"rlpost: {spread(ours.seconds())} s ({parts}); sampled tokens {tokens}", flush=True)
    theirs = _trl(args.trl_python, args.steps, ours.settings["dtype"])
    print(f"TRL: {spread(theirs['seconds'])} s; sampled tokens {theirs['tokens']}")
    print(f"TRL / rlpost: {statistics.median(theirs['seconds']) / statistics.median(ours.seconds()):.1f}")


def _trl(python: Path, steps: int, dtype: str) -> dict[str, Any]:
    folder = models.resolve(MODEL)
    work = {
        "model": str(folder),
        "prompts": _prompts(Chat.load(folder)),
        "group_size": GROUP,
        "new_tokens": NEW_TOKENS,
        "rank": RANK,
        "alpha": 2.0 * RANK,
        "learning_rate": 1e-4,
        "steps": steps,
        "threads": THREADS,
        "dtype": dtype,
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "work.json"
        path.write_text(json.dumps(work))
        script = Path(__file__).with_name("trl_iteration.py").resolve()
        done = subprocess.run([python, script, path], cwd=scratch, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"TRL's side ended with {done.returncode}:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _prompts(chat: Chat) -> list[str]:
    """The prompts of one of our iterations, in the model's chat format."""
    env = registry.make("generalpoints", prompt="published", verify_iter=1)
    observations = [env.reset(seed=derive(0, "instance", 1, group))[0] for group in range(PROMPTS)]
    return [chat.prompt_text(observation) for observation in observations]


if __name__ == "__main__":
    main()
