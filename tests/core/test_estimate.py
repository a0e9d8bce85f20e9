"""What is said before a run, against what the run then takes."""

import json

import pytest
from attrs import evolve

from advrepair.cli import main
from advrepair.core import pipeline
from advrepair.core.config import resolve
from advrepair.core.counting import forward
from advrepair.core.estimate import estimate, in_bytes, in_seconds
from advrepair.core.inputs import read_inputs
from advrepair.core.memory import available_memory, peak_memory, resident_memory
from advrepair.core.parting import parted
from advrepair.core.registry import Registry
from advrepair.core.workload import counts

REGISTRY = Registry.load()


def configuration(**layer):
    return resolve(REGISTRY, [layer])


def predicted(**layer):
    plan = configuration(**layer)
    return estimate(read_inputs(plan.problem), plan)


def test_patches_and_disk_are_those_of_the_run(tmp_path):
    plan = configuration(problem={"count": 12}, patch={"hidden": [8]})
    said = []
    report = pipeline.run(plan, REGISTRY, tmp_path / "run", say=said.append)
    found, kept = report["estimate"], tmp_path / "run"
    assert found["patches"] == report["patches"]["count"]
    assert found["parameters"] == report["patches"]["parameters"]
    assert found["patch_bytes"] == report["patches"]["bytes"]
    page = 250_000  # allowed for report.html, which is not written here
    size = sum(path.stat().st_size for path in kept.iterdir())
    assert size / 1.3 < found["kept_bytes"] - page < 1.3 * size
    assert found["kept_bytes"] < found["disk_bytes"]
    assert found["memory_bytes"] < 1.5 * report["peak_memory_bytes"]
    assert set(found["seconds"]) == {"attack", "patches", "certification", "evaluation", "total"}
    assert [line for line in said if line.startswith("estimate: 12 patches of ")]


def test_an_indicator_that_groups_gets_as_many_patches():
    found = predicted(problem={"count": 50}, plan={"indicator": "untargeted-label"})
    assert found.setting.patches == 10
    assert found.setting.pieces == 5


@pytest.mark.parametrize("what", ["parameters", "memory", "disk", "kept"])
def test_everything_grows_with_the_count_and_the_patch(what):
    small = predicted(problem={"count": 10}, patch={"hidden": [8]})
    more = predicted(problem={"count": 50}, patch={"hidden": [8]})
    larger = predicted(problem={"count": 50}, patch={"hidden": [256, 64]})
    assert getattr(small, what) < getattr(more, what) < getattr(larger, what)
    assert sum(small.seconds.values()) < sum(more.seconds.values()) < sum(larger.seconds.values())


def sampled(**sampling):
    """Work of a repair of balls on boxes of samples, by stage; and its predicted seconds."""
    layer = {"patch": {"at": "Relu_4", "boxes": "sampled"}, "sampling": sampling}
    found = predicted(problem={"count": 20}, **layer)
    return {k: count for k, (count, _) in counts(found.setting).items()}, found.seconds


def test_samples_of_features_are_counted():
    (few, soon), (many, late) = sampled(anywhere=8), sampled(anywhere=80_008)
    network = read_inputs(configuration().problem).network
    more = 20 * 80_000 * forward(parted(network, "Relu_4").front).single
    assert many["bounds"].single - few["bounds"].single == pytest.approx(more, rel=1e-6)
    assert many["evaluation"].single - few["evaluation"].single == pytest.approx(2 * more, rel=1e-6)
    for stage in ("patches", "evaluation"):
        assert late[stage] > 2 * soon[stage]


@pytest.mark.parametrize("option", ["corners", "steps"])
def test_every_kind_of_sample_is_counted(option):
    (few, _), (many, _) = sampled(**{option: 0}), sampled(**{option: 50})
    assert many["bounds"].single > few["bounds"].single
    assert many["evaluation"].single > few["evaluation"].single


def test_nothing_is_sampled_where_boxes_are_proved_or_known():
    for patch in ({"at": "Relu_4"}, {}):
        few, many = (
            predicted(patch=patch, sampling={"anywhere": count}).setting for count in (1, 10**6)
        )
        assert counts(few) == counts(many)


def test_a_budget_that_is_always_used_up_is_counted_whole():
    adam = {"optimiser": "adam", "lr": 0.01, "rounds": 20}
    short = predicted(training=adam).seconds
    whole = predicted(training=adam | {"clamp": False}).seconds
    assert whole["patches"] > 5 * short["patches"]


def test_of_property_files_nothing_is_said_about_the_time(tmp_path):
    (tmp_path / "all.vnnlib").write_text(
        "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} 0.1))"
                for i in range(64))
        + "".join(f"(declare-const Y_{i} Real)" for i in range(10))
        + "(assert (<= Y_0 Y_1))"
    )  # fmt: skip
    found = predicted(problem={"property": [str(tmp_path / "all.vnnlib")], "data": ""})
    assert found.seconds is None
    assert found.as_json()["seconds"] is None
    assert found.lines() == [line for line in found.lines() if "depends on the pieces" in line]
    assert found.setting.patches == 1


def test_more_than_an_hour_is_said():
    found = evolve(predicted(), seconds={"attack": 4000.0})
    assert len(found.lines()) == 2
    assert "an hour" in found.lines()[1]


def test_a_dry_run_prints_the_stages_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--count", "7", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("certification", "Gflop", "estimate: 7 patches of 650"))
    assert main(["run", "--count", "7", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["patches"] == 7
    assert list(tmp_path.iterdir()) == []


def test_memory_is_read_from_the_system():
    assert 2**24 < resident_memory() <= 1.1 * peak_memory()
    assert available_memory() is None or available_memory() > 2**20


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bytes"), (2048, "2.0 KiB"), (6.3 * 2**20, "6.3 MiB"), (2000 * 2**30, "2,000 GiB")],
)
def test_sizes_for_people(value, text):
    assert in_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.3, "0.3 s"), (42, "42 s"), (7200, "2.0 h")])
def test_times_for_people(value, text):
    assert in_seconds(value) == text
