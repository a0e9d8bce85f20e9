"""A repaired network without comparisons: linear layers and ReLU, for any verifier to read.

How far an input lies outside a region is a sum of ReLUs, ``excess = sum_i relu(lower_i - x_i)
+ relu(x_i - upper_i)``; the membership is ``m = relu(1 - excess / w)`` with the width w of the
shell, a power of two. Each difference is rounded once and keeps its sign, so the excess is
exactly 0 inside, faces included, and m exactly 1; where some difference reaches w, m is
exactly 0. An earlier region of another patch that comes nearer than w takes its part away:
``e_r = relu(m_r - sum of such m)``. A patch with the regions R_p is gated by

    t = -M relu(1 - sum of e_r over R_p),    relu(p + t) - relu(-p + t)

with ``M >= |p|`` on the input range. The gate is 0 for t = -M and, without rounding, p for
t = 0: M is never added to p there.

So on the input range the function computes, in floating point too,

* in region r, where no earlier region of another patch is nearer than w: N + p, as routed;
* outside all regions and shells: N;
* elsewhere: N + sum of s_p, each s_p between 0 and p in every output.

The sums inside N and inside p may be taken in another order, as by any other program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.errors import UsageError
from advrepair.core.graph import INPUT, NON_AFFINE, size
from advrepair.core.interfaces import SmoothAllocator
from advrepair.core.onnx_writer import OUTPUT, write_model, write_network
from advrepair.core.operators import Steps
from advrepair.core.patching import PatchBank, RepairedNetwork

_DENSE = 2**22  # numbers of a matrix; larger ones become grouped convolutions
_PAIRS = 2**23  # differences in flight
_SHARE = 2**-10  # of the narrowest width of a region: the shell, unless another is asked for


@frozen(eq=False)
class Shells:
    """The shells of a repaired network.

    width: w. touched: bool [R], regions with an earlier one of another patch nearer than w.
    nearer: bool [R,R], whether j is such a region for i.
    """

    width: float
    touched: Tensor
    nearer: Tensor


def check_relu_form(repaired: RepairedNetwork) -> None:
    """Raises UsageError, by name, for what the relu form cannot say.

    That is an allocator other than ``none``, and a function other than ReLU.
    """
    smooth = isinstance(repaired.allocator, SmoothAllocator)
    if smooth or repaired.allocator.most(repaired.centres):
        raise UsageError(
            f"allocator {repaired.allocator.name!r} cannot be exported with --form relu, only "
            "'none' can: use --form routed, or repair with --allocator none"
        )
    for op in repaired.base.operations:
        if op.kind in NON_AFFINE - {"relu"}:
            raise UsageError(
                f"network: node {op.name!r} ({op.kind}) cannot be exported with --form relu, which "
                "has linear layers and ReLU only: use --form routed"
            )


def make_shells(repaired: RepairedNetwork, shell: float | None = None) -> Shells:
    """The shells, of width shell rounded down to a power of two.

    Left out, it is 2^-10 of the narrowest width of a region, and no more than half the least
    distance of two regions of different patches. Raises UsageError if w is no positive number,
    or less than what the format of the weights resolves.
    """
    box, patch = repaired.box, repaired.patch
    other = patch[:, None] != patch[None]
    gap = _gaps(box)
    finest = _power(16 * torch.finfo(box.lower.dtype).eps * _largest(box)) * 2
    if shell is None:
        apart = gap[other & (gap > 0)]
        widths = (box.upper.double() - box.lower.double()).flatten()
        wide = [float(each.min()) for each in (widths[widths > 0] * _SHARE, apart / 2) if len(each)]
        width = max(_power(min(wide)), finest) if wide else finest
    else:
        if not (shell > 0 and math.isfinite(shell)):
            raise UsageError(f"--shell is {shell}: it must be a positive number")
        width = _power(shell)
        if width < finest:
            raise UsageError(
                f"--shell {shell:g} is less than {finest:g}, which the network's numbers resolve "
                "at the regions' faces: use a wider one"
            )
    nearer = (other & (gap < width)).tril(-1)
    return Shells(width, nearer.any(1), nearer)


def relu_model(
    repaired: RepairedNetwork,
    input_range: tuple[float, float],
    shells: Shells,
    about: Mapping[str, str] | None = None,
) -> bytes:
    """The relu form. Its input is called ``input``, its output ``output``, the batch is open.

    input_range: lowest and highest number of an input; beyond it nothing is said. Raises as
    :func:`check_relu_form` does; UnsupportedNetworkError, naming the node.
    """
    check_relu_form(repaired)
    to, base, bank = Steps(), repaired.base, repaired.bank
    logits = write_network(to, base)
    inputs = {INPUT: base.input_shape}
    # Regions without a patch matter only as far as they take from later ones.
    kept = (repaired.patch >= 0) | shells.nearer[repaired.patch >= 0].any(0)
    if not bool((repaired.patch >= 0).any()):
        total = to.call("Identity", logits, name=OUTPUT)
        return write_model(to, inputs, {total: [base.outputs]}, base.dtype, about)
    to.prefix = "patch/"
    flat = to.call("Flatten", INPUT, axis=1)
    member = _membership(to, flat, repaired.box[kept], shells.width)
    nearer = shells.nearer[kept][:, kept]
    if bool(nearer.any()):
        take = torch.eye(len(nearer)) - nearer.float()
        member = to.call("Relu", _matrix(to, member, take.to(base.dtype)))
    patches = _gated(to, flat, member, bank, repaired.patch[kept], _bound(bank, *input_range))
    to.prefix = ""
    total = to.call("Add", logits, patches, name=OUTPUT)
    return write_model(to, inputs, {total: [base.outputs]}, base.dtype, about)


def _membership(to: Steps, x: str, box: Box, width: float) -> str:
    """m of each region: [N,R]. x: [N,S]."""
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    regions, inputs = lower.shape
    shift = torch.stack([lower, -upper], 1)  # [R,2,S]
    sign = torch.tensor([-1.0, 1.0], dtype=lower.dtype).repeat(regions)
    if 2 * regions * inputs**2 <= _DENSE:
        eye = torch.eye(inputs, dtype=lower.dtype)
        rows = (sign[:, None, None] * eye).reshape(-1, inputs)
        outside = _matrix(to, x, rows, shift.reshape(-1))
    else:
        image = to.call("Reshape", x, shape=(-1, 1, inputs, 1))
        copies = to.call("Conv", image, to.constant(sign.reshape(-1, 1, 1, 1)))
        outside = to.call("Add", copies, to.constant(shift.reshape(-1, inputs, 1)))
        outside = to.call("Reshape", outside, shape=(-1, 2 * regions * inputs))
    outside = to.call("Relu", outside)
    rows = torch.full((regions, 1, 2 * inputs), -1 / width, dtype=lower.dtype)
    return to.call("Relu", _grouped(to, outside, rows, torch.ones(regions, 1).to(rows.dtype)))


def _gated(to: Steps, x: str, member: str, bank: PatchBank, patch: Tensor, bound: Tensor) -> str:
    """The sum of the patches, each as far as its regions are on: [N,K]. bound: M, [Q,K]."""
    count, outputs = bound.shape
    eye = torch.eye(outputs, dtype=bound.dtype)
    value = x
    for layer, op in enumerate(op for op in bank.template.operations if op.kind == "linear"):
        weight, bias = (bank.stack[op.tensors[role]] for role in ("weight", "bias"))
        if layer:
            value = _grouped(to, to.call("Relu", value), weight, bias)
        else:
            value = _matrix(to, value, weight.flatten(0, 1), bias.flatten())
    both = torch.cat([eye, -eye]).expand(count, -1, -1)
    value = _grouped(to, value, both, bound.new_zeros(count, 2 * outputs))
    serves = (torch.arange(count)[:, None] == patch[None]).to(bound.dtype)
    off = to.call("Relu", _matrix(to, member, -serves, bound.new_ones(count)))
    depth = -torch.cat([bound, bound], 1)[:, :, None]
    height = _grouped(to, off, depth, bound.new_zeros(count, 2 * outputs))
    open_parts = to.call("Relu", to.call("Add", value, height))
    return _matrix(to, open_parts, torch.cat([eye, -eye], 1).repeat(1, count))


def _matrix(to: Steps, x: str, weight: Tensor, bias: Tensor | None = None) -> str:
    given = [to.constant(each) for each in (weight, bias) if each is not None]
    return to.call("Gemm", x, *given, transB=1)


def _grouped(to: Steps, x: str, weight: Tensor, bias: Tensor) -> str:
    """Each group of the columns of x times its weight.T plus its bias, side by side.

    weight: groups, rows, columns. bias: groups, rows. One matrix whose other entries are 0
    where it is small, else a convolution with groups.
    """
    groups, rows, columns = weight.shape
    if groups * groups * rows * columns <= _DENSE:
        return _matrix(to, x, torch.block_diag(*weight), bias.flatten())
    image = to.call("Reshape", x, shape=(-1, groups * columns, 1, 1))
    taps = to.constant(weight.reshape(groups * rows, columns, 1, 1))
    image = to.call("Conv", image, taps, to.constant(bias.flatten()), group=groups)
    return to.call("Reshape", image, shape=(-1, groups * rows))


def _bound(bank: PatchBank, low: float, high: float) -> Tensor:
    """M: at least the absolute value of each patch's outputs on the input range, [Q,K].

    Sound: interval arithmetic in float64; every sum is widened by what its evaluation in the
    patch's own format can be off, and the result by more than what ours can.
    """
    template, stack = bank.template, bank.stack
    unit = torch.finfo(template.dtype).eps
    features = size(template.input_shape)
    lower = torch.full((len(bank), features), low, dtype=torch.float64)
    upper = torch.full_like(lower, high)
    for op in template.operations:
        if op.kind == "relu":
            lower, upper = lower.clamp(min=0), upper.clamp(min=0)
        elif op.kind == "linear":
            weight, bias = (stack[op.tensors[role]].double() for role in ("weight", "bias"))
            middle, radius = (lower + upper) / 2, (upper - lower) / 2
            center = torch.einsum("qba,qa->qb", weight, middle) + bias
            spread = torch.einsum("qba,qa->qb", weight.abs(), radius)
            most = torch.maximum(lower.abs(), upper.abs())
            sums = torch.einsum("qba,qa->qb", weight.abs(), most) + bias.abs()
            spread = spread + 2 * (weight.shape[2] + 4) * unit * sums + 2.0**-100
            lower, upper = center - spread, center + spread
    found = torch.maximum(lower.abs(), upper.abs()) * (1 + 2.0**-10)
    if not bool((found < torch.finfo(template.dtype).max / 4).all()):
        raise UsageError("a patch is too large on the input range for --form relu")
    return found.to(template.dtype) * (1 + 4 * unit)


def _gaps(box: Box) -> Tensor:
    """L-infinity distance of all pairs of regions, 0 where they meet: [R,R].

    Rounded as the difference of an input and a face is in the file, so a distance that is not
    below w leaves a membership of exactly 0.
    """
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    rows = max(1, _PAIRS // max(1, lower.numel()))
    above = torch.cat([(part[:, None] - upper[None]).amax(2) for part in lower.split(rows)])
    return torch.maximum(above, above.T).clamp(min=0)


def _largest(box: Box) -> float:
    return max(float(box.lower.abs().max()), float(box.upper.abs().max()), 2.0**-60)


def _power(value: float) -> float:
    """The largest power of two that is not greater."""
    return math.ldexp(1.0, math.frexp(value)[1] - 1)
