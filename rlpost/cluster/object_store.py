"""The size of a private Ray's object store, which is in shared memory. Imports nothing heavy."""

OBJECT_STORE_BYTES = 512 * 2**20  # for adapters and trajectories of a few MB each
VERSIONS_AT_ONCE = 3  # of the weights: the learner's answer, the one on its way to the engines, the live one
