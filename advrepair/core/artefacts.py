"""The run folder: what a repair leaves behind, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from attrs import define, field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.certification import Certificate
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network
from advrepair.core.interfaces import Component
from advrepair.core.options import build, values
from advrepair.core.patching import PatchBank, RepairedNetwork
from advrepair.core.properties import in_words
from advrepair.core.registry import Registry
from advrepair.core.types import Assignment, Centres, PropertySet

FORMAT = 2
_HEADER = "advrepair"  # one metadata key: safetensors writes several in random order


@define
class Folder:
    """One run folder; ``partial`` beside it holds the work until it is complete."""

    path: Path
    # Folders above that were made for this run, innermost first; whether partial was too.
    made: list[Path] = field(factory=list)
    began: bool = False

    @property
    def partial(self) -> Path:
        """Where the work is kept until the run is complete."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def old(self) -> Path:
        """Where a run that is replaced is kept for the moment of the change."""
        return self.path.with_name(self.path.name + ".old")

    def claim(
        self, configuration: str, manifest: Mapping[str, Any], force: bool, resume: bool
    ) -> bool:
        """Prepare to write; True if the folder already holds this very run, complete.

        configuration: text of run.toml. manifest: as in manifest.json. Raises UsageError if
        there is a run and neither force nor resume is asked for, if a path that is needed
        holds no run of ours or cannot be written, or if what is to be resumed had another
        configuration, other inputs or other versions.
        """
        if self.path.name in ("", ".."):
            raise UsageError(f"{self.path} is no name for a run folder: choose another --out")
        try:
            for place in (self.path, self.partial, self.old):
                if place.exists() and not (place / "run.toml").exists():
                    raise UsageError(f"{place} exists and is no run folder: choose another --out")
            for place in (self.path, self.partial):
                if place.exists() and not force:
                    self._resumable(place, configuration, manifest, resume)
            if self.path.exists() and not force:
                return True
            self._start(configuration, manifest, force)
        except OSError as error:
            self.discard()
            raise UsageError(f"cannot write to {self.partial}: {error.strerror}") from None
        return False

    def _resumable(
        self, place: Path, configuration: str, manifest: Mapping[str, Any], resume: bool
    ) -> None:
        if not resume:
            what = "a run" if place == self.path else "an interrupted run"
            raise UsageError(f"{place} holds {what}: use --force, --resume or another --out")
        if (place / "run.toml").read_text(encoding="utf-8") != configuration:
            raise UsageError(
                f"{place} was configured differently: resume it with --config "
                f"{place / 'run.toml'}, or replace it with --force"
            )
        before = read_json(place / "manifest.json")
        for key in ("inputs", "versions"):
            if before.get(key) != manifest[key]:
                raise UsageError(f"{place} was begun with other {key}: replace it with --force")

    def _start(self, configuration: str, manifest: Mapping[str, Any], force: bool) -> None:
        if force and self.partial.exists():
            shutil.rmtree(self.partial)
        self.began = not self.partial.exists()
        self.made = [above for above in self.partial.parents if not above.exists()]
        self.partial.mkdir(parents=True, exist_ok=True)
        write_text(self.partial / "run.toml", configuration)
        write_json(self.partial / "manifest.json", manifest)

    def publish(self) -> None:
        """Put the complete run in its place, in one step."""
        if self.old.exists():  # left by a run that was killed right here
            shutil.rmtree(self.old)
        if self.path.exists():
            os.rename(self.path, self.old)
        os.rename(self.partial, self.path)
        if self.old.exists():
            shutil.rmtree(self.old)

    def discard(self) -> None:
        """Leave nothing behind of a run that began here; what is resumed is kept."""
        if not self.began:
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        for above in self.made:
            if above.exists() and not any(above.iterdir()):
                above.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Inverse of :func:`write_json`; raises UsageError for anything else."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write safetensors with one JSON header, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    metadata = {_HEADER: json.dumps(header, sort_keys=True)}
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    safetensors.torch.save_file(ready, temporary, metadata=metadata)
    os.chmod(temporary, 0o644)  # it writes with 0600, unlike everything else here
    os.replace(temporary, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`write_tensors`; raises UsageError for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: is its folder a complete run?") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"{path} is not readable as part of a run: {error}") from None


def write_repaired(path: Path, repaired: RepairedNetwork) -> None:
    """``repaired.safetensors``: everything that :func:`read_repaired` needs."""
    tensors = {f"base/{name}": t for name, t in repaired.base.tensors.items()}
    tensors |= {f"patch/{name}": t for name, t in repaired.bank.stack.items()}
    tensors |= {"box/lower": repaired.box.lower, "box/upper": repaired.box.upper}
    centres = repaired.centres
    for name in ("x", "logits", "label", "target", "patch"):
        tensors[f"centres/{name}"] = getattr(centres, name)
    header = {
        "format": FORMAT,
        "base": repaired.base.structure(),
        "patch": repaired.bank.template.structure(),
        "patches": list(repaired.assignment.names),
        "allocator": {"name": repaired.allocator.name, "options": values(repaired.allocator)},
    }
    write_tensors(path, tensors, header)


def read_repaired(path: Path, registry: Registry) -> RepairedNetwork:
    """The deployed function from its file; raises UsageError if it is not one."""
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT:
        raise UsageError(f"{path} has format {header.get('format')}: this version reads {FORMAT}")

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    stack, centres = part("patch/"), part("centres/")
    zeros = {name: torch.zeros_like(t[0]) for name, t in stack.items()}
    chosen = header["allocator"]
    allocator = build(registry.find("allocator", chosen["name"]), chosen["options"], chosen["name"])
    return RepairedNetwork(
        Network.rebuild(header["base"], part("base/")),
        PatchBank(Network.rebuild(header["patch"], zeros), stack),
        Box(tensors["box/lower"], tensors["box/upper"]),
        Assignment(centres["patch"], tuple(header["patches"])),
        Centres(**centres, patches=len(header["patches"])),
        allocator,  # type: ignore[arg-type]
    )


def write_certificate(
    folder: Path, certificate: Certificate, properties: PropertySet, repaired: RepairedNetwork
) -> None:
    """``certificate.json`` and, beside it, its arrays in ``certificate.safetensors``.

    Neither holds a time or a path: the same configuration gives the same bytes.
    """
    arrays = _arrays(certificate, properties)
    write_tensors(folder / "certificate.safetensors", arrays, {"format": FORMAT})
    pieces = torch.bincount(certificate.proof.owner, minlength=len(properties)).tolist()
    rows = zip(
        properties.identifiers(),
        properties.names,
        [in_words(properties, i) for i in range(len(properties))],
        properties.label.tolist(),
        repaired.patch.tolist(),
        certificate.status,
        # JSON has no infinity: null says that nothing is known.
        [m if math.isfinite(m) else None for m in certificate.margin.tolist()],
        pieces,
        certificate.constant.tolist(),
        strict=True,
    )
    keys = ("id", "name", "demand", "label", "patch", "status", "margin", "pieces", "constant")
    write_json(
        folder / "certificate.json",
        {
            "format": FORMAT,
            "level": certificate.level,
            "certifier": _source(certificate.certifier),
            "versions": versions("advrepair", "torch", "numpy"),
            "claim": "for every input x of box i, every group of rows of C y + d has a row "
            "greater than 0, where y is the output of the repaired network",
            "network": repaired.base.digest(),
            "files": {
                name: file_digest(folder / name)
                for name in ("repaired.safetensors", "certificate.safetensors")
            },
            "properties": [dict(zip(keys, row, strict=True)) for row in rows],
        },
    )


def _arrays(certificate: Certificate, properties: PropertySet) -> dict[str, Tensor]:
    proof, hits = certificate.proof, sorted(certificate.counterexample)
    piece = {node: i for i, node in enumerate(proof.node.tolist())}
    kept = [
        (torch.full_like(unit, piece[node]), unit, value)
        for node, (unit, value) in sorted(proof.multipliers.items())
    ]
    none = torch.zeros(0, dtype=torch.long)
    many = [torch.cat(parts) for parts in zip(*kept, strict=True)]
    many = many or [none, none, torch.zeros(0, properties.C.shape[1])]
    arrays = {
        "C": properties.C,
        "d": properties.d,
        "group": properties.group,
        "box.lower": properties.box.lower,
        "box.upper": properties.box.upper,
        "piece.node": proof.node,
        "piece.margin": proof.margin,
        "piece.slope": proof.patch_slope,
        "tree.owner": torch.tensor(proof.tree.owner),
        "tree.parent": torch.tensor(proof.tree.parent),
        "tree.dim": torch.tensor(proof.tree.dim),
        "tree.cut": torch.tensor(proof.tree.cut, dtype=torch.float64),
        "tree.slope": proof.slope,
        **dict(zip((f"multiplier.{n}" for n in ("piece", "unit", "value")), many, strict=True)),
    }
    x = [certificate.counterexample[i] for i in hits]
    found = torch.stack(x) if x else properties.center[:0]
    arrays["counterexample.property"] = torch.tensor(hits, dtype=torch.long)
    return arrays | {"counterexample.x": found}


def _source(component: Component) -> dict[str, Any]:
    """Name and options of a component, and the distribution that it comes from."""
    top = type(component).__module__.partition(".")[0]
    owner = next(iter(metadata.packages_distributions().get(top, [])), None)
    return {
        "name": component.name,
        "options": values(component),
        "distribution": owner or top,
        "version": metadata.version(owner) if owner else None,
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed distributions and of Python."""
    return {n: metadata.version(n) for n in packages} | {"python": platform.python_version()}


def check_digest(folder: Path) -> None:
    """Raises UsageError if repaired.safetensors is not the file its certificate is about."""
    name = "repaired.safetensors"
    if not (folder / "certificate.json").exists() or not (folder / name).exists():
        return
    stated = read_json(folder / "certificate.json").get("files", {}).get(name)
    if stated != file_digest(folder / name):
        raise UsageError(f"{folder / name} was changed after it was certified: repair again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(registry: Registry, inputs: Mapping[str, str], seed: int) -> dict[str, Any]:
    """What the run ran on. inputs: what was read, name to SHA-256."""
    packages = ("advrepair", "torch", "numpy", "attrs", "pluggy", "onnx", "safetensors")
    plugins = [
        {key: getattr(entry, key) for key in ("kind", "name", "distribution", "version")}
        for entry in registry.listing()
        if entry.problem is None
    ]
    return {
        "versions": versions(*packages),
        "plugins": plugins,
        "inputs": dict(inputs),
        "seed": seed,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": "cpu",
        },
    }


@define
class Checkpoint:
    """What an interrupted run has finished, by name, in its partial folder."""

    folder: Path

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Tensors saved under a name; None if there are none, or the file is damaged."""
        path = self.folder / f"checkpoint-{name}.safetensors"
        try:
            return read_tensors(path)[0] if path.exists() else None
        except UsageError:
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors for a resume."""
        write_tensors(self.folder / f"checkpoint-{name}.safetensors", tensors, {"format": FORMAT})

    def names(self, prefix: str) -> list[str]:
        """Saved names that begin with prefix, sorted."""
        found = self.folder.glob(f"checkpoint-{prefix}*.safetensors")
        return sorted(path.stem.removeprefix("checkpoint-") for path in found)

    def clear(self) -> None:
        """The run is complete: nothing of this is needed."""
        for path in self.folder.glob("checkpoint-*.safetensors"):
            path.unlink()
