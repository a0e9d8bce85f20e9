"""Training: until the proof or the end of the budget, each patch for itself."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from problems import Mixed, Parts, a_network, a_problem, some_data, some_parts, the_balls

from advrepair.core import sections
from advrepair.core.attacking import Problem
from advrepair.core.interfaces import Refiner
from advrepair.core.optimisers import Polyak
from advrepair.core.patching import last_layer
from advrepair.core.solving import are_constant
from advrepair.core.training import Trained, _losses, train
from advrepair.core.types import LinearBound, SplitPlan
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.refiners.none import NoRefiner
from advrepair.plugins.verifiers.deeppoly import DeepPoly


@frozen
class Vague(DeepPoly):
    """Says -1000 of everything, and is of no help to a gradient."""

    name: ClassVar[str] = "vague"

    def prepare(self, network, rounding=None):
        inner = super().prepare(network, rounding)

        def bound(params, box, C, d):
            known = inner(params, box, C, d)
            return LinearBound(known.A * 0, known.b * 0 - 1000.0, known.magnitude)

        return bound


def run(parts: Parts, settled=(), refiner=None, **budget):
    result = Trained.nothing_yet(len(parts.repaired.bank))
    result.settled[list(settled)] = True
    budget = sections.Training(**budget)
    train(parts.bank, parts.worklist, parts.bounder, refiner or NoRefiner(), budget, result)
    return result


def proved(parts):
    margin = parts.margins()
    least = torch.full((len(parts.repaired.bank),), torch.inf, dtype=torch.float64)
    return least.scatter_reduce(0, parts.worklist.patch, margin, "amin") > 0


@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
@pytest.mark.parametrize("optimiser", ["polyak", "adam"])
def test_it_ends_with_the_proof(hidden, optimiser):
    parts = some_parts(hidden=hidden)
    assert parts.properties.violated(parts.repaired(parts.problem.x_adv)).all()
    result = run(parts, optimiser=optimiser, lr=1.0 if optimiser == "polyak" else 0.05)
    assert proved(parts).all() and not are_constant(parts.bank).any()
    assert not parts.properties.violated(parts.repaired(parts.problem.x_adv)).any()
    assert (result.epochs > 0).all() and (result.epochs < 10 * 25).all()
    assert result.settled.all() and len(parts.worklist.owner) == 6


def test_what_needs_no_repair_gets_none():
    network = a_network()
    x, y = some_data(30, network)
    sure = network(x).topk(2, dim=1).values.diff(dim=1)[:, 0].argsort()[:2]
    parts = some_parts(Problem(the_balls(network, x[sure], y[sure], 1e-3), x[sure], sure), network)
    result = run(parts)
    assert result.epochs.tolist() == [0, 0] and proved(parts).all()
    assert not any(t.any() for t in parts.repaired.bank.stack.values())


def test_what_is_settled_is_left_alone():
    parts = some_parts(hidden=(5,))
    before = {name: t.clone() for name, t in parts.repaired.bank.stack.items()}
    result = run(parts, settled=[4, 1])
    assert result.settled.all()
    assert not result.epochs[[1, 4]].any() and result.epochs[[0, 2, 3, 5]].all()
    for name, t in parts.repaired.bank.stack.items():
        assert torch.equal(t[[1, 4]], before[name][[1, 4]])


def test_when_all_is_settled_nothing_is_done():
    parts = some_parts()
    run(parts, settled=range(6))
    assert not any(t.any() for t in parts.repaired.bank.stack.values())


@pytest.mark.parametrize("alone", [0, 1, 8])
def test_hidden_layers_rest_while_the_last_ones_move_alone(alone, monkeypatch):
    monkeypatch.setattr(Polyak, "alone", alone)
    parts = some_parts(hidden=(6, 4), problem=a_problem(epsilon=0.3))
    before = {name: t.clone() for name, t in parts.bank.stack.items()}
    result = run(parts, rounds=1, fallback=False)
    assert proved(parts).any() and result.epochs.max() == 10
    moved = {n: (t != before[n]).flatten(1).any(1) for n, t in parts.bank.stack.items()}
    for name in set(moved) - set(last_layer(parts.bank.template)):
        assert torch.equal(moved[name], result.epochs > max(1, alone))


@pytest.mark.parametrize("alone", [0, 2, 8])
def test_the_proofs_that_training_keeps_are_those_of_the_stored_weights(alone, monkeypatch):
    monkeypatch.setattr(Polyak, "alone", alone)
    options = {"hidden": (5,), "indicator": Mixed(), "problem": a_problem(count=9, epsilon=0.08)}
    parts = some_parts(**options)
    result = run(parts, epochs=3, rounds=6, split=2, refiner=GradientWidth(), fallback=False)
    margin, found = parts.margins(), 0
    for nodes, least, _ in result.proofs:
        for node, each in zip(nodes, least, strict=True):
            piece = (parts.worklist.node == node).nonzero()[0, 0]
            assert each.item() == pytest.approx(margin[piece].item(), abs=1e-9)
            found += 1
    assert found


def test_what_trains_beside_it_changes_no_weight():
    whole, apart = some_parts(hidden=(5,)), some_parts(hidden=(5,))
    run(whole)
    for i in range(6):
        run(apart, settled=[j for j in range(6) if j != i])
    for name, t in whole.repaired.bank.stack.items():
        assert torch.equal(t, apart.repaired.bank.stack[name])


def test_the_budget_is_kept():
    parts = some_parts(indicator=Mixed(), problem=a_problem(count=9, epsilon=0.3))
    result = run(parts, epochs=3, rounds=4, fallback=False)
    good = proved(parts)
    assert not good.all() and result.settled.all()
    assert (result.epochs[~good] == 12).all() and (result.epochs[good] <= 12).all()


PUSHED = {"clamp": False, "optimiser": "adam", "lr": 0.05, "epochs": 4, "rounds": 3}


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_without_a_clamp_margins_grow_until_the_budget_ends(hidden):
    clamped, parts = some_parts(hidden=hidden), some_parts(hidden=hidden)
    first = run(clamped, **PUSHED | {"clamp": True, "rounds": 20})
    result = run(parts, **PUSHED | {"rounds": 20})
    assert (first.epochs < 80).all() and (result.epochs == 80).all()
    assert proved(clamped).all() and proved(parts).all()
    assert parts.margins().min() > 3 * clamped.margins().max()
    assert not are_constant(parts.bank).any()


def test_without_a_clamp_a_margin_that_suffices_is_raised_too():
    network = a_network()
    x, y = some_data(30, network)
    sure = network(x).topk(2, dim=1).values.diff(dim=1)[:, 0].argsort()[:2]
    problem = Problem(the_balls(network, x[sure], y[sure], 1e-3), x[sure], sure)
    parts = some_parts(problem, network)
    before = parts.margins()
    result = run(parts, **PUSHED)
    assert (before > 0).all() and (parts.margins() > before).all()
    assert result.epochs.tolist() == [12, 12]


def test_without_a_clamp_what_counts_as_proved_is_what_the_bounds_prove():
    problem = a_problem(count=9, epsilon=0.08)
    parts = some_parts(indicator=Mixed(), problem=problem)
    result = run(parts, refiner=GradientWidth(), fallback=False, **PUSHED | {"split": 2})
    margin, good = parts.margins(), proved(parts)
    kept = {
        int(n): float(m) for nodes, m, _ in result.proofs for n, m in zip(nodes, m, strict=True)
    }
    assert 0 < good.sum() < len(good) and len(parts.worklist.owner) > 9
    theirs = good[parts.worklist.patch]
    assert set(kept) == set(parts.worklist.node[theirs].tolist())
    for node, least in zip(parts.worklist.node[theirs].tolist(), margin[theirs], strict=True):
        assert kept[node] == pytest.approx(least.item(), abs=1e-9)


def test_without_a_clamp_a_certifier_that_proves_nothing_is_not_passed_over():
    parts = some_parts(certifier=Vague())
    result = run(parts, fallback=False, **PUSHED)
    assert result.proofs == [] or all(not len(nodes) for nodes, *_ in result.proofs)
    assert not proved(parts).any() and (result.epochs == 12).all()


def test_without_a_clamp_the_loss_is_the_sum_of_all_that_is_lacking():
    margin = torch.tensor([[[0.5, -2.0], [3.0, torch.inf]], [[1.0, 0.0], [torch.inf, torch.inf]]])
    aim = torch.tensor([1.0, 0.0])
    assert _losses(aim, margin, True).tolist() == [3.5, 0.0]
    margin.requires_grad_(True)
    loss = _losses(aim, margin, False)
    assert loss.tolist() == [0.5 + 3.0 - 2.0, -1.0]
    (slope,) = torch.autograd.grad(loss.sum(), margin)
    assert torch.equal(slope, -torch.isfinite(margin).float())


@pytest.mark.parametrize("fallback", [True, False])
def test_what_is_not_proved_falls_back_to_a_constant(fallback):
    parts = some_parts(verifier=Vague())
    result = run(parts, epochs=2, rounds=1, fallback=fallback)
    assert result.epochs.tolist() == [2] * 6
    assert torch.equal(are_constant(parts.bank), torch.full((6,), fallback))
    assert proved(parts).all() if fallback else not proved(parts).any()
    hits = parts.properties.violated(parts.repaired(parts.problem.x_adv))
    assert not hits.any() or not fallback


def test_a_constant_that_is_not_proved_does_not_replace_what_was_trained():
    parts = some_parts(certifier=Vague())
    plain = some_parts(certifier=Vague())
    run(parts, epochs=2, rounds=1, fallback=True)
    run(plain, epochs=2, rounds=1, fallback=False)
    assert not proved(parts).all()
    kept = ~are_constant(parts.bank)
    for name, t in parts.repaired.bank.stack.items():
        assert torch.equal(t[kept], plain.repaired.bank.stack[name][kept])


@frozen
class Ignorant(DeepPoly):
    """Does not know: b = -inf, as the contract allows."""

    name: ClassVar[str] = "ignorant"

    def prepare(self, network, rounding=None):
        inner = super().prepare(network, rounding)

        def bound(params, box, C, d):
            known = inner(params, box, C, d)
            return LinearBound(known.A, known.b - torch.inf, known.magnitude)

        return bound


@pytest.mark.parametrize(("optimiser", "clamp"), [("polyak", 1), ("adam", 1), ("adam", 0)])
def test_a_verifier_that_does_not_know_leaves_finite_weights(optimiser, clamp):
    parts = some_parts(verifier=Ignorant())
    run(parts, optimiser=optimiser, clamp=bool(clamp), epochs=2, rounds=2, fallback=False)
    assert all(torch.isfinite(t).all() for t in parts.repaired.bank.stack.values())


@frozen
class Counting(Refiner):
    """Notes what it is asked, and cuts the worst pieces along dimension 0."""

    name: ClassVar[str] = "counting"
    asked: ClassVar[list] = []

    def choose(self, box, margin, slope, budget):
        self.asked.append((box, margin, slope, budget))
        piece = (margin <= 0).nonzero()[:budget, 0]
        return SplitPlan(piece, torch.zeros_like(piece))


def test_refiners_are_asked_for_each_open_patch_after_every_round_but_the_last():
    Counting.asked.clear()
    parts = some_parts(verifier=Vague())
    run(parts, refiner=Counting(), epochs=1, rounds=4, split=2, fallback=False)
    assert len(Counting.asked) == 3 * 6
    assert {budget for *_, budget in Counting.asked} == {2}
    pieces = [len(box) for box, *_ in Counting.asked[::6]]
    assert pieces == [1, 2, 4]  # padding is not shown
    owners = parts.worklist.owner.bincount().tolist()
    assert owners == [6] * 6  # 1, then 2, then 4, then 2 of 4 split
    for box, margin, slope, _ in Counting.asked:
        assert margin.shape == (len(box),) and slope.shape == box.lower.shape


@frozen
class Still(DeepPoly):
    """DeepPoly without gradients: the patches stay as they are."""

    name: ClassVar[str] = "still"

    def prepare(self, network, rounding=None):
        inner = super().prepare(network, rounding)

        def bound(params, box, C, d):
            known = inner({name: t.detach() for name, t in params.items()}, box, C, d)
            nothing = 0 * sum(t.sum() for t in params.values())
            return LinearBound(known.A, known.b + nothing, known.magnitude)

        return bound


def test_splitting_alone_proves_what_a_loose_bound_does_not():
    network = a_network()
    x, y = some_data(20, network)
    problem = Problem(the_balls(network, x, y, 0.08), x, torch.arange(20))
    found = {}
    for refiner in (NoRefiner(), GradientWidth()):
        parts = some_parts(problem, network, verifier=Still())
        run(parts, refiner=refiner, epochs=1, rounds=8, split=4, fallback=False)
        assert not any(t.any() for t in parts.repaired.bank.stack.values())
        found[refiner.name] = proved(parts)
    assert (found["gradient-width"] >= found["none"]).all()
    assert found["gradient-width"].sum() > found["none"].sum()


def test_a_refiner_is_told_where_the_loss_rises():
    """For an affine function the slope is that of the violated rows."""
    Counting.asked.clear()
    parts = some_parts(indicator=Mixed(), problem=a_problem(count=9, epsilon=0.3))
    run(parts, refiner=Counting(), epochs=1, rounds=2, split=1, fallback=False)
    _, margin, slope, _ = Counting.asked[0]
    assert (margin <= 0).any()
    assert slope[margin <= 0].flatten(1).any(1).all()
    assert not slope[margin > 0].any()


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_a_group_of_several_rows_is_trained_to_a_proof(hidden):
    """'Output k is not the largest': one group, and one of its rows is enough."""
    problem = a_problem()
    asked, label = problem.properties, problem.properties.label
    k = asked.target  # the class that must not win
    eye = torch.eye(4)
    C = torch.stack([eye[[i for i in range(4) if i != int(each)]] - eye[each] for each in k])
    group = torch.zeros(len(C), 3, dtype=torch.long)
    never = evolve(asked, C=C, group=group, label=torch.full_like(label, -1))
    parts = some_parts(Problem(never, problem.x_adv, problem.row), hidden=hidden)
    assert bool(never.violated(parts.repaired(problem.x_adv)).any())
    run(parts)
    assert (parts.proof().margin > 0).all()
    assert not bool(are_constant(parts.bank).any())
    assert not bool(never.violated(parts.repaired(problem.x_adv)).any())
