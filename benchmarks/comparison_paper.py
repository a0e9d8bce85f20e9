"""What the paper (arXiv 2404.01642v1) prints for a cell and a method, and what is wrong with it."""

import csv
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from benchmarks import acasxu_paper, paper
from benchmarks.comparison_cells import Cell

NAMES = {
    "advrepair": "AdvRepair",
    "aprnn": "APRNN",
    "art": "ART",
    "care": "CARE",
    "prdnn": "PRDNN",
    "reassure": "REASSURE",
    "trades": "TRADES",
}
Figures = Mapping[str, float | None]
_FILE = Path(__file__).with_name("paper_comparison.csv")


@cache
def _others() -> dict[tuple[str, str, int, str], dict[str, float | None]]:
    """Tables 1 and 3 for the six other methods: per cent, and seconds for Time.

    By network, radius, n and method; None where the text that was transcribed has lost a figure.
    """
    found: dict[tuple[str, str, int, str], dict[str, float | None]] = {}
    with open(_FILE, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in NAMES.values():
                if name in row:
                    key = (row["network"], row["radius"], int(row["n"]), name)
                    value = float(row[name]) if row[name] else None
                    found.setdefault(key, {})[row["metric"]] = value
    return found


def figures(cell: Cell, method: str) -> Figures:
    """Of a method of ours, by the paper's metrics; empty where the paper has none."""
    name = NAMES.get(method, "")
    if not cell.radius:
        known = acasxu_paper.printed()
        keys = [(cell.network, name, metric) for metric in acasxu_paper.METRICS]
        return {key[-1]: known[key] for key in keys if key in known}
    if method == "advrepair":
        return paper.figures(cell.network, cell.radius, cell.count, "own")
    return _others().get((cell.network, cell.radius, cell.count, name), {})


def _constant(method: str, printed: Figures) -> bool:
    return method == "trades" and (printed.get("DD") or 0) > 80


def _failed(method: str, printed: Figures) -> bool:
    return method == "aprnn" and printed.get("RSR") == 0


Rule = Callable[[str, Figures], bool]
# In the order in which they are printed; the key is the mark.
RULES: dict[str, tuple[Rule, str]] = {
    "a": (
        lambda method, printed: method == "art" and "DD" in printed,
        "The paper's ART is a constant predictor: its code trains with the sign of the loss that "
        "ACAS Xu needs, where the smallest output decides, and a rate of 0.1. Accuracy falls to "
        "the frequency of one digit in the first epoch.",
    ),
    "b": (
        _constant,
        "The paper's TRADES is a constant predictor: 86.8 points lost of 96.6 are the network that "
        "always says 0. The best epoch was chosen by the loss, not on held-out inputs.",
    ),
    "c": (
        _failed,
        "The paper's RSR of 0 is a solver that ended without a solution; what it left was applied "
        "all the same, so the other figures of the row are of no repair either.",
    ),
    "d": (
        lambda method, printed: method == "advrepair" and "DGSR" in printed,
        "The paper's DGSR is told the clean input, which fixes the patches before the attack. So "
        "it stands under DGSR-oracle, which is not robustness; of the deployed function the paper "
        "has no figure.",
    ),
    "e": (
        lambda method, printed: method == "reassure" and "FDD" in printed,
        "The paper's patches of REASSURE fade over a collar of five units on inputs of width one. "
        "From that its FDD follows, and most likely its RGR; with a narrow collar there is no FDD.",
    ),
    "f": (
        lambda method, printed: None in printed.values(),
        "A figure of the paper, or which of the row it is, is lost in the text that was "
        "transcribed (?).",
    ),
}


def marks(method: str, printed: Figures) -> list[str]:
    """The footnotes of a row. printed: the paper's figures for it."""
    return [mark for mark, (rule, _) in RULES.items() if rule(method, printed)]


def artefact(method: str, printed: Figures) -> bool:
    """Whether the whole row of the paper shows a failure of its run, not the method."""
    return bool({"a", "b", "c"} & set(marks(method, printed)))
