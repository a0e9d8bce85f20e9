"""Does a repair method keep the contract? Checks for authors of methods.

A check is a function of one method that raises AssertionError with a one-line reason::

    @pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
    def test_my_method(check):
        check(MyMethod())

They look at what the method makes of :func:`~advrepair.testing.tasks.tiny_task`, not at how good
it is. A task that the method refuses is passed over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import torch
from attrs import evolve
from torch import Tensor, nn

from advrepair.core.errors import UsageError
from advrepair.core.interfaces import Method
from advrepair.core.tasks import MethodResult, MethodStatus, Scope, Task
from advrepair.testing.tasks import tiny_task
from advrepair.testing.trial import require

_CLOSE = 1e-4  # outputs of a row alone and in a batch; a wrong row is off by more
_SOON = 60.0  # seconds after which a method without any time is late

MethodCheck = Callable[[Method], None]


@cache
def _tried(method: Method) -> tuple[Task, object]:
    """A task and what the method made of it, a UsageError where it takes no such task."""
    task = tiny_task()
    try:
        return task, method.repair(task)
    except UsageError as error:
        return task, error


def _made(method: Method) -> tuple[Task, nn.Module] | None:
    task, result = _tried(method)
    if not isinstance(result, MethodResult) or result.model is None:
        return None
    return task, result.model.eval()


def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    if not isinstance(found, Tensor):
        raise AssertionError(f"the model gives {type(found).__name__}, not a tensor")
    return found


def check_result(method: Method) -> None:
    """A MethodResult, of JSON values; where nothing is applied it says why."""
    _, result = _tried(method)
    if isinstance(result, UsageError):
        return
    if not isinstance(result, MethodResult):
        raise AssertionError(f"repair returned {type(result).__name__}, not a MethodResult")
    require(isinstance(result.status, MethodStatus), "the status is no MethodStatus")
    require(isinstance(result.scope, Scope), "the scope is no Scope")
    try:
        json.dumps(dict(result.evidence), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the evidence is not JSON: {error}") from None
    reason = result.evidence.get("reason")
    require(result.status.applied or bool(reason), "evidence lacks 'reason': why is there nothing?")


def check_status_is_that_of_the_model(method: Method) -> None:
    """Repaired means that no counterexample is wrong any more."""
    made, (_, result) = _made(method), _tried(method)
    if made is None:
        return
    task, model = made
    outputs = _outputs(model, task.x_adv)
    wrong = int(task.properties[task.owner].violated(outputs).sum())
    claims = isinstance(result, MethodResult) and result.status is MethodStatus.REPAIRED
    require(not (claims and wrong), f"it says repaired, and {wrong} are wrong")


def check_network_is_left_alone(method: Method) -> None:
    """The network of the task is as it was."""
    task = tiny_task()
    before, shared = task.network.digest(), task.network.tensors
    try:
        result = method.repair(task)
    except UsageError:
        return
    require(task.network.digest() == before, "the method changes the network of the task")
    grown = any(t.requires_grad or t.grad is not None for t in shared.values())
    require(not grown, "the method leaves gradients on the network of the task")
    if result.model is not None:
        result.model.eval()(task.x_adv)
        require(task.network.digest() == before, "the model changes the network of the task")


def check_the_same_task_gives_the_same(method: Method) -> None:
    """Twice the same bits."""
    made, again = _made(method), _again(method)
    if made is None or again is None:
        require(made is None and again is None, "the second time it comes to another end")
        return
    task, model = made
    x = torch.cat([task.x_adv, task.properties.center])
    same = torch.equal(_outputs(model, x), _outputs(again, x))
    require(same, "the same task gives another model the second time")


def _again(method: Method) -> nn.Module | None:
    """The model of a second repair; None if there is none."""
    try:
        result = method.repair(tiny_task())
    except UsageError:
        return None
    return None if result.model is None else result.model.eval()


def check_model_is_a_function_of_each_row(method: Method) -> None:
    """Outputs [N,K], the same for a row alone, among others and in another order."""
    made = _made(method)
    if made is None:
        return
    task, model = made
    x = torch.cat([task.x_adv, task.properties.center])
    whole = _outputs(model, x)
    want = (len(x), task.network.outputs)
    require(tuple(whole.shape) == want, f"the model gives {tuple(whole.shape)}, not {want}")
    alone = torch.cat([_outputs(model, row[None]) for row in x])
    turned = _outputs(model, x.flip(0)).flip(0)
    scale = 1 + whole.abs().amax()
    for other, where in ((alone, "alone"), (turned, "in another order")):
        apart = float((whole - other).abs().max() / scale)
        require(apart < _CLOSE, f"a row {where} gets other outputs: {apart:.2g} of their size")


def check_model_is_differentiable(method: Method) -> None:
    """Gradients flow to the input: an attack needs them."""
    made = _made(method)
    if made is None:
        return
    task, model = made
    x = task.properties.center.clone().requires_grad_()
    outputs = model(x)
    require(outputs.requires_grad, "the outputs of the model are detached from its input")
    (slope,) = torch.autograd.grad(outputs.square().sum(), x)
    finite = bool(slope.isfinite().all()) and bool((slope != 0).any())
    require(finite, "the gradient of the model in its input is zero or not finite")


def check_it_stops_when_time_is_up(method: Method) -> None:
    """With no time left it ends: by TimeoutError, or with what it has."""
    begin = time.perf_counter()
    with suppress(TimeoutError, UsageError):
        method.repair(evolve(tiny_task(), deadline=begin))
    took = time.perf_counter() - begin
    require(took < _SOON, f"with no time left it takes {took:.0f} s")


METHOD_CHECKS: tuple[MethodCheck, ...] = (
    check_result,
    check_status_is_that_of_the_model,
    check_network_is_left_alone,
    check_the_same_task_gives_the_same,
    check_model_is_a_function_of_each_row,
    check_model_is_differentiable,
    check_it_stops_when_time_is_up,
)
