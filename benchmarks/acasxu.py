"""ACAS Xu: the paper's Table 2 and every pair of VNN-COMP 2021, repaired and checked.

``python -m benchmarks.acasxu [--networks 2_1,2_2] [--pairs] [--refiners] [--data FOLDER]``
``[--out FOLDER] [--page FILE] [--no-check]``

Without ``--pairs`` and ``--refiners``: property 2 on the 36 networks N2,1 to N5,9. ``--pairs``:
every network with every property that the index asks of it. ``--refiners``: property 2 with
every refiner on a few networks. Each repair is a cell: a run of the command line, the
independent checker, and what is measured on the result. A cell is a JSON file in the output
folder; one that is there is not computed again, but for one that failed. The page and its plot
are written from all cells that are there. FOLDER of ``--data`` holds ``acasxu/index.csv``;
left out, it is that of the environment variable ADVREPAIR_DATA.
"""

import argparse
import os
import sys
from pathlib import Path

from advrepair.core.files import write_text
from benchmarks.acasxu_cells import (
    REFINERS,
    Cell,
    Pair,
    Record,
    compute,
    fill,
    read_all,
    read_index,
)
from benchmarks.acasxu_page import TABLE_2_NETWORKS, page
from benchmarks.acasxu_plot import PLOTTED, plot

_PROPERTY = "prop_2"
COMPARED = PLOTTED  # networks on which refiners are compared


def parse_networks(text: str) -> list[str]:
    """Networks ``1_1`` to ``5_9``, with commas between."""
    known = {f"{i}_{j}" for i in range(1, 6) for j in range(1, 10)}
    asked = text.split(",")
    for each in asked:
        if each not in known:
            raise argparse.ArgumentTypeError(f"{each!r} is no network: write 2_1 or 2_1,5_9")
    return list(dict.fromkeys(asked))


def asked_cells(
    index: dict[tuple[str, str], Pair], networks: list[str] | None, pairs: bool, refiners: bool
) -> list[Cell]:
    """The cells, each once: those of Table 2 first, then the others."""
    cells = []
    if not refiners or pairs or networks:
        cells += [Cell(network, _PROPERTY) for network in networks or TABLE_2_NETWORKS]
    if pairs:
        cells += [Cell(*each) for each in index if networks is None or each[0] in networks]
    if refiners:
        chosen = [each for each in COMPARED if networks is None or each in networks]
        cells += [Cell(each, _PROPERTY, refiner) for each in chosen for refiner in REFINERS]
    return list(dict.fromkeys(cells))


def arguments() -> argparse.ArgumentParser:
    """What the program is told."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    text = "only these, such as 2_1,2_2; left out: all"
    parser.add_argument("--networks", type=parse_networks, help=text)
    parser.add_argument("--pairs", action="store_true", help="every pair of the index")
    text = f"every refiner on {', '.join(COMPARED)}"
    parser.add_argument("--refiners", action="store_true", help=text)
    parser.add_argument("--data", type=Path, default=os.environ.get("ADVREPAIR_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/acasxu"))
    text = "Markdown file to write, its plot beside it; left out: in --out"
    parser.add_argument("--page", type=Path, help=text)
    text = "run the independent checker on every result"
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help=text)
    parser.add_argument("--force", action="store_true", help="compute again what is there")
    return parser


def main() -> int:
    """Compute what is asked for and not there, then write the page from all that is there.

    Returns 1 if a repair failed, a certificate is not VALID or a verdict is contradicted.
    """
    parser = arguments()
    given = parser.parse_args()
    if given.data is None:
        parser.error("set ADVREPAIR_DATA to the folder that holds acasxu/, or give --data")
    index = read_index(given.data)
    cells = asked_cells(index, given.networks, given.pairs, given.refiners)

    def one(cell: Cell) -> Record:
        return compute(cell, index[cell.network, cell.property], given.data, given.check)

    for cell, found in fill(cells, given.out, given.check, given.force, one):
        print(f"{cell.name}: {_in_short(found)}", file=sys.stderr, flush=True)
    records = read_all(given.out)
    where = given.page or given.out / "acasxu.md"
    drawing = where.with_suffix(".svg")
    write_text(drawing, plot([r for r in records if r["cell"]["network"] in PLOTTED]))
    text, troubles = page(records, drawing.name)
    write_text(where, text)
    for line in troubles:
        print(line, file=sys.stderr)
    return 1 if troubles else 0


def _in_short(record: Record | None) -> str:
    if record is None:
        return "there"
    if "failed" in record:
        return f"FAILED: {record['failed']['said']}"
    status = ", ".join(each["status"] for each in record["report"]["demands"])
    checked = record.get("check", {}).get("verdict", "not checked")
    return f"{status}, {checked}, {record['run']['wall']:.1f} s"


if __name__ == "__main__":
    raise SystemExit(main())
