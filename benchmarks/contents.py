"""A run folder as values that can be changed, and what a verdict on it is about."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from attrs import define, field

JSON, PROOF, STORED = "certificate.json", "certificate.safetensors", "repaired.safetensors"
FILES = (JSON, PROOF, STORED)
SPECIFIED = ("box.lower", "box.upper", "C", "d", "group")
Arrays = dict[str, np.ndarray]


@define
class Content:
    """A run folder as values, to be edited. header: of repaired.safetensors."""

    claim: dict[str, Any]
    proof: Arrays
    stored: Arrays
    header: dict[str, Any]
    other: dict[str, Any] = field(factory=dict)  # the header of certificate.safetensors

    @classmethod
    def read(cls, folder: Path) -> "Content":
        """Inverse of :meth:`write`."""
        proof, other = _tensors(folder / PROOF)
        stored, header = _tensors(folder / STORED)
        return cls(json.loads((folder / JSON).read_text()), proof, stored, header, other)

    def write(self, folder: Path) -> None:
        """All three files; hashes and identifiers are those of the content."""
        for name, arrays, header in (
            (PROOF, self.proof, self.other),
            (STORED, self.stored, self.header),
        ):
            ready = {key: np.ascontiguousarray(each) for key, each in arrays.items()}
            extra = {"advrepair": json.dumps(header, sort_keys=True)}
            (folder / name).write_bytes(safetensors.numpy.save(ready, extra))
            self.claim["files"][name] = _sha(folder / name)
        self.claim["network"] = self.digest()
        rows = [self.proof[name] for name in SPECIFIED]
        for i, each in enumerate(self.claim["properties"]):
            if all(i < len(part) for part in rows):
                content = b"".join(part[i].tobytes() for part in rows)
                each["id"] = hashlib.sha256(content).hexdigest()[:16]
        (folder / JSON).write_text(json.dumps(self.claim, indent=1, sort_keys=True))

    def digest(self) -> str:
        """Of the base network, as the certificate names it."""
        found = hashlib.sha256(json.dumps(self.header["base"], sort_keys=True).encode())
        for name in sorted(self.stored):
            if name.startswith("base/"):
                each = self.stored[name]
                found.update(f"{name[5:]}:torch.{each.dtype}:{tuple(each.shape)}".encode())
                found.update(each.tobytes())
        return found.hexdigest()

    def vouched(self) -> dict[str, Any]:
        """What a VALID of this folder is about, by name; a property only if it is certified."""
        parts: dict[str, Any] = {"level": self.claim["level"], "network": self.digest()}
        parts |= {key: self.header[key] for key in ("base", "patch")}
        for name, each in self.stored.items():
            if name.startswith(("patch/", "box/")) or name == "centres/patch":
                parts[name] = (each.shape, each.tobytes())
        for i, each in enumerate(self.claim["properties"]):
            if each["status"] == "certified":
                rows = tuple(self.proof[name][i].tobytes() for name in SPECIFIED)
                parts[f"property {i}"] = (rows, each["label"], each["patch"], each["margin"])
        return parts


def _tensors(path: Path) -> tuple[Arrays, dict[str, Any]]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    arrays = {name: each.copy() for name, each in safetensors.numpy.load(data).items()}
    return arrays, json.loads(header["__metadata__"]["advrepair"])


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
