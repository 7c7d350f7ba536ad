"""Errors named by the boundary they crossed. Each message says what, where, why and what to do.

A message ends with its remedy, in lines of its own that begin with `  remedy: `; error.json of a failed run keeps the
two apart (rlpost.record.run_error). All are picklable (Ray ships them between processes): every class takes one
message string.
"""


class RlpostError(Exception):
    """Base of every error rlpost raises on purpose; shown to the user without a traceback."""


class ConfigError(RlpostError):
    """A setting is refused: the message names key, value, reason and remedy."""


class ModelError(RlpostError):
    """A model could not be found, converted or loaded."""


class AdapterError(RlpostError):
    """An adapter's files or tensors are not what they should be."""


class SwapError(RlpostError):
    """An adapter did not provably arrive in a generator; the previous version is live."""


class RolloutError(RlpostError):
    """A rollout worker failed beyond what a replacement can mend."""


class LearnerError(RlpostError):
    """A learner failed: lost actor, non-finite loss or gradient, bad batch."""


class ClusterError(RlpostError):
    """Ray could not be started or joined, or an actor missed its deadline."""


class CheckpointError(RlpostError):
    """A checkpoint is missing, incomplete or of another run."""


class OutputError(RlpostError):
    """The run directory cannot be written: full disk, no permission, not empty."""


class ComparisonError(RlpostError):
    """The records of a comparison do not fit together, or cannot answer what is asked of them."""
