"""Files written whole or not at all: text, JSON, and tensors with one JSON header."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advrepair.core.errors import UsageError

FORMAT = 3
_HEADER = "advrepair"
_BLOCK_BYTES = 2**24
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with _whole(path) as file:
        file.write(text.encode())


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


@frozen(eq=False)
class Blocks:
    """A tensor that is written without ever being held: blocks along its first axis."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | Blocks], header: Mapping[str, Any]
) -> None:
    """Write safetensors with one JSON header, whole or not at all.

    The library writes from one copy of everything in memory; this one copies a block at a time.
    """
    # Wider types first, so that every tensor lies at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    about: dict[str, Any] = {"__metadata__": {_HEADER: json.dumps(header, sort_keys=True)}}
    end = 0
    for name in names:
        shape, dtype = list(tensors[name].shape), tensors[name].dtype
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        about[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for block in _blocks(tensors[name]):
                if block.dtype != tensors[name].dtype:
                    raise ValueError(f"{path}: {name} has not the type that was announced")
                file.write(_bytes(block))
            if file.tell() != 8 + len(text) + about[name]["data_offsets"][1]:
                raise ValueError(f"{path}: {name} has not the size that was announced")


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of path when it is complete, and is gone after an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _bytes(block: Tensor) -> memoryview:
    if not block.numel():
        return memoryview(b"")
    flat = block.detach().cpu().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # one element, which may claim any
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def _blocks(tensor: Tensor | Blocks) -> Iterable[Tensor]:
    if isinstance(tensor, Blocks):
        return tensor.blocks()
    if tensor.dim() == 0 or not tensor.numel():
        return [tensor]
    row = tensor[0].numel() * tensor.element_size()
    parts: Iterable[Tensor] = tensor.split(max(1, _BLOCK_BYTES // row))
    return parts


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`write_tensors`; raises UsageError for anything else.

    The tensors are memory-mapped: what is not looked at is not read.
    """
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
