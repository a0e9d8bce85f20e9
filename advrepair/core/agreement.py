"""Whether an exported file computes what the repaired network does, on a few hundred inputs.

A check of the file and of the program that runs it; no proof.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
import onnx
import torch
from attrs import frozen
from onnx import TensorProto, helper
from torch import Tensor, nn

from advrepair.core.errors import AdvrepairError
from advrepair.core.graph import INPUT, NON_AFFINE
from advrepair.core.onnx_writer import OUTPUT
from advrepair.core.patching import RepairedNetwork
from advrepair.core.relu_form import Shells
from advrepair.core.routing_steps import GATES, LOGITS, ROUTE

_REGIONS, _RANDOM = 40, 128  # regions looked at, each with six inputs; inputs anywhere
_TOLERANCE = 2**11  # unit roundoffs of 1 + the largest output
_AT_ONCE = 64


@frozen
class Agreement:
    """What the comparison found.

    inputs: how many. deviation: the largest of the outputs. tolerance: what is allowed.
    shell: inputs that lie in a shell, where nothing is compared.
    """

    inputs: int
    deviation: float
    tolerance: float
    shell: int = 0


def trial_inputs(repaired: RepairedNetwork, seed: int = 0) -> Tensor:
    """Random inputs, and of some regions: inside, a corner, a face, one ulp beyond it: [N,*S]."""
    noise, box = torch.Generator().manual_seed(seed), repaired.box
    index = torch.randperm(len(box), generator=noise)[:_REGIONS]
    lower, upper = box.lower[index].flatten(1), box.upper[index].flatten(1)

    def uniform(low: Tensor, high: Tensor, rows: int) -> Tensor:
        share = torch.rand(rows, low.shape[-1], generator=noise, dtype=low.dtype)
        return torch.minimum(torch.maximum(low + share * (high - low), low), high)

    inside = uniform(lower, upper, len(lower))
    side = torch.rand(inside.shape, generator=noise) < 0.5
    corner = torch.where(side, lower, upper)
    at = torch.randint(lower.shape[1], (len(lower), 1), generator=noise)
    face = inside.scatter(1, at, corner.gather(1, at))
    ends = torch.where(side, -torch.inf, torch.inf).to(lower.dtype)
    beyond = face.scatter(1, at, torch.nextafter(face.gather(1, at), ends.gather(1, at)))
    low, high = box.lower.flatten(1).amin(0), box.upper.flatten(1).amax(0)
    wide = high - low
    anywhere = uniform(low - wide / 4, high + wide / 4, _RANDOM)
    rows = torch.cat([inside, lower, upper, corner, face, beyond, anywhere])
    return rows.reshape(-1, *box.input_shape)


def runtime() -> ModuleType | None:
    """The module onnxruntime; None if it cannot be imported."""
    try:
        return import_module("onnxruntime")
    except ImportError:
        return None


def check_routed(model: bytes, repaired: RepairedNetwork, x: Tensor) -> Agreement:
    """Compare the routed form, run by onnxruntime: every route, and the outputs.

    A label, and with it an allocator's choice, can hang on the last bit of an output of N; so
    the router is asked with the outputs of N that onnxruntime found. Raises AdvrepairError if
    a route differs, or an output by more than the tolerance.
    """
    x = torch.cat([x, torch.full_like(x[:1], torch.nan)])
    shown = onnx.load_from_string(model)
    kind = TensorProto.DOUBLE if x.dtype == torch.float64 else TensorProto.FLOAT
    shown.graph.output.append(helper.make_tensor_value_info(LOGITS, kind, None))
    gates = helper.make_tensor_value_info(ROUTE + GATES, TensorProto.BOOL, None)
    shown.graph.output.append(gates)
    run = _session(shown.SerializeToString(), [OUTPUT, LOGITS, ROUTE + GATES])
    y, logits, found = (torch.cat(each) for each in zip(*map(run, x.split(_AT_ONCE)), strict=True))
    with torch.no_grad():
        route = repaired.route(x, logits)
        if not found.equal(route):
            wrong = int((found != route).any(1).sum())
            raise AdvrepairError(
                f"the ONNX file routes {wrong} of {len(x)} inputs otherwise than the repaired "
                "network: nothing was written; please report it"
            )
        seen = repaired.seen(x)
        base = repaired.tail(seen)
        ours = repaired.bank.add_to(base, seen, route)
        ours = repaired.smoothed(ours, seen, base, repaired.smooth(x))
        if {op.kind for op in repaired.base.operations} & (NON_AFFINE - {"relu"}):
            # Of other functions' results onnxruntime loses a NaN here and there.
            kept = x.flatten(1).isfinite().all(1)
            y, ours, base = y[kept], ours[kept], base[kept]
        compared = _compare("ONNX", y, ours, base)
        return Agreement(len(x), compared.deviation, compared.tolerance)


def check_relu(
    model: bytes, repaired: RepairedNetwork, x: Tensor, shells: Shells, limits: tuple[float, float]
) -> Agreement:
    """Compare the relu form, run by onnxruntime, on the input range and outside the shells.

    Raises AdvrepairError if an output differs by more than the tolerance.
    """
    x = x.clamp(*limits)
    plain = torch.cat([_plain(repaired, shells, part) for part in x.split(8)])
    run = _session(model, [OUTPUT])
    y = torch.cat([run(part)[0] for part in x[plain].split(_AT_ONCE)])
    with torch.no_grad():
        found = _compare("ONNX", y, repaired(x[plain]), repaired.base(x[plain]))
    return Agreement(len(y), found.deviation, found.tolerance, int((~plain).sum()))


def check_model(file: bytes, model: nn.Module, x: Tensor) -> Agreement:
    """Compare an ONNX file, run by onnxruntime, with any model. Raises AdvrepairError as above."""
    run = _session(file, [OUTPUT])
    y = torch.cat([run(part)[0] for part in x.split(_AT_ONCE)])
    with torch.no_grad():
        ours = torch.cat([model(part) for part in x.split(_AT_ONCE)])
    return _compare("ONNX", y, ours, ours)


def check_module(kind: str, module: nn.Module, repaired: RepairedNetwork, x: Tensor) -> Agreement:
    """Compare a torch module. Raises AdvrepairError as above."""
    with torch.no_grad():
        y = torch.cat([module(part) for part in x.split(_AT_ONCE)])
        expected = [(repaired(part), repaired.base(part)) for part in x.split(_AT_ONCE)]
    ours, base = (torch.cat(each) for each in zip(*expected, strict=True))
    return _compare(kind, y, ours, base)


def _compare(kind: str, y: Tensor, expected: Tensor, base: Tensor) -> Agreement:
    sizes = [each[each.isfinite()].abs() for each in (expected, base)]
    scale = 1 + max([float(each.max()) for each in sizes if len(each)], default=0.0)
    tolerance = _TOLERANCE * torch.finfo(y.dtype).eps * scale
    same = (y == expected) | (y.isnan() & expected.isnan())
    deviation = float(torch.where(same, 0, (y - expected).abs()).max()) if len(y) else 0.0
    if not deviation <= tolerance:
        raise AdvrepairError(
            f"the {kind} file's outputs differ by {deviation:.2g} from the repaired network's, "
            f"more than {tolerance:.2g}: nothing was written; please report it"
        )
    return Agreement(len(y), deviation, tolerance)


def _plain(repaired: RepairedNetwork, shells: Shells, x: Tensor) -> Tensor:
    """Inputs that no shell touches: bool [N]."""
    box, rows = repaired.box, x[:, None]
    zero = torch.zeros((), dtype=x.dtype)
    excess = torch.maximum(box.lower - rows, zero) + torch.maximum(rows - box.upper, zero)
    near = excess.flatten(2).amax(2) < shells.width  # [N,R]
    home = box.first(x)
    at = home.clamp(min=0)
    other = repaired.patch[None] != repaired.patch[at, None]
    earlier = torch.arange(len(box))[None] < at[:, None]
    return torch.where(home >= 0, ~(near & other & earlier).any(1), ~near.any(1))


def _session(model: bytes, outputs: list[str]) -> Callable[[Tensor], list[Tensor]]:
    onnxruntime = runtime()
    if onnxruntime is None:  # the caller asks first
        raise AdvrepairError("onnxruntime is not installed")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> list[Tensor]:
        found: list[np.ndarray] = session.run(outputs, {INPUT: x.numpy()})
        return [torch.from_numpy(each) for each in found]

    return run
