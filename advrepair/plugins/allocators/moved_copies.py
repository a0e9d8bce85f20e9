"""Copies of images, each moved, turned and bent a little: further points of the same label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advrepair.core.errors import UsageError

# Ranges that copies are drawn from: radians, shares, and shares of half the image.
_TURN, _SCALE, _SHEAR, _MOVE, _BEND = 0.2, 0.12, 0.2, 0.08, 0.04
_SMOOTH = 4.0  # standard deviation of a bend, in pixels
_LEAST = 8  # pixels of an image to each side
_AT_ONCE = 4096


def moved_copies(
    x: Tensor, label: Tensor, copies: int, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Every input and copies - 1 more of each: [n * copies,*S], and their labels.

    x: [n,*S], images of shape H,W or C,H,W. Between pixels values are interpolated, so they stay
    in the range of the input's own and 0. Raises UsageError for inputs that are no images.
    """
    if copies == 1:
        return x, label
    if x.dim() not in (3, 4) or min(x.shape[-2:]) < _LEAST:
        raise UsageError(
            f"kernel.copies is {copies}: inputs of shape {tuple(x.shape[1:])} are no images that "
            "can be moved; use --set kernel.copies=1"
        )
    images = x if x.dim() == 4 else x[:, None]
    found = [images]
    for _ in range(copies - 1):
        found += [_moved(part, noise) for part in images.split(_AT_ONCE)]
    return torch.cat(found).view(-1, *x.shape[1:]), label.repeat(copies)


def _moved(images: Tensor, noise: torch.Generator) -> Tensor:
    """One copy of each, [n,C,H,W]."""
    count, (height, width) = len(images), images.shape[-2:]

    def drawn(most: float, *shape: int) -> Tensor:
        return most * (2 * torch.rand(count, *shape, generator=noise, dtype=images.dtype) - 1)

    turn, scale, shear = drawn(_TURN), 1 + drawn(_SCALE), drawn(_SHEAR)
    rows = torch.zeros(count, 2, 3, dtype=images.dtype)
    rows[:, 0, 0], rows[:, 0, 1] = scale * turn.cos(), shear - scale * turn.sin()
    rows[:, 1, 0], rows[:, 1, 1] = scale * turn.sin(), scale * turn.cos()
    rows[:, :, 2] = drawn(_MOVE, 2)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    grid = grid + _smooth(drawn(1.0, 2, height, width)).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, align_corners=False)


def _smooth(field: Tensor) -> Tensor:
    """Random shifts of all pixels that change slowly, of standard deviation _BEND."""
    taps = round(2 * _SMOOTH)
    place = torch.arange(-taps, taps + 1, dtype=field.dtype)
    line = torch.exp(-(place**2) / (2 * _SMOOTH**2))
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        window = line.view(shape).expand(2, -1, -1, -1)
        pad = (taps, 0) if shape[2] == -1 else (0, taps)
        field = F.conv2d(field, window, padding=pad, groups=2)
    spread = field.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-9)
    return _BEND * field / spread
