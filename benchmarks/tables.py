"""The paper's tables 1, 3 and 5 on our networks, beside what the paper prints.

``python -m benchmarks.tables 1 3 --cells fnn_small:0.1:50,100 [--data FOLDER] [--out FOLDER]``

A cell is a network, a radius, a number of repaired examples and a kind of patch. It is repaired
and evaluated by the command line, and its result is a JSON file in the output folder, written
whole or not at all. A cell whose file is there is not computed again. The page and the CSV
file are written from all cells that are there. FOLDER of ``--data`` holds ``mnist/mnist.npz``
and ``mnist/nets``; left out, it is that of the environment variable ADVREPAIR_DATA.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from advrepair.core.files import write_text
from benchmarks.cells import (
    COUNTS,
    NETWORKS,
    RADII,
    VARIANTS,
    Cell,
    Settings,
    compute,
    fill,
    parse_cells,
    read_all,
)
from benchmarks.tables_page import as_csv, page

_FIGURES = {"1": ("own",), "3": ("own",), "5": ("PS", "PL", "LS", "LL")}


def asked_cells(
    tables: list[str], cells: list[list[tuple[str, str, int]]] | None, variants: list[str] | None
) -> list[Cell]:
    """The cells of the tables, each once."""
    chosen = [each for part in cells or [parse_cells("")] for each in part]
    kinds = variants or [kind for table in tables for kind in _FIGURES[table]]
    return list(dict.fromkeys(Cell(*each, kind) for each in chosen for kind in kinds))


def arguments() -> argparse.ArgumentParser:
    """What the program is told."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    text = "1, 3 or 5; none: only write the page from what is there"
    parser.add_argument("tables", nargs="*", choices=[[], *_FIGURES], metavar="TABLE", help=text)
    shape = f"NETWORKS:RADII:COUNTS of {NETWORKS}, {RADII}, {COUNTS}; empty: all; repeatable"
    parser.add_argument("--cells", action="append", type=parse_cells, help=shape)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="only this one")
    parser.add_argument("--data", type=Path, default=os.environ.get("ADVREPAIR_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/tables"))
    parser.add_argument("--attack", default="pgd", choices=["pgd", "autoattack"])
    parser.add_argument("--limit", type=int, default=200, help="test inputs attacked, at most")
    parser.add_argument("--preset", default="default", choices=["default", "paper"])
    parser.add_argument("--force", action="store_true", help="compute again what is there")
    parser.add_argument("--page", type=Path, help="Markdown file to write; left out: in --out")
    return parser


def main() -> int:
    """Compute what is asked for and not there, then write the page from all that is there."""
    parser = arguments()
    given = parser.parse_args()
    settings = Settings(given.attack, given.limit, given.preset)
    if given.tables:
        if given.data is None:
            parser.error("set ADVREPAIR_DATA to the folder that holds mnist/, or give --data")
        cells = asked_cells(given.tables, given.cells, given.variant)
        one = partial(compute, settings=settings, data=given.data)
        for cell, found in fill(cells, settings, given.out, given.force, one):
            spent = {k: round(s) for k, s in found["seconds"].items()} if found else "there"
            print(f"{settings.path(given.out, cell).stem}: {spent}", file=sys.stderr, flush=True)
    records = read_all(given.out)
    write_text(given.page or given.out / "tables.md", page(records))
    write_text(given.out / "tables.csv", as_csv(records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
