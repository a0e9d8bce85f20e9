"""What an attacker reaches outside the boxes, and what separates a repair from a lookup table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from advrepair.html import words

# Key of the report, and what it says; those in per cent are shares.
LOOKUP = {
    "input_dependence": "how much a patch's output varies over its box; 0 % for a constant",
    "intrusion": "largest output of the patch over that of the network, mean over the box",
    "intrusion_most": "the same at the worst point",
    "forced_images": "images with another label that a patch sends to its own",
    "forced_noise": "noise that a patch sends to its own label",
    "parameters": "numbers in the patches, for each property",
    "bytes": "size of the patches, for each property",
}
_SHARES = ("input_dependence", "forced_images", "forced_noise")
_BOTH = ("repair", "constant-bias")


@frozen
class Line:
    """A row of a table: a name, a sentence about it, and cells."""

    name: str
    text: str
    cells: tuple[str, ...]


@frozen
class Outside:
    """Tables of a full evaluation. asked: what was attacked, and how."""

    asked: str
    threats: tuple[Line, ...]
    radii: tuple[Line, ...]
    lookup: tuple[Line, ...]


def outside(report: Mapping[str, Any]) -> Outside | None:
    """The tables; None if the deployed function was not attacked outside the boxes."""
    asked, lookup = report.get("evaluation"), report.get("lookup")
    if not isinstance(asked, Mapping) or not isinstance(lookup, Mapping):
        return None
    threats, sweep = asked["threats"], asked["sweep"]
    return Outside(
        f"{words.many(report['counts']['DGSR-query'], 'unseen input')} attacked at radius "
        f"{words.plain(asked['epsilon'])} with {asked['attack']['name']}",
        tuple(
            Line(name, "", tuple(words.share(threats[each].get(name)) for each in _BOTH))
            for name in threats["repair"]
        ),
        tuple(_radius(radius, sweep) for radius in sorted(sweep["repair"]["query"], key=float)),
        tuple(
            Line(key, text, tuple(_figure(key, lookup[each].get(key)) for each in _BOTH))
            for key, text in LOOKUP.items()
        ),
    )


def _radius(radius: str, sweep: Mapping[str, Any]) -> Line:
    cells = [
        words.share(sweep[each][protocol].get(radius))
        for protocol in ("query", "oracle")
        for each in _BOTH
    ]
    return Line(radius, "", tuple(cells))


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return words.DASH
    if key == "bytes":
        return words.size(value)
    return words.share(value) if key in _SHARES else words.plain(value)
