"""The full evaluation, on repairs of which the answer is known."""

from __future__ import annotations

from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from problems import a_network, some_data, some_parts

from advrepair.core.assessment import (
    SUBJECTS,
    Assessor,
    Examples,
    Settings,
    refuse_repaired_inputs,
)
from advrepair.core.attacking import generalisation_set
from advrepair.core.constant import constant_patches
from advrepair.core.data import make_dataset
from advrepair.core.errors import UsageError
from advrepair.core.flags import flags
from advrepair.core.patching import PatchBank, RepairedNetwork, last_layer
from advrepair.core.run_folder import Checkpoint
from advrepair.core.statistics import Share
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.attacks.pgd import Pgd


def test_data(count=40):
    x, y = some_data(200)
    return make_dataset("x_test", x[-count:].numpy(), y[-count:].numpy(), (6,), x.dtype, None, 4)


test_data.__test__ = False  # type: ignore[attr-defined]


def an_assessor(allocator=None, checkpoint=None, stages=None, epsilon=0.1, constant=False):
    parts = some_parts()
    unseen = generalisation_set(parts.repaired.base, parts.problem, Pgd(), 2, 0, lambda n: None)
    stack, proved = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    bank = PatchBank(parts.bounder.template, stack)
    r = parts.repaired
    chosen = allocator or NoAllocator()
    model = RepairedNetwork(
        r.base, bank if constant else r.bank, r.regions, r.assignment, r.centres, chosen
    )
    value = bank.stack[last_layer(bank.template)[1]]
    held = proved[r.patch]
    examples = Examples(parts.problem, unseen, value, held, held if constant else held & False)
    settings = Settings(Pgd(), Pgd(steps=30), epsilon, 30, 0, (0.0, 1.0))

    @contextmanager
    def stage(name, total):
        if stages is not None:
            stages.append(name)
        yield lambda more: None

    return Assessor.of_run(model, examples, test_data(), settings, stage, checkpoint)


@pytest.fixture(scope="module")
def untouched():
    """A repair that repairs nothing: its patches are zero."""
    return an_assessor().run()


@pytest.fixture(scope="module")
def constant():
    """A repair that is the constant one."""
    return an_assessor(constant=True).run()


def test_a_repair_that_does_nothing_is_the_unrepaired_network(untouched):
    ours, theirs = untouched.shares["repair"], untouched.shares["none"]
    for name in ("RSR", "RGR", "accuracy", "FDD", "certified"):
        assert ours[name] == theirs[name], name
    assert ours["RSR"] == Share(0, 6) and ours["FDD"] == Share(0, 40)
    assert ours["DSR"] == theirs["DSR"] == Share(0, 6)
    # It has more attacks against it, and nothing to hide behind.
    assert ours["DGSR-query"].hits <= theirs["DGSR-query"].hits + 1


def test_the_constant_repair_is_the_baseline(constant):
    ours, baseline = constant.shares["repair"], constant.shares["constant-bias"]
    assert ours == baseline
    assert ours["certified"] == ours["RSR"] == ours["DSR"] == Share(6, 6)
    assert constant.insight["repair"] == constant.insight["constant-bias"]
    assert constant.threats["repair"] == constant.threats["constant-bias"]


def test_what_is_attacked_is_counted(constant):
    for subject in SUBJECTS:
        shares = constant.shares[subject]
        assert shares["DGSR-query"].count == shares["DGSR-oracle"].count == 30
        assert shares["DSR"].count == 6 and shares["accuracy"].count == 40
        assert shares["DGSR-query"].hits <= shares["accuracy"].hits
    assert set(constant.threats["none"]) == {"direct"}


def test_the_worst_of_all_threats_counts(constant):
    for subject in ("repair", "constant-bias"):
        stand = constant.shares[subject]["DGSR-query"]
        most = max(share.hits for share in constant.threats[subject].values())
        assert stand.hits <= stand.count - most


def test_larger_radii_leave_less(constant):
    rates = [share.hits for _, share in sorted(constant.sweep["repair"]["query"].items())]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


def test_the_same_seed_gives_the_same_figures(constant):
    again = an_assessor(constant=True).run()
    assert again.shares == constant.shares and again.sweep == constant.sweep


class Stop(Exception):
    """The process is killed."""


@frozen
class Counted(Pgd):
    """Counts its calls, and stops after so many."""

    calls: ClassVar[list[int]] = []
    most: ClassVar[int] = 10**9

    def perturb(self, model, properties, start, generator):
        if len(self.calls) == type(self).most:
            raise Stop
        self.calls.append(len(properties))
        return super().perturb(model, properties, start, generator)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, constant, monkeypatch):
    monkeypatch.setattr(Counted, "calls", [])

    def an_evaluation():
        found = an_assessor(constant=True, checkpoint=Checkpoint(tmp_path))
        found.settings = evolve(found.settings, attack=Counted(), quick=Counted(steps=30))
        return found

    monkeypatch.setattr(Counted, "most", 9)
    with pytest.raises(Stop):
        an_evaluation().run()
    monkeypatch.setattr(Counted, "most", 10**9)
    assert an_evaluation().run().shares == constant.shares
    once = len(Counted.calls)
    an_evaluation().run()
    assert len(Counted.calls) == once  # all of it is kept
    monkeypatch.setattr(Counted, "calls", [])
    other = Checkpoint(tmp_path / "other")
    other.folder.mkdir()
    evolve(an_evaluation(), checkpoint=other).run()
    assert once - 9 < len(Counted.calls) <= once  # only the part that was cut off ran twice


def test_a_test_input_that_was_repaired_is_refused():
    x, y = some_data(40)
    data = make_dataset("x_test", x.numpy(), y.numpy(), (6,), x.dtype, None, 4)
    with pytest.raises(UsageError, match=r"x_test row 17 is a repaired input"):
        refuse_repaired_inputs(x[[30, 17]], data)
    refuse_repaired_inputs(x[:3] + 0.5, data)


def named(found):
    return [flag["name"] for flag in flags(found)]


def test_an_honest_repair_raises_no_flag(untouched):
    assert "constant predictor" not in named(untouched)
    assert "not monotone" not in named(untouched)
    assert "predictions independent of the image" not in named(untouched)


def test_flags(constant):
    share = Share(90, 100)
    sweep = {
        "repair": {"query": {0.1: Share(10, 100), 0.2: share}, "oracle": {0.1: share, 1.0: share}}
    }
    bad = evolve(
        constant,
        sweep=sweep,
        threats={"repair": {"transferred": share, "straight-through": Share(10, 100)}},
        classes={**constant.classes, "repair": torch.tensor([[0, 97, 3, 0], [25, 25, 25, 25]])},
        insight={"repair": {"forced_images": 1.0, "forced_noise": 0.995}},
    )
    assert named(bad) == [
        "not image dependent",
        "not monotone",
        "black box better than white box",
        "constant predictor",
        "predictions independent of the image",
    ]
    assert all("\n" not in flag["text"] for flag in flags(bad))


def test_a_network_is_no_repair(constant):
    assert a_network().outputs == constant.classes["none"].shape[1]
    assert constant.classes["none"].sum(1).tolist() == [40, 40]
