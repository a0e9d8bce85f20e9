"""What separates a repair from a lookup table: does a patch look at its input at all?

A constant patch knows the label of its box and nothing else. It reaches every rate of the
paper, so these numbers stand beside the rates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.attacking import uniform
from advrepair.core.box import Box
from advrepair.core.patching import RepairedNetwork, Stack
from advrepair.core.types import PropertySet

_POINTS = 32  # of every box, of unrelated images, and of noise
_AT_ONCE = 32  # properties
Insight = dict[str, float | None]


def insight(
    repaired: RepairedNetwork,
    properties: PropertySet,
    images: Tensor | None,
    labels: Tensor | None,
    noise: torch.Generator,
) -> Insight:
    """Means over the properties that have a patch, as fractions unless said otherwise.

    ``input_dependence``: variance of the patch's output over its box, over its mean square; 0
    for a constant. ``intrusion``: |P| / |N|, largest output each, on its box; ``most`` of all
    points. ``forced_images``, ``forced_noise``: share of images with another label, and of
    uniform noise, that N + P_j sends to the label it serves; None where there are no labels.
    ``parameters``, ``bytes``: of the patches, for each property.

    images: [n,*S] that were not repaired, labels: [n].
    """
    parts = [torch.zeros(0, 5)]
    for index in (repaired.centres.patch >= 0).nonzero()[:, 0].split(_AT_ONCE):
        asked = properties[index]
        stack = {n: t[repaired.centres.patch[index]] for n, t in repaired.bank.stack.items()}
        inside = torch.stack([uniform(asked.box, noise) for _ in range(_POINTS)], 1)
        patch, base = _outputs(repaired, stack, inside)
        spread = (patch - patch.mean(1, keepdim=True)).square().sum(2).mean(1)
        power = patch.square().sum(2).mean(1)
        ratio = patch.abs().amax(2) / base.abs().amax(2).clamp(min=torch.finfo(base.dtype).tiny)
        dependence = torch.where(power > 0, spread / power, 0.0)
        forced = _forced(repaired, stack, asked, images, labels, noise)
        parts.append(torch.stack([dependence, ratio.mean(1), ratio.amax(1), *forced], 1))
    columns = torch.cat(parts).double().T
    numbers = repaired.bank.stack.values()
    return {
        "input_dependence": _mean(columns[0]),
        "intrusion": _mean(columns[1]),
        "intrusion_most": float(columns[2].max()) if columns.shape[1] else None,
        "forced_images": _mean(columns[3]),
        "forced_noise": _mean(columns[4]),
        "parameters": sum(t.numel() for t in numbers) / len(properties),
        "bytes": sum(t.numel() * t.element_size() for t in numbers) / len(properties),
    }


@torch.no_grad()
def _outputs(repaired: RepairedNetwork, stack: Stack, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of each property's patch and of N, [P,n,K] each, on x [P,n,*S]."""
    seen = repaired.seen(x.flatten(0, 1))
    base = repaired.tail(seen).unflatten(0, x.shape[:2])
    seen = seen.unflatten(0, x.shape[:2])
    return torch.func.vmap(repaired.bank.template.apply_tensors)(stack, seen), base


def _forced(
    repaired: RepairedNetwork,
    stack: Stack,
    asked: PropertySet,
    images: Tensor | None,
    labels: Tensor | None,
    noise: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Shares of unrelated images and of noise that are sent to the label: [P] each, or NaN."""
    count, shape = len(asked), asked.box.input_shape
    unknown = torch.full((count,), torch.nan)
    low, high = asked.box.lower.min(), asked.box.upper.max()
    wide = Box(low.expand(1, *shape), high.expand(1, *shape))
    random = torch.cat([uniform(wide, noise) for _ in range(_POINTS)])
    own = asked.label
    patch, base = _outputs(repaired, stack, random.expand(count, -1, *shape))
    sent = ((patch + base).argmax(2) == own[:, None]).float().mean(1)
    of_noise = torch.where(own >= 0, sent, unknown)
    if images is None or labels is None or not len(images):
        return unknown, of_noise
    pick = torch.randint(len(images), (count, _POINTS), generator=noise)
    patch, base = _outputs(repaired, stack, images[pick])
    other = labels[pick] != own[:, None]
    hits = ((patch + base).argmax(2) == own[:, None]) & other
    share = hits.sum(1) / other.sum(1)  # NaN where all have the label itself
    return torch.where(own >= 0, share, unknown), of_noise


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None
