"""Which ends of a value's units rows have to find, and which of them first."""

from __future__ import annotations

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.graph import INPUT, STEPS
from advrepair.plugins.verifiers.descent import Descent
from advrepair.plugins.verifiers.windows import cut, flat, seen, unflat


@define(eq=False)
class Asking:
    """Ends of values in one call: by rows where they are needed, else by intervals."""

    descent: Descent
    _middles: dict[str, Tensor] = field(factory=dict)

    def ends(
        self, index: int, low: Tensor, high: Tensor, least: bool, whole: bool
    ) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the value of operation ``index``, [B,*shape] each.

        low, high: by interval arithmetic. First the end is asked that may settle a unit's sign,
        and the other one only if that fails: a ReLU's lines depend on no more. Which one may
        is a guess, by the sign at the middle of the box. whole: other lines, here or later on,
        depend on more: then both ends of all units are asked.

        Sound: either end is that of rows or that of interval arithmetic, and both hold for the
        computed values, like everything here.
        """
        op, sized = self.descent.network.operations[index], self.descent.rounding is not None
        readers = sum(other.inputs.count(op.name) for other in self.descent.network.operations)
        shared = sized and readers > 1
        windows = self.descent.tiles(index)
        found = [flat(end, op.shape) for end in (low, high)]
        wanted = asked(low, high, least, sized, shared, whole)
        given = [*found, *(flat(t, op.shape) for t in wanted)]
        if len(windows) == 1:
            found = list(self._found(index, 0, *given[2:], *found))
        else:
            likely = flat(self._middle(op.name), op.shape) >= 0
            found = [end.clone() for end in found]
            for at, window in enumerate(windows):
                part = [cut(t, op.shape, window) for t in (*given, likely)]
                news = self._by_turns(index, at, part, sized, shared or whole)
                for end, new in zip(found, news, strict=True):
                    here = seen(end, op.shape, window)
                    here.copy_(new.view_as(here))
        # The library's convolution has other last bits where channels lie last in memory.
        lower, upper = (unflat(end, op.shape).contiguous() for end in found)
        return lower, upper

    def _by_turns(
        self, index: int, at: int, part: list[Tensor], sized: bool, both: bool
    ) -> tuple[Tensor, Tensor]:
        """Ends of a tile: those first that may settle a unit. part: [B,units] each."""
        low, high, lows, highs, likely = part
        if both:
            return self._found(index, at, lows, highs, low, high)
        # A size is made of the end farther from 0.
        some_lows = lows & likely
        some_highs = highs if sized else highs & ~likely
        lower, upper = self._found(index, at, some_lows, some_highs, low, high)
        # NaN settles nothing; ends that are not finite make no lines.
        some_lows = lows & ~likely & ~((upper <= 0) & low.isfinite())
        some_highs = highs & likely & ~((lower >= 0) & high.isfinite()) & (not sized)
        return self._found(index, at, some_lows, some_highs, lower, upper)

    def _found(
        self, index: int, at: int, lows: Tensor, highs: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The ends, by rows where they are asked."""
        if not bool((lows | highs).any()):
            return low, high
        lower, upper = self.descent.ends(index, at, lows, highs)
        return torch.where(lows, lower, low), torch.where(highs, upper, high)

    def _middle(self, name: str) -> Tensor:
        """The value at the middle of each box, up to rounding: [B,*shape]."""
        if not self._middles:
            self._middles[INPUT] = self.descent.box.center
        for op in self.descent.network.operations:
            if name in self._middles:
                break
            if op.name not in self._middles:
                given = [self._middles[source] for source in op.inputs]
                self._middles[op.name] = STEPS[op.kind](op, self.descent.params, given)
        return self._middles[name]


def asked(
    low: Tensor, high: Tensor, least: bool, sized: bool, shared: bool, whole: bool
) -> tuple[Tensor, Tensor]:
    """Units whose lower and whose upper end rows have to find, bool like low and high.

    Units that interval arithmetic, low to high, shows to be of one sign, by far, keep its ends:
    their ReLU is affine all the same. By far, as rows settle them too then, so that every line
    stays as it is; a line of another slope could make what comes later looser. So it is with
    slopes of least area; rows through others are so loose that nothing follows.

    Sound: interval arithmetic holds for the computed values, like everything here. Where a
    size is made of the ends only those are left out that it does not need: the one nearer to
    0, and the other one if it is negative and not shared, that is if only a ReLU reads the
    value, whose result is 0.
    """
    apart = (high - low) / 2 if least and not whole else torch.full_like(low, torch.inf)
    active, dead = low >= apart, high <= -apart
    if not sized:
        return ~(active | dead), ~(active | dead)
    return (~active if shared else ~(active | dead)), ~dead
