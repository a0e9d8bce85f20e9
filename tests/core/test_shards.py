"""Shards: a name for all that an outcome depends on, and outcomes that survive a file."""

import pytest
import torch
from attrs import evolve
from problems import Mixed, a_problem, some_parts

from advrepair.core.attacking import Problem
from advrepair.core.covering import cover
from advrepair.core.files import read_tensors, write_tensors
from advrepair.core.patching import patch_template
from advrepair.core.refinement import Worklist
from advrepair.core.shards import Outcome, packed
from advrepair.core.types import Assignment, SplitPlan
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.testing.networks import fully_connected


def with_proof():
    parts = some_parts()
    shard = parts.shards[0]
    return evolve(shard, proof=Worklist.start(shard, parts.bounder).proof)


def changed(tensor):
    """The same but for the last bit of the last element."""
    result = tensor.clone()
    flat = result.view(-1)
    if tensor.is_floating_point():
        flat[-1] = torch.nextafter(flat[-1], torch.full_like(flat[-1], torch.inf))
    else:
        flat[-1] += 1
    return result


def test_the_key_says_everything():
    shard = with_proof()
    asked, proof = shard.properties, shard.proof
    others = [shard, evolve(shard, proof=None)]
    for name in ("C", "d", "group", "label"):
        others.append(
            evolve(shard, properties=evolve(asked, **{name: changed(getattr(asked, name))}))
        )
    for name in ("lower", "upper"):
        faces = {"lower": shard.box.lower, "upper": shard.box.upper}
        others.append(evolve(shard, box=type(shard.box)(**{**faces, name: changed(faces[name])})))
    for name in ("owner", "patch"):
        others.append(evolve(shard, **{name: changed(getattr(shard, name))}))
    others.append(evolve(shard, identifiers=(*shard.identifiers[:-1], "0" * 16)))
    for name in ("A", "b", "magnitude", "slope", "error"):
        others.append(evolve(shard, proof=evolve(proof, **{name: changed(getattr(proof, name))})))
    keys = [each.key("settings") for each in others] + [shard.key("other settings")]
    assert len(set(keys)) == len(keys) and shard.key("settings") == keys[0]


def test_an_outcome_survives_a_file(tmp_path):
    parts = some_parts(hidden=(3,))
    parts.worklist.split(SplitPlan(torch.tensor([1, 4]), torch.tensor([0, 2])), parts.bounder)
    parts.worklist.split(SplitPlan(torch.tensor([6]), torch.tensor([5])), parts.bounder)
    outcome = parts.outcome()
    outcome.tree.cut[1] = 5e-324  # no float32 holds it
    write_tensors(tmp_path / "x", outcome.tensors(), {})
    found = Outcome.from_tensors(read_tensors(tmp_path / "x")[0])
    for name in ("owner", "parent", "dim", "cut"):
        assert getattr(found.tree, name) == getattr(outcome.tree, name)
    have, want = found.tensors(), outcome.tensors()
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert have[name].dtype == tensor.dtype and torch.equal(have[name], tensor), name


@pytest.mark.parametrize("indicator", [PropertyGuided(), Mixed()])
def test_shards_do_not_depend_on_the_order_of_the_data(indicator):
    parts = some_parts(indicator=indicator)
    asked = parts.properties
    order = torch.tensor([4, 2, 5, 0, 3, 1])

    def served(problem: Problem, assigned):
        ground = cover(problem, parts.bounder, assigned, False)
        return [
            (shard.identifiers, sorted(shard.properties.identifiers()), len(shard.box))
            for shard in ground.shards(parts.bounder.template)
        ]

    class Same(type(indicator)):
        """As the indicator says before the order changed."""

        def assign(self, properties):
            before = indicator.assign(asked)
            names = {name: i for i, name in enumerate(asked.identifiers())}
            where = torch.tensor([names[name] for name in properties.identifiers()])
            return Assignment(before.patch[where], before.names)

    every = torch.arange(6)
    one = evolve(parts.problem, x_adv=asked.center, owner=every)
    other = evolve(one, properties=asked[order], x_adv=asked.center[order])
    assert served(one, Same()) == served(other, Same())


def test_runs_cover_all_patches_and_are_neither_empty_nor_too_long():
    template = patch_template(fully_connected(1, (4, 5, 3)), ())
    for pieces in ([], [1], [3] * 9, [1] * 1000, [10**6, 1, 1, 10**6]):
        runs = packed(pieces, template, 2)
        assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(pieces)))
        assert all(0 < run.stop - run.start <= 64 for run in runs)


def test_what_is_asked_of_a_problem_is_what_its_shards_hold():
    problem = a_problem()
    parts = some_parts(problem)
    ground = parts.shards.cover
    pieces = torch.cat(list(ground.shards(parts.bounder.template).pieces))
    assert sorted(pieces.tolist()) == (ground.patch >= 0).nonzero()[:, 0].tolist()
    for shard in ground.shards(parts.bounder.template):
        for k in range(len(shard.box)):
            i = parts.properties.identifiers().index(
                shard.properties.identifiers()[int(shard.owner[k])]
            )
            assert torch.equal(shard.box.lower[k], parts.properties.box.lower[i])
            assert (
                ground.identifiers[int(ground.assignment.patch[i])]
                == (shard.identifiers[int(shard.patch[k])])
            )
