"""The verdict on a run folder, from its three files alone."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advrepair.checker import files
from advrepair.checker.bounds import LEVELS, Pair, Region, row_margins
from advrepair.checker.cap import cap, tame
from advrepair.checker.files import Array, Malformed, Tensors, Unsupported, demand
from advrepair.checker.front import faces, parted
from advrepair.checker.network import Network
from advrepair.checker.tree import Tree


@dataclass
class Verdict:
    """What was found. margin: the least that was proved here, over all certified pieces."""

    level: str = ""
    certified: int = 0
    ignored: int = 0
    margin: float | None = None
    invalid: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """``VALID``, ``INVALID`` or ``INCOMPLETE``."""
        return "INVALID" if self.invalid else "INCOMPLETE" if self.incomplete else "VALID"

    @property
    def as_json(self) -> dict[str, Any]:
        """The verdict and all that was found."""
        return {"verdict": self.word, **asdict(self)}

    @property
    def line(self) -> str:
        """The verdict in one line."""
        if reasons := self.invalid or self.incomplete:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            return f"{self.word}: {' '.join(reasons[0].split())[:300]}{more}"
        text = f"VALID: {self.certified} properties certified at level {self.level}"
        return text + (f"; {self.ignored} not certified and ignored" if self.ignored else "")


def check(folder: str | Path) -> Verdict:
    """Check a run folder; raises OSError if a file cannot be read."""
    verdict = Verdict()
    try:
        with np.errstate(all="ignore"):  # infinities and NaN prove nothing, see bounds.py
            _Check(Path(folder), verdict).run()
    except (Unsupported, MemoryError, RecursionError) as error:
        verdict.incomplete.append(str(error) or type(error).__name__)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # One program wrote every certificate, in one form: what has another is not its work.
        form = f"not of the expected form: {type(error).__name__}: {error}"
        verdict.invalid.append(str(error) if isinstance(error, Malformed) else form)
    return verdict


class _Check:
    """One folder: what is claimed, then whether it holds."""

    def __init__(self, folder: Path, verdict: Verdict) -> None:
        """Reads the files and compares hashes, formats and the router with the claim."""
        names = ("certificate.json", "certificate.safetensors", "repaired.safetensors")
        first, *rest = (files.read(folder / name) for name in names)
        self.verdict, claim = verdict, files.parse_json(first, names[0])
        for name, data in zip(names[1:], rest, strict=True):
            same = hashlib.sha256(data).hexdigest() == claim["files"][name]
            demand(same, f"{name}: its SHA-256 is not the certified one")
        (self.proof, other), (stored, header) = map(files.parse_tensors, rest, names[1:])
        formats = [part["format"] for part in (claim, header, other)]
        demand(formats == [3, 3, 3], "this checker reads format 3", Unsupported)
        verdict.level = claim["level"]
        demand(verdict.level in LEVELS, f"level {verdict.level!r}")
        base = {name[5:]: t for name, t in stored.items() if name.startswith("base/")}
        self.stack = {name[6:]: t for name, t in stored.items() if name.startswith("patch/")}
        demand(len({len(t) for t in self.stack.values()}) == 1, "patches: not one number of them")
        outside = ("centres/", "allocator/", "region/patch")
        kinds = {t.dtype.str for name, t in stored.items() if not name.startswith(outside)}
        known = {"<f4"} if verdict.level == "deployed-float32" else {"<f4", "<f8"}
        demand(kinds <= known, f"{verdict.level} is claimed for {sorted(kinds)}")
        digest = hashlib.sha256(json.dumps(header["base"], sort_keys=True).encode())
        for name, t in sorted(base.items()):
            digest.update(f"{name}:torch.{t.dtype}:{tuple(t.shape)}".encode() + t.tobytes())
        demand(digest.hexdigest() == claim["network"], "network: its SHA-256 is another")
        self.front, self.template = None, header["patch"]
        if header.get("at"):  # patches see the features there
            self.front, self.tail = parted(header["base"], header["at"], base)
        else:
            self.tail = Network(header["base"], base)
        self.inputs = (self.front or self.tail).input_shape
        self.each, self.patch = claim["properties"], stored["region/patch"]
        self.box = self._faces(self.proof, "box.", len(self.each))
        self.faces = self._faces(stored, "region/", len(self.patch))
        for key in ("patch", "label"):
            listed = [each[key] for each in self.each]
            same = listed == stored[f"centres/{key}"].tolist()
            demand(same and all(type(n) is int for n in listed), f"{key}: two versions")
        patches, plain = len(next(iter(self.stack.values()))), self.patch < 0
        good = self.patch.dtype.kind == "i" and ((self.patch >= -1) & (self.patch < patches)).all()
        demand(good and not (plain[:-1] > plain[1:]).any(), "region: its patch, or its place")

    def _faces(self, arrays: Tensors, name: str, count: int) -> Pair:
        """Lower and upper faces of boxes as they are stored, flat and in float64."""
        low, high = faces = arrays[f"{name}lower"], arrays[f"{name}upper"]
        same = {(face.dtype.kind, *face.shape) for face in faces}
        demand(same == {("f", count, *self.inputs)}, f"{name}: its faces")
        return low.reshape(count, -1).astype(float), high.reshape(count, -1).astype(float)

    def run(self) -> None:
        """Say what is wrong; bounds come last, as they cost most."""
        self.C, self.d, self.group = parts = [self.proof[name] for name in ("C", "d", "group")]
        shape, outputs = (len(self.each), *self.d.shape[1:2]), self.tail.sizes[-1]
        same = [part.shape for part in parts] == [(*shape, outputs), shape, shape]
        same = same and [part.dtype.kind for part in parts] == [*"ffi"]
        demand(same, "C, d, group: shapes or dtypes")
        self.tree, self.node = Tree(self.proof, self.box, self.faces), self.proof["piece.node"]
        self.place = self.proof["region.node"]
        demand(self.place.shape == self.patch.shape, "region: its node is not given")
        self.home = self.tree.homes(self.place)
        inputs, free = self.box[0].shape[1], np.full(self.tree.units, np.inf)
        for face, whole, open_ in zip(
            self.faces, self.tree.boxes(self.place), (-free, free), strict=True
        ):
            same = (whole[:, :inputs] == face).all() and (whole[:, inputs:] == open_).all()
            demand(same, "region: its faces are not those of its node")
        self.owner, self.margin = self.tree.owner[self.node], self.proof["piece.margin"]
        status = [each["status"] for each in self.each]
        words = {"certified", "empirical", "falsified", "unknown"}
        demand({*status} <= words, "status: no such word")
        claimed = [i for i, word in enumerate(status) if word == "certified"]
        self.verdict.certified = len(claimed)
        self.verdict.ignored = len(status) - len(claimed)
        for i in claimed:
            margin, label = self.each[i]["margin"], self.each[i]["label"]
            least = self.margin[self.owner == i].min()
            text = f"property {i}: margin {margin!r}, that of its pieces is {least}"
            demand(type(margin) is float and 0 < margin == least, text)
            real = self.group[i] >= 0
            demand(real.any(), f"property {i}: it demands nothing")
            if label >= 0:  # it demands that its output is above every other
                C, rows = self.C[i][real], {*self.group[i][real]}
                same = len(C) == len(rows) == outputs - 1 and not self.d[i][real].any()
                same = same and (C[:, label] == 1).all()
                same = same and np.array_equal(np.delete(C, label, 1), -np.eye(len(C)))
                demand(same, f"property {i}: its specification is not that of label {label}")
            self._first_region(i, claimed)
        certified, verdict = np.isin(self.owner, claimed).nonzero()[0], self.verdict
        # As many at once as make about 2^21 numbers of rows and values.
        size = max(1, 2**21 // (sum(self.tail.sizes) + shape[1] * self.tail.widest))
        serving = self.patch[self.home[self.node[certified]]]
        # Without a patch nothing else compares the units that are cut with those that there are.
        own = self.tree.slope.shape[1] == self.tail.units
        demand(own or not claimed, "tree: slopes of other units than those of N")
        reach: Pair | None = None  # of the outputs, for all certified pieces; where it is asked
        for q in np.unique(serving):
            nets, served = [self.tail], certified[serving == q]
            if q >= 0:
                net = Network(self.template, {name: t[q] for name, t in self.stack.items()})
                nets, mine = [*nets, net], (net.input_shape, net.sizes[-1], net.units)
                rest = self.tree.units - self.tail.units
                same = mine == (self.tail.input_shape, outputs, rest)
                demand(same, "patch: its inputs, outputs or units")
                if self.front is not None and (found := cap(self.tail, net, verdict.level)):
                    reach = reach or faces(self.front, verdict.level, self._around(certified))
                    if tame(reach, verdict.level) and self._capped(served, *found):
                        continue
            for at in range(0, len(served), size):
                self._prove(nets, served[at : at + size])

    def _around(self, pieces: Array) -> Pair:
        """One box around what pieces have of the inputs."""
        low, high = np.inf, -np.inf
        for at in range(0, len(pieces), 256):
            lower, upper = self.tree.boxes(self.node[pieces[at : at + 256]])
            demand((lower <= upper).all(), "tree: a box has no inside")
            low, high = np.minimum(low, lower.min(0)), np.maximum(high, upper.max(0))
        inputs = int(np.prod(self.inputs))
        return np.atleast_2d(low)[:, :inputs], np.atleast_2d(high)[:, :inputs]

    def _capped(self, pieces: Array, label: int, margin: float) -> bool:
        """Whether what is claimed of pieces is what a cap of a label does."""
        labels = {self.each[owner]["label"] for owner in self.owner[pieces]}
        if labels != {label} or (self.margin[pieces] > margin).any():
            return False
        self.verdict.margin = min(margin, self.verdict.margin or np.inf)
        return True

    def _first_region(self, i: int, claimed: list[int]) -> None:
        """A point in several regions gets the patch of the first, which must be proved for i.

        It is, where the region is one of i, or has no patch, as no region of i has one there
        either; where all regions of i have its patch; where what it has of box i is proved for
        i; and where its own property demands the same and is proved.
        """
        (low, high), owner = self.faces, self.tree.owner[self.place]
        mine = self.patch[owner == i]
        alike = (mine == mine[0]).all() & (self.patch == mine[0])
        others = (owner != i) & (self.patch >= 0) & ~alike
        others[self.home[i] :] = False  # behind the whole box
        others[self.tree.shared[(self.tree.owner == i) & (self.tree.shared >= 0)]] = False
        found = others.nonzero()[0]
        for at in range(0, low.shape[1], 32):  # some coordinates tell most boxes apart
            part = slice(at, at + 32)
            meet = low[found, part] <= self.box[1][i, part]
            meet &= self.box[0][i, part] <= high[found, part]
            found = found[meet.all(1)]
        proved = np.isin(owner[found], claimed)
        for each in (self.C, self.d, self.group):
            proved &= (each[owner[found]] == each[i]).all(tuple(range(1, each.ndim)))
        for j in owner[found[~proved]]:
            text = f"property {i} is certified, but property {j} overlaps it, comes first with "
            raise Malformed(f"{text}another patch, and is not certified for the same demand")

    def _seen(self, box: Pair) -> Pair:
        """Boxes of what the patches see of inputs, and of units as they are."""
        if self.front is None:
            return box
        inputs, units = (
            [face[:, part] for face in box]
            for part in (slice(self.front.sizes[0]), slice(self.front.sizes[0], None))
        )
        seen = faces(self.front, self.verdict.level, (inputs[0], inputs[1]))
        return np.hstack([seen[0], units[0]]), np.hstack([seen[1], units[1]])

    def _prove(self, nets: list[Network], pieces: Array) -> None:
        """Confirm the margins of pieces, with N's slopes for them or for nodes above them."""
        node, group = self.node[pieces], self.group[self.owner[pieces]]
        C, d = (part[self.owner[pieces]].astype(float) for part in (self.C, self.d))
        low, high = self.tree.boxes(node)
        demand((low <= high).all(), "tree: a box has no inside, or a cut lies outside its node")
        low, high = self._seen((low, high))
        # The program that wrote the claim counts rounding in another way than this one. So it may
        # lie above by what is taken off here: from rows, and from the bounds that their lines use.
        rows, lost, parallel = np.full((2, *d.shape), -np.inf), np.arange(len(pieces)), False
        while len(lost):
            slope, multiplier = self.tree.hints(node[lost], pieces[lost])
            box, level = (low[lost], high[lost]), self.verdict.level
            # Slopes alone do not make lines of other kinds those of the node: its box does.
            whole = self._seen(self.tree.boxes(node[lost])) if self.tail.bent else box
            parts = [Region(self.tail, level, whole, slope, 0, parallel).on(box)]
            for patch in nets[1:]:
                parts.append(Region(patch, level, box, slope, self.tail.units, parallel))
            for steep in (False, True):  # any slopes will do
                found, error = row_margins(parts, C[lost], d[lost], multiplier, steep)
                again = np.stack([found, found + 4 * error])
                rows[:, lost] = np.where(found > rows[0, lost], again, rows[:, lost])
            worst = np.full((2, len(pieces)), np.inf)  # group, and of every group the best row
            for number in np.unique(group[group >= 0]):
                best = np.where(group == number, rows, -np.inf).max(2)
                worst = np.where((group == number).any(1), np.minimum(worst, best), worst)
            accepted = (worst[0] > 0) & (self.margin[pieces] <= worst[1])
            if parallel:  # both ways were tried here
                node[lost] = self.tree.parent[node[lost]]
            parallel = not parallel
            lost = (~accepted & (node >= 0)).nonzero()[0]
        for piece, least in zip(pieces[~accepted], worst[0, ~accepted], strict=True):
            text = f"property {self.owner[piece]}, piece {piece}: margin {self.margin[piece]:.9g}"
            self.verdict.incomplete.append(f"{text} is claimed, {least:.9g} was found")
        if np.isfinite(worst[0].min()):
            self.verdict.margin = min(float(worst[0].min()), self.verdict.margin or np.inf)
