"""How far a stage's result may lie from its repetition: data that a stage declares, for `trust_stages` and tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """The limit of a check.

    Attributes
    ----------
    limit
        The value may be this at most, or, with `least`, at least.
    why
        Why the value is not perfect.
    """

    limit: float
    why: str
    least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is within the tolerance; NaN is not."""
        return value >= self.limit if self.least else value <= self.limit

    @property
    def said(self) -> str:
        """The limit in words."""
        return f"at {'least' if self.least else 'most'} {self.limit:g}"

    def beyond(self, value: float) -> float:
        """How many times the limit is exceeded: of shares by what they lack."""
        far = (1 - value) / max(1 - self.limit, 1e-9) if self.least else value / max(self.limit, 1e-9)
        return far if 1 < far < 5 else 5
