"""Files written whole or not at all: text, JSON, and tensors with one JSON header."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advrepair.core.errors import UsageError

FORMAT = 3
_HEADER = "advrepair"  # one metadata key: safetensors writes several in random order


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed distributions and of Python."""
    return {n: metadata.version(n) for n in packages} | {"python": platform.python_version()}
