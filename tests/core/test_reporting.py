"""``report.json`` says everything, the trivial repair included, and makes nothing up."""

import json

import pytest
import torch
from attrs import evolve
from problems import a_registry, some_parts

from advrepair.core.config import resolve
from advrepair.core.evaluating import Measured
from advrepair.core.reporting import METRICS, report
from advrepair.core.types import Status
from advrepair.plugins.attacks.pgd import Pgd

RATES = {"RSR": 1.0, "RGR": 0.5, "DD": 0.01}
SECONDS = {"attack": 1.0, "bounds": 2.0, "training": 3.0}


def a_report(metrics=RATES, baseline=None, status=None, constant=None, hidden=(), **plan):
    parts = some_parts(hidden=hidden)
    certificate = parts.certificate(Pgd())
    if status is not None:
        certificate = evolve(certificate, status=status)
    if constant is not None:
        certificate = evolve(certificate, constant=torch.tensor(constant))
    epochs = torch.tensor([1, 2, 3, 0, 0, 0])
    layer = {"problem": {"data": "d.npz", "network": "nets/a.onnx"}, "plan": plan}
    configuration = resolve(a_registry(), [layer])
    routing = {"clean": 1.0, "adversarial": 0.25}
    found = Measured(metrics, baseline or {}, routing, None, {})
    return report(parts.repaired, parts.problem, certificate, epochs, found, configuration, SECONDS)


def test_every_key_of_the_promise():
    found = a_report(hidden=(5,))
    assert found["properties"] == {
        "total": 6,
        "certified": 0,
        "empirical": 0,
        "falsified": 6,
        "unknown": 0,
        "constant": 0,
        "pieces": 6,
    }
    assert found["metrics"] == dict.fromkeys(METRICS) | RATES
    assert found["routing"] == {"clean": 1.0, "adversarial": 0.25}
    assert {"bounds", "training", "certification", "evaluation"} <= set(found["seconds"])
    assert (found["seconds"]["training"], found["seconds"]["evaluation"]) == (3.0, 0.0)
    parameters = 6 * (6 * 5 + 5 + 5 * 4 + 4)
    network = 6 * 12 + 12 + 12 * 12 + 12 + 12 * 4 + 4
    patches = found["patches"]
    assert (patches["count"], patches["parameters"]) == (6, parameters)
    assert patches["bytes"] == 4 * parameters
    assert patches["ratio_to_network"] == pytest.approx(parameters / network)
    assert patches["mean_epochs"] == 1.0
    assert found["network"] == {"name": "a.onnx", "parameters": network}
    assert found["problem"]["level"] == "deployed-float32"
    assert found["problem"]["indicator"] == "property-guided"
    assert found["peak_memory_bytes"] > 2**20
    json.dumps(found)


def test_the_counts_add_up():
    statuses = (*[Status.CERTIFIED] * 3, *[Status.FALSIFIED] * 1, *[Status.UNKNOWN] * 2)
    found = a_report(status=statuses, constant=[True, False, True, False, False, False])
    counts = found["properties"]
    assert (counts["certified"], counts["falsified"], counts["unknown"]) == (3, 1, 2)
    assert counts["constant"] == 2
    notes = "\n".join(found["notes"])
    assert "1 properties falsified: a counterexample remains" in notes
    assert "2 properties unknown: neither proved nor refuted; do not count it" in notes
    assert "2 properties are served by a constant patch" in notes


def test_when_all_is_well_nothing_is_lamented():
    found = a_report(status=(Status.CERTIFIED,) * 6, allocator="none")
    assert found["notes"] == [
        "outside the regions the network is unchanged, and nothing is proved there"
    ]


def test_label_indicators_say_what_they_do_outside():
    for name, said in (("property-guided", False), ("targeted-label", True)):
        notes = "\n".join(a_report(indicator=name)["notes"])
        assert ("it sees their wrong label; inside a ball the ball decides" in notes) is said
        assert "would send 25.0% to the right patch" in notes
        assert "nothing is proved" in notes


@pytest.mark.parametrize(
    ("trivial", "said"),
    [
        (RATES, True),
        ({"RSR": 1.0, "RGR": 0.6, "DD": 0.0}, True),
        ({"RSR": 0.9, "RGR": 0.6, "DD": 0.0}, False),
        ({"RSR": 1.0, "RGR": 0.4, "DD": 0.01}, False),
        ({"RSR": 1.0, "RGR": 0.5, "DD": 0.02}, False),
        ({"RSR": 1.0, "RGR": 0.5, "DD": None}, True),
    ],
)
def test_a_repair_no_better_than_a_constant_is_told_so(trivial, said):
    found = a_report(baseline={"constant-bias": {"certified": 1.0, **trivial}})
    assert any("a constant patch, which looks at no input" in note for note in found["notes"]) is (
        said
    )
    assert found["baseline"]["constant-bias"]["RSR"] == trivial["RSR"]


def test_rates_that_were_not_measured_stay_null():
    found = a_report(metrics={"RSR": 1.0, "RGR": None, "DD": None})
    assert found["metrics"] == dict.fromkeys(METRICS) | {"RSR": 1.0}
