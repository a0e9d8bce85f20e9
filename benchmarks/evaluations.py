"""Many ways to compute the deployed function, each with an order of summation of its own."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advrepair.core.graph import INPUT, STEPS, Network, Operation, integers
from advrepair.core.patching import RepairedNetwork
from benchmarks import onnx_graph

_BATCHES = (1, 7, 256)
_THREADS = (1, 2)
_ONE_BY_ONE = 64  # points evaluated in batches of one, a round
_BY_HAND = 16  # points evaluated in numpy, a round
ORDERS = ("shuffled", "negative first", "negative last")


def in_order(terms: np.ndarray, order: str, random: np.random.Generator) -> np.ndarray:
    """Sums [A,B] of float32 terms [A,n,B], each in the order that is asked for."""
    if order == "shuffled":
        return terms[:, random.permutation(terms.shape[1])].sum(1, dtype=np.float32)
    terms = np.sort(terms, axis=1)
    if order == "negative last":
        terms = terms[:, ::-1]
    return np.cumsum(terms, axis=1, dtype=np.float32)[:, -1]


def _by_hand(op: Operation, t: dict[str, Tensor], x: Tensor, add: Any) -> Tensor:
    """A linear operation or a convolution of one point as products and sums."""
    weight = t[op.tensors["weight"]]
    if op.kind == "linear":
        columns, groups = x.reshape(-1, x.shape[-1]).T, 1
    else:
        settings = {key: integers(op, key) for key in ("dilation", "padding", "stride")}
        columns = torch.nn.functional.unfold(x, tuple(weight.shape[2:]), **settings)[0]
        groups = int(op.settings["groups"])
    parts = [
        add(rows.flatten(1).numpy()[:, :, None] * part.numpy()[None])
        for rows, part in zip(weight.chunk(groups), columns.chunk(groups), strict=True)
    ]
    result = torch.from_numpy(np.concatenate(parts))
    if "bias" in op.tensors:
        result = result + t[op.tensors["bias"]][:, None]
    return (result.T if op.kind == "linear" else result).reshape(1, *op.shape)


def reordered(
    network: Network, tensors: dict[str, Tensor], x: Tensor, order: str, seed: int
) -> Tensor:
    """Outputs [1,K] of one point [1,*S] in float32, all sums in an order of their own."""
    random, values = np.random.default_rng(seed), {INPUT: x}

    def add(terms: np.ndarray) -> np.ndarray:
        return in_order(terms, order, random)

    for op in network.operations:
        inputs = [values[name] for name in op.inputs]
        affine = op.kind in ("linear", "conv2d")
        values[op.name] = (
            _by_hand(op, tensors, inputs[0], add) if affine else STEPS[op.kind](op, tensors, inputs)
        )
    return values[network.operations[-1].name]


class Evaluator:
    """All ways to evaluate a repaired network on points of its boxes."""

    def __init__(self, model: RepairedNetwork) -> None:
        self.model, self.stack, self.rounds = model, model.bank.stack, 0
        written = onnx_graph.repaired_model(model.base, model.bank.template)
        self.sessions = {
            (level, threads): onnx_graph.open_session(written, level, threads)
            for level in onnx_graph.LEVELS
            for threads in _THREADS
        }

    def evaluations(self, x: Tensor) -> Iterator[tuple[str, bool, Tensor, Tensor]]:
        """Name of a way, whether it counts, indices of points and outputs there."""
        every = torch.arange(len(x))
        patch = self.model.patch[self.model.box.first(x)]
        self.rounds += 1
        for size in _BATCHES:
            part = every[:_ONE_BY_ONE] if size == 1 else every
            batches = part.split(size)
            for threads in _THREADS:
                torch.set_num_threads(threads)
                outputs = torch.cat([self.model(x[index]) for index in batches])
                yield f"torch, batch {size}, threads {threads}", True, part, outputs
            feeds = [self._feed(x[index], patch[index]) for index in batches]
            for (level, threads), session in self.sessions.items():
                counted = onnx_graph.within_assumptions(self.model.base, level)
                outputs = [torch.from_numpy(session.run(None, feed)[0]) for feed in feeds]
                name = f"onnxruntime, batch {size}, threads {threads}, rewriting {level}"
                yield name, counted, part, torch.cat(outputs)
        # Other points in every round, so that all boxes have their turn.
        some = (torch.arange(min(_BY_HAND, len(x))) + self.rounds * _BY_HAND) % len(x)
        for order in ORDERS:
            yield f"numpy, {order}", True, some, self._numpy(x[some], patch[some], order)

    def _feed(self, x: Tensor, patch: Tensor) -> dict[str, Any]:
        template = self.model.bank.template
        return {INPUT: x.numpy(), **onnx_graph.patch_feed(template, self.stack, patch)}

    def _numpy(self, x: Tensor, patch: Tensor, order: str) -> Tensor:
        base, template, outputs = self.model.base, self.model.bank.template, []
        for i, q in enumerate(patch.tolist()):
            own = {name: t[q] for name, t in self.stack.items()}
            logits = reordered(base, base.tensors, x[i : i + 1], order, self.rounds + i)
            outputs.append(logits + reordered(template, own, x[i : i + 1], order, self.rounds + i))
        return torch.cat(outputs)
