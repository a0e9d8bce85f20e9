"""Descents on the margins of properties, all at once and each as if it were alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from attrs import define
from torch import Tensor, nn

from advrepair.core.box import Box
from advrepair.core.errors import UsageError
from advrepair.core.interfaces import of_rows
from advrepair.core.types import PropertySet

if TYPE_CHECKING:
    from advrepair.plugins.attacks.pgd import Pgd


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, gradients on; each submodule's mode is put back after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _generators(properties: PropertySet, generator: torch.Generator) -> list[torch.Generator]:
    """A source of noise for each property, from one draw of the generator and its content.

    So a property meets the same noise in whatever company and place it is attacked.
    """
    draw = torch.randint(2**62, (1,), generator=generator, device=generator.device).item()
    digests = (hashlib.sha256(f"{draw}:{i}".encode()) for i in properties.identifiers())
    seeds = (int.from_bytes(digest.digest()[:7], "big") for digest in digests)
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _noise(sources: list[torch.Generator], like: Tensor) -> Tensor:
    """Uniform in [0,1), [P,*S], row i from source i."""
    rows = [torch.rand(like.shape[1:], generator=source, dtype=like.dtype) for source in sources]
    return torch.stack(rows).to(like.device)


def _margin_and_slope(
    model: nn.Module, properties: PropertySet, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Margin of every point, [P], and its gradient in the point, [P,*S].

    A NaN margin breaks its property and counts as -inf; a NaN slope counts as none.
    """
    x = x.detach().requires_grad_()
    margin = properties.margin(model(x))
    (slope,) = torch.autograd.grad(margin.sum(), x)
    lost = margin.isnan()
    return margin.detach().masked_fill(lost, -torch.inf), slope.nan_to_num(nan=0.0)


def _over(mask: Tensor, points: Tensor) -> Tensor:
    """A mask [P] made to fit points [P,*S]."""
    return mask.view(-1, *(1 for _ in points.shape[1:]))


def descend(
    options: Pgd,
    model: nn.Module,
    properties: PropertySet,
    start: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The point of the lowest margin met, for each property: [P,*S]; see :meth:`Pgd.perturb`."""
    box = properties.box.to(start.dtype)
    first = box.clamp(start.detach())
    if not bool(box.holds(first).all()):
        raise UsageError("attack pgd: a starting point holds NaN")
    lowest = torch.full((len(box),), torch.inf, dtype=torch.float64, device=start.device)
    found = _Found(first.clone(), lowest)
    sources = _generators(properties, generator)
    with evaluating(model):
        for restart in range(options.restarts):
            left = found.standing(torch.arange(len(box), device=start.device))
            if not len(left):
                break
            noise = _noise(sources, first)
            anywhere = box.clamp(box.lower + noise * (box.upper - box.lower))
            begin = first if restart == 0 else anywhere
            _descent(options, model, properties, box, begin, noise, left, found)
    return found.best


@define(eq=False)
class _Found:
    """The best points so far, [P,*S], and their margins, [P]."""

    best: Tensor
    lowest: Tensor

    def update(self, index: Tensor, x: Tensor, margin: Tensor) -> None:
        """Points of some properties, [n]. What is broken already stays as it is: how long
        the search still goes on is a matter of the other properties."""
        known = self.lowest[index]
        better = (margin < known) & (known > 0)
        self.best[index[better]] = x[better]
        self.lowest[index[better]] = margin[better].to(self.lowest.dtype)

    def standing(self, index: Tensor) -> Tensor:
        """Those of some properties that nothing has broken."""
        return index[self.lowest[index] > 0]


def _descent(
    options: Pgd,
    model: nn.Module,
    properties: PropertySet,
    box: Box,
    begin: Tensor,
    noise: Tensor,
    index: Tensor,
    found: _Found,
) -> None:
    """One descent of the properties of an index, from begin [P,*S], which adds to what is found.

    Once half of them are broken, the others go on without them.
    """
    stride = box.radius * (options.step / options.steps)
    wander = torch.where(noise < 0.5, -1.0, 1.0).to(begin.dtype)
    x, asked, function = begin[index], properties[index], of_rows(model, index)
    for _ in range(options.steps):
        margin, slope = _margin_and_slope(function, asked, x)
        found.update(index, x, margin)
        flat = (slope == 0).flatten(1).all(1)
        downhill = torch.where(_over(flat, x), wander[index], -slope.sign())
        x = box[index].clamp(x + stride[index] * downhill)
        left = found.lowest[index] > 0
        if 2 * int(left.sum()) <= len(index):
            index, x = index[left], x[left]
            if not len(index):
                return
            asked, function = properties[index], of_rows(model, index)
    with torch.no_grad():
        last = asked.margin(function(x))
    found.update(index, x, last.masked_fill(last.isnan(), -torch.inf))
