"""Footnotes of the results, by rule: why a figure is not the paper's, or not to be believed."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import paper

Rates = Mapping[str, float | None]
Record = dict[str, Any]
Rule = Callable[[Record, Rates], bool]
_FAR, _NEAR = 0.1, 0.02  # of a share


def shares(record: Record, subject: str) -> dict[str, float]:
    """What was measured of a subject; a rate that was not is 0."""
    report = record["report"]
    found = report["metrics"] if subject == "repair" else report["baseline"][subject]
    return {name: value or 0.0 for name, value in found.items()}


def _value(printed: Rates, metric: str) -> float | None:
    value = printed.get(metric)
    return None if value is None else value / 100


def _told(record: Record, printed: Rates) -> bool:
    theirs = _value(printed, "DGSR")
    return theirs is not None and theirs - shares(record, "repair")["DGSR-query"] > _FAR


def _told_constant(record: Record, printed: Rates) -> bool:
    ours, trivial = (shares(record, s)["DGSR-oracle"] for s in ("repair", "constant-bias"))
    return _told(record, printed) and trivial >= ours - _NEAR


def _told_below(record: Record, printed: Rates) -> bool:
    theirs = _value(printed, "DGSR")
    return theirs is not None and theirs - shares(record, "repair")["DGSR-oracle"] > _FAR


def _told_above(record: Record, printed: Rates) -> bool:
    theirs = _value(printed, "DGSR")
    return theirs is not None and shares(record, "repair")["DGSR-oracle"] - theirs > _NEAR


def _trivial(record: Record, printed: Rates) -> bool:
    ours, constant = shares(record, "repair"), shares(record, "constant-bias")
    rates = ("certified", "RSR", "RGR", "DSR")
    return constant["DD"] <= ours["DD"] and all(constant[m] >= ours[m] for m in rates)


def _below_network(record: Record, printed: Rates) -> bool:
    network = shares(record, "none")["DGSR-query"]
    return any(shares(record, s)["DGSR-query"] < network for s in ("repair", "constant-bias"))


def _above_network(record: Record, printed: Rates) -> bool:
    return any(
        shares(record, s)["DGSR-query"] > shares(record, "none")["DGSR-query"] + _NEAR
        for s in ("repair", "constant-bias")
    )


def _unproved(record: Record, printed: Rates) -> bool:
    return shares(record, "repair")["certified"] < 1


def _beyond_accuracy(record: Record, printed: Rates) -> bool:
    return (printed.get("DGSR") or 0) > paper.ACCURACY[record["cell"]["network"]]


def _below_proof(record: Record, printed: Rates) -> bool:
    kept = [printed.get(metric) for metric in ("RSR", "DSR")]
    return not _unproved(record, printed) and any(v is not None and v < 100 for v in kept)


def _impossible(record: Record, printed: Rates) -> bool:
    found = [printed.get(metric) for metric in ("RSR", "DSR")]
    count = record["cell"]["count"]
    return any(v is not None and not paper.possible(v, count) for v in found)


def _dash(record: Record, printed: Rates) -> bool:
    return any(value is None for value in printed.values())


# In the order in which they are printed; the key is the mark.
RULES: dict[str, tuple[Rule, str]] = {
    "a": (
        _told,
        "DGSR-query is far below the paper's DGSR. The paper's protocol tells the network the "
        "clean input: its label chooses the patches before the attack moves anything. A deployed "
        "network sees the attacked input alone, and that is DGSR-query.",
    ),
    "b": (
        _told_constant,
        "Under the paper's protocol (DGSR-oracle) the constant-bias repair, which looks at no "
        "input, defends no worse than the trained one: that protocol measures the label that was "
        "told.",
    ),
    "c": (
        _told_below,
        "DGSR-oracle is below the paper's DGSR although the protocol is the same: the patches, "
        "the choice of them outside the regions and the attack differ (40 steps here, 10 there).",
    ),
    "d": (
        _trivial,
        "constant-bias is at least as good in certified, RSR, RGR, DD and DSR: these figures do "
        "not show that the patches learned anything.",
    ),
    "e": (
        _below_network,
        "DGSR-query below that of the unrepaired network: four threats attack the repaired "
        "function and one, with the same attacks, the unrepaired.",
    ),
    "f": (
        _above_network,
        "DGSR-query above that of the unrepaired network. Nothing is proved outside the regions; "
        "a stronger attack can only lower the figure.",
    ),
    "g": (_unproved, "Not every property is proved: see the column certified."),
    "h": (
        _below_proof,
        "The paper's RSR or DSR is below 100 %: not every region was repaired there. Here every "
        "property is proved, so no attack can succeed inside a region.",
    ),
    "i": (
        _beyond_accuracy,
        "The paper's DGSR is above the accuracy that its table 6 gives the network, and a right "
        "answer under attack includes the clean input: table 6 has, most likely, swapped FNN_big "
        "and CNN.",
    ),
    "j": (
        _impossible,
        "The paper's RSR or DSR is no share of n to one decimal: it cannot be what its definition "
        "says, or it was damaged in the text that was transcribed.",
    ),
    "k": (_dash, "The paper prints a dash."),
    "l": (
        _told_above,
        "DGSR-oracle is above the paper's DGSR: other networks, another choice of patches outside "
        "the regions, and the first test inputs instead of all 10,000.",
    ),
}


def marks(record: Record, printed: Rates) -> list[str]:
    """The footnotes of a cell. printed: the paper's figures for it, per cent."""
    return [mark for mark, (rule, _) in RULES.items() if rule(record, printed)]
