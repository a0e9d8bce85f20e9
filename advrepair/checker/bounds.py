"""Rigorous bounds of a network over boxes, for exact or deployed arithmetic.

Let u = 2^-53, K the longest sum, g = 8 u (K + 16) and gamma(k) = k v / (1 - k v) with v the
unit of the deployed format. For a step of k terms let M bound its computed inputs z, and let
S >= |W| M + |b|. Its computed result is W z + b + e with |e| <= E = gamma(k + 2) S + (k + 2)
* (smallest subnormal), in any order of summation, fused or not (Higham, *Accuracy and
Stability*, 3.1); E = 0 at level real. What is computed here is a float64 sum of at most
2 K + 8 terms whose absolute values sum to at most 3 S, so it is off by less than g S. Hence
``slack`` = E + g S covers the deployed step and ours, forwards, and for rows, times |row|,
backwards. Errors are sums of non-negative numbers: a factor 1 + 2^-20 covers their own
rounding. 2^-400 covers underflow, as nothing is proved where S reaches 2^500, or in float32
2^126, where some order of summation might overflow. An overflow of ours gives an infinity or
a NaN, which never becomes finite again; nothing is proved by a number that is not finite.
"""

import numpy as np

from advrepair.checker.files import Array
from advrepair.checker.network import Network, Step

_BLOCK = 2**20  # numbers in an array of rows
_U, _TINY = 2.0**-53, 2.0**-400
# Unit, smallest subnormal, and the size that proves nothing.
LEVELS = {
    "real": (0.0, 0.0, 2.0**500),
    "deployed-float32": (2.0**-24, 2.0**-149, 2.0**126),
    "deployed-float64": (_U, 2.0**-1074, 2.0**500),
}
Box = tuple[Array, Array]  # lower and upper faces, [B,S]


def _dot(rows: Array, values: Array) -> Array:
    """Row i times value i: [N,S] and [N,S] to [N]."""
    return np.asarray(np.einsum("ts,ts->t", rows, values))


class Region:
    """Bounds [B,S] of every computed value of a network on B boxes.

    slope: below an unstable ReLU: ``zero``, ``one``, ``same`` as above it, or else ``area``.
    """

    def __init__(self, net: Network, level: str, box: Box, slope: str) -> None:
        self.net, self.level, self.slope = net, level, slope
        self.g = 8 * _U * (net.longest + 16)
        low, high = box
        values: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
        self.low, self.high, self.most = values
        self.slack: list[Array | None] = [None]
        self.lines: dict[int, tuple[Array, Array, Array]] = {}
        self.valid = np.ones(len(low), bool)  # [B], nothing is proved where it is False
        depth = [0]  # sums on the way from the input; intervals are exact through one
        self._keep(low, high)
        for step in net.steps:
            deepest = max(depth[source] for source in step.sources)
            if step.kind == "relu":
                self._keep(*self._relu(step.sources[0], deepest > 1))
            else:
                self._keep(*self._affine(step))
            depth.append(2 if step.kind == "relu" else deepest + step.mixes)

    def _keep(self, low: Array, high: Array) -> None:
        self.low.append(low)
        self.high.append(high)
        self.most.append(np.maximum(-low, high))
        self.valid &= (np.isfinite(low) & np.isfinite(high)).all(1)
        self.valid &= (self.most[-1] < 2.0**500).all(1)

    def deployed(self, terms: int, total: Array, before: int = 1) -> Array:
        """E for absolute terms that sum to at most total; infinite where nothing is proved.

        before: what the sum was that many times as large as, before a division.
        """
        unit, subnormal, largest = LEVELS[self.level]
        k = terms + 2
        return np.where(
            total * before < largest, k * unit / (1 - k * unit) * total + k * subnormal, np.inf
        )

    def _affine(self, step: Step) -> Box:
        """Interval arithmetic with a centre and a radius that cover [low, high]."""
        low, high, total = ([v[i] for i in step.sources] for v in (self.low, self.high, self.most))
        if not step.terms:
            self.slack.append(None)
            return step.apply(low[0], False), step.apply(high[0], False)
        if step.kind == "add":
            ends, size = (low[0] + low[1], high[0] + high[1]), total[0] + total[1]
        else:
            bias = 0.0 if step.bias is None else step.bias
            centre = low[0] / 2 + high[0] / 2
            radius = np.maximum(high[0] - centre, centre - low[0]) * (1 + 4 * _U)
            middle, reach = step.apply(centre, False) + bias, step.apply(radius, True)
            ends, size = (middle - reach, middle + reach), step.apply(total[0], True) + abs(bias)
        size = size * (1 + self.g)
        before = step.terms if step.kind == "avg_pool2d" else 1
        slack = self.deployed(step.terms, size, before) + self.g * size + _TINY
        self.slack.append(slack)
        return ends[0] - slack, ends[1] + slack

    def _relu(self, source: int, deep: bool) -> Box:
        """Lines around ReLU from l to h; where deep, after bounding unstable units again.

        For any s in [0, 1], s x is below ReLU, and s x + t above it if t >= -s l and
        t >= (1 - s) h, by convexity. The rounding of t, and of rows times s, is off by less
        than g max(|l|, |h|).
        """
        low, high = self.low[source], self.high[source]
        if deep:
            self._tighten(source, low, high)
        unstable, active = (low < 0) & (high > 0), (low >= 0).astype(float)
        share = np.clip(high / np.where(unstable, high - low, 1.0), 0.0, 1.0)
        above = np.where(unstable, share, active)
        shift = np.where(unstable, np.maximum(-above * low, (1 - above) * high), 0.0)
        slopes: dict[str, Array | float] = {"zero": 0.0, "one": 1.0, "same": above}
        below = np.where(unstable, slopes.get(self.slope, high > -low), active)
        self.lines[len(self.low)] = (below, above, shift)
        self.slack.append(self.g * self.most[source] + _TINY)
        return np.maximum(low, 0), np.maximum(high, 0)

    def _tighten(self, value: int, low: Array, high: Array) -> None:
        """Bound unstable units by their own rows and the negated ones, a block at a time."""
        owners, units = ((low < 0) & (high > 0)).nonzero()
        count = max(1, _BLOCK // max(self.net.sizes))
        for at in range(0, len(owners), count):
            own, unit = owners[at : at + count], units[at : at + count]
            rows, both = np.zeros((2 * len(own), low.shape[1])), np.tile(own, 2)
            rows[: len(own)][np.arange(len(own)), unit] = 1.0
            rows[len(own) :][np.arange(len(own)), unit] = -1.0
            found = self.least(*self.pull(value, rows, np.zeros(len(rows)), both), both)
            low[own, unit] = np.maximum(low[own, unit], found[: len(own)])
            high[own, unit] = np.minimum(high[own, unit], -found[len(own) :])
        self.most[value] = np.maximum(-low, high)
        self.valid &= (np.isfinite(low) & np.isfinite(high)).all(1)

    def pull(self, value: int, rows: Array, beta: Array, own: Array) -> tuple[Array, Array, Array]:
        """Rows [N,S] over a value as A [N,S] over the input, constants and errors [N].

        On box own[i], ``rows . value + beta >= A . x + constant - error`` in exact arithmetic.
        """
        pending, error = {value: rows}, np.zeros(len(rows))
        for index in range(value, 0, -1):
            if (A := pending.pop(index, None)) is None:
                continue
            step, slack = self.net.steps[index - 1], self.slack[index]
            if slack is not None:
                error = error + _dot(abs(A), slack[own])
            if step.kind == "relu":
                below, above, shift = (line[own] for line in self.lines[index])
                negative = np.minimum(A, 0)
                beta = beta + _dot(negative, shift)
                A = np.maximum(A, 0) * below + negative * above
            else:
                beta = beta if step.bias is None else beta + A @ step.bias
                A = step.back(A)
            error = error + self.g * abs(beta)
            for source in step.sources:
                if (before := pending.get(source)) is not None:
                    error = error + self.g * _dot(abs(before + A), self.most[source][own])
                pending[source] = A if before is None else before + A
        return pending.get(0, np.zeros((len(rows), self.net.sizes[0]))), beta, error

    def least(self, A: Array, beta: Array, error: Array, own: Array) -> Array:
        """The least value of rows over the input on their boxes, less all errors: [N]."""
        lowest = _dot(np.maximum(A, 0), self.low[0][own]) + _dot(
            np.minimum(A, 0), self.high[0][own]
        )
        error = error + self.g * (_dot(abs(A), self.most[0][own]) + abs(beta))
        return lowest + beta - (error * (1 + 2.0**-20) + _TINY)


def row_margins(base: Region, patch: Region, C: Array, d: Array, at: Array) -> Array:
    """Lower bounds of ``C (N + P) + d`` on the boxes of patch: [B,M], -inf where unknown.

    base: N on boxes of which at[i] is, or holds, box i. The sum N + P is rounded once.
    """
    boxes, rows = d.shape
    own, C = np.repeat(np.arange(boxes), rows), C.reshape(boxes * rows, -1)
    A, b, error = base.pull(len(base.net.steps), C, d.ravel(), at[own])
    B, c, more = patch.pull(len(patch.net.steps), C, np.zeros(len(C)), own)
    patch.g = max(patch.g, base.g)
    total = (base.most[-1][at] + patch.most[-1]) * (1 + patch.g)
    once = _dot(abs(C), patch.deployed(2, total)[own])
    found = patch.least(A + B, b + c, error + more + once, own)
    proved = np.isfinite(found) & (base.valid[at] & patch.valid)[own]
    return np.where(proved, found, -np.inf).reshape(boxes, rows)
