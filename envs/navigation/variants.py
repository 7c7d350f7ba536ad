"""The rule variants of navigation: the values of x in turn_direction(x), the cities and the length of routes."""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.envs.navigation.rules import Rule

TRAINED_RULE = Rule.ABSOLUTE


@dataclass(frozen=True)
class Variant:
    """One rule. `held_out` variants are for evaluation only; a run that would train on one is refused."""

    name: str
    rule: Rule
    held_out: bool
    summary: str
    style: str = "grid"  # style of generated cities, see generator.STYLES
    long: bool = False  # whether routes are longer than the trained ones
    stated: Rule | None = (
        None  # rule that the prompt states although `rule` scores; None: the one that scores
    )

    @property
    def same_rule(self) -> bool:
        """Whether the rule is the trained one. If held out, the variant is so for its cities or its lengths."""
        return self.rule is TRAINED_RULE

    @property
    def stated_rule(self) -> Rule:
        """The rule as the prompt states it."""
        return self.rule if self.stated is None else self.stated

    @property
    def fake_rule(self) -> bool:
        """Whether the prompt states another rule than the one that scores."""
        return self.stated is not None

    def legs(self, most: int) -> tuple[int, int]:
        """The fewest and the most legs of a route, given that the trained routes have at most `most`."""
        return (most + 1, 2 * most) if self.long else (1, most)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("absolute", Rule.ABSOLUTE, False, "turn by the compass: the published training rule"),
        Variant("relative", Rule.RELATIVE, True, "turn left or right: the published held-out rule"),
        Variant(
            "old_town",
            Rule.ABSOLUTE,
            True,
            "turn by the compass, in towns of rings and lanes with landmarks of other names",
            style="rings",
        ),
        Variant("relative_old_town", Rule.RELATIVE, True, "both of these at once", style="rings"),
        Variant("long_routes", Rule.ABSOLUTE, True, "turn by the compass, on longer routes", long=True),
        Variant(
            "relative_long_routes", Rule.RELATIVE, True, "turn left or right, on longer routes", long=True
        ),
        Variant(
            "fake_relative",
            Rule.ABSOLUTE,
            True,
            "turns are said to be left or right, but the compass scores: whoever reads it fails",
            stated=Rule.RELATIVE,
        ),
    )
}


def refuse_generated_only(variant: Variant) -> None:
    """Raises ValueError for a variant that only generated cities support."""
    if variant.style != "grid" or variant.long:
        usable = ", ".join(name for name, each in VARIANTS.items() if each.style == "grid" and not each.long)
        raise ValueError(f"variant={variant.name!r}: only for generated cities; with data there are {usable}")
