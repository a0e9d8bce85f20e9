"""Where the queries go: to a box, or to the patches that the allocator chooses."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.patching import RepairedNetwork
from advrepair.html import svg, words
from advrepair.html.figures import Figure
from advrepair.html.folder import RunFolder

_AT_ONCE, _MOST = 250, 1000
WAYS = ("by its box", "allocator: right patch", "allocator: another", "no patch")
_CSS = ("c1", "c3", "c2", "c4")


@frozen
class Flow:
    """A kind of query and the share of it that goes each way of :data:`WAYS`."""

    label: str
    shares: tuple[str, ...]


def flows(run: RunFolder) -> tuple[Figure, list[Flow], str] | None:
    """The chart, its numbers, and how many queries were tried; None without labelled examples."""
    first = run.first()
    balls = ((run.repaired.centres.label >= 0) & (first >= 0)).nonzero()[:, 0]
    if not len(balls):
        return None
    spaced = torch.linspace(0, len(balls) - 1, min(len(balls), _MOST)).round().long().unique()
    index = balls[spaced]
    examples = run.evaluation["x_adv"][first.clamp(min=0)]
    kinds = {"centres": run.repaired.center, "adversarial examples": examples}
    found = {label: _shares(run.repaired, x, index) for label, x in kinds.items()}
    rows = [(f"{label}, as deployed", shares[0]) for label, shares in found.items()]
    rows += [(f"{label}, by the allocator alone", shares[1]) for label, shares in found.items()]
    caption = _caption(rows[1][1][0], rows[3][1][1], run.repaired.allocator.name)
    bars = [(label, list(zip(shares, _CSS, strict=True))) for label, shares in rows]
    chart = svg.stacked(bars, "Where the queries go", caption)
    table = [Flow(label, tuple(map(words.share, shares))) for label, shares in rows]
    return Figure(chart, caption), table, words.many(len(index), "property", "properties")


def _caption(home: float, right: float, allocator: str) -> str:
    return (
        f"As deployed, {words.share(home)} of the adversarial examples are caught by their box. "
        f"Were there no boxes, allocator {allocator!r} would send {words.share(right)} of them to "
        "the right patch: that is what to expect of examples just outside a box."
    )


def _shares(repaired: RepairedNetwork, x: Tensor, index: Tensor) -> list[list[float]]:
    """Shares of each way, as deployed and were there no boxes."""
    counts = torch.zeros(2, len(WAYS))
    for part in index.split(_AT_ONCE):
        with torch.no_grad():
            seen = repaired.seen(x[part])
            logits = repaired.tail(seen)
            home = repaired.box.first(x[part]) >= 0
            gates = repaired.allocator.allocate(seen, logits, repaired.centres)
            routed = gates.clone()
            routed[~home] = repaired.route(x[part][~home], logits[~home])
        counts[0] += _ways(repaired, part, routed, home)
        counts[1] += _ways(repaired, part, gates, torch.zeros_like(home))
    shares: list[list[float]] = (counts / len(index)).tolist()
    return shares


def _ways(repaired: RepairedNetwork, index: Tensor, gates: Tensor, home: Tensor) -> Tensor:
    """How many queries go each way. home: those whose box decides, whatever their gates."""
    right, some = _right(repaired, index, gates), gates.any(1)
    ways = (home, ~home & right, ~home & ~right & some, ~home & ~some)
    return torch.stack([way.sum() for way in ways])


def _right(repaired: RepairedNetwork, index: Tensor, gates: Tensor) -> Tensor:
    """Own patch on, and none that serves another label: as ``routing`` in report.json."""
    label = repaired.centres.label
    serves = torch.zeros(len(repaired.bank), int(label.max()) + 2, dtype=torch.bool)
    serves[repaired.centres.patch, label] = True
    wrong = (gates.float() @ serves.float()) > 0
    wrong[torch.arange(len(index)), label[index]] = False
    return gates.gather(1, repaired.centres.patch[index, None])[:, 0] & ~wrong.any(1)
