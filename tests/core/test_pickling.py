"""Solvers, shards and outcomes travel: the same bytes elsewhere, and no more than needed."""

from __future__ import annotations

import pickle

import pytest
import torch

from advrepair.core.evaluation import DECISIONS
from advrepair.core.finding import make_bounder, samples_of
from advrepair.core.interfaces import Verifier
from advrepair.core.registry import Registry
from advrepair.core.sections import Training
from advrepair.core.shards import Outcome
from advrepair.core.solving import Solver
from advrepair.plugins.refiners.widest import Widest
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from tests.problems import Mixed, Parts, a_network, configure, some_parts, write_inputs

VERIFIERS = [entry.name for entry in Registry.load().listing() if entry.kind == "verifier"]


def a_solver(parts: Parts, **options: object) -> Solver:
    """Few steps, and pieces that are cut."""
    training = Training(epochs=2, rounds=4, split=2)
    return Solver(parts.bounder, Widest(), training, 0, **options)  # type: ignore[arg-type]


def travelled(thing: object) -> object:
    """What arrives in another process."""
    return pickle.loads(pickle.dumps(thing))


def said(outcome: Outcome) -> dict[str, bytes]:
    """All of an outcome but the time it took."""
    found = {name: t.numpy().tobytes() for name, t in outcome.tensors().items()}
    del found["cpu"]
    return found


def size(tensors: dict[str, torch.Tensor]) -> int:
    """Bytes of the numbers themselves."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


@pytest.mark.parametrize("hidden", [(), (8,)])
@pytest.mark.parametrize("name", VERIFIERS)
def test_solved_elsewhere_it_is_the_same(name: str, hidden: tuple[int, ...]) -> None:
    found = Registry.load().find("verifier", name)
    assert issubclass(found, Verifier)
    training = found() if found.differentiable else DeepPoly()
    certifier = found() if found.rigorous else DeepPoly()
    parts = some_parts(hidden=hidden, verifier=training, certifier=certifier, indicator=Mixed())
    solver, shard = a_solver(parts), parts.shards[0]
    here = solver(shard)
    elsewhere = travelled(solver)
    assert isinstance(elsewhere, Solver)
    assert elsewhere.settings() == solver.settings()
    there = travelled(elsewhere(travelled(shard)))  # type: ignore[arg-type]
    assert isinstance(there, Outcome)
    assert said(there) == said(here)
    assert len(here.node) > len(shard.owner)  # pieces were cut


def test_the_key_of_a_shard_travels() -> None:
    shard = some_parts().shards[0]
    assert travelled(shard).key("x") == shard.key("x")  # type: ignore[attr-defined]


def test_a_shard_and_its_outcome_carry_their_own_rows_only() -> None:
    parts = some_parts(hidden=(8,))
    whole, one = parts.shards, parts.shards.patches[0][:1]
    mine = whole.pieces[0][whole.cover.patch[whole.pieces[0]] == one]
    shard = type(whole)(whole.cover, (one,), (mine,))[0]
    asked = shard.properties
    own = [asked.C, asked.d, asked.group, asked.center, asked.box.lower, asked.box.upper]
    numbers = dict(enumerate([*own, shard.box.lower, shard.box.upper]))
    outcome = a_solver(parts)(shard)
    for thing, tensors in ((shard, numbers), (outcome, outcome.tensors())):
        few = size(tensors) + 500 * (len(tensors) + 8)  # type: ignore[arg-type]
        assert len(pickle.dumps(thing)) < few
        for tensor in tensors.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("rule", DECISIONS)
def test_decisions_travel(rule: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    network, registry = a_network(), Registry.load()
    plan = configure(registry, *write_inputs(tmp_path))
    parts = some_parts()
    samples, decisions = samples_of(network, parts.properties, plan)
    decisions = type(decisions)(decisions.outputs, DECISIONS[rule])
    solver = a_solver(parts, samples=(samples, decisions))
    there = travelled(solver)
    assert isinstance(there, Solver)
    assert there.samples is not None
    assert there.samples[1].decide is DECISIONS[rule]


def test_a_bounder_prepares_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    network = a_network()
    bounder = make_bounder(network, configure(Registry.load(), *write_inputs(tmp_path)))
    parts = some_parts(network=network)
    box, asked = parts.properties.box, parts.properties
    rows = bounder.base(box, asked.C, asked.d, rigorous=True)
    there = travelled(bounder)
    again = there.base(box, asked.C, asked.d, rigorous=True)  # type: ignore[attr-defined]
    assert torch.equal(rows.A, again.A)
    assert torch.equal(rows.b, again.b)
