"""What a process holds before it has a model, in bytes: interpreter, libraries and their threads.

Measured as private memory (RssAnon: no files, no shared memory) by `python -m benchmarks.memory_plan`;
docs/results/memory.md has the processor and the date. Libraries' own files are not counted: the system can drop them.
"""

from __future__ import annotations

MIB = 2**20

DRIVER = 300 * MIB  # the run's own process: Ray, torch, transformers' tokenizer
ENGINE_LIBRARIES = 600 * MIB  # a rollout worker, or a rank of its engine: vLLM, torch
LEARNER_LIBRARIES = 500 * MIB  # a learner rank: DeepSpeed, transformers, PEFT, torch
RAY_DAEMONS = 300 * MIB  # of a private Ray: its control store, its node's manager and agents
