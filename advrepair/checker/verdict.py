"""The verdict on a run folder, from its three files alone."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advrepair.checker import files
from advrepair.checker.bounds import LEVELS, Box, Region, row_margins
from advrepair.checker.files import Array, Malformed, Unsupported, demand
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
        self.verdict, self.claim = verdict, files.parse_json(first, names[0])
        for name, data in zip(names[1:], rest, strict=True):
            same = hashlib.sha256(data).hexdigest() == self.claim["files"][name]
            demand(same, f"{name}: its SHA-256 is not the certified one")
        (self.proof, other), (stored, header) = map(files.parse_tensors, rest, names[1:])
        formats = [part["format"] for part in (self.claim, header, other)]
        demand(formats == [2, 2, 2], "this checker reads format 2", Unsupported)
        verdict.level = self.level = self.claim["level"]
        demand(self.level in LEVELS, f"level {self.level!r}")
        weights = {name: t for name, t in stored.items() if name.startswith(("base/", "patch/"))}
        base = {name[5:]: t for name, t in weights.items() if name.startswith("base/")}
        self.stack = {name[6:]: t for name, t in weights.items() if name.startswith("patch/")}
        kinds = {t.dtype.str for t in weights.values()}
        known = {"<f4"} if self.level == "deployed-float32" else {"<f4", "<f8"}
        demand(kinds <= known, f"{self.level} is claimed for weights of {sorted(kinds)}")
        same = files.network_digest(header["base"], base) == self.claim["network"]
        demand(same, "network: its SHA-256 is not the certified one")
        self.base, self.template = Network(header["base"], base), header["patch"]
        self.each, patches = self.claim["properties"], len(header["patches"])
        demand({len(t) for t in self.stack.values()} == {patches}, "patches: their number")
        faces, self.count = [], len(self.each)
        for face in ("lower", "upper"):
            ours, theirs = self.proof[f"box.{face}"], stored[f"box/{face}"]
            same = ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
            same = same and ours.shape == theirs.shape == (self.count, *self.base.input_shape)
            demand(same, f"box {face}: two versions")
            faces.append(ours.reshape(self.count, -1).astype(float))
        self.box: Box = (faces[0], faces[1])
        finite = np.isfinite(faces).all() and (faces[0] <= faces[1]).all()
        demand(finite, "box: faces are infinite or exchanged")
        for key in ("patch", "label"):
            listed = [each[key] for each in self.each]
            same = listed == stored[f"centres/{key}"].tolist()
            demand(same and all(type(n) is int for n in listed), f"{key}: two versions")
        self.patch = stored["centres/patch"]
        demand(((self.patch >= 0) & (self.patch < patches)).all(), "patch: no such number")

    def run(self) -> None:
        """Say everything that is wrong; bounds come last, as they cost most."""
        self.C, self.d, self.group = (self.proof[name] for name in ("C", "d", "group"))
        shape, outputs = (self.count, *self.C.shape[1:2]), self.base.sizes[-1]
        same = self.C.shape == (*shape, outputs) and self.d.shape == self.group.shape == shape
        kinds = self.C.dtype.kind + self.d.dtype.kind + self.group.dtype.kind
        demand(same and kinds == "ffi", "C, d, group: shapes or dtypes")
        self.tree, self.node = Tree(self.proof, self.box), self.proof["piece.node"]
        self.owner, self.margin = self.tree.owner[self.node], self.proof["piece.margin"]
        pieces, least = np.bincount(self.owner, minlength=self.count), np.full(self.count, np.inf)
        np.minimum.at(least, self.owner, self.margin)
        claimed = [i for i, each in enumerate(self.each) if each["status"] == "certified"]
        self.verdict.certified, self.verdict.ignored = len(claimed), self.count - len(claimed)
        for i, each in enumerate(self.each):
            demand(each["status"] in ("certified", "falsified", "unknown"), f"property {i}: status")
            demand(each["pieces"] == pieces[i], f"property {i}: number of pieces")
        for i in claimed:
            margin = self.each[i]["margin"]
            same = type(margin) is float and 0 < margin < np.inf and margin == least[i]
            demand(same, f"property {i}: margin {margin!r}, that of its pieces is {least[i]}")
            self._demanded(i, self.each[i]["label"])
            self._first_box(i, claimed)
        certified = np.isin(self.owner, claimed).nonzero()[0]
        certified = certified[np.argsort(self.patch[self.owner[certified]], kind="stable")]
        # As many at once as make about 2^21 numbers of rows and values.
        size = max(1, 2**21 // (sum(self.base.sizes) + shape[1] * self.base.widest))
        for at in range(0, 0 if self.verdict.invalid else len(certified), size):
            self._prove(certified[at : at + size])

    def _demanded(self, i: int, label: int) -> None:
        """A label demands that its output is the largest, and nothing else."""
        parts = (self.proof[name][i] for name in ("box.lower", "box.upper", "C", "d", "group"))
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
        same = digest[:16] == self.each[i]["id"]
        demand(same, f"property {i}: its id is not that of its content")
        real, eye = self.group[i] >= 0, np.eye(self.C.shape[2])
        demand(real.any(), f"property {i}: it demands nothing")
        if label >= 0:
            same = np.array_equal(self.C[i][real], eye[label] - np.delete(eye, label, 0))
            same &= len(set(self.group[i][real])) == real.sum() and not self.d[i][real].any()
            demand(same, f"property {i}: its specification is not that of label {label}")

    def _first_box(self, i: int, claimed: list[int]) -> None:
        """A point in several boxes gets the patch of the first, which must be proved too."""
        (low, high), others = self.box, (self.patch[:i] != self.patch[i]).nonzero()[0]
        for at in range(0, low.shape[1], 32):  # some coordinates tell most boxes apart
            part = slice(at, at + 32)
            meet = (low[others, part] <= high[i, part]) & (low[i, part] <= high[others, part])
            others = others[meet.all(1)]
        proved = np.isin(others, claimed)
        for each in (self.C, self.d, self.group):
            proved &= (each[others] == each[i]).all(tuple(range(1, each.ndim)))
        for j in others[~proved][:1]:
            text = f"property {i} is certified, but property {j} overlaps it, comes first with "
            text += "another patch, and is not certified for the same demand"
            self.verdict.invalid.append(text)

    def _prove(self, pieces: Array) -> None:
        """Bound pieces again; if N's own slopes do not do, try those of the nodes above."""
        node, box = self.node[pieces], self.tree.boxes(self.node[pieces])
        demand((box[0] <= box[1]).all(), "tree: a cut lies outside its node")
        rows, above = self._rows(pieces, node, box), self.tree.parent[node]
        while len(lost := (~(self._worst(rows, pieces) > 0) & (above >= 0)).nonzero()[0]):
            again = self._rows(pieces[lost], above[lost], (box[0][lost], box[1][lost]))
            rows[lost] = np.maximum(rows[lost], again)
            above[lost] = self.tree.parent[above[lost]]
        # No more can be proved than what holds at one input, so a claim beyond it is false.
        inputs, dtype = slice(self.base.sizes[0]), self.proof["box.lower"].dtype
        low, high = (face.copy() for face in box)
        middle = ((low + high)[:, inputs] / 2).astype(dtype).astype(float)
        low[:, inputs] = high[:, inputs] = np.clip(middle, low[:, inputs], high[:, inputs])
        most = self._worst(-self._rows(pieces, node, (low, high), -1), pieces)
        least = self._worst(rows, pieces)
        for piece, proved, possible in zip(pieces, least, most, strict=True):
            text = f"property {self.owner[piece]}, piece {piece}: "
            text += f"margin {self.margin[piece]:.6g} is claimed"
            if not self.margin[piece] <= possible:
                self.verdict.invalid.append(f"{text}, at its middle it is {possible:.6g} at most")
            elif not proved > 0:
                self.verdict.incomplete.append(f"{text}, {proved:.6g} was found")
        if np.isfinite(least.min()):
            self.verdict.margin = min(float(least.min()), self.verdict.margin or np.inf)

    def _rows(self, pieces: Array, node: Array, box: Box, sign: int = 1) -> Array:
        """Margins [B,M] of N + P on pieces, with the slopes of N for nodes.

        sign -1: of the negated demand, and -inf unless all of the box is in the piece.
        """
        serving, units = self.patch[self.owner[pieces]], self.base.units
        C, d = (sign * part[self.owner[pieces]].astype(float) for part in (self.C, self.d))
        slope, multiplier = self.tree.hints(node, pieces)
        found, base = np.empty(d.shape), Region(self.base, self.level, box, slope)
        for q in np.unique(serving):
            at = (serving == q).nonzero()[0]
            net = Network(self.template, {name: t[q] for name, t in self.stack.items()})
            same = net.input_shape == self.base.input_shape and net.sizes[-1] == self.base.sizes[-1]
            demand(
                same and units + net.units == slope.shape[1], "patch: its inputs, outputs, units"
            )
            patch = Region(net, self.level, (box[0][at], box[1][at]), slope[at], units)
            found[at] = row_margins(base, patch, C[at], d[at], at, multiplier[at] * (sign > 0))
            if sign < 0:
                found[at[~(base.whole[at] & patch.whole)]] = -np.inf
        return found

    def _worst(self, rows: Array, pieces: Array) -> Array:
        """Of every piece the worst group, of every group the best row: [B]."""
        group, worst = self.group[self.owner[pieces]], np.full(len(rows), np.inf)
        for number in np.unique(group[group >= 0]):
            best = np.where(group == number, rows, -np.inf).max(1)
            worst = np.where((group == number).any(1), np.minimum(worst, best), worst)
        return worst
