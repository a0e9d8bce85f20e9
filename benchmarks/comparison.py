"""The paper's comparison of repair methods on our networks, beside what the paper prints.

``python -m benchmarks.comparison [CELL ...] [--data FOLDER] [--out FOLDER] [--page FILE]``

A cell is one ``advrepair compare`` with every method that is installed, so install
``plugins_contrib/advrepair-baselines`` first. It is named like ``fnn_small-0.1-50`` or
``2_1-prop_2``; patterns such as ``'*-50'`` name several, ``all`` every one, and without any only
the page is written. A cell's folder in ``--out`` is gone on with if it was begun; when it is
complete it becomes a JSON file, and is not run again. The page is written from all of these;
those of docs/comparison.md are kept in benchmarks/records/comparison.
FOLDER of ``--data`` holds ``mnist/`` and ``acasxu/``; left out, it is that of the environment
variable ADVREPAIR_DATA.
"""

import argparse
import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from advrepair.core.files import write_text
from benchmarks.comparison_cells import CELLS, Cell, compute, fill, read_all
from benchmarks.comparison_page import page

_RECORDS = Path(__file__).parent / "records" / "comparison"


def parse_cells(pattern: str) -> list[Cell]:
    """The cells whose names match a pattern."""
    found = [cell for cell in CELLS if pattern == "all" or fnmatchcase(cell.name, pattern)]
    if not found:
        known = ", ".join(cell.name for cell in CELLS)
        raise argparse.ArgumentTypeError(f"{pattern!r} is none of {known}")
    return found


def arguments() -> argparse.ArgumentParser:
    """What the program is told."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    text = "names or patterns, or all; none: only write the page from what is there"
    parser.add_argument("cells", nargs="*", type=parse_cells, metavar="CELL", help=text)
    parser.add_argument("--data", type=Path, default=os.environ.get("ADVREPAIR_DATA"))
    parser.add_argument("--out", type=Path, default=_RECORDS, help="of cells")
    parser.add_argument("--page", type=Path, help="Markdown file to write; left out: in --out")
    return parser


def main() -> int:
    """Run what is asked for and not there, then write the page from all that is there.

    Returns 1 if a cell failed.
    """
    parser = arguments()
    given = parser.parse_args()
    cells = list(dict.fromkeys(cell for part in given.cells for cell in part))
    if cells and given.data is None:
        parser.error(
            "set ADVREPAIR_DATA to the folder that holds mnist/ and acasxu/, or give --data"
        )
    failed = 0
    for cell, said in fill(
        cells, given.out, lambda cell, folder: compute(cell, given.data, folder)
    ):
        print(f"{cell.name}: {said}", file=sys.stderr, flush=True)
        failed += said.startswith("failed")
    write_text(given.page or given.out / "comparison.md", page(read_all(given.out)))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
