"""Log densities of the classes around a query: what the kernel allocator computes.

What is remembered of a point is ``w_j``, the transposed blur of its blurred ramp in float16,
and ``s_j = |phi_j|^2``. The kernel is defined by these numbers, so nothing is lost by storing
them so. With ``r`` the ramp of a query, ``-|phi(x) - phi_j|^2`` is ``2 r.w_j - s_j`` but for a
term that all points share, and that falls out of every difference of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


@frozen(eq=False)
class Density:
    """log sum over the points of a class of exp(-distance^2 / temperature), but for that of all.

    w: [n,S], s: [n], class after class. counts: points of each class. low, scale: of the ramp.
    """

    w: Tensor
    s: Tensor
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
        return cls(fitted["w"], fitted["s"], counts, low, scale, temperature, weight, dtype)

    def ramp(self, x: Tensor) -> Tensor:
        """Where inputs lie between the ends of the ramp: [N,S] in [0,1]; nondecreasing."""
        return ((x.flatten(1) - self.low) * self.scale).clamp(0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Log densities, [N,K], less that of all classes; differentiable once in x [N,*S]."""
        r = self.ramp(x)
        sums: Callable[[Tensor, Density], Tensor] = _LogSums.apply
        found = torch.cat([sums(part, self) for part in r.split(_AT_ONCE)])
        return found - found.logsumexp(1, keepdim=True)

    def blocks(self) -> list[tuple[Tensor, Tensor]]:
        """Points of each class: w, as it is stored, and s, in dtype."""
        s = self.s.to(self.dtype)
        return list(zip(self.w.split(self.counts), s.split(self.counts), strict=True))

    def scores(self, r: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """``(2 r.w_j - s_j) / temperature``: [N,n]."""
        return torch.addmm(s, r, w.T, beta=-1 / self.temperature, alpha=2 / self.temperature)


class _LogSums(torch.autograd.Function):
    """Log sums of the scores of each class, [N,K], of ramps r [N,S].

    Backwards it needs the mean point of each class as the query weighs them: found on the way,
    so that the scores of all points are never held.
    """

    @staticmethod
    def forward(ctx: Any, r: Tensor, density: Density) -> Tensor:
        sums, means = [], []
        for stored, s in density.blocks():
            w = stored.to(density.dtype)
            score = density.scores(r, w, s)
            total = score.logsumexp(1)
            sums.append(total)
            if ctx.needs_input_grad[0]:
                share = score.sub_(total[:, None]).exp_()
                means.append(share @ w)
        if means:
            ctx.save_for_backward(torch.stack(means, 1))
            ctx.factor = 2 / density.temperature
        return torch.stack(sums, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (means,) = ctx.saved_tensors
        return torch.einsum("nk,nks->ns", grad, means) * ctx.factor, None


def blur_matrix(shape: tuple[int, ...], blur: float, dtype: torch.dtype) -> Tensor | None:
    """The blur of the last two axes as a matrix [S,S], phi = r @ matrix; None if there is none.

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
    channels = 1
    for n in shape[:-2]:
        channels *= n
    found: Tensor = torch.block_diag(*[one] * channels)
    return found.to(dtype)


def remembered(
    r: Tensor, label: Tensor, matrix: Tensor | None, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """w [n,S] float16, s [n] float64 and counts [K], class after class, of ramps r [n,S]."""
    order = label.argsort(stable=True)
    w, s = r.new_empty(r.shape, dtype=torch.float16), r.new_empty(len(r), dtype=torch.float64)
    for part in torch.arange(len(r)).split(4096):
        phi = r[order[part]] if matrix is None else r[order[part]] @ matrix
        w[part] = (phi if matrix is None else phi @ matrix.T).half()
        s[part] = phi.double().square().sum(1)
    return w, s, torch.bincount(label, minlength=outputs)
