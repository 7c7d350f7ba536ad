"""The effect of training: success on the same instances before and after, as paired differences.

Whether two intervals overlap says little about a difference: much of their width comes from some instances being harder
than others, and a difference on the same instances does not have that variance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rlpost.record.run_dir import RunDir, read_trajectories
from rlpost.record.summary import rows_of, stages_of
from rlpost.types import Trajectory

_PSEUDO = (1.0, -1.0)  # two instances, one in each direction: Bonett and Price (2012)


def gains(run_dir: RunDir, summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The `gain` from the first evaluation to the one after training, by variant and decoding, if both were made.

    Raises OutputError if a file of episodes is broken.
    """
    first, files = next(iter(stages_of(summary)), ""), run_dir.evaluations()
    found: dict[str, dict[str, Any]] = {}
    for variant, decoding in rows_of(summary):
        ends = [files.get((stage, variant, decoding)) for stage in (first, "after")]
        if first != "after" and all(ends):
            before, after = (read_trajectories(path) for path in ends if path is not None)
            if change := gain(before, after):
                found.setdefault(variant, {})[decoding] = change
    return found


def gain(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> dict[str, Any] | None:
    """The mean over common instances of the difference in the share solved, with its 95% interval.

    The interval is Student's t on the differences and the pseudo-instances, which keep its width above zero if no
    instance changed. None with fewer than two instances in common.
    """
    ends = _shares(before), _shares(after)
    common = sorted(ends[0].keys() & ends[1].keys())
    if len(common) < 2:
        return None
    from statsmodels.stats.weightstats import DescrStatsW  # takes two seconds to import

    differences = [ends[1][name] - ends[0][name] for name in common]
    low, high = DescrStatsW([*differences, *_PSEUDO]).tconfint_mean(alpha=0.05)
    mean = sum(differences) / len(common)
    return {"instances": len(common), "gain": mean, "low": float(low), "high": float(high)}


def _shares(episodes: Sequence[Trajectory]) -> dict[str, float]:
    """The share of solved episodes of each instance. Episodes that broke before they had an instance are left out."""
    solved: dict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        if episode.instance:
            solved[episode.instance].append(episode.success)
    return {name: sum(each) / len(each) for name, each in solved.items()}
