"""Bounds another implementation computed, where the data folder has them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.graph import Network
from advrepair.core.onnx_import import read_onnx
from advrepair.core.types import Box

NAMES = ("mnist_784-50-32-10", "acas_1_1")


@frozen(eq=False)
class Reference:
    """A network, 200 boxes, the rows ``y_l0 - y_label`` and the arrays of the reference."""

    network: Network
    box: Box
    C: Tensor
    d: Tensor
    arrays: dict[str, Tensor]

    @property
    def params(self) -> dict[str, Tensor]:
        """The weights in float64."""
        return {name: t.double() for name, t in self.network.tensors.items()}

    @property
    def attack(self) -> Tensor:
        """The lowest margins an attack found, [B,M]; no lower bound may be above."""
        return -self.arrays["attack_max"]


def load(name: str) -> Reference:
    """Read a reference, or skip the test where there is none."""
    data = os.environ.get("ADVREPAIR_DATA")
    if not data:
        pytest.skip("ADVREPAIR_DATA is not set: no reference bounds to compare with")
    folder = Path(data).parent / "reference"
    if not folder.is_dir():
        pytest.skip("there is no folder `reference` beside ADVREPAIR_DATA")
    network = read_onnx(folder / f"{name}.onnx")
    with np.load(folder / f"{name}_ref.npz", allow_pickle=False) as archive:
        arrays = {k: torch.from_numpy(v) for k, v in archive.items() if v.dtype.kind in "fi"}
    unit = torch.eye(network.outputs, dtype=torch.float64)
    C = unit[arrays["l0"]].unsqueeze(1) - unit[arrays["labels"]]
    shape = (-1, *network.input_shape)
    box = Box(arrays["lo"].double().view(shape), arrays["hi"].double().view(shape))
    return Reference(network, box, C, C.new_zeros(C.shape[:2]), arrays)
