"""What the page is made of: a run folder, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.artefacts import check_digest, read_repaired
from advrepair.core.errors import UsageError
from advrepair.core.files import file_digest, read_json, read_tensors
from advrepair.core.patching import RepairedNetwork
from advrepair.core.registry import Registry

_COMPLETE = "is its folder a complete run?"
_PROPERTY = {"name": str, "demand": str, "status": str, "label": int, "patch": int, "pieces": int}


@frozen(eq=False)
class RunFolder:
    """One run. configuration, manifest: empty where the repair was saved from Python.

    demand: the arrays C, d and group of the certificate.
    """

    report: dict[str, Any]
    certificate: dict[str, Any]
    repaired: RepairedNetwork
    evaluation: dict[str, Tensor]
    demand: dict[str, Tensor]
    configuration: str
    manifest: dict[str, Any]

    @property
    def properties(self) -> list[dict[str, Any]]:
        """The certificate's statement about each property."""
        found: list[dict[str, Any]] = self.certificate["properties"]
        return found

    def first(self) -> Tensor:
        """The first adversarial example of each property, -1 where there is none: [P]."""
        owner = self.evaluation["x_adv.property"]
        none = torch.full((len(self.properties),), len(owner))
        found = none.scatter_reduce(0, owner, torch.arange(len(owner)), "amin")
        return torch.where(found == len(owner), -1, found)


def read(folder: Path) -> RunFolder:
    """Everything of a run folder; raises UsageError if it holds no complete run."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder: name a run folder")
    report = _report(folder / "report.json")
    certificate = _certificate(folder / "certificate.json")
    check_digest(folder)
    repaired = read_repaired(folder / "repaired.safetensors", Registry.load()).eval()
    path = folder / "certificate.safetensors"
    arrays, _ = read_tensors(path)
    if certificate["files"].get(path.name) != file_digest(path):
        raise UsageError(f"{path} was changed after it was certified: repair again")
    evaluation, _ = read_tensors(folder / "evaluation.safetensors")
    _check_lengths(folder / "evaluation.safetensors", evaluation, certificate, repaired)
    return RunFolder(
        report,
        certificate,
        repaired,
        evaluation,
        {name: _get(path, arrays, name) for name in ("C", "d", "group")},
        _text(folder / "run.toml"),
        _object(folder / "manifest.json") if (folder / "manifest.json").exists() else {},
    )


def _report(path: Path) -> dict[str, Any]:
    found = _object(path)
    for key in ("problem", "properties", "metrics"):
        _get(path, found, key)
    tables = ("problem", "properties", "metrics", "baseline", "routing", "seconds", "patches")
    for key in (*tables, "network"):
        if not isinstance(found.setdefault(key, {}), dict):
            raise UsageError(f"{path}: {key!r} is not an object: {_COMPLETE}")
    for key in ("total", "certified", "empirical", "falsified", "unknown"):
        _typed(path, found["properties"], key, int)
    for key in ("notes", "flags"):
        found[key] = [] if found.get(key) is None else found[key]
        if not isinstance(found[key], list):
            raise UsageError(f"{path}: {key!r} is not a list: {_COMPLETE}")
    return found


def _certificate(path: Path) -> dict[str, Any]:
    found = _object(path)
    for key in ("certifier", "versions", "files"):
        _typed(path, found, key, dict)
    for key in ("level", "claim", "network"):
        _typed(path, found, key, str)
    for each in _typed(path, found, "properties", list):
        if not isinstance(each, dict):
            raise UsageError(f"{path}: a property is not an object: {_COMPLETE}")
        for key, kind in _PROPERTY.items():
            _typed(path, each, key, kind)
        each.setdefault("margin", None)
    return found


def _check_lengths(
    path: Path,
    evaluation: Mapping[str, Tensor],
    certificate: Mapping[str, Any],
    repaired: RepairedNetwork,
) -> None:
    count, patches = len(repaired.center), len(repaired.bank)
    lengths = {
        "row": count,
        "x_adv": len(_get(path, evaluation, "x_adv.property")),
        "margin": count,
        "epochs": patches,
    }
    wrong = [n for n, size in lengths.items() if len(_get(path, evaluation, n)) != size]
    if wrong or len(certificate["properties"]) != count:
        raise UsageError(f"{path} and the other files of its folder do not belong together")


def _object(path: Path) -> dict[str, Any]:
    found: object = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not readable as part of a run: not an object")
    return found


def _get(path: Path, found: Mapping[str, Any], key: str) -> Any:
    if key not in found:
        raise UsageError(f"{path} lacks {key!r}: {_COMPLETE}")
    return found[key]


def _typed(path: Path, found: Mapping[str, Any], key: str, kind: type) -> Any:
    value = _get(path, found, key)
    if not isinstance(value, kind):
        raise UsageError(f"{path}: {key!r} is not of type {kind.__name__}: {_COMPLETE}")
    return value


def _text(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
