"""What a repair method is given, and what it gives back."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from advrepair.core.errors import PluginError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from advrepair.core.graph import Network
    from advrepair.core.types import LinearBound, PropertySet

Bound = Callable[..., "LinearBound"]


class MethodStatus(enum.StrEnum):
    """What became of a repair."""

    REPAIRED = "repaired"
    NOT_REPAIRED = "not_repaired"
    INFEASIBLE = "infeasible"
    SOLVER_FAILED = "solver_failed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def sentence(self) -> str:
        """The sentence a user sees."""
        return {
            MethodStatus.REPAIRED: "every counterexample that was given is right now",
            MethodStatus.NOT_REPAIRED: "a counterexample that was given is still wrong",
            MethodStatus.INFEASIBLE: "what the method may change cannot repair this; proved",
            MethodStatus.SOLVER_FAILED: "a solver ended without a solution; nothing was applied",
            MethodStatus.TIMEOUT: "the time was up; nothing was applied",
            MethodStatus.OUT_OF_MEMORY: "it needs more memory than it may have",
            MethodStatus.REFUSED: "the method does not take such a task",
            MethodStatus.FAILED: "the method broke; this is an error of the method",
        }[self]

    @property
    def applied(self) -> bool:
        """Whether there may be a model: only such a result has rates."""
        return self in (MethodStatus.REPAIRED, MethodStatus.NOT_REPAIRED)


class Scope(enum.StrEnum):
    """What a method promises to have repaired, by its construction."""

    POINTS = "points"
    REGION = "region"
    NONE = "none"

    @property
    def sentence(self) -> str:
        """The sentence a user sees."""
        return {
            Scope.POINTS: "the counterexamples that were given, and no other input",
            Scope.REGION: "every input of a region that the evidence names",
            Scope.NONE: "nothing: what was repaired is measured",
        }[self]


@frozen(eq=False)
class MethodResult:
    """What a method made of a task.

    model: to run in the network's place, [N,*S] to [N,K]: a function of each row alone,
    differentiable in it. None if there is nothing to apply. evidence: JSON values that say how
    the result came about; ``reason`` says why nothing was applied.

    Raises PluginError for a model without a status that allows one, and the other way round.
    """

    model: nn.Module | None
    status: MethodStatus
    scope: Scope
    evidence: Mapping[str, Any]

    def __attrs_post_init__(self) -> None:
        if self.model is not None and not self.status.applied:
            raise PluginError(f"a result that is {self.status} cannot have a model: it is applied")
        if self.model is None and self.status is MethodStatus.REPAIRED:
            raise PluginError("a result that is repaired needs a model")


@frozen(eq=False)
class Labelled:
    """Inputs with the decisions that are right: x [n,*S], label [n]."""

    x: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Labelled:
        return Labelled(self.x[index], self.label[index])


def _untold(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


Hotfix = Literal["trained", "cap", "constant"]  # patches: see docs/concepts.md and docs/caps.md


def _no_hotfix(task: Task, kind: Hotfix) -> MethodResult:
    raise UsageError("this task was made by hand, without the repair of advrepair itself")


@frozen(eq=False)
class Task:
    """A repair problem as every method gets it.

    network: to be repaired; it must stay as it is. properties: P. x_adv: counterexamples
    [E,*S], property owner[e], [E], is broken there. clean: labelled inputs to keep the accuracy
    by. held: others, to choose by. None of them is repaired or tested on; None if there are
    none. clip: the range of inputs. decision: argmax, or argmin where the smallest output is
    the decision. deadline: as ``time.perf_counter`` tells it. memory: bytes the process may
    take. seed: of everything random.

    attack: as :meth:`~advrepair.core.interfaces.Attack.perturb`. prepare: as
    :meth:`~advrepair.core.interfaces.Verifier.prepare`, differentiable. own: behind
    :meth:`hotfix`.
    """

    network: Network
    properties: PropertySet
    x_adv: Tensor
    owner: Tensor
    clean: Labelled | None
    held: Labelled | None
    attack: Callable[[nn.Module, PropertySet, Tensor, torch.Generator], Tensor]
    prepare: Callable[[Network], Bound]
    own: Callable[[Task, Hotfix], MethodResult] = _no_hotfix
    clip: tuple[float, float] | None = None
    decision: str = "argmax"
    deadline: float = math.inf
    memory: int = 2**62
    seed: int = 0
    progress: Callable[[str, int, int], None] = _untold

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far the repair is; raises TimeoutError when its time is up.

        A method that does not catch it ends as ``timeout``, as MemoryError as ``out_of_memory``.
        """
        self.progress(stage, done, total)
        if time.perf_counter() > self.deadline:
            raise TimeoutError(f"the time was up in {stage}, at {done} of {total}")

    def hotfix(self, kind: Hotfix = "trained") -> MethodResult:
        """What advrepair makes of the task: with patches as configured, caps, or constants."""
        return self.own(self, kind)

    def left(self) -> float:
        """Seconds that the repair may still take, perhaps infinite."""
        return max(0.0, self.deadline - time.perf_counter())

    def decide(self, outputs: Tensor) -> Tensor:
        """The decision of each row: [n] from [n,K]."""
        return outputs.argmax(1) if self.decision == "argmax" else outputs.argmin(1)
