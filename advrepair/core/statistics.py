"""A measured share, and how sure one may be of it."""

from __future__ import annotations

import math

from attrs import frozen

_Z = 1.959963984540054  # of a two-sided 95 % interval


@frozen
class Share:
    """``hits`` of ``count``; a share of nothing has no value."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """The share, None if nothing was counted."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the share behind the sample, by Wilson's score.

        10.1080/01621459.1927.10502953. Unlike the normal one it stays in [0, 1] and has a
        width at 0 and at 1.
        """
        if not self.count:
            return None
        n, p, z2 = self.count, self.hits / self.count, _Z * _Z
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        low = 0.0 if self.hits == 0 else max(0.0, middle - half)
        high = 1.0 if self.hits == n else min(1.0, middle + half)
        return low, high
