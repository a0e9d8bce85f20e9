"""The kinds of component: the page a plugin author reads.

A component is a frozen attrs class. Its fields *are* its options (see
:func:`~advrepair.core.options.option`), line 1 of its docstring is its listing, and its base
class below says what it chooses. Plugins choose, the core acts: only the verifier's answer
has to be sound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from advrepair.core.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from advrepair.core.box import Box
    from advrepair.core.branches import Branch, BranchBound
    from advrepair.core.graph import Network
    from advrepair.core.rounding import Rounding
    from advrepair.core.row_wise import RowWise as RowWise
    from advrepair.core.row_wise import of_rows as of_rows
    from advrepair.core.tasks import MethodResult, Task
    from advrepair.core.types import (
        Assignment,
        Centres,
        LinearBound,
        Points,
        PropertySet,
        SplitPlan,
    )
else:

    def __getattr__(name: str) -> Any:
        """Import on first use: a component is declared without torch."""
        if name in ("RowWise", "of_rows"):
            from advrepair.core import row_wise

            return getattr(row_wise, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Item = TypeVar("Item")
Result = TypeVar("Result")


class Component(ABC):
    """What every plugin is: something with a name and options."""

    name: ClassVar[str]


class BoundFn(Protocol):
    """A verifier made ready for one network."""

    def __call__(self, params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
        """Linear lower bound of ``C f(x) + d`` over each box, f with weights params.

        params: tensors by name, as ``network.tensors``. box: B boxes. C: [B,M,K]. d: [B,M].
        Returns A [B,M,*S] and b [B,M]. A backend without a linear form returns A = 0; a row
        with b = -inf says "I do not know". The result has the dtype of params.

        It must be pure, without a branch on the values of tensors, if the verifier says
        ``batchable``: the core maps it over patches with ``torch.func.vmap``.
        """
        ...


class StagedBoundFn(ABC):
    """A :class:`BoundFn` that need not begin anew where only the last layer has other weights.

    Optional: the core uses the two stages if what ``prepare`` returned for a patch is one.
    """

    @abstractmethod
    def __call__(self, params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
        """As :class:`BoundFn`."""

    @abstractmethod
    def hidden(self, params: Mapping[str, Tensor], box: Box) -> Mapping[str, Tensor]:
        """What :meth:`onward` has to know about the layers below the last: [B,...] each."""

    @abstractmethod
    def onward(
        self,
        params: Mapping[str, Tensor],
        box: Box,
        hidden: Mapping[str, Tensor],
        C: Tensor,
        d: Tensor,
    ) -> LinearBound:
        """The bound of ``__call__``, given what was found for the same boxes and lower layers.

        If it was found with ``rounding`` and this is without, it is rounded to the dtype of
        params. As pure and as mapped as :class:`BoundFn`.
        """


class Verifier(Component):
    """Bounds margins. The one kind whose answers must be sound.

    differentiable: gradients flow from the bound to params. batchable: see BoundFn.
    rigorous: with ``rounding`` the bound holds in exact arithmetic for the function that
    rounding names, and carries ``magnitude`` and ``slope``; only such a verifier can state a
    certificate.
    """

    differentiable: ClassVar[bool]
    batchable: ClassVar[bool]
    rigorous: ClassVar[bool]

    @abstractmethod
    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        """Make ready for a network; rounding None asks for plain floating-point bounds.

        Raises UnsupportedNetworkError here, naming the node, for an operation it cannot bound.
        """


class BranchBoundFn(Protocol):
    """A complete verifier made ready for one network."""

    def __call__(
        self, params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor, branch: Branch
    ) -> BranchBound:
        """As :class:`BoundFn`, on the part of each box that its branch leaves.

        Gradients flow from the rows to ``branch.slope`` and ``branch.multiplier``.
        """
        ...


class CompleteVerifier(Verifier):
    """A rigorous verifier that also decides: it says where to cut what is still open.

    As ``--certifier`` it is asked about each property that is neither proved nor refuted;
    the core cuts, bounds and keeps the tree. pieces: so many a property, at most. steps: of
    ascent on slopes and multipliers for each piece with known signs.
    """

    pieces: int
    steps: int

    @abstractmethod
    def prepare_branches(self, network: Network, rounding: Rounding | None = None) -> BranchBoundFn:
        """As :meth:`prepare`."""

    @abstractmethod
    def cut(self, box: Box, A: Tensor, gap: Tensor) -> Tensor:
        """Where to cut each piece: [B], input s < S, or S + u for the sign of ReLU input u.

        A: worst row over the input, [B,*S]. gap: of that row, [B,U], units of N and then of
        its patch; 0 where nothing is left to gain.
        """


class Indicator(Component):
    """Says which patch serves which property.

    allocator: name of the allocator that goes with it unless the user names another.
    """

    allocator: ClassVar[str]

    @abstractmethod
    def assign(self, properties: PropertySet) -> Assignment:
        """One patch for every property."""


class Refiner(Component):
    """Says where to split a piece that could not be proved."""

    @abstractmethod
    def choose(self, box: Box, margin: Tensor, slope: Tensor, budget: int) -> SplitPlan:
        """Pick at most budget pieces and a dimension for each; an empty plan stops.

        box: B pieces. margin: their worst group, [B], <= 0 where not proved. slope: the
        gradient of each piece's loss in the input, [B,*S].
        """


class OperatorList(Protocol):
    """Where an allocator writes itself for ``advrepair export``, operator by operator.

    Values are names. The operators and their attributes are those of ONNX, opset 17, as far
    as docs/export.md lists them; lists that ONNX takes as constant inputs are attributes.
    """

    def call(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add an operator; returns its result. A dtype is a ``torch.dtype``."""
        ...

    def constant(self, value: Tensor, name: str = "") -> str:
        """Add a constant; returns it."""
        ...


class Allocator(Component):
    """Says which patches an input outside every repaired box gets."""

    @abstractmethod
    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q]; they are summed.

        x: queries [N,*S]. logits: of the base network on them, [N,K].
        """

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """:meth:`allocate` as standard operators: returns the name of a bool [N,Q].

        Optional: without it a repaired network that uses this allocator cannot be exported.
        It must decide as ``allocate`` does, for every query, whatever the batch.
        Raises UsageError if the allocator has not been written so.
        """
        raise UsageError(
            f"allocator {self.name!r} cannot be exported: it has no method write; repair with "
            "--allocator none, or ask its author"
        )

    def most(self, centres: Centres) -> int:
        """How many patches one query can get at most; a small number makes exports fast.

        With 0 the repaired network does not call :meth:`allocate`.
        """
        return centres.patches


class SmoothAllocator(Allocator):
    """An allocator that weighs one constant patch a class by a smooth function of the query.

    Outside every repaired box F is :meth:`outputs`; no patch of a box is on there, and no
    choice hides a gradient. It is fitted before the patches are trained. points: how many
    labelled inputs it remembers, 0: the repaired ones. validation: inputs that it is fitted by.
    """

    points: int
    validation: int

    @abstractmethod
    def fit(self, network: Network, given: Points) -> Mapping[str, Tensor]:
        """What :meth:`outputs` needs beside the options; kept as ``centres.fitted``.

        given: the points are inputs; what :meth:`outputs` gets of them is ``given.seen``. The same
        network, points and options give the same numbers. Raises UsageError for points that it
        cannot be fitted to.
        """

    @abstractmethod
    def outputs(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Outputs of F for queries outside every box, [N,K], differentiable in x and logits.

        x: [N,*S], or features [N,D] where patches see a layer. logits: of the base network on
        them, [N,K].
        """

    @abstractmethod
    def least(self, box: Box, label: Tensor, margins: Tensor, centres: Centres) -> Tensor:
        """Lower bounds of ``F_label - F_k`` on each box, [B,K]; infinity for the label itself.

        box: of what :meth:`outputs` is given; a face that is not known is infinite. label: [B].
        margins: lower bounds of the same differences of the base network, [B,K],
        in float64; -inf where nothing is known, not even that the network does not overflow.
        Must be sound for the function as it is computed, and say why.
        """

    def told(self, centres: Centres) -> dict[str, float]:
        """What was fitted, as numbers for the report."""
        return {}

    def write_outputs(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """:meth:`outputs` as standard operators: returns the name of [N,K].

        Raises UsageError if the allocator has not been written so.
        """
        return super().write(to, x, logits, centres)

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """No patch of a box: the name of a bool [1,Q]."""
        import torch

        return to.constant(torch.zeros(1, centres.patches, dtype=torch.bool))

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """No patch of a box: bool [N,Q]."""
        import torch

        return torch.zeros(len(x), centres.patches, dtype=torch.bool, device=x.device)

    def most(self, centres: Centres) -> int:
        """No patch of a box."""
        return 0


class Executor(Component):
    """Runs work that falls into independent items: here, in other processes, elsewhere."""

    def require(self) -> None:
        """Raises UsageError if what it needs is not there; called before any long work."""

    @abstractmethod
    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """``function(item)`` of every item, with the item's place, as they get done.

        Each place comes exactly once, in any order. function and items can be pickled, and
        the same item gives the same result wherever and however often it is worked on: an
        executor may repeat what was lost. Items are made when they are asked for; ask for few
        more than are worked on. An error of the function is raised here.
        """


class Attack(Component):
    """Searches for counterexamples."""

    def require(self) -> None:
        """Raises UsageError if what it needs is not installed; called before any long work."""

    @abstractmethod
    def perturb(
        self, model: nn.Module, properties: PropertySet, start: Tensor, generator: torch.Generator
    ) -> Tensor:
        """One point per property, inside its box, where its margin is as low as found.

        model: [N,*S] to [N,K], differentiable; an attack that runs it on some of the
        properties only takes :func:`of_rows` of it. start: [P,*S], where to begin.
        """


class Method(Component):
    """A whole repair method: what is to run in the network's place, or why there is nothing."""

    def require(self) -> None:
        """Raises UsageError if what it needs is not installed; called before any long work."""

    @abstractmethod
    def repair(self, task: Task) -> MethodResult:
        """Make of a task what the method makes of it; the network stays as it is.

        The same task gives the same result. Tell ``task.tell`` how far it is, and do not go on
        when that raises. What a solver gives is checked before it is applied. Whether the
        counterexamples are right is seen by running the model, whatever the result says.

        Raises UsageError for a task that the method does not take.
        """
