"""``advrepair.repair`` and ``advrepair.load``: the same as the command line, in Python."""

import numpy as np
import pytest
import torch
from problems import (
    a_module,
    a_network,
    a_problem,
    a_registry,
    bytes_of,
    configure,
    some_data,
    write_inputs,
)
from torch import nn

import advrepair
from advrepair.core import pipeline


def repair(network=None, **options):
    x, y = some_data()
    return advrepair.repair(network or a_module(), x, y, **{"epsilon": 0.1, "count": 4} | options)


def test_it_repairs_any_module_and_leaves_it_as_it_was():
    module = a_module().train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    result = repair(module)
    assert result.report["properties"]["certified"] == 4
    assert module.training and all(
        torch.equal(t, before[n]) for n, t in module.state_dict().items()
    )
    problem = result.problem
    assert not problem.properties.violated(result.network(problem.x_adv)).any()
    assert problem.properties.violated(module(problem.x_adv)).all()
    x = torch.rand(20, 6)
    untouched = ~result.network.route(x, result.network.base(x)).any(1)
    assert torch.allclose(result.network(x)[untouched], module(x)[untouched], atol=1e-5)


def test_it_is_what_the_command_line_does(tmp_path):
    registry = a_registry()
    network, data = write_inputs(tmp_path)
    configuration = configure(registry, network, data, {"plan": {"indicator": "targeted-label"}})
    pipeline.run(configuration, registry, tmp_path / "cli")
    repair(a_network(), count=6, indicator="targeted-label").save(tmp_path / "python")
    assert bytes_of(tmp_path / "cli") == bytes_of(tmp_path / "python")


@pytest.mark.parametrize("kind", ["torch", "numpy", "list"])
def test_inputs_of_any_kind(kind):
    x, y = some_data()
    if kind == "numpy":
        x, y = x.numpy(), y.numpy().astype(np.uint8)
    elif kind == "list":
        x, y = x.tolist(), y.tolist()
    result = advrepair.repair(a_module(), x, y, epsilon=0.1, count=2)
    assert torch.equal(result.problem.properties.center, a_problem(count=2).properties.center)


def test_bytes_are_scaled():
    x, _ = some_data()
    pixels = (x * 255).round().to(torch.uint8)
    y = a_module()(pixels.float() / 255).argmax(1)
    result = advrepair.repair(a_module(), pixels, y, epsilon=0.1, count=2)
    assert result.problem.properties.center.max() <= 1
    assert torch.equal(result.problem.properties.center, pixels[result.problem.row].float() / 255)


def test_without_a_count_all_that_are_found():
    result = repair(count=None, epsilon=0.05)
    assert len(result.problem.row) == len(a_problem(count=None, epsilon=0.05).row) > 6


def test_given_counterexamples_and_test_data():
    problem, (x, y) = a_problem(), some_data()
    x_adv = x.clone()
    x_adv[problem.row] = problem.x_adv
    result = repair(count=None, x_adv=x_adv, x_test=x, y_test=y)
    assert torch.equal(result.problem.row, problem.row)
    assert result.report["metrics"]["DD"] is not None


def test_options_reach_their_place():
    result = repair(
        epsilon="8/255",
        indicator="untargeted-label",
        verifier="interval",
        input_range=(),
        seed=3,
        settings={"patch": {"hidden": [5]}, "plan": {"allocator": "nearest"}},
    )
    stated = result.report["problem"]
    assert (stated["epsilon"], stated["input_range"]) == (8 / 255, [])
    assert (stated["indicator"], stated["verifier"]) == ("untargeted-label", "interval")
    assert (stated["certifier"], stated["allocator"]) == ("interval", "nearest")
    assert "linear1.weight" in result.network.bank.stack


def test_a_preset():
    assert "linear3.weight" in repair(preset="paper").network.bank.stack


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ({"plan": {"verifier": "interval"}}, "verifier", "interval"),
        ({"plan": {"indicator": "untargeted-label"}}, "indicator", "untargeted-label"),
    ],
)
def test_a_setting_counts_where_no_parameter_was_given(settings, key, value):
    assert repair(settings=settings).report["problem"][key] == value


def test_the_report_is_that_of_a_run():
    seconds = repair().report["seconds"]
    assert seconds["total"] >= seconds["training"]


def test_progress_is_told():
    told = []
    repair(progress=lambda *step: told.append(step))
    assert ("training", 4, 4) in told


class Strange(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)[:, :4]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epsilon": 0}, advrepair.UsageError, r"problem\.epsilon is 0"),
        ({"epsilon": float("nan")}, advrepair.UsageError, r"problem\.epsilon is nan"),
        ({"count": 999}, advrepair.UsageError, "count is 999: the attack finds"),
        ({"verifier": "deepoly"}, advrepair.UsageError, "did you mean 'deeppoly'"),
        ({"settings": {"pgd": {"stepss": 1}}}, advrepair.UsageError, "did you mean 'steps'"),
        ({"input_range": (0.0, 0.5)}, advrepair.UsageError, "outside the input range"),
        ({"x_test": torch.rand(3, 6), "y_test": [0]}, advrepair.UsageError, "3 inputs and"),
        ({"network": Strange()}, advrepair.UnsupportedNetworkError, "cumsum"),
        ({"network": 3}, advrepair.UsageError, "a torch module is needed, not int"),
    ],
)
def test_what_the_caller_can_mend_is_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        repair(**options)
    assert "\n" not in str(caught.value)


def test_load_gives_the_deployed_function(tmp_path):
    result = repair(settings={"patch": {"hidden": [4]}})
    result.save(tmp_path / "out")
    loaded = advrepair.load(tmp_path / "out")
    assert isinstance(loaded, advrepair.RepairedNetwork) and not loaded.training
    x = torch.cat([torch.rand(30, 6), result.problem.x_adv])
    assert torch.equal(loaded(x), result.network(x))
    assert torch.equal(advrepair.load(str(tmp_path / "out"))(x), loaded(x))


def test_load_of_no_run_says_so(tmp_path):
    with pytest.raises(advrepair.UsageError, match="is its folder a complete run"):
        advrepair.load(tmp_path)


@pytest.mark.parametrize("count", [0, -1, 2.5, "3"])
def test_a_count_that_is_none_is_told(count):
    x, y = some_data()
    with pytest.raises(advrepair.UsageError, match="it must be an integer, at least 1, or None"):
        advrepair.repair(a_module(), x, y, epsilon=0.1, count=count)


def test_a_changed_network_is_not_loaded(tmp_path):
    x, y = some_data()
    advrepair.repair(a_module(), x, y, epsilon=0.1, count=3).save(tmp_path)
    path = tmp_path / "repaired.safetensors"
    stored = bytearray(path.read_bytes())
    stored[-1] ^= 1
    path.write_bytes(stored)
    with pytest.raises(advrepair.UsageError, match="was changed after it was certified"):
        advrepair.load(tmp_path)
