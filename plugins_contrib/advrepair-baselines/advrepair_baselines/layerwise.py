"""One layer after the other: each gets its LP, and of what came of them the best is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn

from advrepair import MethodResult, MethodStatus, Operation, Scope, Task, UsageError
from advrepair_baselines.linearised import Effects
from advrepair_baselines.lp import least_change
from advrepair_baselines.lp_types import CLOSE, Change
from advrepair_baselines.weights import changeable

_AT_ONCE, _TOLD = 1000, 20
_BAD = (
    MethodStatus.TIMEOUT,
    MethodStatus.OUT_OF_MEMORY,
    MethodStatus.SOLVER_FAILED,
    MethodStatus.INFEASIBLE,
)  # the first that occurred is that of the whole


@frozen(eq=False)
class Tried:
    """What came of one layer. model: that repairs, with the share of held inputs it gets right."""

    layer: str
    status: MethodStatus
    evidence: Mapping[str, Any]
    model: nn.Module | None = None
    accuracy: float = 0.0
    cost: float = 0.0


def chosen_layers(name: str, task: Task, chosen: int) -> list[Operation]:
    """Layers whose weights may change; all for 0. Raises UsageError if there are none."""
    found = changeable(task.network)
    if chosen > len(found) or not found:
        raise UsageError(f"{name}.layer is {chosen}: the network has {len(found)} such layers")
    return [found[chosen - 1]] if chosen else found


def solved(
    task: Task, stage: str, effects: Effects, margin: float, limit: float, gap: float
) -> Change:
    """The least change of one layer; one that breaks a row in float64 is none."""

    def tell(columns: int) -> float:
        task.tell(stage, columns, columns + 1)
        return task.left()

    need = effects.need(margin)
    change = least_change(effects, need, limit, tell, gap)
    if change.value is None:
        return change
    lacks = float((need - effects.forward(change.value)).max())
    size = float(change.value.abs().max())
    if lacks > 10 * CLOSE or size > limit * (1 + CLOSE):
        reason = f"what HiGHS gave lacks {lacks:.2g} in a row, its largest entry is {size:.2g}"
        none = (None, MethodStatus.SOLVER_FAILED, reason, change.objective, change.bound)
        return Change(*none, change.rows, change.columns)
    return change


def looked_at(
    task: Task,
    layer: str,
    effects: Effects,
    change: Change,
    model: nn.Module | None,
    seconds: float,
) -> Tried:
    """What a change is worth: the model must be right wherever it was asked to.

    Where rows were chosen among several, others may have a solution if these have none.
    """
    known: dict[str, Any] = {
        "status": change.status.value,
        "objective": change.objective if change.value is not None else None,
        "at least": change.bound,
        "rows": change.rows,
        "columns": change.columns,
        "seconds": round(seconds, 3),
    }
    if model is None:
        status, reason = change.status, change.reason
        if status is MethodStatus.INFEASIBLE:
            known["exclude each other"] = effects.inputs(torch.from_numpy(change.blamed))[:_TOLD]
        if status is MethodStatus.INFEASIBLE and effects.demanded.chosen:
            status = MethodStatus.SOLVER_FAILED
            reason = "with the row of each group that is broken least there is no solution"
        return Tried(layer, status, known | {"status": status.value, "reason": reason})
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(x) for x in task.x_adv.split(_AT_ONCE)])
    if wrong := int(task.properties[task.owner].violated(outputs).sum()):
        status = MethodStatus.SOLVER_FAILED
        reason = f"{wrong} inputs are wrong after rounding to {task.network.dtype}"
        return Tried(layer, status, known | {"status": status.value, "reason": reason})
    right = accuracy(task, model)
    return Tried(layer, change.status, known | {"accuracy": right}, model, right, change.objective)


def accuracy(task: Task, model: nn.Module) -> float:
    """Of held-out inputs; 0 if there are none."""
    if task.held is None:
        return 0.0
    with torch.no_grad():
        decided = torch.cat([task.decide(model(x)) for x in task.held.x.split(_AT_ONCE)])
    return float((decided == task.held.label).double().mean())


def best_of(
    task: Task,
    layers: Collection[str],
    attempt: Callable[[str, Task], Tried],
    scope: Scope,
    more: Mapping[str, Any],
) -> MethodResult:
    """The model that keeps most held-out inputs right; of equals, the one that cost least.

    All of them repair. Each layer may take an equal share of the time that is left then, so what
    one does not need is for those behind it; where a layer's time or the memory ends, what the
    others gave stays.
    """
    tried: list[Tried] = []
    for number, layer in enumerate(layers):
        begin, share = time.perf_counter(), task.left() / (len(layers) - number)
        try:
            tried.append(attempt(layer, evolve(task, deadline=min(task.deadline, begin + share))))
        except (MemoryError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            status = MethodStatus.TIMEOUT if late else MethodStatus.OUT_OF_MEMORY
            took = round(time.perf_counter() - begin, 3)
            known = {"status": status.value, "reason": str(error), "seconds": took}
            tried.append(Tried(layer, status, known))
            if task.left() <= 0:
                break
    evidence = {**more, "layers": {each.layer: dict(each.evidence) for each in tried}}
    found = [each for each in tried if each.model is not None]
    if found:
        best = min(found, key=lambda each: (-each.accuracy, each.cost))
        told = {"layer": best.layer, **evidence}
        return MethodResult(best.model, MethodStatus.REPAIRED, scope, told)
    status = next(bad for bad in _BAD if any(each.status is bad for each in tried))
    reasons = [f"{each.layer}: {each.evidence['reason']}" for each in tried]
    reason = "; ".join(dict.fromkeys(reasons))
    return MethodResult(None, status, Scope.NONE, {"reason": reason, **evidence})
