"""Errors, named by the boundary where they occur. Each message says what happened, where, why and what to do.

A message ends with its remedy, on separate lines that begin with `  remedy: `; error.json of a failed run stores the
two parts separately (rlpost.record.run_error). All errors can be pickled, since Ray sends them between processes: every
class takes one message string.
"""


class RlpostError(Exception):
    """Base of every error rlpost raises on purpose; shown to the user without a traceback."""


class ConfigError(RlpostError):
    """A setting is refused: the message names key, value, reason and remedy."""


class ModelError(RlpostError):
    """A model could not be found, converted or loaded."""


class AdapterError(RlpostError):
    """An adapter's files or tensors are broken, or do not fit the model."""


class SwapError(RlpostError):
    """An adapter was not proven to have arrived in an engine; the previous version is live."""


class RolloutError(RlpostError):
    """A rollout worker failed in a way that a replacement cannot repair."""


class LearnerError(RlpostError):
    """A learner failed: lost actor, non-finite loss or gradient, bad batch."""


class ClusterError(RlpostError):
    """Ray could not be started or joined, or an actor missed its deadline."""


class CheckpointError(RlpostError):
    """A checkpoint is missing, incomplete or of another run."""


class OutputError(RlpostError):
    """The run directory cannot be written: full disk, no permission, not empty."""


class ComparisonError(RlpostError):
    """The records of a comparison do not fit together, or lack what the report needs."""
