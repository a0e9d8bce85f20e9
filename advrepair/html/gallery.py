"""Some properties to look at: the input, the adversarial example, and what the networks say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from attrs import frozen
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from advrepair.core.evaluation import DECISIONS
from advrepair.core.types import worst_margin
from advrepair.html import png, svg, words
from advrepair.html.folder import RunFolder

_MOST, _UNPROVED, _BARS = 12, 4, 100


@frozen
class View:
    """One of the three pictures of a property: a data: URI, or a drawing of a vector."""

    caption: str
    alt: str
    source: str = ""
    drawing: Markup | None = None


@frozen
class Exhibit:
    """A property: its pictures, and what each network says to its adversarial example."""

    name: str
    status: str
    label: int
    views: tuple[View, ...]
    before: str
    after: str
    before_holds: bool
    after_holds: bool


@frozen
class Gallery:
    """The exhibits, and what all of them have in common."""

    exhibits: tuple[Exhibit, ...]
    caption: str


def gallery(run: RunFolder) -> Gallery:
    """Up to 12 properties with an example: unproved ones first, then evenly spaced ones."""
    first = run.first()
    known = (first >= 0).nonzero()[:, 0].tolist()
    if not known:
        return Gallery((), "There is no adversarial example to show.")
    chosen = [known[k] for k in choose([run.properties[i]["status"] for i in known])]
    index = torch.tensor(chosen, dtype=torch.long)
    x, x_adv = run.repaired.center[index], run.evaluation["x_adv"][first[index]]
    decide = DECISIONS[str(run.report["problem"].get("decision", "argmax"))]
    scale = _Scale.of(run.report["problem"].get("input_range"), x, x_adv)
    with torch.no_grad():
        outputs = (run.repaired.base(x_adv), run.repaired(x_adv))
    said = [decide(y).tolist() for y in outputs]
    holds = [_holds(run, index, y) for y in outputs]
    exhibits = tuple(
        Exhibit(
            run.properties[i]["name"],
            run.properties[i]["status"],
            run.properties[i]["label"],
            _views(run.properties[i], x[k], x_adv[k], scale),
            str(said[0][k]),
            str(said[1][k]),
            holds[0][k],
            holds[1][k],
        )
        for k, i in enumerate(chosen)
    )
    return Gallery(exhibits, _caption(len(chosen), len(run.properties), tuple(x.shape[1:]), scale))


def choose(status: list[str]) -> list[int]:
    """Numbers of the properties to show; the choice looks at status and order alone."""
    unproved = [i for i, each in enumerate(status) if each != "certified"][:_UNPROVED]
    others = [i for i in range(len(status)) if i not in set(unproved)]
    count = min(_MOST - len(unproved), len(others))
    spaced = [others[k * len(others) // count] for k in range(count)]
    return unproved + spaced


@frozen
class _Scale:
    """What is black and white, and how much differences are amplified."""

    low: float
    high: float
    factor: float

    @classmethod
    def of(cls, bounds: Any, x: Tensor, x_adv: Tensor) -> _Scale:
        both = torch.cat([x, x_adv])
        given = [words.number(end) for end in bounds] if isinstance(bounds, list) else []
        low, high = both.min().item(), both.max().item()
        if len(given) == 2 and given[0] is not None and given[1] is not None:
            low, high = given[0], given[1]
        most = (x_adv - x).abs().max().item()
        factor = (high - low) / most if most > 0 and high > low else 1.0
        return cls(low, high, float(f"{factor:.2g}"))


def _views(each: dict[str, Any], x: Tensor, x_adv: Tensor, scale: _Scale) -> tuple[View, ...]:
    a, b = (t.double().numpy() for t in (x, x_adv))
    name = each["name"]
    return (
        _view("original", f"{name}, original", a, scale),
        _view("adversarial", f"{name}, adversarial example", b, scale),
        _view("difference", f"{name}, adversarial less original", b - a, scale, True),
    )


def _view(
    caption: str, alt: str, x: NDArray[np.float64], scale: _Scale, change: bool = False
) -> View:
    if png.is_image(x.shape):
        width = (scale.high - scale.low) or 1.0
        source = (
            png.difference(x, scale.factor / width)
            if change
            else png.picture(x, scale.low, scale.high)
        )
        return View(caption, alt, source=source)
    values = (x.ravel()[:_BARS] * (scale.factor if change else 1.0)).tolist()
    low, high = (
        (scale.low - scale.high, scale.high - scale.low) if change else (scale.low, scale.high)
    )
    return View(caption, alt, drawing=svg.vector(values, low, high, alt))


def _holds(run: RunFolder, index: Tensor, y: Tensor) -> list[bool]:
    """Whether what is demanded of each property holds at an output; a tie and NaN break it."""
    C, d, group = (run.demand[name][index] for name in ("C", "d", "group"))
    rows = torch.einsum("pmk,pk->pm", C.double(), y.double()) + d.double()
    found: list[bool] = (worst_margin(rows, group) > 0).tolist()
    return found


def _caption(shown: int, total: int, shape: tuple[int, ...], scale: _Scale) -> str:
    text = f"{shown:,} of {words.many(total, 'property', 'properties')}"
    if shown < total:
        text += ", unproved ones first, then evenly spaced"
    text += f". The difference is amplified {words.plain(scale.factor)} times"
    if not png.is_image(shape):
        inputs = math.prod(shape)
        which = f"the first {_BARS} of {inputs:,}" if inputs > _BARS else f"the {inputs}"
        return f"{text}; a bar for each of {which} inputs: blue is positive, orange negative."
    if len(shape) == 3 and shape[0] == 3:
        return f"{text}; gray is no change."
    return f"{text}: orange is brighter, blue is darker, white is unchanged."
