"""What a metric may be held to, as a recipe says it."""

from __future__ import annotations

from pydantic import Field

from compress.params import Params


class Bounds(Params):
    """What a metric may be held to: a gate gives exactly one of these."""

    within: str | float | None = Field(
        None,
        description="equivalence margin, in both directions: '1%' of the baseline's value, or a number in the metric's unit",
    )
    worse_by: str | float | None = Field(
        None,
        description="non-inferiority margin, in the metric's bad direction alone: '5%' of the baseline's value, or a number",
    )
    speedup: float | None = Field(
        None, gt=0, description="least ratio to the baseline, above 1 better: as `faster` and `smaller`, for either"
    )
    at_least: str | float | None = Field(
        None, description="least value of the candidate itself, in the metric's unit or with one: 30, '30 /s'"
    )
    at_most: str | float | None = Field(
        None,
        description="greatest value of the candidate itself, in the metric's unit or with one: 200, '200 ms', '1 GB'",
    )
    faster: float | None = Field(None, gt=0, description="how many times as fast at least, of a time or a rate")
    smaller: float | None = Field(
        None, gt=0, description="how many times as small at least, of a size, a memory, operations or energy"
    )


class Gate(Bounds):
    """What a metric must hold for the verdict to be good. Exactly one of the bounds is given."""

    two_sided: bool | None = Field(
        None, description="whether rising is as suspect as falling; default: the metric's own"
    )

    @property
    def ratio(self) -> float | None:
        """The least ratio to the baseline that is asked for, by whichever word."""
        return next((one for one in (self.speedup, self.faster, self.smaller) if one is not None), None)

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the bounds that are given."""
        return tuple(name for name in Bounds.model_fields if getattr(self, name) is not None)

    def miscounted(self) -> str:
        """Why this is not exactly one bound, in words, or ""."""
        if len(self.given) == 1:
            return ""
        return f"give exactly one of {', '.join(Bounds.model_fields)}" + (
            f", not {' and '.join(self.given)}" if self.given else ""
        )
