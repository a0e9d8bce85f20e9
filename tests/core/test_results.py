"""What is kept of a shard is used again only if it is what was written."""

import pytest
import torch
from problems import some_parts

from advrepair.core import sections
from advrepair.core.results import Results
from advrepair.core.run_folder import Checkpoint
from advrepair.core.solving import Solver
from advrepair.plugins.refiners.none import NoRefiner


class Here:
    """Solves at once, and counts."""

    def __init__(self):
        self.solved = 0

    def map(self, function, items):
        for turn, item in enumerate(items):
            self.solved += 1
            yield turn, function(item)


@pytest.fixture
def repair(tmp_path):
    parts = some_parts()
    solver = Solver(parts.bounder, NoRefiner(), sections.Training(), 0)

    def run():
        results, executor = Results(parts.shards, Checkpoint(tmp_path)), Here()
        results.found(solver)
        list(results.solve(solver, executor))
        return results, executor.solved, parts.bounder.template

    return run


def test_what_was_solved_is_not_solved_again(repair, tmp_path):
    first, solved, template = repair()
    assert solved == 1
    again, solved, _ = repair()
    assert solved == 0
    for have, want in zip(again.ordered(), first.ordered(), strict=True):
        assert torch.equal(have.margin, want.margin) and (have.margin > 0).all()
    for name, tensor in first.bank(template).stack.items():
        assert torch.equal(again.bank(template).stack[name], tensor)


def test_a_single_changed_bit_is_noticed(repair, tmp_path):
    repair()
    (path,) = tmp_path.glob("checkpoint-shard-*")
    good = path.read_bytes()
    begin = 8 + int.from_bytes(good[:8], "little")
    for place in torch.linspace(begin, len(good) - 1, 5).long().tolist():
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert repair()[1] == 1
        assert repair()[1] == 0


@pytest.mark.parametrize("kept", ["half", "zeros"])
def test_a_torn_file_is_as_good_as_none(kept, repair, tmp_path):
    repair()
    (path,) = tmp_path.glob("checkpoint-shard-*")
    good = path.read_bytes()
    half = len(good) // 2
    path.write_bytes(good[:half] + (b"" if kept == "half" else bytes(len(good) - half)))
    assert repair()[1] == 1


def test_weights_that_are_damaged_while_it_runs_are_not_put_together(repair, tmp_path):
    results, _, template = repair()
    (path,) = tmp_path.glob("checkpoint-shard-*")
    path.write_bytes(b"short")
    with pytest.raises(OSError, match="cannot be read again"):
        results.bank(template)
