"""Boxes around features that were sampled: what may be expected of a ball, without a proof."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import Network
from advrepair.core.parting import Parts
from advrepair.core.sections import Sampling

_FIRST, _FRESH = 0, 1  # what noise is for


@define(eq=False)
class SampledFront:
    """Boxes of the features of sampled inputs (section 3.4 of arXiv 2404.01642). Proves nothing.

    Of each ball are sampled: inputs anywhere, corners, and what two searches by the sign of the
    gradient meet, one towards what the network decides for at the centre and one away from it.
    The noise of a ball comes from the seed and its faces alone.
    """

    parts: Parts
    options: Sampling
    seed: int
    proved: bool = field(default=False, init=False)
    _known: dict[bytes, tuple[Tensor, Tensor]] = field(factory=dict, init=False)

    @property
    def network(self) -> Network:
        """What gives the features."""
        return self.parts.front

    def box(self, box: Box) -> Box:
        """Faces [B,D] around the sampled features, moved apart by ``sampling.widen``."""
        faces = [self._faces(box[i : i + 1]) for i in range(len(box))]
        lower, upper = (torch.stack(each) for each in zip(*faces, strict=True))
        return Box(lower, upper)

    def missed(self, box: Box) -> Mapping[str, float]:
        """Of fresh samples of balls: the share of which some feature lies outside its box.

        By the kind of sample; and ``numbers``, the share of all features that lie outside.
        """
        known, outside, count = self.box(box), dict[str, int](), dict[str, int]()
        numbers = every = 0
        for i in range(len(box)):
            for kind, features in self._features(box[i : i + 1], _FRESH).items():
                out = known[[i]].clamp(features) != features
                outside[kind] = outside.get(kind, 0) + int(out.any(1).sum())
                count[kind] = count.get(kind, 0) + len(out)
                numbers, every = numbers + int(out.sum()), every + out.numel()
        shares = {kind: outside[kind] / count[kind] for kind in outside}
        return {**shares, "numbers": numbers / every if every else 0.0}

    def _faces(self, ball: Box) -> tuple[Tensor, Tensor]:
        key = self._key(ball, _FIRST)
        if key not in self._known:
            features = torch.cat(list(self._features(ball, _FIRST).values()))
            lower, upper = features.amin(0), features.amax(0)
            more = (upper - lower) * (self.options.widen / 2)
            self._known[key] = lower - more, upper + more
        return self._known[key]

    def _key(self, ball: Box, use: int) -> bytes:
        text = f"{self.seed}:{use}:".encode()
        faces = (ball.lower.numpy().tobytes(), ball.upper.numpy().tobytes())
        return hashlib.sha256(text + faces[0] + faces[1]).digest()

    def _features(self, ball: Box, use: int) -> dict[str, Tensor]:
        """Features [n,D] of the samples of one ball, by the kind of sample."""
        known = int.from_bytes(self._key(ball, use)[:7], "big")
        noise = torch.Generator().manual_seed(known)
        dtype, asked = self.parts.front.dtype, self.options
        lower, upper = ball.lower.to(dtype), ball.upper.to(dtype)

        def share(count: int) -> Tensor:
            return torch.rand((count, *lower.shape[1:]), generator=noise, dtype=dtype)

        def uniform(count: int) -> Tensor:
            return Box(lower, upper).clamp(lower + share(count) * (upper - lower))

        start = ball.center.to(dtype) if use == _FIRST else uniform(1)
        x = {
            "anywhere": uniform(asked.anywhere),
            "corners": torch.where(share(asked.corners).round() > 0, upper, lower),
            "searched": self._searched(Box(lower, upper), start),
        }
        with torch.no_grad():
            return {kind: self.parts.front(each) for kind, each in x.items() if len(each)}

    def _searched(self, ball: Box, start: Tensor) -> Tensor:
        """What the two searches meet, [2 steps,*S], one ball."""
        steps = self.options.steps
        x = start.repeat(2, *(1 for _ in start.shape[1:]))
        sign = torch.tensor([1.0, -1.0], dtype=x.dtype).view(-1, *(1 for _ in start.shape[1:]))
        stride = ball.radius * (2.5 / max(1, steps))
        met: list[Tensor] = []
        label = -1
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                logits = self.parts.tail(self.parts.front(x))
                label = int(logits[0].argmax()) if label < 0 else label
                other = logits.index_fill(1, torch.tensor([label]), -torch.inf).amax(1)
                (slope,) = torch.autograd.grad((logits[:, label] - other).sum(), x)
            x = ball.clamp(x.detach() + sign * stride * slope.sign())
            met.append(x)
        return torch.cat(met) if met else x[:0]
