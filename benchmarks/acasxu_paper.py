"""What the paper (arXiv 2404.01642v1) prints in its Table 2, for its method and the others."""

import csv
from functools import cache
from pathlib import Path

METHODS = ("CARE", "PRDNN", "REASSURE", "ART", "AdvRepair")
METRICS = ("RSR", "RGR", "FDD", "Time")
_FILE = Path(__file__).with_name("paper_acasxu.csv")


@cache
def printed() -> dict[tuple[str, str, str], float]:
    """Every figure as printed: per cent, and seconds for Time.

    By network or ``mean``, method and metric.
    """
    with open(_FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(r["network"], r["method"], r["metric"]): float(r["value"]) for r in rows}
