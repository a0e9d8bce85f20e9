"""Charts as inline SVG: few marks, no grid, text in every one for those who cannot see it.

Colours are classes of the page's style sheet, so that they follow light and dark.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

from attrs import frozen
from markupsafe import Markup

from advrepair.html.words import plain

WIDTH = 400.0
_LEFT, _RIGHT, _BINS = 44.0, 12.0, 28


@frozen
class Strip:
    """Numbers of one histogram; css: class of its colour."""

    label: str
    values: Sequence[float]
    css: str


@frozen
class Axis:
    """From numbers to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a number lies."""
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Round numbers on the axis, about as many as asked for."""
        step = nice((self.high - self.low) / count or 1.0)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def nice(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= value * (1 - 1e-9))


def svg(
    width: float,
    height: float,
    title: str,
    text: str,
    marks: Sequence[Markup],
    fit: str = "xMinYMid",
) -> Markup:
    """A drawing with its title and what one sees on it. fit: "none" lets it be stretched."""
    frame = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" preserveAspectRatio="{}" role="img" '
        'aria-label="{}"><title>{}</title><desc>{}</desc>{}</svg>'
    )
    inside = Markup("").join(marks)
    label = f"{title}. {text}"
    return frame.format(_at(width), _at(height), fit, label, title, text, inside)


def histogram(strips: Sequence[Strip], title: str, text: str, unit: str) -> Markup:
    """Histograms one below the other, over one axis; zero, where the sign changes, is marked.

    A bin holds its upper end and not its lower one: what lies right of zero is positive.
    """
    values = [value for strip in strips for value in strip.values]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    bin_ = nice((high - low or 1.0) / _BINS)
    first, last = math.floor(low / bin_) - 1, math.ceil(high / bin_)
    axis = Axis(first * bin_, (last + 1) * bin_, _LEFT, WIDTH - _RIGHT)
    row, top, marks = 92.0, 4.0, []
    bottom = top + row * len(strips)
    for index, strip in enumerate(strips):
        counts = Counter(math.ceil(value / bin_) - 1 for value in strip.values)
        marks += _bars_of(strip, counts, axis, bin_, top + row * index, top + row * (index + 1))
    return svg(WIDTH, bottom + 42, title, text, [*marks, *_below(axis, bottom, unit)])


def _bars_of(
    strip: Strip, counts: Counter[int], axis: Axis, bin_: float, top: float, bottom: float
) -> list[Markup]:
    most = max(counts.values(), default=1)
    height = Axis(0, most, bottom, top + 26)
    bars = [
        _rect(
            axis(k * bin_) + 0.5,
            height(count),
            max(axis(bin_) - axis(0) - 1, 0.5),
            bottom - height(count),
            strip.css,
        )
        for k, count in sorted(counts.items())
    ]
    return [
        _text(_LEFT, top + 14, strip.label, "start", "strong"),
        *bars,
        _line(axis(0), top + 22, axis(0), bottom, "zero"),
        _line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis"),
        _text(_LEFT - 6, bottom, "0", "end"),
        _text(_LEFT - 6, height(most) + 8, f"{most:,}", "end"),
    ]


def steps(values: Sequence[float], total: int, title: str, text: str, unit: str) -> Markup:
    """Share of a total that was reached by each value, as a rising step curve."""
    top, bottom = 10.0, 150.0
    high = max([*values, 1.0]) * 1.05
    axis, height = Axis(0, high, _LEFT, WIDTH - _RIGHT), Axis(0, 1, bottom, top)
    path, reached = [f"M{_at(axis(0))} {_at(bottom)}"], 0
    for value, count in sorted(Counter(values).items()):
        reached += count
        path.append(f"H{_at(axis(value))}V{_at(height(reached / max(total, 1)))}")
    path.append(f"H{_at(axis(high))}")
    marks = [
        _line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis"),
        *(_line(_LEFT, height(s), WIDTH - _RIGHT, height(s), "guide") for s in (0.5, 1.0)),
        *(_text(_LEFT - 6, height(s) + 4, f"{s:.0%}", "end") for s in (0, 0.5, 1)),
        Markup('<path class="curve" d="{}"/>').format("".join(path)),
        *_below(axis, bottom, unit, whole=True),
    ]
    return svg(WIDTH, bottom + 42, title, text, marks)


def curve(points: Sequence[tuple[float, float]], title: str, text: str, unit: str) -> Markup:
    """A share against a growing number, as a line."""
    top, bottom = 10.0, 150.0
    high = max([*(x for x, _ in points), 1.0]) * 1.05
    axis, height = Axis(0, high, _LEFT, WIDTH - _RIGHT), Axis(0, 1, bottom, top)
    path = "L".join(f"{_at(axis(x))} {_at(height(y))}" for x, y in points)
    marks = [
        _line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis"),
        *(_line(_LEFT, height(s), WIDTH - _RIGHT, height(s), "guide") for s in (0.5, 1.0)),
        *(_text(_LEFT - 6, height(s) + 4, f"{s:.0%}", "end") for s in (0, 0.5, 1)),
        Markup('<path class="curve" d="M{}"/>').format(path),
        *_below(axis, bottom, unit, whole=True),
    ]
    return svg(WIDTH, bottom + 42, title, text, marks)


def _below(axis: Axis, bottom: float, unit: str, whole: bool = False) -> list[Markup]:
    ticks = [t for t in axis.ticks(5) if not whole or t == int(t)]
    marks = []
    for tick in ticks:
        marks.append(_line(axis(tick), bottom, axis(tick), bottom + 4, "axis"))
        marks.append(_text(axis(tick), bottom + 18, plain(tick), "middle"))
    return [*marks, _text((axis.start + axis.end) / 2, bottom + 37, unit, "middle", "unit")]


def bars(
    rows: Sequence[tuple[str, float, str]], title: str, text: str, high: float | None = None
) -> Markup:
    """Bars from zero: label, length, what stands behind it. high: length of the widest possible."""
    high = high or max([length for _, length, _ in rows] + [0.0]) or 1.0
    axis, marks = Axis(0, high, 128, WIDTH - 76), []
    for index, (label, length, shown) in enumerate(rows):
        y = 26.0 * index
        marks.append(_text(120, y + 17, label, "end"))
        marks.append(_rect(128, y + 4, axis(length) - 128, 18, "c1"))
        marks.append(_text(axis(length) + 6, y + 17, shown, "start", "strong"))
    return svg(WIDTH, 26.0 * len(rows) + 2, title, text, marks)


def stacked(
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], title: str, text: str
) -> Markup:
    """Bars of full width in parts: label of the bar, and share and colour class of each part."""
    marks, height = [], 46.0
    for index, (label, parts) in enumerate(rows):
        marks.append(_text(0, height * index + 14, label, "start"))
        marks += _parts(parts, height * index + 24, 16)
    return svg(WIDTH, height * len(rows), title, text, marks)


def strip(parts: Sequence[tuple[float, str]], title: str, text: str) -> Markup:
    """One bar in parts, as wide and high as its place: share and colour class of each part."""
    return svg(WIDTH, 10, title, text, _parts(parts, 0, 10), "none")


def _parts(parts: Sequence[tuple[float, str]], y: float, height: float) -> list[Markup]:
    ends = list(accumulate((share * WIDTH for share, _ in parts), initial=0.0))
    return [
        _rect(begin, y, max(end - begin - (end < WIDTH - 1), 0.5), height, css)
        for (begin, end), (share, css) in zip(pairwise(ends), parts, strict=True)
        if share > 0
    ]


def vector(values: Sequence[float], low: float, high: float, title: str) -> Markup:
    """One thin bar for every number of a vector, from zero or from the lower end."""
    width, height = 64.0, 64.0
    axis = Axis(min(low, 0.0), max(high, 0.0), height - 1, 1)
    zero, each, marks = axis(0.0), width / max(len(values), 1), []
    for index, value in enumerate(values):
        end = axis(min(max(value, axis.low), axis.high))
        css = "c1" if value >= 0 else "c2"
        place = (index * each + 0.1 * each, min(zero, end), 0.8 * each)
        marks.append(_rect(*place, abs(end - zero), css))
    marks.append(_line(0, zero, width, zero, "axis"))
    return svg(width, height, title, f"{len(values)} numbers.", marks)


def _at(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _rect(x: float, y: float, width: float, height: float, css: str) -> Markup:
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        css, *map(_at, (x, y, width, height))
    )


def _line(x: float, y: float, to_x: float, to_y: float, css: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        css, *map(_at, (x, y, to_x, to_y))
    )


def _text(x: float, y: float, text: str, anchor: str, css: str = "label") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        css, _at(x), _at(y), anchor, text
    )
