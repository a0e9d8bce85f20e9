"""Networks whose patches see a layer: the two parts, and faces of what the first one gives."""

from typing import Any

import numpy as np

from advrepair.checker.bounds import Pair, Region
from advrepair.checker.files import Tensors, demand
from advrepair.checker.network import Network

_NUMBERS = 2**24  # of values of pieces that are bounded together


def parted(structure: dict[str, Any], at: str, tensors: Tensors) -> tuple[Network, Network]:
    """A front, whose outputs are the features at a node, and the tail that reads these alone.

    Raises Malformed where a node behind reads anything else of what came before.
    """
    operations = structure["operations"]
    names = [op["name"] for op in operations]
    demand(at in names, f"at: no node {at!r}")
    end = names.index(at) + 1
    shape, behind = operations[end - 1]["shape"], operations[end:]
    read = {name for op in behind for name in op["inputs"]}
    demand(not read & {"input", *names[: end - 1]}, f"at: a node reads past {at!r}")
    plain = {"kind": "reshape", "tensors": {}, "settings": {}}
    features = plain | {"name": f"{at} as a row", "inputs": [at], "shape": [int(np.prod(shape))]}
    again = plain | {"name": at, "inputs": ["input"], "shape": shape}
    front = {**structure, "operations": [*operations[:end], features]}
    tail = {"input_shape": features["shape"], "operations": [again, *behind]}
    return Network(front, tensors), Network(tail, tensors)


def faces(front: Network, level: str, box: Pair) -> Pair:
    """Between which the features of all inputs in boxes lie, [B,D]; infinite where unknown.

    Sound as intervals are: they cover what the front computes at the level.
    """
    parts: list[Pair] = []
    count = max(1, _NUMBERS // sum(front.sizes))
    for at in range(0, len(box[0]), count):
        low, high = (face[at : at + count] for face in box)
        free = np.full((len(low), front.units), np.inf)
        whole = (np.hstack([low, -free]), np.hstack([high, free]))
        region = Region(front, level, whole, np.zeros(free.shape), refine=False)
        known = region.valid[:, None]
        parts.append(
            (np.where(known, region.low[-1], -np.inf), np.where(known, region.high[-1], np.inf))
        )
    low, high = (np.concatenate(each) for each in zip(*parts, strict=True))
    return low, high
