"""Log densities of the classes around a query: what the kernel allocator computes.

The features of an input are ``phi = r @ map``, with r its ramp. Those of the points are stored in
float16, and the kernel is defined by what is stored, so nothing is lost by storing them so.
``-|phi - phi_j|^2`` is ``2 phi.phi_j - |phi_j|^2`` but for a term that all points share, and that
falls out of every difference of outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

_AT_ONCE = 256  # queries
_TAPS = 3  # pixels that a blur reaches to each side, at least
Fitted = Mapping[str, Tensor]


def trusted(logits: Tensor, trust: float) -> Tensor:
    """``log(softmax(N) + trust)``, [N,K]: between log(trust) and log(1 + trust)."""
    return (logits.softmax(1) + trust).log()


def ramped(x: Tensor, low: float, scale: float) -> Tensor:
    """``(x - low) * scale`` between 0 and 1, flat: [N,S] of inputs [N,*S]."""
    return ((x.flatten(1) - low) * scale).clamp(0, 1)


@frozen(eq=False)
class Density:
    """log sum over the points of a class of exp(-distance^2 / temperature), but for that of all.

    map: [S,D]. points: their features, float16 [n,D], class after class. square: |phi_j|^2, [n].
    counts: points of each class. low, scale: of the ramp.
    """

    map: Tensor
    points: Tensor
    square: Tensor
    counts: tuple[int, ...]
    low: float
    scale: float
    temperature: float
    weight: float
    dtype: torch.dtype

    @classmethod
    def of(cls, fitted: Fitted, dtype: torch.dtype) -> Density:
        """As it was fitted, computing in dtype."""
        low, scale, temperature, weight = fitted["numbers"].tolist()
        counts = tuple(fitted["counts"].tolist())
        known = (fitted["map"].to(dtype), fitted["points"], fitted["square"].to(dtype))
        return cls(*known, counts, low, scale, temperature, weight, dtype)

    def ramp(self, x: Tensor) -> Tensor:
        """Where inputs lie between the ends of the ramp: [N,S] in [0,1]; nondecreasing."""
        return ramped(x, self.low, self.scale)

    def features(self, x: Tensor) -> Tensor:
        """phi of inputs [N,*S]: [N,D]."""
        return self.ramp(x) @ self.map

    def __call__(self, x: Tensor) -> Tensor:
        """Log densities, [N,K], less that of all classes; differentiable once in x [N,*S]."""
        return self.of_features(self.features(x))

    def of_features(self, phi: Tensor) -> Tensor:
        """The same, of features [N,D]."""
        sums: Callable[[Tensor, Density], Tensor] = _LogSums.apply
        found = torch.cat([sums(part, self) for part in phi.split(_AT_ONCE)])
        return found - found.logsumexp(1, keepdim=True)

    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Points of each class, [n,D] in dtype, and their squares, [n]."""
        parts = zip(self.points.split(self.counts), self.square.split(self.counts), strict=True)
        return [(points.to(self.dtype), square) for points, square in parts]

    def scores(self, phi: Tensor, points: Tensor, square: Tensor) -> Tensor:
        """``(2 phi.phi_j - |phi_j|^2) / temperature``: [N,n]."""
        own, other = -1 / self.temperature, 2 / self.temperature
        return torch.addmm(square, phi, points.T, beta=own, alpha=other)


class _LogSums(torch.autograd.Function):
    """Log sums of the scores of each class, [N,K], of features phi [N,D].

    Backwards it needs the mean point of each class as the query weighs them: found on the way,
    so that the scores of all points are never held.
    """

    @staticmethod
    def forward(ctx: Any, phi: Tensor, density: Density) -> Tensor:
        sums, means = [], []
        for points, square in density.blocks():
            score = density.scores(phi, points, square)
            total = score.logsumexp(1)
            sums.append(total)
            if ctx.needs_input_grad[0]:
                share = score.sub_(total[:, None]).exp_()
                means.append(share @ points)
        if means:
            ctx.save_for_backward(torch.stack(means, 1))
            ctx.factor = 2 / density.temperature
        return torch.stack(sums, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (means,) = ctx.saved_tensors
        return torch.einsum("nk,nkd->nd", grad, means) * ctx.factor, None


def feature_map(
    parts: Iterable[Tensor], shape: tuple[int, ...], blur: float, rank: int, dtype: torch.dtype
) -> Tensor:
    """The map of ramps to features: a blur, and the directions that tell most, [S,D].

    parts: ramps of the points, [n,S] each. rank: D; 0 for as many as there are inputs.
    Directions are the leading eigenvectors of the second moments of what is blurred.
    """
    inputs, count = math.prod(shape), 0
    blurred = blur_matrix(shape, blur, dtype)
    whole = torch.eye(inputs, dtype=dtype) if blurred is None else blurred
    if not rank or rank >= inputs:
        return whole
    moment = torch.zeros(inputs, inputs, dtype=torch.float64)
    for part in parts:
        phi = (part if blurred is None else part @ blurred).double()
        moment += phi.T @ phi
        count += len(part)
    directions = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : min(rank, count)]
    # A direction and its opposite are the same: the sign of the largest entry is taken.
    largest = directions.abs().argmax(0)
    signs = directions.gather(0, largest[None]).sign()
    found: Tensor = whole @ (directions * signs).to(dtype)
    return found


def blur_matrix(shape: tuple[int, ...], blur: float, dtype: torch.dtype) -> Tensor | None:
    """The blur of the last two axes as a matrix [S,S]; None if there is none.

    Inputs without two axes of at least two are no images: they are not blurred.
    """
    if not blur or len(shape) < 2 or min(shape[-2:]) < 2:
        return None
    height, width = shape[-2:]
    taps = max(_TAPS, round(3 * blur))
    place = torch.arange(-taps, taps + 1, dtype=torch.float64)
    line = torch.exp(-(place**2) / (2 * blur**2))
    line /= line.sum()
    window = (line[:, None] * line[None])[None, None]
    each = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    one = F.conv2d(each, window, padding=taps).flatten(1)
    channels = math.prod(shape[:-2])
    found: Tensor = torch.block_diag(*[one] * channels)
    return found.to(dtype)
