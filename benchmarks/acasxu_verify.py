"""``advrepair verify`` on the ACAS Xu pairs of network and property, beside known verdicts.

``python -m benchmarks.acasxu_verify [--data FOLDER] [--out FILE] [--limit N] [--timeout S]
[--only PROPERTY]``

FOLDER holds ``acasxu/index.csv``; left out, it is that of the environment variable
ADVREPAIR_DATA. Every answer is appended to FILE, lines of JSON, so that the same command goes
on where it stopped; with a longer timeout it tries what is unknown again. Prints a Markdown
table; exits with 1 if an answer contradicts a verdict.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advrepair.core.config import resolve
from advrepair.core.memory import keep_freed_memory
from advrepair.core.registry import Registry
from advrepair.core.verifying_files import Files

WORDS = ("holds", "violated", "unknown")
Row = dict[str, Any]


def answer(folder: Path, pair: Row, timeout: float, pieces: int, registry: Registry) -> Row:
    """One pair: it holds if all regions of the file do, and is violated if one of them is."""
    network, demanded = str(folder / pair["onnx_path"]), str(folder / pair["vnnlib_path"])
    asked = {"network": network, "property": [demanded]}
    plan = resolve(registry, [{"problem": asked}])
    files = Files.read(plan, registry, pieces)
    found = [each.as_json for each in files.answers(timeout)]
    words = [each["answer"] for each in found]
    word = next((each for each in ("violated", "unknown") if each in words), "holds")
    deciding = found[words.index(word)]
    return {
        "network": pair["network"],
        "property": pair["property"],
        "expected": pair["vnncomp2021_verdict"],
        "answer": word,
        "reason": deciding["reason"],
        "share": min(each["share"] for each in found),
        "pieces": sum(each["pieces"] for each in found),
        "seconds": round(sum(each["seconds"] for each in found), 2),
        "timeout": timeout,
        "x": deciding["x"],
    }


def wrong(row: Row) -> bool:
    """Whether an answer contradicts the verdict; unknown contradicts nothing."""
    return (
        row["answer"] != "unknown"
        and row["expected"] in WORDS[:2]
        and (row["answer"] != row["expected"])
    )


def again(row: Row, timeout: float) -> bool:
    """Whether there is more time for it now than there was."""
    return row["answer"] == "unknown" and row["timeout"] < timeout


def page(rows: Sequence[Row], pairs: int) -> str:
    """A Markdown table with a line for each property, and one for all."""
    names = sorted({row["property"] for row in rows}, key=lambda n: int(n.split("_")[1]))
    lines = [
        "| property | pairs | known to hold | holds | known to be violated | violated | unknown "
        "| wrong | pieces, most | seconds, median | seconds, most |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [*names, "all"]:
        part = [row for row in rows if name in (row["property"], "all")]
        spent = sorted(row["seconds"] for row in part)
        cells = [
            name,
            len(part),
            sum(row["expected"] == "holds" for row in part),
            sum(row["answer"] == "holds" for row in part),
            sum(row["expected"] == "violated" for row in part),
            sum(row["answer"] == "violated" for row in part),
            sum(row["answer"] == "unknown" for row in part),
            sum(map(wrong, part)),
            max(row["pieces"] for row in part),
            f"{spent[len(spent) // 2]:.1f}",
            f"{spent[-1]:.1f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append(f"\n{len(rows)} of {pairs} pairs answered or given up.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer what is missing, print the page."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, default=os.environ.get("ADVREPAIR_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/acasxu_verify.jsonl"))
    parser.add_argument("--limit", type=int, default=None, help="pairs answered now, at most")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each pair")
    parser.add_argument("--pieces", type=int, default=10_000_000)
    parser.add_argument("--only", default="", help="one property, such as prop_2")
    asked = parser.parse_args(arguments)
    if asked.data is None:
        parser.error("--data is missing and ADVREPAIR_DATA is not set")
    folder = Path(asked.data) / "acasxu"
    with open(folder / "index.csv", newline="", encoding="utf-8") as file:
        pairs = [row for row in csv.DictReader(file) if asked.only in ("", row["property"])]
    rows = []
    if asked.out.exists():
        rows = [json.loads(line) for line in asked.out.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if asked.only in ("", row["property"])]
    latest = {(row["network"], row["property"]): row for row in rows}
    done = {key for key, row in latest.items() if not again(row, asked.timeout)}
    missing = [pair for pair in pairs if (pair["network"], pair["property"]) not in done]
    keep_freed_memory()
    registry = Registry.load()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for pair in missing[: asked.limit]:
        row = answer(folder, pair, asked.timeout, asked.pieces, registry)
        latest[row["network"], row["property"]] = row
        with open(asked.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        told = f"{row['answer']} (known: {row['expected']}), {row['pieces']} pieces"
        word = "WRONG " if wrong(row) else ""
        print(f"{word}{row['network']} {row['property']}: {told}", file=sys.stderr, flush=True)
    if latest:
        print(page(list(latest.values()), len(pairs)))
    return int(any(map(wrong, latest.values())))


if __name__ == "__main__":
    sys.exit(main())
