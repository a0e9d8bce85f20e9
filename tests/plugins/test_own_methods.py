"""The methods that ship: the repair itself, caps, the constant, and none."""

from __future__ import annotations

import pytest
import torch

from advrepair import Method, MethodStatus, RepairedNetwork, Scope, UsageError
from advrepair.plugins.methods.advrepair import Advrepair
from advrepair.plugins.methods.cap import Cap
from advrepair.plugins.methods.constant_bias import ConstantBias
from advrepair.plugins.methods.none import NoMethod
from advrepair.testing import METHOD_CHECKS, tiny_task

METHODS = (Advrepair(), Cap(), ConstantBias(), NoMethod())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_they_keep_the_contract(check, method: Method) -> None:
    check(method)


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.name)
def test_patches_repair_what_they_are_given(method: Method) -> None:
    task = tiny_task(count=6)
    result = method.repair(task)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.REGION)
    assert result.evidence["certified"] == result.evidence["patches"] == 6
    with torch.no_grad():
        outputs = result.model(task.x_adv)
    assert not task.properties[task.owner].violated(outputs).any()


def test_a_cap_changes_nothing_where_the_network_is_right() -> None:
    task = tiny_task()
    model = Cap().repair(task).model
    points = task.properties.center
    with torch.no_grad():
        own, repaired = task.network(points), model(points)
    rest = own.scatter(1, task.properties.label[:, None], -torch.inf).amax(1)
    fine = own.gather(1, task.properties.label[:, None])[:, 0] > rest + 0.03
    assert bool(fine.any()) and torch.equal(own[fine], repaired[fine])


def test_the_constant_looks_at_no_input() -> None:
    task = tiny_task()
    model = ConstantBias().repair(task).model
    assert isinstance(model, RepairedNetwork)
    corners = (task.properties.box.lower, task.properties.center, task.properties.box.upper)
    with torch.no_grad():
        added = [model(x) - task.network(x) for x in corners]
    for each in added[1:]:
        assert torch.allclose(each, added[0], atol=1e-5)
    assert (added[0].abs().amax(1) > 0).all()


def test_no_repair_is_the_network() -> None:
    task = tiny_task()
    result = NoMethod().repair(task)
    assert result.model is task.network and result.status is MethodStatus.NOT_REPAIRED


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.name)
def test_a_task_made_by_hand_has_no_repair_of_our_own(method: Method) -> None:
    from attrs import evolve

    from advrepair.core.tasks import _no_hotfix

    with pytest.raises(UsageError, match="made by hand"):
        method.repair(evolve(tiny_task(), own=_no_hotfix))
