"""The network and the data that a configuration names, read and checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from attrs import Factory, evolve, frozen

from advrepair import demo
from advrepair.core.data import Data, load_data
from advrepair.core.errors import UsageError
from advrepair.core.files import file_digest
from advrepair.core.graph import Network
from advrepair.core.network import load_network
from advrepair.core.nnet import read_ranges
from advrepair.core.properties import in_words
from advrepair.core.sections import DEMO, Problem
from advrepair.core.specified import from_specifications
from advrepair.core.types import PropertySet
from advrepair.core.vnnlib import read_vnnlib


@frozen(eq=False)
class Inputs:
    """What was read. demanded: of the property files. digests: SHA-256 of every file."""

    network: Network
    data: Data | None
    demanded: PropertySet | None
    notes: tuple[str, ...] = ()
    digests: dict[str, str] = Factory(dict)


def read_inputs(problem: Problem) -> Inputs:
    """Read every file that a problem names.

    Raises UsageError, UnsupportedNetworkError for what cannot be read or does not fit.
    """
    network_path = network_file(problem)
    source = data_path(problem)
    network = _network(network_path, problem.factory, source)
    digests = {"network": file_digest(network_path)}
    data = demanded = None
    notes: tuple[str, ...] = ()
    if source is not None:
        clip = clip_of(problem)
        data = load_data(source, network.input_shape, network.dtype, clip, network.outputs)
        digests["data"] = file_digest(source)
    if problem.property:
        demanded, notes = read_properties(problem.property, network, clip_of(problem))
        refuse_outside(demanded, network_path)
        digests |= {f"property {path}": file_digest(Path(path)) for path in problem.property}
    return Inputs(network, data, demanded, notes, digests)


def anchored(problem: Problem) -> Problem:
    """The same files by absolute paths, so that ``run.toml`` serves in any working directory."""
    bundled = network_file(problem) == demo.NETWORK
    return evolve(
        problem,
        network=problem.network if bundled else os.path.abspath(problem.network),
        data=problem.data and os.path.abspath(problem.data),
        property=tuple(os.path.abspath(path) for path in problem.property),
    )


def refuse_outside(demanded: PropertySet, network: Path) -> None:
    """Raises UsageError for a region beyond the inputs that a ``.nnet`` file states.

    Such a file takes physical units; files of properties are often in normalised ones.
    """
    if network.suffix.lower() != ".nnet":
        return
    least, greatest = read_ranges(network)
    lower, upper = (face.flatten(1).double() for face in (demanded.box.lower, demanded.box.upper))
    slack = 1e-6 * torch.maximum(least.abs(), greatest.abs())  # faces are rounded outward
    outside = (lower < least - slack) | (upper > greatest + slack)
    if bool(outside.any()):
        which, i = (int(n) for n in outside.nonzero()[0])
        raise UsageError(
            f"{demanded.names[which]}: X_{i} from {float(lower[which, i]):g} to "
            f"{float(upper[which, i]):g} leaves the range of {network.name}, "
            f"[{float(least[i]):g}, {float(greatest[i]):g}]: a .nnet file takes physical units; "
            "rescale the property, or use the ONNX file of the network"
        )


def in_plain_words(inputs: Inputs) -> list[str]:
    """What the property files demand, a line each; a negated demand is easily misread."""
    if inputs.demanded is None:
        return []
    lines = [
        f"{name}: you ask that {in_words(inputs.demanded, i)}"
        for i, name in enumerate(inputs.demanded.names)
    ]
    return lines + [f"note: {note}" for note in inputs.notes]


def network_file(problem: Problem) -> Path:
    """The file of the network; that of the demo if there is none of its name."""
    bundled = problem.network == DEMO and not Path(DEMO).exists()
    return demo.NETWORK if bundled else Path(problem.network)


def read_properties(
    paths: Sequence[str], network: Network, clip: tuple[float, float] | None
) -> tuple[PropertySet, tuple[str, ...]]:
    """What files demand of a network, and what was read in a way that people should know of.

    Raises UsageError for what cannot be read or does not fit, and for a region that leaves the
    declared input range.
    """
    read = [read_vnnlib(Path(path)) for path in paths]
    shape, outputs = network.input_shape, network.outputs
    demanded = from_specifications(read, shape, outputs, network.dtype)
    if clip is not None:
        box = demanded.box
        outside = (box.lower < clip[0]) | (box.upper > clip[1])
        if bool(outside.any()):
            which, place = (int(n) for n in outside.flatten(1).nonzero()[0])
            faces = (face.flatten(1)[which, place].item() for face in (box.lower, box.upper))
            low, high = faces
            raise UsageError(
                f"{demanded.names[which]}: X_{place} from {low:g} to {high:g} leaves the input "
                f"range [{clip[0]:g}, {clip[1]:g}]; correct the file or pass --input-range"
            )
    return demanded, tuple(f"{each.name}: {note}" for each in read for note in each.notes)


def data_path(problem: Problem) -> Path | None:
    """The npz file with the inputs; that of the demo if nothing at all is named."""
    if problem.data:
        return Path(problem.data)
    return None if problem.property else demo.IMAGES


def clip_of(problem: Problem) -> tuple[float, float] | None:
    """The input range as a pair, None if unbounded."""
    bounds = problem.input_range
    return (bounds[0], bounds[1]) if bounds else None


def _network(path: Path, factory: str, data: Path | None) -> Network:
    """A module that does not say its input shape takes that of the data."""
    if not factory or path.suffix == ".onnx":
        return load_network(path, factory)
    try:
        return load_network(path, factory)
    except UsageError as error:
        shape = _shape_of(data) if data and "input_shape" in str(error) else None
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
