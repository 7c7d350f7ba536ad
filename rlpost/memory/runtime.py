"""What a process holds before it has a model, in bytes: interpreter, libraries and their threads.

Measured as private memory (RssAnon: no files, no shared memory); docs/results/memory.md has the processor, the date
and what is not known. Libraries' own files are not counted, since the system can drop them.
"""

from __future__ import annotations

MIB = 2**20

DRIVER = 415 * MIB  # the run's own process: Ray, torch, transformers
ENGINE_LIBRARIES = 560 * MIB  # a rollout worker, or a rank of its engine: vLLM, torch
LEARNER_LIBRARIES = 335 * MIB  # a learner rank: DeepSpeed, transformers, PEFT, torch
FIRST_PASS = 150 * MIB  # what a learner's passes leave beside tensors: kernels' buffers, the heap's gaps
RAY_DAEMONS = 345 * MIB  # of a private Ray: control store, raylet, two agents, dashboard, two monitors
TOKENIZER = 1126  # of each entry of the vocabulary, where texts become tokens: the driver, rollout workers
