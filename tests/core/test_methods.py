"""Methods on one bench: what each is given, and what is true of its answer."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve, frozen
from problems import a_network, a_problem, configure, some_data, write_inputs
from torch import nn

from advrepair.core.config import resolve
from advrepair.core.errors import PluginError, SoundnessError, UsageError
from advrepair.core.finding import find_problem
from advrepair.core.graph import Network
from advrepair.core.inputs import read_inputs
from advrepair.core.interfaces import Method
from advrepair.core.methods import CLEAN, HELD, Bench, Limits, labelled_inputs
from advrepair.core.properties import demands
from advrepair.core.registry import Registry
from advrepair.core.remembering import points_of
from advrepair.core.tasks import MethodResult, MethodStatus, Scope, Task
from advrepair.core.work import Work
from advrepair.plugins.allocators.kernel import Kernel
from advrepair.plugins.methods.advrepair import Advrepair
from advrepair.plugins.methods.constant_bias import ConstantBias
from advrepair.plugins.methods.none import NoMethod


@frozen
class Does(Method):
    """Whatever it is told."""

    name: ClassVar[str] = "does"
    what: Any

    def repair(self, task):
        return self.what(task)


class Wrapped(nn.Module):
    """The network, which nobody can bound any more."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def raised(error: BaseException):
    def act(task):
        raise error

    return act


@pytest.fixture
def bench(tmp_path) -> Bench:
    network, data = write_inputs(tmp_path)
    plan = configure(Registry.load(), network, data)
    inputs = read_inputs(plan.problem)
    return Bench(inputs, plan, find_problem(inputs, plan, Work(), 6))


def shifted(network: Network, by: float) -> Network:
    """The network with its last bias moved: an ordinary network again."""
    name = network.operations[-1].tensors["bias"]
    tensors = dict(network.tensors)
    tensors[name] = tensors[name] + by * torch.eye(len(tensors[name]))[0]
    return Network(network.operations, tensors, network.input_shape)


ERRORS = [
    (TimeoutError("the time was up"), MethodStatus.TIMEOUT, "the time was up"),
    (MemoryError("11 GiB"), MethodStatus.OUT_OF_MEMORY, "11 GiB"),
    (RuntimeError("std::bad_alloc"), MethodStatus.OUT_OF_MEMORY, "std::bad_alloc"),
    (UsageError("no ReLU"), MethodStatus.REFUSED, "no ReLU"),
    (ValueError("two\nlines"), MethodStatus.FAILED, "ValueError: two lines"),
    (AssertionError(), MethodStatus.FAILED, "AssertionError"),
]


@pytest.mark.parametrize(("error", "status", "reason"), ERRORS)
def test_what_a_method_raises_is_a_result(bench, error, status, reason) -> None:
    found = bench.attempt(Does(raised(error))).result
    assert (found.status, found.model, found.scope) == (status, None, Scope.NONE)
    assert found.evidence["reason"] == reason


def test_a_wrong_proof_stops_everything(bench) -> None:
    with pytest.raises(SoundnessError):
        bench.attempt(Does(raised(SoundnessError("wrong"))))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda task: "repaired", "repair returned str, not a MethodResult"),
        (lambda task: claimed(nn.Flatten()), "it gives (6, 6), not (6, 4)"),
        (lambda task: claimed(nn.Linear(3, 4)), "cannot be run"),
    ],
)
def test_what_is_no_model_is_not_applied(bench, what, said) -> None:
    found = bench.attempt(Does(what)).result
    assert (found.status, found.model) == (MethodStatus.FAILED, None)
    assert said in found.evidence["reason"]


def claimed(model: nn.Module, status: MethodStatus = MethodStatus.REPAIRED) -> MethodResult:
    return MethodResult(model, status, Scope.POINTS, {"steps": 3})


def test_the_model_says_whether_it_is_repaired(bench) -> None:
    found = bench.attempt(Does(lambda task: claimed(task.network))).result
    assert found.status is MethodStatus.NOT_REPAIRED
    assert found.evidence == {"steps": 3, "claimed": "repaired"}
    modest = Does(lambda task: evolve(task.hotfix(), status=MethodStatus.NOT_REPAIRED))
    found = bench.attempt(modest).result
    assert found.status is MethodStatus.REPAIRED and found.evidence["claimed"] == "not_repaired"


@pytest.mark.parametrize("status", [s for s in MethodStatus if not s.applied])
def test_what_is_not_applied_has_no_model(status) -> None:
    with pytest.raises(PluginError, match="cannot have a model"):
        claimed(a_network(), status)
    assert status.sentence


def test_repaired_without_a_model_is_nothing() -> None:
    with pytest.raises(PluginError, match="needs a model"):
        MethodResult(None, MethodStatus.REPAIRED, Scope.POINTS, {})


def test_time_is_up_for_our_own_repair_too(bench) -> None:
    short = evolve(bench, limits=Limits(seconds=1e-9))
    for method in (Advrepair(), ConstantBias()):
        assert short.attempt(method).result.status is MethodStatus.TIMEOUT


def test_time_left() -> None:
    task = a_task(deadline=time.perf_counter() + 100)
    assert 99 < task.left() <= 100
    task.tell("stage", 1, 2)
    late = evolve(task, deadline=time.perf_counter() - 1)
    assert late.left() == 0
    with pytest.raises(TimeoutError, match="in stage, at 1 of 2"):
        late.tell("stage", 1, 2)


def a_task(**changes) -> Task:
    problem = a_problem()
    known = dict(network=a_network(), properties=problem.properties, x_adv=problem.x_adv)
    rest = dict(owner=problem.owner, clean=None, held=None, attack=None, prepare=None)
    return Task(**known, **rest, **changes)


def test_decisions_are_those_of_the_network() -> None:
    outputs = torch.tensor([[1.0, 0.0, 2.0]])
    assert a_task().decide(outputs).tolist() == [2]
    assert a_task(decision="argmin").decide(outputs).tolist() == [1]


# What is proved ------------------------------------------------------------------------


def test_our_own_repairs_have_their_proof(bench) -> None:
    for method in (Advrepair(), ConstantBias()):
        found = bench.attempt(method)
        assert found.result.status is MethodStatus.REPAIRED and found.seconds > 0
        assert found.proved is not None and found.proved.tolist() == [True] * 6


def test_the_network_as_it_is_is_proved_nowhere_it_fails(bench) -> None:
    found = bench.attempt(NoMethod())
    assert found.proved is not None and not found.proved.any()


def test_an_ordinary_network_is_bounded(bench) -> None:
    """Output 0 raised by so much is largest everywhere: balls with label 0 are proved."""
    label = bench.problem.properties.label
    found = bench.attempt(Does(lambda task: claimed(shifted(task.network, 1e4))))
    assert found.proved is not None and found.proved.equal(label == 0) and (label == 0).any()


def test_what_cannot_be_bounded_has_no_proof(bench) -> None:
    found = bench.attempt(Does(lambda task: claimed(Wrapped(task.hotfix().model))))
    assert found.proved is None and found.result.status is MethodStatus.REPAIRED


def test_properties_without_a_label_are_cut_until_they_are_proved(bench) -> None:
    network = a_network()
    x = torch.full((1, 6), 0.5)
    least = float(network(x).amin())
    C, d = torch.eye(4)[None, :1], torch.tensor([[20.0 - least]])
    asked = demands(x - 0.1, x + 0.1, C, group=torch.zeros(1, 1, dtype=torch.long), d=d)
    problem = evolve(a_problem(count=1), properties=asked)
    other = evolve(bench, problem=problem)
    assert other.proved(network).tolist() == [True]
    assert other.proved(shifted(network, -1e3)).tolist() == [False]


# Labelled inputs -----------------------------------------------------------------------


def test_labelled_inputs_are_disjoint_from_what_is_repaired(bench) -> None:
    task = bench.task()
    rows = [tuple(row) for part in (task.clean.x, task.held.x) for row in part.tolist()]
    repaired = {tuple(row) for row in task.properties.center.tolist()}
    assert len(rows) == len(set(rows)) == 60 - 6
    assert not repaired & set(rows)
    assert len(task.held) == int(0.2 * 54)
    known = a_network()(task.clean.x).argmax(1)
    assert task.clean.label.equal(known)  # the labels belong to their inputs


def test_they_come_in_the_order_of_the_points_of_an_allocator(tmp_path) -> None:
    x, y = some_data(400)
    network, data = write_inputs(tmp_path, x=x.numpy(), y=y.numpy())
    plan = configure(Registry.load(), network, data, {"run": {"seed": 3}})
    inputs = read_inputs(plan.problem)
    problem = find_problem(inputs, plan, Work(), 6)
    clean, _ = labelled_inputs(inputs, plan, problem)
    kernel = Kernel(points=50, validation=100)
    points = points_of(inputs.network, problem, kernel, plan, inputs.data.repair)
    assert points.x[:6].equal(problem.properties.center)
    assert points.x[6:].equal(clean.x[:44])
    assert len(clean) <= CLEAN and HELD < CLEAN


def test_without_data_the_network_labels_inputs_around_the_regions(tmp_path) -> None:
    network, _ = write_inputs(tmp_path)
    lines = [f"(declare-const X_{i} Real)" for i in range(6)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(4)]
    lines += [f"(assert (and (>= X_{i} 0.4) (<= X_{i} 0.6)))" for i in range(6)]
    lines += ["(assert (<= Y_0 Y_1))"]
    (tmp_path / "p.vnnlib").write_text("\n".join(lines))
    asked = {"network": str(network), "property": [str(tmp_path / "p.vnnlib")]}
    plan = resolve(Registry.load(), [{"problem": {**asked, "decision": "argmin"}}])
    inputs = read_inputs(plan.problem)
    problem = find_problem(inputs, plan, Work(), None)
    clean, held = labelled_inputs(inputs, plan, problem)
    assert clean.label.equal(inputs.network(clean.x).argmin(1)) and len(held) == HELD
    inside = inputs.demanded.box.first(clean.x) >= 0
    assert 0.2 < inside.float().mean() < 0.8
    right = clean.x[inside]
    asked = inputs.demanded[torch.zeros(len(right), dtype=torch.long)]
    assert not asked.violated(inputs.network(right)).any()


def test_too_few_inputs_leave_none(tmp_path) -> None:
    problem = a_problem()
    arrays = {"x": problem.properties.center.numpy(), "y": problem.properties.label.numpy()}
    network, data = write_inputs(tmp_path, **arrays)
    plan = configure(Registry.load(), network, data)
    inputs = read_inputs(plan.problem)
    assert labelled_inputs(inputs, plan, find_problem(inputs, plan, Work(), 6)) == (None, None)
