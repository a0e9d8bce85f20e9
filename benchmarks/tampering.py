"""Try to deceive the checker: change a run folder at random, and look at what is VALID.

``python -m benchmarks.tampering FOLDER [--count 1000] [--seed 0] [--limit 10] [--json]``

Draws changes of many kinds: flipped bits and bytes and cut-off files, left as they are; and
flipped bits of single arrays, edited bounds, margins, labels, weights and trees, dropped,
repeated and exchanged pieces, patches and boxes, with every hash and identifier made again,
as somebody would who wants to be believed. The checker answers for each. Arrays are found by
name, whatever else a file holds.

A VALID is examined. *same*: nothing that the checker vouches for was changed, or a claim was
only taken back. *still true*: something was, and the changed claim holds at every point that
was sampled of its boxes, in float32, by the deployed function that is read from the changed
folder; a margin that is claimed but not reached there is counted, as the checker confirms
margins up to rounding only. *unusable*: the changed folder cannot be loaded or run in those
boxes, so there is no function to be wrong. *wrong*: a sampled point breaks a claim. Exit code
4 if there is one, or a crash.
"""

import argparse
import copy
import json
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve

import advrepair
from advrepair import checker
from benchmarks.contents import FILES, JSON, Content
from benchmarks.edits import EDITS, RAW, Random
from benchmarks.exploits import LEVEL, Claim, demands, points

_ROUNDS = 20  # points sampled of every box, to examine a VALID


class TooSlow(BaseException):
    """The checker was stopped; not an Exception, so that it catches nothing of it."""


def tamper(source: Path, content: Content, target: Path, random: Random) -> str:
    """Leave a changed copy in target; returns the kind of the change."""
    for name in FILES:
        shutil.copyfile(source / name, target / name)
    if random.random() < 0.3:
        kind, name = list(RAW)[random.integers(len(RAW))], FILES[random.integers(3)]
        (target / name).write_bytes(RAW[kind]((source / name).read_bytes(), random))
        return f"{kind} of {name}"
    changed, several = copy.deepcopy(content), int(random.choice([1, 1, 1, 2, 3]))
    chosen = [EDITS[i] for i in random.integers(len(EDITS), size=several)]
    try:
        for edit in chosen:
            edit(changed, random)
        changed.write(target)
    # One edit may take away what the next one changes, or what is hashed.
    except (LookupError, TypeError, AttributeError, ValueError):
        (target / JSON).write_text(json.dumps(changed.claim))
    return chosen[0].__name__.replace("_", " ") if several == 1 else f"{several} edits"


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TooSlow when the time is over."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer(folder: Path, limit: float) -> tuple[str, str]:
    """The checker's word, or ``crash`` or ``too slow``; and its line, or what it raised."""
    try:
        with limited(limit):
            found = checker.check(folder)
    except TooSlow:
        return "too slow", f"more than {limit:g} s"
    except Exception as error:  # a crash is what is looked for here
        return "crash", f"{type(error).__name__}: {error}"
    return found.word, found.line


def examine(source: Content, folder: Path) -> tuple[str, str]:
    """What a VALID is worth: ``same``, ``still true``, ``unusable`` or ``wrong``; and why."""
    try:
        before, after = source.vouched(), Content.read(folder).vouched()
        if all(before.get(name) == each for name, each in after.items()):
            return "same", ""
        changed = [name for name, each in after.items() if before.get(name) != each]
        claim = _claim(folder, str(after["level"]))
        least = _least(claim)
    except Exception as error:  # whatever is wrong with it, it cannot be deployed
        return "unusable", f"{type(error).__name__}: {error}"
    if not bool((least > 0).all()):
        return "wrong", f"changed: {', '.join(changed[:5])}"
    return "still true", "a margin is overstated" if bool((least < claim.margin).any()) else ""


def _claim(folder: Path, level: str) -> Claim:
    """What a folder claims at any level, in the arithmetic that comes closest to it."""
    model, (properties, rows) = advrepair.load(folder), demands(folder)
    index = torch.tensor([i for i, row in enumerate(rows) if row["status"] == "certified"]).long()
    margin = torch.tensor([rows[i]["margin"] for i in index.tolist()], dtype=torch.float64)
    properties = properties[index]
    if level == LEVEL:
        return Claim(model, properties, margin)
    wide = properties.box.to(torch.float64)
    return Claim(model.double(), evolve(properties, box=wide, center=wide.center), margin)


def _least(claim: Claim) -> torch.Tensor:
    """The smallest margin seen of each property, [P]; -inf where its label was not kept."""
    noise, label = torch.Generator().manual_seed(0), claim.properties.label
    least = torch.full_like(claim.margin, torch.inf)
    for _ in range(_ROUNDS if len(label) else 0):
        outputs = claim.model(points(claim.properties, claim.model, noise)).detach()
        seen = claim.properties.margin(outputs).double()
        lost = seen.isnan() | ((label >= 0) & (outputs.argmax(1) != label))
        least = torch.minimum(least, seen.masked_fill(lost, -torch.inf))
    return least


def attempt(folder: Path, count: int, seed: int, limit: float) -> dict[str, Any]:
    """Tamper so many times; counts by kind and by answer, and what must not be."""
    source, random = Content.read(folder), np.random.default_rng(seed)
    counts: dict[str, Counter[str]] = {}
    notes: Counter[str] = Counter()
    bad: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            kind = tamper(folder, source, Path(place), random)
            begin = time.perf_counter()
            word, line = answer(Path(place), limit)
            slowest = max(slowest, time.perf_counter() - begin)
            if word == "VALID":
                worth, line = examine(source, Path(place))
                word = f"VALID, {worth}"
                notes[f"{word}: {line}"] += bool(line)
            counts.setdefault(kind, Counter())[word] += 1
            if word in ("crash", "VALID, wrong", "too slow"):
                bad.append(f"{number}: {kind}: {word}: {line}")
    total = sum(counts.values(), Counter())
    return {
        "folder": str(folder),
        "seed": seed,
        "tamperings": count,
        "slowest_seconds": slowest,
        "kinds": {kind: dict(each) for kind, each in sorted(counts.items())},
        "total": dict(total),
        "notes": {note: n for note, n in notes.items() if n},
        "bad": bad,
        "failed": bool(total["crash"] + total["VALID, wrong"]),
    }


def show(found: dict[str, Any]) -> None:
    """Print counts by kind as a Markdown table, and everything that must not be."""
    words = sorted(found["total"])
    print("| tampering | " + " | ".join(words) + " |\n" + "|---" * (len(words) + 1) + "|")
    for kind, each in [*found["kinds"].items(), ("all", found["total"])]:
        print(f"| {kind} | " + " | ".join(str(each.get(word, 0)) for word in words) + " |")
    print(f"slowest answer: {found['slowest_seconds']:.2f} s; seed {found['seed']}")
    for note, count in found["notes"].items():
        print(f"{count} x {note}")
    for line in found["bad"]:
        print(line)


def main() -> int:
    """Tamper as often as asked, and print what the checker said."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for one answer")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    given = parser.parse_args()
    word, line = answer(given.folder, given.limit)
    if word != "VALID":
        parser.error(f"{given.folder}: begin with a folder that is VALID; this is {line}")
    found = attempt(given.folder, given.count, given.seed, given.limit)
    print(json.dumps(found, indent=1)) if given.json else show(found)
    return 4 if found["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
