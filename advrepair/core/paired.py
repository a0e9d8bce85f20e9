"""Patches on one query each: the products of a bank's layers without copies of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from advrepair.core.graph import INPUT, STEPS, Network

_COPIED = 2**20  # bytes of weights copied at a time, where they have to be


def paired(template: Network, stack: Mapping[str, Tensor], x: Tensor, patch: Tensor) -> Tensor:
    """Patch[i] on x[i]: [N,K]. stack: weights of Q patches, [Q, ...]. x: [N,*S]. patch: [N]."""
    values = {INPUT: x}
    for op in template.operations:
        inputs = [values[name] for name in op.inputs]
        if op.kind == "linear":
            weight, bias = (stack[op.tensors[role]] for role in ("weight", "bias"))
            product = _products(weight, inputs[0], patch)
            values[op.name] = product + bias.index_select(0, patch)
        else:
            values[op.name] = STEPS[op.kind](op, {}, inputs)
    return values[template.operations[-1].name]


def _products(weight: Tensor, x: Tensor, patch: Tensor) -> Tensor:
    """``weight[patch[i]] @ x[i]``: [N,out] of weight [Q,out,in], x [N,in]."""
    here = weight.device.type == "cpu" and weight.is_contiguous() and _can_sample()
    if not here or weight.requires_grad:
        return _copied(weight, x, patch)
    found: Tensor = _Sampled.apply(weight, x, patch)  # type: ignore[no-untyped-call]
    return found


def _copied(weight: Tensor, x: Tensor, patch: Tensor, turned: bool = False) -> Tensor:
    """The same from copies of the weights, a few at a time; turned: of their transposes."""
    parts = patch.split(max(1, _COPIED // (weight[0].numel() * weight.element_size())))
    rows, found = x.unsqueeze(2).split([len(part) for part in parts]), []
    for some, row in zip(parts, rows, strict=True):
        own = weight.index_select(0, some)
        found.append((own.transpose(1, 2) if turned else own) @ row)
    return torch.cat(found).squeeze(2)


class _Sampled(torch.autograd.Function):
    """The same without copies.

    Of all products of x with all rows of the bank those that are wanted are the entries of a
    sparse matrix, and torch computes just these, each as one sum of its own: the weights are
    read once, and what else is in the batch does not matter. Its own derivatives are not
    used: torch's second ones are wrong.
    """

    @staticmethod
    def forward(weight: Tensor, x: Tensor, patch: Tensor) -> Tensor:
        _hush()
        count, rows = len(patch), weight.shape[1]
        column = patch[:, None] * rows + torch.arange(rows)
        wanted = torch.sparse_csr_tensor(
            torch.arange(0, count * rows + 1, rows),
            column.flatten(),
            torch.zeros(column.numel(), dtype=weight.dtype),
            size=(count, len(weight) * rows),
            check_invariants=False,
        )
        found = torch.sparse.sampled_addmm(wanted, x, weight.flatten(0, 1).T, beta=0.0)
        values: Tensor = found.values()
        return values.view(count, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        weight, _, patch = inputs
        ctx.save_for_backward(weight, patch)
        ctx.save_for_forward(weight, patch)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, None]:
        weight, patch = ctx.saved_tensors
        return None, _copied(weight, slope, patch, turned=True), None

    @staticmethod
    def jvp(ctx: Any, _: None, direction: Tensor, __: None) -> Tensor:
        weight, patch = ctx.saved_tensors
        return _copied(weight, direction, patch)


@cache
def _can_sample() -> bool:
    """Whether this torch has the product: some builds for other processors lack it."""
    one, many = torch.ones(1, 1), torch.zeros(2, dtype=torch.long)
    try:
        _Sampled.forward(one.unsqueeze(0), one, many[:1])
    except RuntimeError:
        return False
    return True


@cache
def _hush() -> None:
    """Have torch say here, once, that its sparse matrices are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)
