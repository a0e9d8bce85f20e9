"""Pieces of several patches side by side, and the rows of all these patches in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.interfaces import BoundFn, StagedBoundFn
from advrepair.core.patching import Stack
from advrepair.core.types import LinearBound

Known = Mapping[str, Tensor]


@frozen(eq=False)
class Hidden:
    """What is known about patches below their last layers, of each one's pieces: [q,B,...].

    training: for rows in the network's dtype. proof: for rigorous rows, if it is known. Both
    are about weights below the last layer as they were when it was made.
    """

    training: Known
    proof: Known | None

    def part(self, keep: Tensor, pieces: int) -> Hidden:
        """Only some patches, bool [q], and the first pieces of each."""
        training = {name: t[keep, :pieces] for name, t in self.training.items()}
        if self.proof is None:
            return Hidden(training, None)
        return Hidden(training, {name: t[keep, :pieces] for name, t in self.proof.items()})


@frozen(eq=False)
class Batch:
    """Pieces of several patches side by side, padded to the same number.

    box, rows, C: [q*B,...], patch after patch. group: [q*B,M]. real: bool [q,B]. own:
    [q*B,M], rigorous lower bounds of the rows, if they are known. hidden: of the patches'
    layers, if it is known.
    """

    box: Box
    rows: LinearBound
    C: Tensor
    group: Tensor
    real: Tensor
    own: Tensor | None = None
    hidden: Hidden | None = None

    def part(self, keep: Tensor) -> Batch:
        """Only some patches; keep: bool [q]."""
        if bool(keep.all()):
            return self
        flat = keep.repeat_interleave(self.real.shape[1])
        return Batch(
            self.box[flat],
            self.rows[flat],
            self.C[flat],
            self.group[flat],
            self.real[keep],
            hidden=self.hidden and self.hidden.part(keep, self.real.shape[1]),
        )


Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def patch_rows(
    function: BoundFn, stack: Stack, batch: Batch, known: Known | None, mapped: bool
) -> LinearBound:
    """Rows of P_j on its pieces, [q*B,M,*S], in the dtype of the weights.

    known: of each patch's layers below the last, [q,B,...]; then only the rest is done.
    mapped: whether the function can be mapped over patches. Sound as the function is: each
    patch meets its own weights, pieces and layers only.
    """

    def rows(params: Stack, lower: Tensor, upper: Tensor, C: Tensor, known: Known) -> Rows:
        box, d = Box(lower, upper), C.new_zeros(C.shape[:2])
        if known and isinstance(function, StagedBoundFn):
            bound = function.onward(params, box, known, C, d)
        else:
            bound = function(params, box, C, d)
        none = C.new_zeros(())
        size = none if bound.magnitude is None else bound.magnitude
        return bound.A, bound.b, size, none if bound.slope is None else bound.slope

    dtype = next(iter(stack.values())).dtype
    box, shape = batch.box.to(dtype), batch.real.shape
    given = [t.unflatten(0, shape) for t in (box.lower, box.upper, batch.C.to(dtype))]
    found = _each(rows, mapped, shape[0], dict(stack), *given, dict(known or {}))
    A, b, *more = (t.flatten(0, 1) if t.dim() > 1 else None for t in found)
    assert A is not None and b is not None
    return LinearBound(A, b, *more)


def hidden_layers(
    function: StagedBoundFn, stack: Stack, batch: Batch, mapped: bool
) -> dict[str, Tensor]:
    """What the function finds about each patch's layers below the last: [q,B,...]."""

    def layers(params: Stack, lower: Tensor, upper: Tensor) -> dict[str, Tensor]:
        return dict(function.hidden(params, Box(lower, upper)))

    box, shape = batch.box.to(next(iter(stack.values())).dtype), batch.real.shape
    given = [t.unflatten(0, shape) for t in (box.lower, box.upper)]
    found: dict[str, Tensor] = _each(layers, mapped, shape[0], dict(stack), *given)
    return found


def _each(function: Callable[..., Any], mapped: bool, count: int, *args: Any) -> Any:
    """The function of every patch's arguments, side by side along a leading axis."""
    if count == 1:  # as everywhere: a batch of one becomes two
        args = tuple(_over(lambda t: torch.cat([t, t]), each) for each in args)
    if mapped:
        found = torch.func.vmap(function)(*args)
    else:
        found = _one_by_one(function, max(2, count), args)
    return _over(lambda t: t[:1], found) if count == 1 else found


def _over(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A tensor changed, or every tensor of a tuple or a dictionary."""
    if isinstance(value, dict):
        return {name: change(t) for name, t in value.items()}
    return tuple(change(t) for t in value) if isinstance(value, tuple) else change(value)


def _one_by_one(function: Callable[..., Any], count: int, args: tuple[Any, ...]) -> Any:
    """Like vmap over the leading axis, for verifiers that cannot be mapped."""

    def each(i: int) -> Any:
        return function(*(_over(lambda t: t[i], arg) for arg in args))

    results = [each(i) for i in range(count)]
    if isinstance(results[0], dict):
        return {name: torch.stack([r[name] for r in results]) for name in results[0]}
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
