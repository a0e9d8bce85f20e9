"""What a method made, measured: on balls and on property files, and as a file."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from problems import a_registry, configure, some_data, write_inputs
from test_flat import property_file
from torch import nn

from advrepair.core.agreement import check_model
from advrepair.core.config import resolve
from advrepair.core.errors import AdvrepairError, SoundnessError, UsageError
from advrepair.core.finding import find_problem
from advrepair.core.graph import Network
from advrepair.core.inputs import read_inputs
from advrepair.core.measuring import find_unseen, measured, model_file, unseen_data
from advrepair.core.methods import Attempt, Bench
from advrepair.core.work import Work
from advrepair.plugins.methods.advrepair import Advrepair
from advrepair.plugins.methods.constant_bias import ConstantBias
from advrepair.plugins.methods.none import NoMethod


def bench_of(plan) -> Bench:
    inputs = read_inputs(plan.problem)
    return Bench(inputs, plan, find_problem(inputs, plan, Work(), plan.problem.count))


def figures(bench, method):
    unseen = find_unseen(bench, Work())
    return measured(bench, method.name, bench.attempt(method), unseen, Work())


@pytest.fixture
def balls(tmp_path) -> Bench:
    x, y = some_data(100)
    arrays = {"x_train": x[:60], "y_train": y[:60], "x_test": x[60:], "y_test": y[60:]}
    network, data = write_inputs(tmp_path, **{k: v.numpy() for k, v in arrays.items()})
    full = {"scope": "full", "samples": 2, "limit": 12}
    return bench_of(configure(a_registry(), network, data, {"evaluation": full}))


@pytest.fixture
def regions(tmp_path) -> Bench:
    network, _ = write_inputs(tmp_path)
    asked = {"network": str(network), "property": [str(property_file(tmp_path))]}
    plan = {"problem": asked, "evaluation": {"scope": "full", "inputs": 400, "examples": 50}}
    return bench_of(resolve(a_registry(), [plan]))


def test_balls(balls) -> None:
    none, ours = figures(balls, NoMethod()), figures(balls, Advrepair())
    assert none.figures["RSR"] == none.figures["RGR"] == none.figures["DSR"] == 0.0
    assert ours.figures["RSR"] == ours.figures["RGR"] == ours.figures["certified"] == 1.0
    assert none.figures["DD"] == 0.0 and none.figures["FDD"] == 0.0
    assert none.figures["fidelity"] is None
    assert none.shares["accuracy"].count == 40 and none.shares["DGSR-query"].count == 12
    assert "DGSR-oracle" in ours.shares and "DGSR-oracle" not in none.shares


def test_a_quick_comparison_attacks_nothing(balls) -> None:
    quick = evolve(balls, plan=evolve(balls.plan, evaluation=evolve(balls.plan.evaluation,
                                                                    scope="quick")))  # fmt: skip
    found = figures(quick, NoMethod()).figures
    assert found["RSR"] == 0.0 and found["DD"] == 0.0
    assert found["DSR"] is found["DGSR-query"] is None


def test_regions_of_a_property_file(regions) -> None:
    none, ours = figures(regions, NoMethod()).figures, figures(regions, Advrepair()).figures
    flat = figures(regions, ConstantBias()).figures
    assert (none["certified"], none["RSR"], none["RGR"], none["DSR"]) == (0.0,) * 4
    assert (none["fidelity"], none["FDD"]) == (1.0, 0.0)
    for found in (ours, flat):
        assert (found["certified"], found["RSR"], found["RGR"], found["DSR"]) == (1.0,) * 4
        assert found["FDD"] == 0.0 and 0 < found["fidelity"] <= 1
    assert none["DD"] is none["DGSR-query"] is None


def test_a_known_counterexample_counts_where_an_attack_misses_it(regions) -> None:
    """One step of no length finds nothing; the examples that were found before do."""
    weak = resolve(a_registry(), [{"problem": {"network": "digits"}, "pgd": {"steps": 1}}])
    blind = evolve(
        regions,
        plan=evolve(regions.plan, components={**regions.plan.components,
                                              "evaluation_attack": weak.attack}),
    )  # fmt: skip
    assert figures(blind, NoMethod()).figures["DSR"] == 0.0


def test_a_false_proof_stops_everything(balls) -> None:
    attempt = balls.attempt(NoMethod())
    lie = Attempt(attempt.result, attempt.seconds, torch.ones(6, dtype=torch.bool))
    with pytest.raises(SoundnessError, match="is certified and a known counterexample breaks it"):
        measured(balls, "none", lie, find_unseen(balls, Work()), Work())


def test_a_constant_predictor_is_flagged(balls) -> None:
    network = balls.inputs.network
    name = network.operations[-1].tensors["bias"]
    label = int(balls.problem.properties.label[0])
    more = 1e3 * torch.eye(4)[label]
    tensors = network.tensors | {name: network.tensors[name] + more}
    model = Network(network.operations, tensors, network.input_shape)
    attempt = balls.attempt(NoMethod())
    constant = Attempt(evolve(attempt.result, model=model), 0.0, None)
    found = measured(balls, "none", constant, find_unseen(balls, Work()), Work())
    assert [flag["name"] for flag in found.flags] == ["constant predictor"]
    assert "certified" not in found.shares  # nobody looked


def test_a_test_input_that_is_repaired_is_refused(balls) -> None:
    data = balls.inputs.data
    same = evolve(balls, inputs=evolve(balls.inputs, data=evolve(data, test=data.repair)))
    with pytest.raises(UsageError, match="is a repaired input"):
        unseen_data(same)


# Files ---------------------------------------------------------------------------------


class Doubled(nn.Module):
    """Writes itself, rightly or not."""

    def __init__(self, network: Network, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return 2 * self.network(x)

    def write(self, to, x):
        last = x
        for op in self.network.operations:
            if op.kind == "linear":
                weight, bias = (
                    to.constant(self.network.tensors[op.tensors[r]]) for r in ("weight", "bias")
                )
                last = to.call("Gemm", last, weight, bias, transB=1)
            else:
                last = to.call("Relu", last)
        return to.call("Mul", last, to.constant(torch.tensor(self.factor)))


def test_a_file_computes_what_the_model_does(balls) -> None:
    pytest.importorskip("onnxruntime")
    network, x = balls.inputs.network, balls.problem.x_adv
    for model in (network, balls.attempt(Advrepair()).result.model, Doubled(network, 2.0)):
        assert check_model(model_file(model, network), model, x).inputs == len(x)
    wrong = Doubled(network, 2.001)
    with pytest.raises(AdvrepairError, match="outputs differ"):
        check_model(model_file(wrong, network), wrong, x)


def test_a_module_that_does_not_write_itself_has_no_file(balls) -> None:
    with pytest.raises(UsageError, match="Sequential has no method write"):
        model_file(nn.Sequential(), balls.inputs.network)
