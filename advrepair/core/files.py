"""Files written whole or not at all: text, JSON, and tensors with one JSON header."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from attrs import frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advrepair.core.errors import UsageError

FORMAT = 3
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_HEADER = "advrepair"
_BLOCK_BYTES = 2**24
_UNSEALED = "0" * 64
_SEAL = re.compile(rb'"seal\\": \\"([0-9a-f]{64})\\"')
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
    path: Path,
    tensors: Mapping[str, Tensor | Blocks],
    header: Mapping[str, Any],
    seal: bool = False,
) -> None:
    """Write safetensors with one JSON header, whole or not at all.

    The library writes from one copy of everything in memory; this one copies a block at a time.
    seal: put a digest of the file into the file, for :func:`is_sealed`.
    """
    if seal:
        header = {**header, "seal": _UNSEALED}
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
    start, sha = len(text).to_bytes(8, "little") + text, hashlib.sha256()
    with _whole(path) as file:
        file.write(start)
        sha.update(start if seal else b"")
        for name in names:
            for block in _blocks(tensors[name]):
                if block.dtype != tensors[name].dtype:
                    raise ValueError(f"{path}: {name} has not the type that was announced")
                data = _bytes(block)
                file.write(data)
                sha.update(data if seal else b"")
            if file.tell() != len(start) + about[name]["data_offsets"][1]:
                raise ValueError(f"{path}: {name} has not the size that was announced")
        if seal:
            file.seek(start.index(_UNSEALED.encode()))
            file.write(sha.hexdigest().encode())


def is_sealed(path: Path) -> bool:
    """Whether a file is, byte for byte, as it was written with a seal."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.read(8)
        header = file.read(min(int.from_bytes(size, "little"), path.stat().st_size))
        found = _SEAL.search(header)
        if found is None:
            return False
        begin, end = found.span(1)
        sha.update(size + header[:begin] + _UNSEALED.encode() + header[end:])
        while part := file.read(_BLOCK_BYTES):
            sha.update(part)
    return found[1].decode() == sha.hexdigest()


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of path when it is complete, and is gone after an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # that of write() says nothing
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


def settle(folder: Path) -> None:
    """Wait until the files of a folder, and their names, are on the disk."""
    for path in (*sorted(folder.iterdir()), folder):
        if path.is_dir() and os.name == "nt":
            continue
        handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cannot_write(error: OSError, again: str = "try again", path: Path | None = None) -> str:
    """What could not be written, why, and what to do, in one line. again: how to go on."""
    cure = "free some space" if error.errno in FULL else "mend that"
    where = path or error.filename or "the output"
    return f"cannot write to {where}: {error.strerror}; {cure} and {again}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed distributions and of Python."""
    return {n: metadata.version(n) for n in packages} | {"python": platform.python_version()}
