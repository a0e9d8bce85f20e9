"""Run folders for the tests of the checker, and ways to change one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from problems import a_network, some_data

import advrepair
from advrepair import checker

FILES = ("certificate.json", "certificate.safetensors", "repaired.safetensors")
Edit = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]


def repaired(folder: Path, network: Any = None, **options: Any) -> Path:
    """A small repair, saved."""
    network = network or a_network()
    x, y = some_data(network=network)
    given = {"epsilon": 0.1, "count": 6, **options}
    given["settings"] = {"evaluation": {"samples": 1}, **given.get("settings", {})}
    advrepair.repair(network, x, y, **given).save(folder)
    return folder


def read(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and header of a file."""
    data = (folder / name).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return safetensors.numpy.load(data), json.loads(header["__metadata__"]["advrepair"])


def write(folder: Path, name: str, tensors: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Inverse of :func:`read`."""
    ready = {key: np.ascontiguousarray(each) for key, each in tensors.items()}
    data = safetensors.numpy.save(ready, {"advrepair": json.dumps(header, sort_keys=True)})
    (folder / name).write_bytes(data)


def digest(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """Of the base network, written down a second time."""
    text = json.dumps(header["base"], sort_keys=True).encode()
    for name in sorted(tensors):
        if name.startswith("base/"):
            array = tensors[name]
            text += f"{name[5:]}:torch.{array.dtype}:{tuple(array.shape)}".encode()
            text += array.tobytes()
    return hashlib.sha256(text).hexdigest()


def rehash(folder: Path, claim: dict[str, Any]) -> None:
    """Write the claim with the hashes of the files as they are now."""
    for name in FILES[1:]:
        claim["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / FILES[0]).write_text(json.dumps(claim))


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """A copy with changed contents and with every hash made again.

    edit: called with the claim, the certificate's arrays and those of the repair, whose
    header is under the key ``header``.
    """
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    claim = json.loads((source / FILES[0]).read_text())
    proof, other = read(source, FILES[1])
    stored, header = read(source, FILES[2])
    arrays: dict[str, Any] = {**stored, "header": header}
    edit(claim, proof, arrays)
    header = arrays.pop("header")
    write(target, FILES[1], proof, other)
    write(target, FILES[2], arrays, header)
    claim["network"] = digest(header, arrays)
    rehash(target, claim)
    return target


def verdict(folder: Path) -> checker.Verdict:
    """The checker's answer."""
    return checker.check(folder)
