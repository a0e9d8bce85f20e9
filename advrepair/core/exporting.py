"""Export the repaired network of a run folder to the files of other programs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from attrs import field, frozen

from advrepair.core.agreement import (
    Agreement,
    check_module,
    check_relu,
    check_routed,
    runtime,
    trial_inputs,
)
from advrepair.core.artefacts import check_digest, read_repaired
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.config import read_toml
from advrepair.core.errors import UsageError
from advrepair.core.files import file_digest, read_json, read_tensors
from advrepair.core.interfaces import Verifier
from advrepair.core.onnx_export import routed_model
from advrepair.core.options import build
from advrepair.core.patching import RepairedNetwork
from advrepair.core.registry import Registry
from advrepair.core.relu_form import Shells, check_relu_form, make_shells, relu_model
from advrepair.core.rounding import Rounding
from advrepair.core.shell_claims import carried_over, read_proved
from advrepair.core.torch_export import (
    ExportableNetwork,
    exported_program,
    load_exported_program,
    load_torchscript,
    torchscript,
)
from advrepair.core.types import PropertySet

FORMS = ("routed", "relu")
_MEMORY = 2**31  # of bounds in flight, in bytes
_ROWS = 100  # properties written one by one; of more, each demand once


@frozen
class Request:
    """What is asked for: the files, and how the ONNX file is made.

    shell, input_range: for the form ``relu``; None for the default, and for that of the run.
    """

    onnx: Path | None = None
    torchscript: Path | None = None
    torch_export: Path | None = None
    form: str = "routed"
    shell: float | None = None
    input_range: tuple[float, float] | None = None
    force: bool = False

    @property
    def paths(self) -> list[Path]:
        """Every file that is asked for."""
        asked = (self.onnx, self.torchscript, self.torch_export)
        return [path for path in asked if path is not None]

    def check(self) -> None:
        """Raises UsageError for what cannot be meant."""
        paths = [path.absolute() for path in self.paths]
        if not paths:
            raise UsageError("nothing to write: name a file with --onnx, --torchscript or "
                             "--torch-export")  # fmt: skip
        if len(set(paths)) < len(paths):
            raise UsageError("two of the files have the same name: name each differently")
        if self.form not in FORMS:
            raise UsageError(f"form is {self.form!r}: choose one of {', '.join(FORMS)}")
        if (self.shell, self.input_range) != (None, None) and self.form != "relu":
            raise UsageError("--shell and --input-range go with --form relu")
        if self.form == "relu" and self.onnx is None:
            raise UsageError("--form relu is for ONNX: name a file with --onnx")
        for path in self.paths:
            if path.is_dir():
                raise UsageError(f"{path} is a folder: name a file")
            if path.exists() and not self.force:
                raise UsageError(f"{path} exists: use --force, or another name")
            if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
                raise UsageError(f"cannot write to {path}: {path.parent} is no writable folder")


@frozen
class Written:
    """One file. kind: in words. agreement: None if it could not be checked. notes: lines."""

    path: Path
    kind: str
    size: int
    agreement: Agreement | None
    notes: tuple[str, ...] = ()


@frozen(eq=False)
class _Made:
    """A file before it is written."""

    kind: str
    file: bytes = field(repr=False)
    agreement: Agreement | None
    notes: tuple[str, ...] = ()


def export(folder: Path, asked: Request, registry: Registry) -> list[Written]:
    """Write the files; each is checked before, and written whole or not at all.

    Raises UsageError if there is no complete run, a file exists or cannot be written, or the
    network cannot be exported so; AdvrepairError if a file would compute something else.
    """
    asked.check()
    if not (folder / "run.toml").exists():
        raise UsageError(f"{folder} holds no complete run: name the folder of advrepair run")
    check_digest(folder)
    repaired = read_repaired(folder / "repaired.safetensors", registry).eval()
    makers: list[tuple[Path | None, Callable[[], _Made]]] = [
        (asked.onnx, lambda: _onnx(folder, asked, repaired, registry)),
        (asked.torchscript, lambda: _torchscript(repaired)),
        (asked.torch_export, lambda: _torch_export(repaired)),
    ]
    made = [(path, make()) for path, make in makers if path is not None]
    written = []
    for path, each in made:
        _write(path, each.file)
        written.append(Written(path, each.kind, len(each.file), each.agreement, each.notes))
    return written


def about(folder: Path, form: str) -> dict[str, str]:
    """What an ONNX file says of its origin: versions, digests, the specification in words."""
    certificate = read_json(folder / "certificate.json")
    rows: list[dict[str, Any]] = certificate["properties"]
    files = ("repaired.safetensors", "certificate.json", "certificate.safetensors")
    proved = sum(row["status"] == "certified" for row in rows)
    return {
        "advrepair.version": metadata.version("advrepair"),
        "advrepair.form": form,
        "advrepair.sha256.network": certificate["network"],
        **{f"advrepair.sha256.{name}": file_digest(folder / name) for name in files},
        "advrepair.certified": f"{proved} of {len(rows)} properties, level {certificate['level']}",
        "advrepair.specification": _specification(rows),
    }


def _specification(rows: list[dict[str, Any]]) -> str:
    if len(rows) <= _ROWS:
        return "\n".join(f"{row['name']} ({row['status']}): {row['demand']}" for row in rows)
    demands = Counter(row["demand"] for row in rows)
    lines = [f"{count} times: {demand}" for demand, count in demands.items()]
    return "\n".join([f"{len(rows)} properties", *lines])


def _onnx(folder: Path, asked: Request, repaired: RepairedNetwork, registry: Registry) -> _Made:
    facts, able = about(folder, asked.form), runtime()
    if asked.form == "routed":
        model = routed_model(repaired, facts)
        found = check_routed(model, repaired, trial_inputs(repaired)) if able else None
        return _Made("ONNX, routed", model, found)
    if repaired.at:
        raise UsageError(
            f"--form relu is not written for patches that see the layer {repaired.at!r}: export "
            "the routed form"
        )
    check_relu_form(repaired)
    limits = asked.input_range or _range(folder)
    shells = make_shells(repaired, asked.shell)
    notes = [f"shell {shells.width:g}, input range {limits[0]:g} to {limits[1]:g}"]
    touched = int(shells.touched.sum())
    if touched:
        notes.append(
            f"in {touched} of {len(repaired.patch)} regions a part lies in the shell of an earlier "
            "region, whose patch is partly on there"
        )
    facts |= {"advrepair.shell": repr(shells.width), "advrepair.input_range": str(list(limits))}
    kept, certified = _kept(folder, repaired, shells, registry)
    notes.append(f"{kept} of {certified} certified properties hold in the shells too")
    facts["advrepair.certified_in_shells"] = f"{kept} of {certified} certified properties"
    model = relu_model(repaired, limits, shells, facts)
    x = trial_inputs(repaired)
    checked = check_relu(model, repaired, x, shells, limits) if able else None
    return _Made("ONNX, relu", model, checked, tuple(notes))


def _kept(
    folder: Path, repaired: RepairedNetwork, shells: Shells, registry: Registry
) -> tuple[int, int]:
    """How many certified properties hold for the relu form, and how many there are."""
    certificate, (arrays, _) = (
        read_json(folder / "certificate.json"),
        read_tensors(folder / "certificate.safetensors"),
    )
    rows, source = certificate["properties"], certificate["certifier"]
    certified = torch.tensor([row["status"] == "certified" for row in rows], dtype=torch.bool)
    centres = repaired.centres
    properties = PropertySet(
        Box(arrays["box.lower"], arrays["box.upper"]),
        arrays["C"],
        arrays["d"],
        arrays["group"],
        centres.label,
        centres.target,
        repaired.center,
        tuple(row["name"] for row in rows),
    )
    kind = registry.find("verifier", source["name"])
    certifier = cast(Verifier, build(kind, source["options"], source["name"]))
    level, template = Rounding(certificate["level"]), repaired.bank.template
    bounder = Bounder(repaired.base, template, certifier, certifier, level, _MEMORY)
    proved = read_proved(arrays, certified, properties, repaired.patch)
    return int(carried_over(repaired, shells, proved, bounder).sum()), int(certified.sum())


def _torchscript(repaired: RepairedNetwork) -> _Made:
    file = torchscript(ExportableNetwork(repaired))
    loaded = load_torchscript(file)
    notes = ("torch has deprecated TorchScript; prefer --torch-export",)
    x = trial_inputs(repaired)
    found = check_module("TorchScript", loaded, repaired, x)
    return _Made("TorchScript", file, found, notes)


def _torch_export(repaired: RepairedNetwork) -> _Made:
    file = exported_program(ExportableNetwork(repaired))
    loaded = load_exported_program(file)
    found = check_module("torch.export", loaded, repaired, trial_inputs(repaired))
    return _Made("torch.export", file, found)


def _range(folder: Path) -> tuple[float, float]:
    problem: Any = read_toml(folder / "run.toml").get("problem", {})
    bounds: list[float] = problem.get("input_range") or []
    if len(bounds) != 2:
        raise UsageError(
            "--form relu needs the range of the inputs, and the run declares none: give "
            "--input-range LOW,HIGH"
        )
    return float(bounds[0]), float(bounds[1])


def _write(path: Path, file: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(file)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write to {path}: {error.strerror}") from None
