"""Read inputs and labels from an npz file, and check them against the network.

Images stay as they are stored and become tensors a chunk at a time, so sixty thousand of
them cost nothing until they are used. The rule for ``uint8`` is stated once, in
:meth:`Dataset.images`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.graph import size

Array = NDArray[Any]
Range = tuple[float, float]
Index = Tensor | Array | Sequence[int] | slice


@frozen(eq=False)
class Dataset:
    """Inputs with labels, converted on demand.

    name: the array's key, such as ``x_train``. raw: [N,...] as stored. labels: int64 [N].
    raw_adv: like raw, or None. channels_last: raw is [N,H,W,C] and the network takes C,H,W.
    """

    name: str
    raw: Array
    labels: Tensor
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    input_range: Range | None
    channels_last: bool = False
    raw_adv: Array | None = None

    def __len__(self) -> int:
        return len(self.raw)

    def images(self, index: Index = slice(None)) -> Tensor:
        """Inputs as the network takes them, [n,*S].

        Bytes become ``value / 255 * (high - low) + low`` in float32, for the input range low
        to high (0 to 1 where none is declared); other numbers are only converted.
        """
        return self._convert(self.raw, index)

    def adversarial(self, index: Index = slice(None)) -> Tensor:
        """The stored adversarial inputs, [n,*S]; raises UsageError if there are none."""
        if self.raw_adv is None:
            raise UsageError(f"{self.name}: there are no adversarial inputs; store them as x_adv")
        return self._convert(self.raw_adv, index)

    def _convert(self, raw: Array, index: Index) -> Tensor:
        chosen = raw[index.numpy() if isinstance(index, Tensor) else index]
        if self.channels_last:
            chosen = chosen.transpose(0, 3, 1, 2)
        if chosen.dtype == np.uint8:
            chosen = _scaled(chosen, self.input_range or (0.0, 1.0))
        shape = (len(chosen), *self.input_shape)
        wanted = {torch.float32: np.float32, torch.float64: np.float64}[self.dtype]
        return torch.from_numpy(np.array(chosen, dtype=wanted, order="C").reshape(shape))


@frozen(eq=False)
class Data:
    """What a file offers. repair: to repair on. test: to evaluate on, if it has any."""

    repair: Dataset
    test: Dataset | None


def load_data(
    path: Path | str,
    input_shape: Sequence[int],
    dtype: torch.dtype,
    input_range: Range | None,
    outputs: int,
) -> Data:
    """Read an npz file with keys ``x, y`` or ``x_train, y_train, x_test, y_test``.

    ``x_adv``, if there, goes with ``x`` or ``x_train``. input_shape: *S. dtype: of the
    network. outputs: K. Raises UsageError for a file, key, shape, number or label that does
    not fit, a pickle included.
    """
    path = Path(path)
    arrays = _read(path)
    plain, keras = "x" in arrays, "x_train" in arrays
    if plain == keras:
        have = ", ".join(sorted(arrays)) or "nothing"
        raise UsageError(f"{path}: needs either x, y or x_train, y_train; it holds {have}")

    def one(x: str, y: str, adversarial: str | None) -> Dataset:
        if y not in arrays:
            raise UsageError(f"{path}: holds {x} but no {y}; store its labels, 0..{outputs - 1}")
        adv = None if adversarial is None else arrays.get(adversarial)
        return make_dataset(
            x, arrays[x], arrays[y], input_shape, dtype, input_range, outputs, adv, f"{path}: "
        )

    if plain:
        return Data(one("x", "y", "x_adv"), None)
    test = one("x_test", "y_test", None) if "x_test" in arrays else None
    return Data(one("x_train", "y_train", "x_adv"), test)


def make_dataset(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    input_shape: Sequence[int],
    dtype: torch.dtype,
    input_range: Range | None,
    outputs: int,
    x_adv: ArrayLike | None = None,
    where: str = "",
) -> Dataset:
    """Check arrays against the network and keep them as they are.

    x, x_adv: [N,...], in one of the layouts that fit *S. y: [N] or [N,1]. where: begins
    every message. Raises UsageError, naming the array and what to do.
    """
    raw, shape = np.asarray(x), tuple(int(n) for n in input_shape)
    if not raw.size:
        raise UsageError(f"{where}{name} is empty; store at least one input")
    channels_last = _check_layout(f"{where}{name}", raw, shape)
    _check_numbers(f"{where}{name}", raw, input_range)
    label_name = name.replace("x", "y", 1)
    labels = _labels(f"{where}{label_name}", np.asarray(y), outputs)
    if len(labels) != len(raw):
        raise UsageError(
            f"{where}{name} has {len(raw)} inputs and {label_name} {len(labels)} labels; "
            "store one label for each input"
        )
    adversarial = None if x_adv is None else np.asarray(x_adv)
    if adversarial is not None:
        if adversarial.shape != raw.shape:
            raise UsageError(
                f"{where}x_adv has shape {adversarial.shape}, {name} {raw.shape}; make them equal"
            )
        _check_numbers(f"{where}x_adv", adversarial, input_range)
    return Dataset(name, raw, labels, shape, dtype, input_range, channels_last, adversarial)


def _scaled(bytes_: Array, input_range: Range) -> Array:
    low, high = input_range
    unit = bytes_.astype(np.float32) / np.float32(255)
    if (low, high) == (0.0, 1.0):
        return unit
    scaled = unit * np.float32(high - low) + np.float32(low)
    # Rounding may step outside.
    return np.asarray(np.clip(scaled, np.float32(low), np.float32(high)))


def _read(path: Path) -> Mapping[str, Array]:
    """Every array of the file that has a meaning here."""
    if not path.exists():
        raise UsageError(f"{path}: no such file; check the path of the data")
    if not path.is_file():
        raise UsageError(f"{path}: not a file; name an npz file")
    pickle = UsageError(f"{path}: is a pickle, which can run code; store arrays with numpy.savez")
    with path.open("rb") as stream:
        start = stream.read(8)
    if not start:
        raise UsageError(f"{path}: is empty; store x and y with numpy.savez")
    if path.suffix in (".pkl", ".pickle") or start[:1] == b"\x80":
        raise pickle
    if start.startswith(b"\x93NUMPY"):
        raise UsageError(f"{path}: holds one array; store x and y together with numpy.savez")
    if path.suffix != ".npz":
        raise UsageError(f"{path}: suffix {path.suffix!r} is not data; use an npz file")
    keys = ("x", "y", "x_train", "y_train", "x_test", "y_test", "x_adv")
    try:
        # numpy leaves a file that it opened itself open when it is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {key: stored[key] for key in keys if key in stored.files}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise pickle from error
        raise UsageError(f"{path}: not a readable npz file; write it with numpy.savez") from error


def _check_layout(where: str, raw: Array, shape: tuple[int, ...]) -> bool:
    """Whether channels come last; raises UsageError if the layout does not fit."""
    stored = raw.shape[1:]

    def long(sizes: tuple[int, ...]) -> list[int]:
        return [n for n in sizes if n != 1]

    # Row-major order is the same with or without axes of size 1, and for flat inputs.
    if stored == shape or (
        size(stored) == size(shape)
        and (long(stored) == long(shape) or 1 in (len(stored), len(shape)))
    ):
        return False
    if len(shape) == 3 and stored == (*shape[1:], shape[0]):
        return True
    raise UsageError(
        f"{where} has shape {raw.shape}, the network takes {('N', *shape)}; reshape the array"
    )


def _check_numbers(where: str, raw: Array, input_range: Range | None) -> None:
    if raw.dtype == np.uint8:
        return
    if raw.dtype.kind not in "iuf":
        raise UsageError(f"{where} holds {raw.dtype}; store numbers: uint8 or float32")
    low, high = raw.min(), raw.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UsageError(f"{where} holds NaN or infinity; remove those inputs")
    if input_range is None:
        return
    kind = raw.dtype if raw.dtype.kind == "f" else np.dtype(np.float64)
    if low < kind.type(input_range[0]) or high > kind.type(input_range[1]):
        bytes_ = low >= 0 and 1 < high <= 255
        advice = "store it as uint8, divide it by 255" if bytes_ else "rescale it"
        raise UsageError(
            f"{where} lies in [{low:g}, {high:g}], outside the input range "
            f"[{input_range[0]:g}, {input_range[1]:g}]; {advice} or pass --input-range"
        )


def _labels(where: str, y: Array, outputs: int) -> Tensor:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.shape[1] == outputs:
        raise UsageError(f"{where} looks one-hot, shape {y.shape}; store its argmax(1)")
    if y.ndim != 1:
        raise UsageError(f"{where} has shape {y.shape}; store one label for each input")
    if y.dtype.kind not in "iu":
        raise UsageError(f"{where} holds {y.dtype}; store integers, 0..{outputs - 1}")
    if len(y) and not (y.min() >= 0 and y.max() < outputs):
        raise UsageError(
            f"{where} has labels {y.min()}..{y.max()}, the network {outputs} outputs; "
            f"labels must be 0..{outputs - 1}"
        )
    return torch.from_numpy(y.astype(np.int64))
