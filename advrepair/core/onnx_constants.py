"""Constants of an ONNX file, and operators that only move or combine constants.

Shape arithmetic is included: ``Shape`` of a value gives a constant in which the batch is
:data:`~advrepair.core.assembly.BATCH`, so the usual ``Shape, Gather, Concat, Reshape`` of an
exporter is computed here and leaves no trace in the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from advrepair.core.assembly import BATCH

Array = NDArray[Any]
Attributes = Mapping[str, Any]
Fold = Callable[[Attributes, Sequence[Array]], Array]


def constant_value(attributes: Attributes) -> Array:
    """The value of a Constant node; raises ValueError for a form that is not read."""
    for key, value in attributes.items():
        if key == "value" and isinstance(value, TensorProto):
            return np.asarray(numpy_helper.to_array(value))
        if key in ("value_int", "value_ints"):
            return np.array(value, dtype=np.int64)
        if key in ("value_float", "value_floats"):
            return np.array(value, dtype=np.float32)
    raise ValueError(f"a Constant of form {', '.join(attributes) or 'none'} is not read")


def _axes(attributes: Attributes, arrays: Sequence[Array]) -> tuple[int, ...]:
    given = attributes.get("axes", arrays[1] if len(arrays) > 1 else ())
    return tuple(int(axis) for axis in given)


def _reshape(attributes: Attributes, arrays: Sequence[Array]) -> Array:
    target = [
        arrays[0].shape[i] if n == 0 and not attributes.get("allowzero", 0) else int(n)
        for i, n in enumerate(arrays[1])
    ]
    return arrays[0].reshape(target)


def _slice(attributes: Attributes, arrays: Sequence[Array]) -> Array:
    starts: Sequence[int] | Array
    ends: Sequence[int] | Array
    axes: Sequence[int] | Array
    steps: Sequence[int] | Array
    if "starts" in attributes:
        starts, ends = attributes["starts"], attributes["ends"]
        axes, steps = attributes.get("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = arrays[1], arrays[2]
        axes = arrays[3] if len(arrays) > 3 else range(len(starts))
        steps = arrays[4] if len(arrays) > 4 else [1] * len(starts)
    index = [slice(None)] * arrays[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return arrays[0][tuple(index)]


def _cast(attributes: Attributes, arrays: Sequence[Array]) -> Array:
    return arrays[0].astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


# These only move numbers, so they also keep the mark that stands for the batch.
_MOVES: dict[str, Fold] = {
    "Identity": lambda a, x: x[0],
    "Cast": _cast,
    "Concat": lambda a, x: np.concatenate(x, axis=a["axis"]),
    "Gather": lambda a, x: np.take(x[0], x[1], axis=a.get("axis", 0)),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": lambda a, x: np.squeeze(x[0], _axes(a, x) or None),
    "Transpose": lambda a, x: np.transpose(x[0], a.get("perm")),
    "Unsqueeze": lambda a, x: np.expand_dims(x[0], _axes(a, x)),
}
_SUMS: dict[str, Fold] = {
    "Add": lambda a, x: np.add(x[0], x[1]),
    "Sub": lambda a, x: np.subtract(x[0], x[1]),
    "Mul": lambda a, x: np.multiply(x[0], x[1]),
    "Div": lambda a, x: _quotient(x[0], x[1]),
    "Neg": lambda a, x: np.negative(x[0]),
    "Sqrt": lambda a, x: np.sqrt(x[0]),
}


FOLDED = frozenset({*_MOVES, *_SUMS})


def _quotient(left: Array, right: Array) -> Array:
    if left.dtype.kind != "i":
        return np.asarray(left / right)
    return np.asarray(np.trunc(left / right)).astype(left.dtype)  # ONNX rounds toward zero


def fold(operator: str, attributes: Attributes, arrays: Sequence[Array]) -> Array | None:
    """The result of an operator on constants alone; None if it cannot be computed here.

    Raises ValueError if the constants do not fit it.
    """
    marked = any(array.dtype.kind == "i" and bool((array == BATCH).any()) for array in arrays)
    step = _MOVES.get(operator) or (None if marked else _SUMS.get(operator))
    if step is None or (marked and operator == "Cast" and attributes.get("to") != _INT64):
        return None
    try:
        with np.errstate(all="ignore"):  # an infinity is refused where it is used
            return np.asarray(step(attributes, arrays))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its constants do not fit it: {error}") from error


_INT64 = int(TensorProto.INT64)
