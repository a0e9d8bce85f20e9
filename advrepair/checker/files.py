"""Reading the three files: each once, its hash from the same bytes, nothing trusted.

A safetensors file is eight bytes of header length, a JSON header with dtype, shape and byte
offsets of every array, and raw numbers: no code, and no allocation larger than the file.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U8": "|u1", "BOOL": "|b1"}


class Malformed(ValueError):
    """The folder contradicts itself or its format: INVALID."""


class Unsupported(Exception):
    """Nothing is wrong, but this checker cannot follow it: INCOMPLETE."""


def demand(condition: object, reason: str, error: type[Exception] = Malformed) -> None:
    """Raises the error with the reason unless the condition holds."""
    if not condition:
        raise error(reason)


def read(path: Path) -> bytes:
    """A file's bytes; raises OSError if it is none, such as a pipe, which would not end."""
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    size = path.stat().st_size
    demand(size <= 2**32, f"{path.name}: {size} bytes are more than 2^32", Unsupported)
    return path.read_bytes()


def parse_json(data: bytes | str, name: str) -> Any:
    """JSON without repeated keys, about which readers disagree."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        demand(len(dict(pairs)) == len(pairs), "a key is repeated")
        return dict(pairs)

    try:
        return json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{name}: {error}") from None


def parse_tensors(data: bytes, name: str) -> tuple[Tensors, dict[str, Any]]:
    """The arrays of a safetensors file and its header's own JSON, ``advrepair``."""
    end = 8 + int.from_bytes(data[:8], "little")
    demand(8 < end <= len(data), f"{name}: shorter than its header says")
    header = parse_json(data[8:end], name)
    extra, tensors, spans = header.pop("__metadata__"), {}, [(0, 0), (len(data) - end,) * 2]
    for key, entry in header.items():
        dtype, shape, (begin, stop) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int and 0 <= n < 2**63 for n in (begin, stop, *shape))
        demand(whole and end + stop <= len(data) and len(shape) < 32, f"{name}: {key!r}: its place")
        count = math.prod(shape)
        demand(stop - begin == count * np.dtype(dtype).itemsize, f"{name}: {key!r}: its size")
        tensors[key] = np.frombuffer(data, dtype, count, end + begin).reshape(shape)
        spans.append((begin, stop))
    joined = all(a[1] == b[0] for a, b in itertools.pairwise(sorted(spans)))
    demand(joined, f"{name}: its arrays overlap, or bytes belong to none")
    return tensors, parse_json(extra["advrepair"], name)
