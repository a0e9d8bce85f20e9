"""The verdict on a run folder, from its three files alone."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advrepair.checker import files
from advrepair.checker.bounds import LEVELS, Box, Region, row_margins
from advrepair.checker.coverage import Tree, overlapping
from advrepair.checker.files import Array, Malformed, Unsupported, demand
from advrepair.checker.network import Network

_CHUNK = 2**21  # numbers of rows and values of the pieces in flight


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
    except Malformed as error:
        verdict.invalid.append(str(error))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # One program wrote every certificate, in one form: what has another is not its work.
        verdict.invalid.append(f"not of the expected form: {type(error).__name__}: {error}")
    except (Unsupported, MemoryError, RecursionError) as error:
        verdict.incomplete.append(str(error) or type(error).__name__)
    return verdict


class _Check:
    """One folder: what is claimed, then whether it holds."""

    def __init__(self, folder: Path, verdict: Verdict) -> None:
        self.verdict = verdict
        names = ("certificate.json", "certificate.safetensors", "repaired.safetensors")
        data = {name: files.read(folder / name) for name in names}
        self.claim = files.parse_json(data.pop(names[0]), names[0])
        for name, each in data.items():
            same = hashlib.sha256(each).hexdigest() == self.claim["files"][name]
            demand(same, f"{name}: its SHA-256 is not the certified one")
        (self.proof, other), (self.stored, header) = (
            files.parse_tensors(each, name) for name, each in data.items()
        )
        if [part["format"] for part in (self.claim, header, other)] != [1] * 3:
            raise Unsupported("this checker reads format 1")
        verdict.level = self.level = self.claim["level"]
        demand(self.level in LEVELS, f"level {self.level!r}")
        base, self.stack = (
            {n[len(part) :]: t for n, t in self.stored.items() if n.startswith(part)}
            for part in ("base/", "patch/")
        )
        kinds = {t.dtype.str for t in (*base.values(), *self.stack.values())}
        known = {"<f4"} if self.level == "deployed-float32" else {"<f4", "<f8"}
        demand(kinds <= known, f"{self.level} is claimed for weights of {sorted(kinds)}")
        same = files.network_digest(header["base"], base) == self.claim["network"]
        demand(same, "network: its SHA-256 is not the certified one")
        self.base, self.template = Network(header["base"], base), header["patch"]
        self.patches = len(header["patches"])
        demand({len(t) for t in self.stack.values()} == {self.patches}, "patches: their number")

    def run(self) -> None:
        """Say everything that is wrong; bounds come last, as they cost most."""
        self._routing()
        self.C, self.d, self.group = (self.proof[name] for name in ("C", "d", "group"))
        shape = (self.count, self.C.shape[1])
        same = self.C.shape == (*shape, self.base.sizes[-1]) and self.d.shape == shape
        same = same and self.C.dtype.kind == self.d.dtype.kind == "f"
        demand(
            same and self.group.shape == shape and self.group.dtype == int, "C, d, group: shapes"
        )
        self.tree, self.node = Tree(self.proof, self.box), self.proof["piece.node"]
        self.owner, self.margin = self.tree.owner[self.node], self.proof["piece.margin"]
        claimed = [i for i, each in enumerate(self.each) if each["status"] == "certified"]
        self.verdict.certified, self.verdict.ignored = len(claimed), self.count - len(claimed)
        self._figures()
        for i in claimed:
            self._demanded(i, self.each[i])
            self._first_box(i, claimed)
        pieces = np.isin(self.owner, claimed).nonzero()[0]
        pieces = pieces[np.argsort(self.patch[self.owner[pieces]], kind="stable")]
        size = max(1, _CHUNK // (sum(self.base.sizes) + shape[1] * max(self.base.sizes)))
        for at in range(0, 0 if self.verdict.invalid else len(pieces), size):
            self._prove(pieces[at : at + size])

    def _routing(self) -> None:
        """What the router compares is what the certificate speaks about, bit for bit."""
        self.each, faces = self.claim["properties"], []
        self.count = len(self.each)
        for face in ("lower", "upper"):
            ours, theirs = self.proof[f"box.{face}"], self.stored[f"box/{face}"]
            same = (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            demand(same and ours.tobytes() == theirs.tobytes(), f"box {face}: two versions")
            demand(ours.shape == (self.count, *self.base.input_shape), f"box {face}: shape")
            faces.append(ours.reshape(self.count, -1).astype(float))
        self.box: Box = (faces[0], faces[1])
        finite = np.isfinite(faces).all() and (faces[0] <= faces[1]).all()
        demand(finite, "box: faces are infinite or exchanged")
        self.patch = self.stored["centres/patch"]
        for key in ("patch", "label"):
            listed = [each[key] for each in self.each]
            demand(all(type(n) is int for n in listed), f"{key}: no integers")
            demand(listed == self.stored[f"centres/{key}"].tolist(), f"{key}: two versions")
        demand(((self.patch >= 0) & (self.patch < self.patches)).all(), "patch: no such number")

    def _figures(self) -> None:
        """What the JSON says of pieces and margins is what the arrays say."""
        pieces, least = np.bincount(self.owner, minlength=self.count), np.full(self.count, np.inf)
        np.minimum.at(least, self.owner, self.margin)
        for i, each in enumerate(self.each):
            demand(each["status"] in ("certified", "falsified", "unknown"), f"property {i}: status")
            demand(each["pieces"] == pieces[i], f"property {i}: number of pieces")
            if each["status"] == "certified":
                margin = each["margin"]
                same = type(margin) is float and margin > 0 and margin == least[i]
                demand(same, f"property {i}: margin {margin!r}, that of its pieces is {least[i]}")

    def _demanded(self, i: int, each: dict[str, Any]) -> None:
        """A label demands that its output is the largest, and nothing else."""
        parts = (self.proof[name][i] for name in ("box.lower", "box.upper", "C", "d", "group"))
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
        demand(digest[:16] == each["id"], f"property {i}: its id is not that of its content")
        real, label = self.group[i] >= 0, each["label"]
        demand(real.any(), f"property {i}: it demands nothing")
        if label >= 0:
            eye = np.eye(self.C.shape[2])
            same = np.array_equal(self.C[i][real], eye[label] - np.delete(eye, label, 0))
            groups = len(set(self.group[i][real])) == real.sum()
            holds = same and groups and not self.d[i][real].any()
            demand(holds, f"property {i}: its specification is not that of label {label}")

    def _first_box(self, i: int, claimed: list[int]) -> None:
        """A point in several boxes gets the patch of the first, which must be proved too."""
        others = overlapping(self.box, i)
        others = others[self.patch[others] != self.patch[i]]
        proved = np.isin(others, claimed)
        for part in (self.C, self.d, self.group):
            proved &= (part[others] == part[i]).all(tuple(range(1, part.ndim)))
        if not proved.all():
            j = others[~proved][0]
            self.verdict.invalid.append(
                f"property {i} is certified, but property {j} overlaps it, comes first with "
                "another patch, and is not certified for the same demand"
            )

    def _prove(self, pieces: Array) -> None:
        """Bound pieces again; if their own rows do not do, try those of the nodes above."""
        inner, above = self.tree.boxes(self.node[pieces]), self.tree.parent[self.node[pieces]]
        rows = self._rows(pieces, inner, inner)
        while len(lost := (~(self._worst(rows, pieces) > 0) & (above >= 0)).nonzero()[0]):
            part = (inner[0][lost], inner[1][lost])
            again = self._rows(pieces[lost], self.tree.boxes(above[lost]), part)
            rows[lost] = np.maximum(rows[lost], again)
            above[lost] = self.tree.parent[above[lost]]
        # No more can be proved than what holds at one input, so a claim beyond it is false.
        middle = ((inner[0] + inner[1]) / 2).astype(self.proof["box.lower"].dtype).astype(float)
        point = (np.clip(middle, *inner),) * 2
        most = self._worst(-self._rows(pieces, point, point, -1), pieces)
        least = self._worst(rows, pieces)
        for piece, proved, possible in zip(pieces, least, most, strict=True):
            claimed, i = self.margin[piece], self.owner[piece]
            text = f"property {i}, piece {piece}: margin {claimed:.6g} is claimed"
            if not claimed <= possible:
                self.verdict.invalid.append(f"{text}, at its middle it is {possible:.6g} at most")
            elif not proved > 0:
                self.verdict.incomplete.append(f"{text}, {proved:.6g} was found")
        if np.isfinite(least).all():
            self.verdict.margin = min(float(least.min()), self.verdict.margin or np.inf)

    def _rows(self, pieces: Array, outer: Box, inner: Box, sign: int = 1) -> Array:
        """Margins [B,M] of N + P on the inner boxes, with rows of N from the outer ones."""
        slope = str(self.claim["certifier_options"].get("lower_slope"))
        owner = self.owner[pieces]
        C, d = (sign * part[owner].astype(float) for part in (self.C, self.d))
        found, serving = np.empty(d.shape), self.patch[owner]
        base = Region(self.base, self.level, outer, slope)
        for q in np.unique(serving):
            at = (serving == q).nonzero()[0]
            net = Network(self.template, {name: t[q] for name, t in self.stack.items()})
            same = net.input_shape == self.base.input_shape and net.sizes[-1] == self.base.sizes[-1]
            demand(same, "patch: it has other inputs or outputs than the network")
            patch = Region(net, self.level, (inner[0][at], inner[1][at]), slope)
            found[at] = row_margins(base, patch, C[at], d[at], at)
        return found

    def _worst(self, rows: Array, pieces: Array) -> Array:
        """Of every piece the worst group, of every group the best row: [B]."""
        group, worst = self.group[self.owner[pieces]], np.full(len(rows), np.inf)
        for number in np.unique(group[group >= 0]):
            best = np.where(group == number, rows, -np.inf).max(1)
            worst = np.where((group == number).any(1), np.minimum(worst, best), worst)
        return worst
