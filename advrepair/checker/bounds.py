"""Rigorous bounds of a network over pieces, for exact or deployed arithmetic.

Let u = 2^-53, K the longest sum, g = 8 u (K + 16). A step of k terms, whose absolute values
sum to at most S, is computed with an error of at most E = gamma(k + 2) S + (k + 2) * (smallest
subnormal), in any order of summation; E = 0 at level real. What is computed here is off by
less than g S. So ``slack`` = E + g S covers both, forwards, and for rows, times |row|,
backwards. An overflow gives an infinity or a NaN, which never becomes finite again, and
nothing is proved by a number that is not finite. docs/checker.md has the whole argument.
"""

import numpy as np

from advrepair.checker.files import Array
from advrepair.checker.lines import curve, max_pool
from advrepair.checker.network import BENT, Network, Step

_U, _TINY = 2.0**-53, 2.0**-400  # _TINY covers our underflow, as no sum may reach 2^500
# Unit, smallest subnormal, and the size that proves nothing: a sum of it may overflow.
LEVELS = {
    "real": (0.0, 0.0, 2.0**500),
    "deployed-float32": (2.0**-24, 2.0**-149, 2.0**126),
    "deployed-float64": (_U, 2.0**-1074, 2.0**500),
}
Pair = tuple[Array, Array]
Triple = tuple[Array, Array, Array]
# ReLU units; slopes below, in two ways, and above; offsets above and below.
Bent = tuple[slice, Pair, Array, Array, Array | None]


def _dot(rows: Array, values: Array) -> Array:
    """Row i times value i: [N,S] and [N,S] to [N]."""
    return np.asarray(np.einsum("ts,ts->t", rows, values))


class Region:
    """Bounds [B,S] of every computed value of a network on B pieces.

    box: faces of the inputs and, behind them, of the computed inputs of ReLU units. A piece
    holds the inputs in its box whose units lie between their faces. slope: [B,units], of lines
    below the ReLUs; any in [0, 1] is sound. first: units of another network before ours.
    parallel: lines above the ReLUs have that slope too; else they are the nearest ones.
    refine: intervals are made better by rows where they lose; without, they are intervals alone.
    """

    def __init__(
        self,
        net: Network,
        level: str,
        box: Pair,
        slope: Array,
        first: int = 0,
        parallel: bool = False,
        refine: bool = True,
    ) -> None:
        self.net, self.level, self.box, self.slope = net, level, box, slope
        self.parallel = parallel
        self.g = 8 * _U * (net.longest + 16)
        self.low, self.high = ([face[:, : net.sizes[0]]] for face in box)
        self.most = [np.maximum(-self.low[0], self.high[0])]
        self.slack, self.lines = [np.zeros(0)], dict[int, Bent]()
        self.valid = np.asarray((self.most[0] < 2.0**500).all(1))  # [B], else nothing is proved
        self.empty = np.zeros(len(slope), bool)  # no input of the box is in the piece
        sums = [0]  # on the way from the input to a value; intervals are exact through one
        for step in net.steps:
            deepest = max(sums[source] for source in step.sources)
            if step.kind == "relu":
                units = slice(first, first := first + step.size)
                low, high, slack = self._relu(step.sources[0], units, refine and deepest > 1)
            elif step.kind in BENT:
                low, high, slack = self._other(step, refine and deepest > 1)
            else:
                low, high, slack = self._affine(step)
            deeper = step.terms > 0 and step.kind != "scale"
            sums.append(2 if step.kind in BENT else deepest + deeper)
            self.low.append(low)
            self.high.append(high)
            self.most.append(np.maximum(-low, high))
            self.slack.append(slack)
            self.valid &= (np.isfinite(high - low) & (self.most[-1] < 2.0**500)).all(1)

    def on(self, box: Pair) -> "Region":
        """The same lines on a part of each piece, where they hold, too."""
        self.box, inputs = box, self.net.sizes[0]
        self.low[0], self.high[0] = (face[:, :inputs] for face in box)
        return self

    def deployed(self, terms: int, total: Array, before: int = 1) -> Array:
        """E for absolute terms that sum to at most total, or before a division to more."""
        unit, subnormal, largest = LEVELS[self.level]
        error = terms * unit / (1 - terms * unit) * total + terms * subnormal
        return np.where(total * before < largest, error, np.inf)

    def _affine(self, step: Step) -> Triple:
        """Interval arithmetic with a centre and a radius that cover [low, high]."""
        bounds = (self.low, self.high, self.most)
        low, high, most = (np.sum([each[i] for i in step.sources], 0) for each in bounds)
        centre = low / 2 + high / 2
        radius = np.maximum(high - centre, centre - low) * (1 + 4 * _U)
        middle, reach = step.apply(centre) + step.bias, step.apply(radius, True)
        size = (step.apply(most, True) + abs(step.bias)) * (1 + self.g)
        slack = self.deployed(step.terms, size, step.before) + self.g * size + _TINY
        return middle - reach - slack, middle + reach + slack, slack

    def _relu(self, source: int, units: slice, deep: bool) -> Triple:
        """Lines around ReLU on what the piece has of l to h, which are made better where deep.

        For any s in [0, 1], s x is below ReLU, and s x + t above it if t >= -s l and
        t >= (1 - s) h, by convexity. The rounding of t, and of rows times s, is off by less
        than g max(|l|, |h|). Units whose sign is known matter where other lines follow from
        their bounds.
        """
        low, high = self.low[source], self.high[source]
        unknown = (low < high) if self.net.bent else (low < 0) & (high > 0)
        low, high = self._pulled(source, unknown & deep)
        floor, ceiling = (face[:, self.net.sizes[0] :][:, units] for face in self.box)
        low, high = np.maximum(low, floor), np.minimum(high, ceiling)
        self.low[source], self.high[source], self.most[source] = low, high, np.maximum(-low, high)
        self.valid &= np.isfinite(high - low).all(1)
        self.empty |= (low > high).any(1)
        # The slope as stored, of stable units too: a steeper one may be worse in a part.
        given = self.slope[:, units]
        unstable, steep, above = (low < 0) & (high > 0), np.rint(given * 255) % 2, given
        if not self.parallel:
            share = np.clip(high / np.where(unstable, high - low, 1.0), 0.0, 1.0)
            above = np.where(unstable, share, low >= 0)
            steep = np.where(unstable, steep, low >= 0)
        shift = np.maximum(-above * low, (1 - above) * high)
        self.lines[len(self.low)] = units, (given, steep), above, shift, None
        return np.maximum(low, 0), np.maximum(high, 0), self.g * self.most[source] + _TINY

    def _other(self, step: Step, deep: bool) -> Triple:
        """Lines around what has no sign, on bounds that are made better where deep.

        What is lost to the rounding of lines, and of rows times lines, is less than g times the
        largest of what is given; of curves 2^-44 and g, of 1 more. A deployed curve errs by 16
        units of its scale, 1 or of GELU its input, which is an assumption.
        """
        (source,) = step.sources
        low, high = self._pulled(source, (self.low[source] < self.high[source]) & deep)
        self.low[source], self.high[source] = low, high
        self.most[source] = most = np.maximum(-low, high)
        if step.kind == "max_pool2d":
            below, above, shift, low, high, most = max_pool(low, high, step.taps)
            lift, slack = None, self.g * most + _TINY
        else:
            below, above, lift, shift, low, high = curve(step.kind, low, high)
            unit, subnormal, _ = LEVELS[self.level]
            scale = most if step.kind == "gelu" else 1
            slack = (2.0**-44 + self.g) * (1 + most) + 16 * (unit * scale + subnormal)
            low, high = low - slack, high + slack
        self.lines[len(self.low)] = slice(0, 0), (below, below), above, shift, lift
        return low, high, slack

    def _pulled(self, source: int, wanted: Array) -> Pair:
        """Bounds of a value, those that are wanted made better by rows over them."""
        low, high = self.low[source].copy(), self.high[source].copy()
        owners, places = wanted.nonzero()
        count = max(1, 2**20 // self.net.widest)  # rows at a time
        for at in range(0, len(owners), count):
            own, place = owners[at : at + count], places[at : at + count]
            rows = np.zeros((len(own), low.shape[1]))
            rows[np.arange(len(own)), place] = 1.0
            below, above = (self.least(*self.pull(source, r, own), own)[0] for r in (rows, -rows))
            low[own, place] = np.maximum(low[own, place], below)
            high[own, place] = np.minimum(high[own, place], -above)
        return low, high

    def pull(
        self, value: int, A: Array, own: Array, cuts: Array | None = None, steep: bool = False
    ) -> Triple:
        """Rows [N,S] over a value as rows over the input, constants [N] and errors [N].

        On piece own[i], ``A . value >= result . x + constant - error`` in exact arithmetic.
        cuts [N,units]: rows over the computed inputs of the ReLUs, which are added there. steep:
        with 0 or 1 below a ReLU, as the last bit of its slope says, not with the slope itself.
        """
        waiting, constant, error = {value: A}, np.zeros(len(A)), np.zeros(len(A))
        while index := max(waiting):
            A, step = waiting.pop(index), self.net.steps[index - 1]
            error = error + _dot(abs(A), self.slack[index][own])
            constant = constant + A @ step.bias
            if step.kind in BENT:
                units, below, above, shift, lift = self.lines[index]
                constant = constant + _dot(np.minimum(A, 0), shift[own])
                if lift is not None:
                    constant = constant + _dot(np.maximum(A, 0), lift[own])
                A = A[..., None] if step.kind == "max_pool2d" else A
                A = np.maximum(A, 0) * below[steep][own] + np.minimum(A, 0) * above[own]
                A = step.spread(A.reshape(len(A), -1)) if step.kind == "max_pool2d" else A
                arriving = [A] if cuts is None or step.kind != "relu" else [A, cuts[:, units]]
            else:
                arriving = [step.back(A)] * len(step.sources)
            error = error + self.g * abs(constant)
            for source, A in zip(step.sources * 2, arriving, strict=False):  # a ReLU has one
                if source in waiting:
                    A = waiting[source] + A
                    error = error + self.g * _dot(abs(A), self.most[source][own])
                waiting[source] = A
        return waiting[0], constant, error

    def least(self, A: Array, constant: Array, error: Array, own: Array) -> Pair:
        """The least value [N] of rows over the input on their boxes, less all errors; and these."""
        low, high, most = self.low[0][own], self.high[0][own], self.most[0][own]
        lowest = _dot(np.maximum(A, 0), low) + _dot(np.minimum(A, 0), high) + constant
        error = error + self.g * (_dot(abs(A), most) + abs(constant))
        # Errors are sums of non-negative numbers: the factor covers their own rounding.
        error = error * (1 + 2.0**-20) + _TINY
        return lowest - error, error


def row_margins(
    parts: list[Region], C: Array, d: Array, multiplier: Array, steep: bool = False
) -> Pair:
    """Lower bounds of ``C (N + P) + d`` on pieces, [B,M], -inf where unknown; and their errors.

    parts: N, or N and P. A piece without inputs has the bound inf. Where units lie in
    [0, inf], b z >= 0 for every multiplier b >= 0, so a row may be lowered by b z; by -b z
    where they lie in [-inf, 0].
    """
    own, C, d_ = np.repeat(np.arange(len(d)), d.shape[1]), C.reshape(d.size, -1), d.ravel()
    last, A, error, most = parts[-1], np.zeros(1), np.zeros(1), np.zeros(1)
    floor, ceiling = (face[own, last.net.sizes[0] :] for face in last.box)
    cuts = multiplier.reshape(d.size, -1) * ((ceiling == 0).astype(float) - (floor == 0))
    used = cuts if cuts.any() else None
    b, size = d_, abs(d_)
    for part in parts:
        row, constant, lost = part.pull(len(part.net.steps), C, own, used, steep)
        A, b, error, size = A + row, b + constant, error + lost, size + abs(constant)
        most = most + part.most[-1]
    if len(parts) > 1:  # the sum N + P is rounded once
        error = error + _dot(abs(C), last.deployed(4, most * (1 + last.g))[own])
    found, error = last.least(A, b, error + last.g * size, own)
    valid = (parts[0].valid & last.valid)[own] & np.isfinite(found)
    empty = (parts[0].empty | last.empty)[own]
    found = np.where(valid, np.where(empty, np.inf, found), -np.inf)
    return found.reshape(d.shape), error.reshape(d.shape)
