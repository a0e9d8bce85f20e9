"""The network and the data that a configuration names, read and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from advrepair import demo
from advrepair.core.data import Data, load_data
from advrepair.core.errors import UsageError
from advrepair.core.files import file_digest
from advrepair.core.graph import Network
from advrepair.core.network import load_network
from advrepair.core.sections import DEMO, Problem


def read_inputs(problem: Problem) -> tuple[Network, Data, dict[str, str]]:
    """Network, data, and the SHA-256 of the files they came from.

    Raises UsageError, UnsupportedNetworkError for what cannot be read or does not fit.
    """
    bundled = problem.network == DEMO and not Path(DEMO).exists()
    network_path = demo.NETWORK if bundled else Path(problem.network)
    source = data_path(problem)
    network = _network(network_path, problem.factory, source)
    data = load_data(source, network.input_shape, network.dtype, clip_of(problem), network.outputs)
    digests = {"network": file_digest(network_path), "data": file_digest(source)}
    return network, data, digests


def data_path(problem: Problem) -> Path:
    """The npz file with the inputs; that of the demo if none is named."""
    return Path(problem.data) if problem.data else demo.IMAGES


def clip_of(problem: Problem) -> tuple[float, float] | None:
    """The input range as a pair, None if unbounded."""
    bounds = problem.input_range
    return (bounds[0], bounds[1]) if bounds else None


def _network(path: Path, factory: str, data: Path) -> Network:
    """A module that does not say its input shape takes that of the data."""
    if not factory or path.suffix == ".onnx":
        return load_network(path, factory)
    try:
        return load_network(path, factory)
    except UsageError as error:
        shape = _shape_of(data) if "input_shape" in str(error) else None
        if shape is None:
            raise
    return load_network(path, factory, shape)


def _shape_of(path: Path) -> tuple[int, ...] | None:
    """Shape of one input of an npz file, None if it cannot be told."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            key = next((key for key in ("x", "x_train") if key in arrays.files), None)
            return None if key is None else tuple(arrays[key].shape[1:])
    except (OSError, ValueError):
        return None
