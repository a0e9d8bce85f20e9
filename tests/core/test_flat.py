"""The constant-bias repair alone is the one that stands beside a repair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from problems import a_registry, configure, write_inputs

from advrepair.core.config import resolve
from advrepair.core.finding import find_problem
from advrepair.core.inputs import read_inputs
from advrepair.core.methods import Bench
from advrepair.core.patching import last_layer
from advrepair.core.pipeline import repair
from advrepair.core.work import Work

BALLS = [{}, {"plan": {"indicator": "mixed"}}, {"patch": {"hidden": [4]}}]


def property_file(folder: Path) -> Path:
    """Output 0 is never above output 2 on a box where it sometimes is."""
    lines = [f"(declare-const X_{i} Real)" for i in range(6)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(4)]
    lines += [f"(assert (and (>= X_{i} 0.2) (<= X_{i} 0.8)))" for i in range(6)]
    lines += ["(assert (>= Y_0 Y_2))"]
    path = folder / "p.vnnlib"
    path.write_text("\n".join(lines))
    return path


def both(plan):
    """The arrays of a repair, and the model of the constants alone with its proof."""
    inputs = read_inputs(plan.problem)
    problem = find_problem(inputs, plan, Work(), plan.problem.count)
    whole = repair(inputs.network, problem, plan, Work())
    bench = Bench(inputs, plan, problem)
    flat = bench.task().hotfix("constant").model
    return whole, flat, bench.proofs[flat]


@pytest.mark.parametrize("layer", BALLS)
def test_on_balls(layer, tmp_path) -> None:
    network, data = write_inputs(tmp_path)
    whole, flat, held = both(configure(a_registry(), network, data, layer))
    constant = flat.bank.stack[last_layer(flat.bank.template)[1]]
    assert constant.equal(whole.evaluation["constant"]) and (constant != 0).any()
    assert held.equal(whole.evaluation["constant.certified"])
    assert flat.patch.equal(whole.network.patch)


def test_on_the_regions_of_a_property(tmp_path) -> None:
    network, _ = write_inputs(tmp_path)
    asked = {"network": str(network), "property": [str(property_file(tmp_path))]}
    plan = resolve(a_registry(), [{"problem": asked, "screening": {"pieces": 2000}}])
    whole, flat, held = both(plan)
    assert len(whole.network.patch) > 1
    constant = flat.bank.stack[last_layer(flat.bank.template)[1]]
    assert constant.equal(whole.evaluation["constant"])
    assert held.equal(whole.evaluation["constant.certified"])
    assert torch.equal(flat.box_lower, whole.network.box_lower)
