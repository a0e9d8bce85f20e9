"""Patches on one query each: the products of a bank's layers without copies of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache

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
    """``weight[patch[i]] @ x[i]``: [N,out] of weight [Q,out,in], x [N,in].

    Of all products of x with all rows of the bank those that are wanted are the entries of a
    sparse matrix, and torch computes just these, each as one sum of its own: the weights are
    read once, and what else is in the batch does not matter. Copying them first takes two to
    three times as long.
    """
    if weight.device.type != "cpu" or not weight.is_contiguous():
        parts = patch.split(max(1, _COPIED // (weight[0].numel() * weight.element_size())))
        rows = x.unsqueeze(2).split([len(part) for part in parts])
        pairs = zip(parts, rows, strict=True)
        return torch.cat([weight.index_select(0, i) @ y for i, y in pairs]).squeeze(2)
    _hush()
    count, rows_each = len(patch), weight.shape[1]
    column = patch[:, None] * rows_each + torch.arange(rows_each)
    wanted = torch.sparse_csr_tensor(
        torch.arange(0, count * rows_each + 1, rows_each),
        column.flatten(),
        torch.zeros(column.numel(), dtype=weight.dtype),
        size=(count, len(weight) * rows_each),
        check_invariants=False,
    )
    found = torch.sparse.sampled_addmm(wanted, x, weight.flatten(0, 1).T, beta=0.0)
    values: Tensor = found.values()
    return values.view(count, rows_each)


@cache
def _hush() -> None:
    """Have torch say here, once, that its sparse matrices are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1), check_invariants=False)
