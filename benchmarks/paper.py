"""What the paper (arXiv 2404.01642v1) prints for its own method in tables 1, 3 and 5."""

import csv
from functools import cache
from pathlib import Path

# Indicators of the paper's table 5; tables 1 and 3 are its PS.
PATCHES = {
    "PS": "a small patch for every property",
    "PL": "a large patch for every property",
    "LS": "a small patch for every label",
    "LL": "a large patch for every label",
}
METRICS = {1: ("RSR", "DD", "Time"), 3: ("RGR", "DSR", "DGSR"), 5: ("RSR", "RGR", "DSR", "DGSR")}
ACCURACY = {"fnn_small": 96.6, "fnn_big": 98.3, "cnn": 97.2}  # per cent, its table 6
Key = tuple[int, str, str, int, str, str]  # table, network, radius, n, indicator, metric
_FILE = Path(__file__).with_name("paper_tables.csv")


@cache
def printed() -> dict[Key, float | None]:
    """Every figure as printed: per cent, and seconds for Time; None where it prints a dash."""
    found: dict[Key, float | None] = {}
    with open(_FILE, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            which = (int(row["table"]), row["network"], row["radius"], int(row["n"]))
            value = None if row["value"] == "-" else float(row["value"])
            found[(*which, row["indicator"], row["metric"])] = value
    return found


def figures(network: str, radius: str, count: int, variant: str) -> dict[str, float | None]:
    """The figures of one cell by metric; empty where the paper has none."""
    tables, indicator = ((1, 3), "PS") if variant == "own" else ((5,), variant)
    all_of_them = printed()
    keys = [(t, network, radius, count, indicator, m) for t in tables for m in METRICS[t]]
    return {key[-1]: all_of_them[key] for key in keys if key in all_of_them}


def possible(share: float, count: int) -> bool:
    """Whether a share of count things can be printed as this many per cent, to one decimal."""
    whole = round(share * count / 100)
    return abs(100 * whole / count - share) <= 0.05 + 1e-9
