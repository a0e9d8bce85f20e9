"""What a repair is on disk: the repaired network, and the certificate about it."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.certification import Certificate
from advrepair.core.errors import UsageError
from advrepair.core.files import (
    FORMAT,
    file_digest,
    read_json,
    read_tensors,
    versions,
    write_json,
    write_tensors,
)
from advrepair.core.graph import Network
from advrepair.core.interfaces import Component
from advrepair.core.options import build, values
from advrepair.core.patching import PatchBank, RepairedNetwork
from advrepair.core.properties import in_words
from advrepair.core.registry import Registry
from advrepair.core.types import Assignment, Centres, PropertySet, Regions


def write_repaired(path: Path, repaired: RepairedNetwork) -> None:
    """``repaired.safetensors``: everything that :func:`read_repaired` needs."""
    tensors = {f"base/{name}": t for name, t in repaired.base.tensors.items()}
    tensors |= {f"patch/{name}": t for name, t in repaired.bank.stack.items()}
    tensors |= {"region/lower": repaired.box.lower, "region/upper": repaired.box.upper}
    tensors["region/patch"] = repaired.patch.clone()
    centres = repaired.centres
    for name in ("x", "logits", "label", "target", "patch"):
        tensors[f"centres/{name}"] = getattr(centres, name)
    tensors |= {f"allocator/{name}": t for name, t in centres.fitted.items()}
    if repaired.at:
        tensors["inputs/center"] = repaired.center
    header = {
        "format": FORMAT,
        "base": repaired.base.structure(),
        "at": repaired.at,
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
    try:
        return _rebuilt(tensors, header, registry)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} is not readable as part of a run: {type(error).__name__}: {error}"
        ) from None


def _rebuilt(
    tensors: dict[str, Tensor], header: dict[str, Any], registry: Registry
) -> RepairedNetwork:
    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    stack, centres = part("patch/"), part("centres/")
    zeros = {name: t.new_zeros(t.shape[1:]) for name, t in stack.items()}
    chosen = header["allocator"]
    allocator = build(registry.find("allocator", chosen["name"]), chosen["options"], chosen["name"])
    return RepairedNetwork(
        Network.rebuild(header["base"], part("base/")),
        PatchBank(Network.rebuild(header["patch"], zeros), stack),
        Regions(Box(tensors["region/lower"], tensors["region/upper"]), tensors["region/patch"]),
        Assignment(centres["patch"], tuple(header["patches"])),
        Centres(**centres, patches=len(header["patches"]), fitted=part("allocator/")),
        allocator,  # type: ignore[arg-type]
        header.get("at", ""),
        tensors.get("inputs/center"),
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
        repaired.centres.patch.tolist(),
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
        "region.node": certificate.layout.node,
        "shared.node": certificate.layout.shared[:, 0],
        "shared.region": certificate.layout.shared[:, 1],
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


def check_digest(folder: Path) -> None:
    """Raises UsageError if repaired.safetensors is not the file its certificate is about."""
    name = "repaired.safetensors"
    if not (folder / "certificate.json").exists() or not (folder / name).exists():
        return
    stated = read_json(folder / "certificate.json").get("files", {}).get(name)
    if stated != file_digest(folder / name):
        raise UsageError(f"{folder / name} was changed after it was certified: repair again")
