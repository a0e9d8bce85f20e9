"""Numbers and sentences of the page, as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any

DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_GAP = "\N{NO-BREAK SPACE}"
_LEVELS = {
    "deployed-float32": "as the network is computed in float32, rounding errors included",
    "deployed-float64": "as the network is computed in float64, rounding errors included",
    "real": "in exact real arithmetic, from which the deployed network may differ in the last bits",
}


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def signed(text: str) -> str:
    """The same with a minus sign of the width of a digit."""
    return text.replace("-", _MINUS)


def share(value: object) -> str:
    """Per cent; what is not all is not shown as all. A dash for what is no number."""
    found = number(value)
    if found is None:
        return DASH
    shown = f"{100 * found:.1f}"
    shown = "99.9" if shown == "100.0" and found < 1 else shown.replace("-0.0", "0.0")
    return signed(f"{shown}{_GAP}%")


def points(value: float) -> str:
    """A difference of two shares, in percentage points."""
    shown = f"{100 * value:+.1f}"
    return signed(f"{'0.0' if shown in ('+0.0', '-0.0') else shown}{_GAP}pp")


def margin(value: object) -> str:
    """A proved lower bound, rounded down: what is shown is proved, too."""
    found = number(value)
    if found is None:
        return DASH
    exact = Decimal(found)
    if found == 0 or 1e-3 <= abs(found) < 1e6:
        return signed(str(exact.quantize(Decimal("0.0001"), ROUND_FLOOR)))
    return signed(f"{Context(prec=3, rounding=ROUND_FLOOR).create_decimal(exact):.2e}")


def plain(value: object) -> str:
    """A number with four digits at most, for axes and radii."""
    found = number(value)
    return DASH if found is None else signed(f"{found:.4g}")


def seconds(value: float) -> str:
    """A time: ``0.04 s``, ``12 s``, ``3 min 20 s``."""
    if value < 9.95:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def size(value: float) -> str:
    """A number of bytes: ``127.0 KiB``."""
    if value < 1024:
        return f"{value:.0f} bytes"
    for unit in ("KiB", "MiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} GiB"


def many(count: int, word: str, plural: str = "") -> str:
    """``1 patch``, ``3 patches``, ``1,000 steps``."""
    return f"{count:,} {word if count == 1 else plural or word + 's'}"


def listed(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


def headline(problem: Mapping[str, Any], counts: Mapping[str, int], level: str) -> str:
    """What holds now, in which arithmetic, and what does not, in one sentence."""
    certified, total = counts["certified"], counts["total"]
    open_ = _open(counts)
    if not certified:
        return (
            f"None of the {many(total, 'property', 'properties')} is certified ({level}): {open_}."
        )
    verb = "is" if certified == 1 else "are"
    text = f"{certified:,} of {many(total, 'property', 'properties')} {verb} certified"
    text += f" ({level}): {_claim(problem, certified, total)}"
    return f"{text}; {open_}." if open_ else f"{text}."


def _claim(problem: Mapping[str, Any], certified: int, total: int) -> str:
    epsilon, bounds = number(problem.get("epsilon")), problem.get("input_range")
    if epsilon is None:
        return "what they demand holds for every input of their boxes"
    which = "the" if certified == total else ("that" if certified == 1 else "those")
    text = f"every input within {plain(epsilon)} of {which} {many(certified, 'centre')}"
    if isinstance(bounds, list) and len(bounds) == 2:
        text += f" and in [{plain(bounds[0])}, {plain(bounds[1])}]"
    return f"{text} keeps its label"


def _open(counts: Mapping[str, int]) -> str:
    falsified, unknown = counts.get("falsified", 0), counts.get("unknown", 0)
    parts = []
    if empirical := counts.get("empirical", 0):
        parts.append(f"{empirical:,} {'holds' if empirical == 1 else 'hold'} on samples only")
    if falsified:
        parts.append(f"{falsified:,} {'is' if falsified == 1 else 'are'} falsified")
    if unknown:
        parts.append(f"{unknown:,} {'is' if unknown == 1 else 'are'} open")
    return listed(parts)


def level(name: object) -> str:
    """The arithmetic of the certificate in words."""
    return _LEVELS.get(str(name), f"in the arithmetic {str(name)!r}")
