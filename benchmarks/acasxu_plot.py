"""How much of a box the network proves alone, by the number of pieces: an SVG file."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from advrepair.html.svg import Axis, svg

PLOTTED = ("2_1", "3_5", "4_6", "5_3", "5_7")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#9461a8", "#b8860b")
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 640.0, 52.0, 72.0, 12.0, 260.0
_STYLE = (
    "svg{background:#fff}text{fill:#575c66;font:12px system-ui,sans-serif}"
    "line{stroke:#d9dce2}path{fill:none;stroke-width:2}"
)
_TITLE = "Share of the box that the network proves alone, by pieces"
Point = tuple[float, float]


def plot(records: Sequence[dict[str, Any]]) -> str:
    """One line a network, for property 2 and the default refiner."""
    lines = {
        "N" + r["cell"]["network"].replace("_", ","): points(r)
        for r in records
        if r["cell"]["property"] == "prop_2"
        and r["cell"]["refiner"] == "gradient-width"
        and r.get("report", {}).get("screening")
    }
    most = max([10.0, *(x for line in lines.values() for x, _ in line)])
    across = Axis(0, math.log10(most), _LEFT, _WIDTH - _RIGHT)
    up = Axis(0, 1, _BOTTOM, _TOP)
    marks = [_line(_LEFT, up(y), _WIDTH - _RIGHT, up(y)) for y in (0, 0.25, 0.5, 0.75, 1)]
    marks += [_text(_LEFT - 6, up(y) + 4, f"{y:.0%}", "end") for y in (0, 0.25, 0.5, 0.75, 1)]
    for power in range(int(math.log10(most)) + 1):
        marks.append(_text(across(power), _BOTTOM + 18, str(10**power), "middle"))
    marks.append(_text(_WIDTH / 2, _BOTTOM + 38, "pieces (logarithmic)", "middle"))
    ends = _apart([up(line[-1][1]) + 4 for line in lines.values()])
    for (name, line), end, colour in zip(lines.items(), ends, _COLOURS, strict=False):
        path = "L".join(f"{across(math.log10(x)):.1f} {up(y):.1f}" for x, y in line)
        marks.append(Markup('<path stroke="{}" d="M{}"/>').format(colour, path))
        last = across(math.log10(line[-1][0]))
        label = Markup('<text x="{:.1f}" y="{:.1f}" style="fill:{}">{}</text>')
        marks.append(label.format(last + 6, end, colour, name))
    said = "; ".join(
        f"{name}: {line[-1][1]:.1%} at {line[-1][0]:.0f}" for name, line in lines.items()
    )
    drawn = svg(_WIDTH, _BOTTOM + 44, _TITLE, said or "Nothing was measured.", marks)
    style = Markup("<style>{}</style>").format(Markup(_STYLE))
    whole = str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return whole.replace("<title>", f"{style}<title>", 1) + "\n"


def points(record: dict[str, Any]) -> list[Point]:
    """Pieces and the proved share after each round of cutting."""
    story = record["report"]["screening"]
    return list(zip(story["pieces"], story["proved"], strict=True))


def _apart(places: Sequence[float]) -> list[float]:
    """Places of labels, moved up or down so that none lies on another."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved, before = list(places), -math.inf
    for i in order:
        moved[i] = before = max(places[i], before + 13)
    return moved


def _line(x: float, y: float, to_x: float, to_y: float) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        x, y, to_x, to_y
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )
