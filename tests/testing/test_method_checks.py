"""The checks of repair methods find methods that break the contract, and no others."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from attrs import frozen
from torch import nn

from advrepair import Method, MethodResult, MethodStatus, Network, Scope
from advrepair.testing import METHOD_CHECKS


class Changed(nn.Module):
    """The network with something done to its outputs."""

    def __init__(self, network: Network, change: Any) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.network(x), x)


@frozen
class Planted(Method):
    """Makes a model that is wrong in a way of its own."""

    name: ClassVar[str] = "planted"
    kind: str

    def repair(self, task):
        status, evidence, network = MethodStatus.NOT_REPAIRED, {}, task.network
        changes = {
            "shape": lambda y, x: y[:, :-1],
            "batch": lambda y, x: y + y.mean(0),
            "order": lambda y, x: y + torch.arange(len(y))[:, None],
            "detached": lambda y, x: y.detach(),
            "flat": lambda y, x: 0 * y,
            "random": lambda y, x: y + torch.rand(4),
        }
        model = Changed(network, changes.get(self.kind, lambda y, x: y))
        if self.kind == "untrue":
            status = MethodStatus.REPAIRED
        if self.kind == "evidence":
            evidence = {"loss": math.nan}
        if self.kind == "touched":
            next(iter(network.tensors.values())).mul_(1.001)
        if self.kind == "silent":
            return MethodResult(None, MethodStatus.INFEASIBLE, Scope.NONE, {})
        if self.kind == "nothing":
            return None
        return MethodResult(model, status, Scope.NONE, evidence)


CAUGHT_BY = {
    "shape": "check_model_is_a_function_of_each_row",
    "batch": "check_model_is_a_function_of_each_row",
    "order": "check_model_is_a_function_of_each_row",
    "detached": "check_model_is_differentiable",
    "flat": "check_model_is_differentiable",
    "random": "check_the_same_task_gives_the_same",
    "untrue": "check_status_is_that_of_the_model",
    "evidence": "check_result",
    "silent": "check_result",
    "nothing": "check_result",
    "touched": "check_network_is_left_alone",
}


@pytest.mark.parametrize("kind", CAUGHT_BY)
def test_a_planted_bug_is_caught(kind: str) -> None:
    check = next(check for check in METHOD_CHECKS if check.__name__ == CAUGHT_BY[kind])
    with pytest.raises(AssertionError) as caught:
        check(Planted(kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_an_honest_method_passes(check) -> None:
    check(Planted("honest"))


def test_every_check_catches_something() -> None:
    late = {"check_it_stops_when_time_is_up"}  # it would take a minute to fail
    assert {check.__name__ for check in METHOD_CHECKS} == set(CAUGHT_BY.values()) | late
