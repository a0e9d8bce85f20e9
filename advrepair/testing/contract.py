"""Checks of what a verifier promises besides soundness: shapes, batches, gradients, refusals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import evolve
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.errors import UnsupportedNetworkError
from advrepair.core.interfaces import Verifier
from advrepair.core.types import LinearBound
from advrepair.testing.cases import Case, make_case, standard_cases
from advrepair.testing.networks import Sketch, fully_connected
from advrepair.testing.trial import (
    Trial,
    minimum,
    nudged,
    reached,
    rearranged,
    require,
    require_below,
    require_equal,
    roundings,
    trials,
)

_STEP = 1e-6  # of a finite difference; its error is about _STEP ** 2, its noise 1e-9


def check_shapes_and_dtype(verifier: Verifier) -> None:
    """A is [B,M,*S], b is [B,M], in the dtype of the weights; one box and one row too."""
    for trial in trials(verifier, standard_cases()):
        for case in (trial.case, rearranged(trial.case, torch.tensor([0]))):
            for rows in (case.C.shape[1], 1):
                for dtype in (torch.float32, torch.float64):
                    _check_one_shape(trial, case, rows, dtype)


def _check_one_shape(trial: Trial, case: Case, rows: int, dtype: torch.dtype) -> None:
    weights = {name: t.to(dtype) for name, t in case.network.tensors.items()}
    box = Box(case.box.lower.to(dtype), case.box.upper.to(dtype))
    C, d = case.C[:, :rows].to(dtype), case.d[:, :rows].to(dtype)
    bound = trial.function(weights, box, C, d)
    for name, tensor, shape in (
        ("A", bound.A, (len(box), rows, *box.input_shape)),
        ("b", bound.b, (len(box), rows)),
    ):
        have = f"{list(tensor.shape)} {tensor.dtype}"
        require(
            tuple(tensor.shape) == shape and tensor.dtype is dtype,
            f"{case.name} network: {name} is {have}, not {list(shape)} {dtype}",
        )


def check_healthy_networks_get_numbers(verifier: Verifier) -> None:
    """No NaN and no +inf on ordinary networks and boxes; -inf says "I do not know"."""
    for rounding in roundings(verifier):
        for trial in trials(verifier, standard_cases(), rounding):
            least = trial.minimum()
            require(
                bool((least < torch.inf).all()),
                f"{trial.case.name} network: a bound is NaN or +inf on a healthy network",
            )


def check_nan_is_never_a_proof(verifier: Verifier) -> None:
    """A weight that is NaN gives a bound that is NaN or -inf, never one to count on."""
    for rounding in roundings(verifier):
        for trial in trials(verifier, standard_cases(), rounding):
            # Rows without zeros: every output, so every weight, has a say in each of them.
            dense = torch.where(trial.case.C == 0, 0.5, trial.case.C)
            trial = evolve(trial, case=evolve(trial.case, C=dense))
            for name, tensor in trial.case.params.items():
                broken = tensor.clone().flatten()
                broken[len(broken) // 2] = torch.nan
                weights = {**trial.case.params, name: broken.view_as(tensor)}
                least = trial.minimum(weights)
                require(
                    not bool((least > -torch.inf).any()),
                    f"{trial.case.name} network: {name} holds a NaN and a bound is "
                    f"{least.nan_to_num(-torch.inf).max().item()}",
                )


def check_calls_are_pure(verifier: Verifier) -> None:
    """A call leaves its arguments alone, and no trace for the next call."""
    for trial in trials(verifier, standard_cases()):
        case, weights = trial.case, trial.case.params
        given = [*weights.values(), case.box.lower, case.box.upper, case.C, case.d]
        copies = [t.clone() for t in given]
        before = minimum(trial.bound(weights), case.box, False)
        trial.bound(nudged(case, seed=2))
        same = all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
        require(same, f"{case.name} network: a call changes its arguments")
        what = "the same call gives {have} and later {want}"
        require_equal(case, before, trial.minimum(weights), what)


def check_each_box_stands_alone(verifier: Verifier) -> None:
    """Other boxes and rows of the batch, and their order, change nothing beyond rounding."""
    for trial in trials(verifier, standard_cases()):
        case, whole = trial.case, trial.minimum()
        backwards = torch.arange(len(case.box) - 1, -1, -1)
        have = evolve(trial, case=rearranged(case, backwards)).minimum()
        require_equal(case, have[backwards], whole, "in another order {have}, before {want}")
        each = [
            evolve(trial, case=rearranged(case, torch.tensor([i]))).minimum()
            for i in range(len(case.box))
        ]
        require_equal(case, torch.cat(each), whole, "alone {have}, in the batch {want}")
        rows = [
            evolve(trial, case=evolve(case, C=case.C[:, m : m + 1], d=case.d[:, m : m + 1]))
            for m in range(case.C.shape[1])
        ]
        alone = torch.cat([each.minimum() for each in rows], 1)
        require_equal(case, alone, whole, "the row alone {have}, among others {want}")


def check_vmap_equals_the_loop(verifier: Verifier) -> None:
    """A batchable verifier under ``torch.func.vmap`` gives what single calls give."""
    if not verifier.batchable:
        return
    for rounding in roundings(verifier):
        for trial in trials(verifier, standard_cases(), rounding):
            _check_vmap(trial, gradients=verifier.differentiable and rounding is None)


def _check_vmap(trial: Trial, gradients: bool) -> None:
    case = trial.case
    weights = [nudged(case, seed) for seed in (3, 4, 5)]
    parts = [rearranged(case, torch.arange(len(case.box)).roll(shift)) for shift in (0, 1, 2)]
    stack = {name: torch.stack([w[name] for w in weights]) for name in case.params}
    for tensor in stack.values():
        tensor.requires_grad_(gradients)

    def rows(params: dict[str, Tensor], *given: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, C, d = given
        bound = trial.function(params, Box(lower, upper), C, d)
        return bound.A, bound.b

    columns = zip(*((p.box.lower, p.box.upper, p.C, p.d) for p in parts), strict=True)
    A, b = torch.func.vmap(rows)(stack, *(torch.stack(column) for column in columns))
    mapped, looped = [], []
    for i, part in enumerate(parts):
        mapped.append(minimum(LinearBound(A[i], b[i]), part.box, trial.rigorous))
        own = {name: t[i] for name, t in stack.items()}
        looped.append(evolve(trial, case=part).minimum(own))
        what = f"patch {i}: under vmap {{have}}, by itself {{want}}"
        require_equal(case, mapped[-1].detach(), looped[-1].detach(), what)
    if gradients:
        _check_same_gradient(case, stack, torch.cat(mapped), torch.cat(looped))


def _check_same_gradient(
    case: Case, stack: dict[str, Tensor], mapped: Tensor, looped: Tensor
) -> None:
    require(mapped.requires_grad, f"{case.name} network: the bound is detached under vmap")
    tensors = list(stack.values())
    for name, have, want in zip(
        stack,
        torch.autograd.grad(mapped.sum(), tensors, materialize_grads=True, allow_unused=True),
        torch.autograd.grad(looped.sum(), tensors, materialize_grads=True, allow_unused=True),
        strict=True,
    ):
        require(
            torch.allclose(have, want, rtol=1e-7, atol=1e-7, equal_nan=True),
            f"{case.name} network: the gradient of {name} under vmap is another one",
        )


def check_gradient_is_the_slope(verifier: Verifier) -> None:
    """The gradient of the bound in every weight is what finite differences measure."""
    if not verifier.differentiable:
        return
    for trial in trials(verifier, standard_cases()):
        # Boxes of some width: on a point no relaxation is at work.
        trial = evolve(trial, case=rearranged(trial.case, torch.tensor([2, 4, 5, 3])))
        weights = {name: t.requires_grad_() for name, t in trial.case.params.items()}
        where = f"{trial.case.name} network"
        loss = _weighted(trial, weights)
        require(loss.requires_grad, f"{where}: the bound is detached from the weights")
        found = torch.autograd.grad(
            loss, list(weights.values()), allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(weights, found, strict=True):
            _check_slope(trial, where, weights, name, gradient)


def _weighted(trial: Trial, weights: dict[str, Tensor]) -> Tensor:
    """One number in which every bound that is finite has its own share."""
    least = trial.minimum(weights)
    share = torch.linspace(1.0, 2.0, least.numel(), dtype=least.dtype).view_as(least)
    return (least * share)[least.detach().isfinite()].sum()


def _check_slope(
    trial: Trial, where: str, weights: dict[str, Tensor], name: str, gradient: Tensor
) -> None:
    """Along random directions the change on either side is gradient times step.

    At a kink the two sides differ and the gradient may be either, so the difference between
    them is forgiven.
    """
    fixed = {key: t.detach() for key, t in weights.items()}
    generator = torch.Generator().manual_seed(9)

    def loss(shift: Tensor) -> float:
        return _weighted(trial, {**fixed, name: fixed[name] + shift}).item()

    here = loss(torch.zeros_like(gradient))
    for _ in range(3):
        direction = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype)
        forward = (loss(_STEP * direction) - here) / _STEP
        backward = (here - loss(-_STEP * direction)) / _STEP
        slope, have = (forward + backward) / 2, float((gradient * direction).sum())
        allowed = abs(forward - backward) + 1e-5 * (1 + abs(slope))
        require(
            abs(have - slope) <= allowed,
            f"{where}: the gradient of {name} says {have:.6g}, a finite difference {slope:.6g}",
        )


def check_unknown_operation_is_refused(verifier: Verifier) -> None:
    """prepare() refuses an operation it does not know, naming the node."""
    network = fully_connected(1)
    op = evolve(network.operations[1], kind="no_such_operation")
    network.operations = (network.operations[0], op, *network.operations[2:])
    try:
        verifier.prepare(network)
    except UnsupportedNetworkError as error:
        reason = f"prepare() refuses a network without naming the node {op.name!r}: {error}"
        require(op.name in str(error), reason)
    except Exception as error:
        raise AssertionError(
            f"prepare() meets an unknown operation with {type(error).__name__}, "
            "not UnsupportedNetworkError"
        ) from error
    else:
        raise AssertionError("prepare() accepts an unknown operation; it must refuse it here")


def _sketch(shape: tuple[int, ...]) -> Sketch:
    sketch = Sketch(3, shape)
    return sketch.linear(5) if len(shape) == 1 else sketch.conv2d(3, 3)


_OTHERS: dict[str, Callable[[], Sketch]] = {
    "sigmoid": lambda: _sketch((3,)).apply("sigmoid"),
    "tanh": lambda: _sketch((3,)).apply("tanh"),
    "erf": lambda: _sketch((3,)).apply("erf"),
    "gelu": lambda: _sketch((3,)).apply("gelu"),
    "max_pool2d": lambda: _sketch((1, 6, 6)).apply(
        "max_pool2d", kernel_size=(2, 2), stride=(2, 2), padding=(0, 0)
    ),
}


def check_other_operations_are_refused_or_bounded(verifier: Verifier) -> None:
    """Other activations and max pools: refused in prepare(), by node name, or bounded."""
    for kind, begin in _OTHERS.items():
        network = begin().flatten().linear(4).relu().linear(3).finish()
        case = make_case(kind, network, ("small", "wide", "unequal", "point"), 3, seed=2)
        try:
            function = verifier.prepare(network)
        except UnsupportedNetworkError as error:
            named = any(op.name in str(error) for op in network.operations)
            require(named, f"prepare() refuses a {kind} network without naming a node: {error}")
        else:
            what = "the bound is {have}, yet the network reaches {want}"
            require_below(case, Trial(case, function).minimum(), reached(case), what)
