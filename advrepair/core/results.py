"""What the shards of a repair became: kept on disk where there is a folder, else in memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping

import torch
from attrs import define, evolve, field
from torch import Tensor

from advrepair.core.covering import Shards
from advrepair.core.files import Blocks
from advrepair.core.graph import Network
from advrepair.core.interfaces import Executor
from advrepair.core.patching import PatchBank
from advrepair.core.run_folder import Checkpoint
from advrepair.core.shards import STEPS, Outcome
from advrepair.core.solving import Solver

_BANK = "bank"
_BLOCK_BYTES = 2**24


@define(eq=False)
class Results:
    """Outcomes of shards, by their places; with a checkpoint their weights lie on disk."""

    shards: Shards
    checkpoint: Checkpoint | None
    outcomes: dict[int, Outcome] = field(factory=dict)
    _keys: dict[int, str] = field(factory=dict)

    def found(self, solver: Solver) -> int:
        """Take over what an interrupted run has solved; returns how many patches that are."""
        settings = solver.settings()
        for place, shard in enumerate(self.shards):
            self._keys[place] = f"shard-{shard.key(settings)}"
            self._load(place)
        return sum(len(self.shards.patches[place]) for place in self.outcomes)

    def solve(self, solver: Solver, executor: Executor) -> Iterator[Tensor]:
        """Solve what was not found; yields the patches, [q], of each shard that is done."""
        missing = [place for place in range(len(self.shards)) if place not in self.outcomes]
        for turn, outcome in executor.map(solver, (self.shards[place] for place in missing)):
            self._keep(missing[turn], outcome)
            yield self.shards.patches[missing[turn]]

    def ordered(self) -> list[Outcome]:
        """The outcome of every shard, in their order."""
        return [self.outcomes[place] for place in range(len(self.shards))]

    def gathered(self, name: str) -> Tensor:
        """An array of the outcomes that has one row a patch, [Q,...]."""
        parts = [getattr(outcome, name) for outcome in self.ordered()]
        if not parts:
            row = (self.shards.cover.properties.C.shape[2],) if name == "constant" else ()
            return torch.zeros(0, *row, dtype=torch.bool if name in ("flat", "held") else None)
        return torch.cat(parts)[torch.cat(list(self.shards.patches)).argsort()]

    def bank(self, template: Network) -> PatchBank:
        """All patches; on disk they are memory-mapped."""
        rows = torch.cat([torch.zeros(0, dtype=torch.long), *self.shards.patches]).argsort()
        shapes = {name: (len(rows), *t.shape) for name, t in template.tensors.items()}
        if not len(rows):
            return PatchBank(
                template, {n: template.tensors[n].new_zeros(s) for n, s in shapes.items()}
            )
        stacks = [self._stack(place) for place in range(len(self.shards))]
        starts = torch.tensor([len(patches) for patches in self.shards.patches]).cumsum(0)

        def blocks(name: str) -> Iterator[Tensor]:
            tensor = template.tensors[name]
            size = max(1, _BLOCK_BYTES // max(1, tensor.numel() * tensor.element_size()))
            for part in rows.split(size):
                place = torch.searchsorted(starts, part, right=True)
                slot = part - torch.where(place > 0, starts[place - 1], 0)
                where = zip(place.tolist(), slot.tolist(), strict=True)
                yield torch.stack([stacks[p][name][s] for p, s in where])

        if self.checkpoint is None:
            return PatchBank(template, {name: torch.cat(list(blocks(name))) for name in shapes})
        whole = {
            name: Blocks(template.dtype, shape, lambda name=name: blocks(name))  # type: ignore[misc]
            for name, shape in shapes.items()
        }
        return PatchBank(template, self.checkpoint.spilled(_BANK, whole))

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time, by what they were spent on."""
        spent = sum((outcome.cpu for outcome in self.outcomes.values()), torch.zeros(len(STEPS)))
        return dict(zip(STEPS, spent.tolist(), strict=True))

    def _keep(self, place: int, outcome: Outcome) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(self._keys[place], outcome.tensors())
            outcome = evolve(outcome, stack={})
        self.outcomes[place] = outcome

    def _load(self, place: int) -> None:
        saved = self._saved(place)
        if saved is not None:
            self.outcomes[place] = evolve(saved, stack={})

    def _saved(self, place: int) -> Outcome | None:
        """What was kept, None if there is nothing or the file is damaged."""
        saved = self.checkpoint.load(self._keys[place]) if self.checkpoint else None
        return None if saved is None else Outcome.from_tensors(saved)

    def _stack(self, place: int) -> Mapping[str, Tensor]:
        if self.checkpoint is None:
            return self.outcomes[place].stack
        saved = self._saved(place)
        if saved is None:
            where = str(self.checkpoint.folder)
            raise OSError(errno.EIO, "a patch that was written cannot be read again", where)
        return saved.stack
