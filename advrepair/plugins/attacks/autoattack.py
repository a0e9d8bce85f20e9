"""AutoAttack by the package pyautoattack, on boxes and specifications of any kind.

The library attacks classifiers in L-infinity balls of one radius, clipped to [0,1]. Here a
:class:`_View` is that classifier, in coordinates z, and the library's four attacks run on it in
the library's own order. The view knows whose point it is asked about, so it judges every point
by its own property, and what it found is what counts: not what the library reports.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.box import Box
from advrepair.core.errors import UsageError
from advrepair.core.interfaces import Attack
from advrepair.core.options import option
from advrepair.core.rounding import round_down
from advrepair.core.types import PropertySet, group_margin
from advrepair.plugins.attacks.pgd import _evaluating

_MODULES = ("pyautoattack", "autoattack")
_TARGETS = 9  # classes aimed at, at most; of the library's standard version
_DLR_CLASSES = 4  # its targeted DLR loss divides by differences of the four largest logits
_BIG, _TINY = 1e30, 1e-30  # finite stand-ins for margins that are not, or that are 0


@frozen
class AutoAttack(Attack):
    """APGD-CE, targeted APGD, targeted FAB and Square, by the package pyautoattack (an extra)."""

    name: ClassVar[str] = "autoattack"
    version: str = option(
        "standard",
        "standard: all four; paper: only APGD, 10 iterations, as in the paper's code: weak",
        choices=("standard", "paper"),
    )
    iterations: int = option(
        0, "of each APGD and FAB run; 0: the version's own, 100 or 10", at_least=0
    )
    queries: int = option(5000, "of Square, for each property", at_least=1)
    batch: int = option(250, "properties attacked at once, at most", at_least=1)

    def perturb(
        self, model: nn.Module, properties: PropertySet, start: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The point of the lowest margin met, for each property, inside its box: [P,*S].

        The attacks begin at the centre, or at random, as the library has it; start is only
        tried too. A property that is broken is left alone by the attacks after that. The
        random numbers of a property depend on those in its batch.

        start: [P,*S], of the box's dtype or wider; the result has its dtype. The library
        works in float32: points of a wider box are those that its coordinates reach.
        Raises UsageError without the library, and for a start that is NaN or narrower.
        """
        library = _library()
        box = properties.box.to(start.dtype)
        best = box.clamp(start.detach())
        if not bool(box.holds(best).all()):
            raise UsageError("attack autoattack: a starting point holds NaN")
        seed = seed_of(generator)
        with _evaluating(model), _untouched(model, start.device), torch.no_grad():
            for index in _alike(properties, self.batch):
                view = _View(model, properties[index], box[index], best[index])
                self._search(library, view, seed)
                best[index] = view.best
        return best

    def _search(self, library: Any, view: _View, seed: int) -> None:
        """Run the attacks on what is not broken yet; the view keeps what they find."""
        kit = self._kit(library, view)
        last = None
        for attack, target in self._stages(kit, min(_TARGETS, view.classes - 1)):
            if attack is not last:
                torch.random.manual_seed(seed)
            last = attack
            rows, logits = view.open(beyond=attack is kit.fab and view.frame.ball)
            if not len(rows):
                continue
            z, label = view.origin[rows], view.label[rows]
            if attack is kit.square:
                attack.init_hyperparam(z)
                attack.attack_single_run(z, rows)
            elif attack is kit.fab:
                attack.target_class = target
                attack.attack_single_run(z, label, is_targeted=True)
            else:
                attack.init_hyperparam(z)
                attack.y_target = logits.sort(dim=1)[1][:, -target] if target else None
                attack.attack_single_run(z, label)

    def _stages(self, kit: Any, targets: int) -> Iterator[tuple[Any, int]]:
        """The single runs in the library's order; a target is a rank of the logits, from 2."""
        ranks = range(2, targets + 2)
        yield kit.apgd, 0
        yield from ((kit.apgd_targeted, rank) for rank in ranks)
        if self.version == "standard":
            yield from ((kit.fab, rank) for rank in ranks)
            yield kit.square, 0

    def _kit(self, library: Any, view: _View) -> Any:
        """The library's attacks with its defaults, those of the options, and silence."""
        kit = library.AutoAttack(
            view, norm="Linf", eps=view.frame.epsilon, version="custom", device=view.device
        )
        kit.logger = kit.apgd.logger = kit.apgd_targeted.logger = _Silence()
        iterations = self.iterations or (10 if self.version == "paper" else 100)
        kit.fab.n_iter = iterations
        for attack in (kit.apgd, kit.apgd_targeted):
            # The schedule is made in the constructor, from 100; these lines are from there.
            attack.n_iter = iterations
            attack.n_iter_2 = max(int(0.22 * iterations), 1)
            attack.n_iter_min = max(int(0.06 * iterations), 1)
            attack.size_decr = max(int(0.03 * iterations), 1)
        if view.classes < _DLR_CLASSES:
            kit.apgd_targeted.dlr_loss_targeted = lambda logits, label: _targeted_margin(
                logits, label, kit.apgd_targeted.y_target
            )
        kit.square.n_queries = self.queries
        kit.square.margin_and_loss = view.margin_and_loss
        return kit


def seed_of(generator: torch.Generator) -> int:
    """The library's seed: one draw of the generator."""
    drawn = torch.randint(2**31, (1,), generator=generator, device=generator.device)
    return int(drawn.item())


def _library() -> Any:
    """The module that holds the library; raises UsageError if there is none."""
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        if hasattr(module, "AutoAttack"):
            return module
    raise UsageError(
        "attack autoattack needs a package that is not installed: "
        'pip install "advrepair[autoattack]", or pip install "pyautoattack>=0.2,<0.3"'
    )


class _Silence:
    """Takes the library's log; it would end on the terminal otherwise."""

    def log(self, *_: object) -> None:
        """Nothing."""

    debug = info = warning = log


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Parameters without gradients, as FAB adds to theirs; torch's random numbers put back."""
    learning = [p for p in model.parameters() if p.requires_grad]
    cuda = [device] if device.type == "cuda" else []
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _targeted_margin(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """The loss of targeted APGD where there are too few classes for DLR: [N]."""
    row = torch.arange(len(logits), device=logits.device)
    return logits[row, target] - logits[row, label]


def _present(group: Tensor) -> Tensor:
    """Which groups each property has: group [P,M] to bool [P,G]."""
    count = max(int(group.max()) + 1, 0) if group.numel() else 0
    column = torch.where(group < 0, count, group)
    present = torch.zeros(len(group), count + 1, dtype=torch.bool, device=group.device)
    return present.scatter(1, column, True)[:, :count]


def _alike(properties: PropertySet, batch: int) -> Iterator[Tensor]:
    """Indices of properties that make one classifier, [N] each.

    Those with labels go together, the others by their number of groups. A property without
    a group holds everywhere and is left out.
    """
    if not len(properties):
        return
    groups = _present(properties.group).sum(1)
    kind = torch.where(properties.label >= 0, -1, groups)
    for each in kind.unique().tolist():
        if each != 0:
            yield from (kind == each).nonzero()[:, 0].split(batch)


# Coordinates ---------------------------------------------------------------------------


@frozen(eq=False)
class _Frame:
    """Coordinates in which boxes are what the library knows: ``x = lower + z width``.

    lower, width: [P,*S]. center: z of the balls' centres, [P,*S]. The box is where z lies in
    [0,1] and within epsilon of center. ball: the coordinates are the inputs, or all of them
    scaled alike, so FAB may look for the nearest boundary outside the box too.
    """

    lower: Tensor
    width: Tensor
    center: Tensor
    epsilon: float
    ball: bool

    @classmethod
    def of(cls, box: Box, center: Tensor) -> _Frame:
        """The input itself where boxes are clipped balls of one radius; else box by box.

        Box by box, z = 0 and z = 1 are the box's faces and epsilon is 1/2 around its middle:
        a box of any shape, at the price that the ball's centre is not where a clipped ball
        begins, and that every coordinate is as long as the other.
        """
        ball = _ball(box, center)
        if ball is None:
            middle = torch.full_like(box.lower, 0.5)
            return cls(box.lower, box.upper - box.lower, middle, 0.5, False)
        low, high, radius = ball
        lower = torch.full_like(box.lower, low)
        width = torch.full_like(box.lower, high - low)
        epsilon = torch.tensor(radius / (high - low), dtype=torch.float64)
        # Down, so that center - epsilon, rounded as the library does, is no less than lower.
        return cls(
            lower,
            width,
            ((center.to(lower.dtype) - lower) / width).clamp(0, 1),
            round_down(epsilon, torch.float32).item(),
            True,
        )


def _ball(box: Box, center: Tensor) -> tuple[float, float, float] | None:
    """Domain (low, high) and radius if all boxes are balls of that radius, clipped to it.

    [0,1] is tried first, then the least domain that has room for all.
    """
    lower, upper, center = box.lower.double(), box.upper.double(), center.double()
    least, most = lower.min().item(), upper.max().item()
    slack = 4 * torch.finfo(box.lower.dtype).eps * max(abs(least), abs(most))
    reach = torch.stack([center - lower, upper - center])
    for low, high in ((0.0, 1.0), (least, most)):
        if least < low or most > high:
            continue
        free = reach[torch.stack([lower > low, upper < high])]
        radius = (free.min() if free.numel() else reach.max()).item()
        if radius > 0 and reach.max().item() <= radius + slack:
            return low, high, radius
    return None


@frozen(eq=False)
class _Grid:
    """How inputs become the images that Square needs: *S to C,H,W and back.

    Images keep their shape. Other inputs fill a square, line by line, with a row and a column
    to spare: Square never moves a small patch there.
    """

    shape: tuple[int, ...]
    image: tuple[int, int, int]
    cell: Tensor

    @classmethod
    def of(cls, shape: tuple[int, ...], device: torch.device) -> _Grid:
        """The grid of an input shape, *S."""
        size = math.prod(shape)
        if len(shape) in (2, 3) and min(shape[-2:]) > 1:
            channels = shape[0] if len(shape) == 3 else 1
            image = (channels, shape[-2], shape[-1])
            return cls(shape, image, torch.arange(size, device=device))
        side = math.isqrt(size - 1) + 1
        cell = torch.arange(size, device=device)
        return cls(shape, (1, side + 1, side + 1), cell // side * (side + 1) + cell % side)

    def pack(self, value: Tensor) -> Tensor:
        """[N,*S] to float32 [N,C,H,W]; cells to spare are 1/2."""
        full = torch.full(
            (len(value), math.prod(self.image)), 0.5, dtype=torch.float32, device=value.device
        )
        full[:, self.cell] = value.flatten(1).float()
        return full.view(-1, *self.image)

    def unpack(self, z: Tensor) -> Tensor:
        """[N,C,H,W] to [N,*S]."""
        return z.flatten(1)[:, self.cell].view(-1, *self.shape)


# The classifier that the library attacks -----------------------------------------------


class _View:
    """The network as a classifier of grids z, and the record of what was met.

    With labels its classes are the network's own. Without, class 0 is the property and each
    other one a group: logit 0 against minus the group's margin, so class 0 is ahead exactly
    where the property holds. P properties that make one classifier; rows: those that the
    next call is about, [N].
    """

    def __init__(self, model: nn.Module, properties: PropertySet, box: Box, start: Tensor) -> None:
        """start: [P,*S], points of the boxes."""
        self.model, self.properties, self.box = model, properties, box
        self.device = start.device
        self.frame = _Frame.of(box, properties.center)
        self.grid = _Grid.of(box.input_shape, start.device)
        self.origin = self.grid.pack(self.frame.center)
        self.labelled = int(properties.label[0]) >= 0
        self.label = properties.label.clamp(min=0).to(start.device)
        groups = int(_present(properties.group)[0].sum())
        self.classes = properties.C.shape[2] if self.labelled else groups + 1
        self.beyond = False
        self.best = start.clone()
        self.lowest = torch.full((len(box),), torch.inf, dtype=torch.float64, device=start.device)
        self.look_at(torch.arange(len(box), device=start.device))
        self._judge(start)

    def look_at(self, rows: Tensor) -> None:
        """The next calls are about these properties, [N]."""
        self.rows, self.part, self.area = rows, self.properties[rows], self.box[rows]
        self.lower, self.width = self.frame.lower[rows], self.frame.width[rows]
        present = _present(self.part.group)
        # The columns of each property's own groups first.
        self.columns = (~present).byte().argsort(dim=1, stable=True)[:, : self.classes - 1]

    def open(self, beyond: bool) -> tuple[Tensor, Tensor]:
        """Properties not broken yet, [N], and their logits at the centre.

        beyond: the calls to come may leave the boxes. The library sets a row aside if it is
        wrong at its centre, so those are left out whose rounding makes it so in this company.
        """
        self.beyond = beyond
        rows = (self.lowest > 0).nonzero()[:, 0]
        while True:
            self.look_at(rows)
            if not len(rows):
                return rows, self.lowest
            logits = self(self.origin[rows])
            right = logits.max(1).indices == self.label[rows]
            if bool(right.all()):
                return rows, logits
            rows = rows[right]

    def __call__(self, z: Tensor) -> Tensor:
        """Logits of grids [N,C,H,W], one of each property looked at: float32, a row each."""
        x = self.lower + self.grid.unpack(z).to(self.lower.dtype) * self.width
        if not self.beyond:
            # Not Box.clamp, whose gradient is halved on a face.
            x = torch.where(x < self.area.lower, self.area.lower, x)
            x = torch.where(x > self.area.upper, self.area.upper, x)
        if x.requires_grad:
            x.register_hook(lambda slope: slope.nan_to_num())
        logits = self._finite(self._logits(self._judge(x)))
        if z.requires_grad and not logits.requires_grad:
            logits = logits + 0 * z.flatten(1).sum(1, keepdim=True)
        return logits

    def margin_and_loss(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What Square asks for: margins of properties rows at z, twice, finite, none of them 0."""
        if not torch.equal(rows, self.rows):
            self.look_at(rows)
        self(z)
        margin = self.margin.nan_to_num(nan=-_BIG).clamp(-_BIG, _BIG)
        margin = torch.where(self.margin > 0, margin.clamp(min=_TINY), margin.clamp(max=-_TINY))
        return margin.float(), margin.float()

    def _judge(self, x: Tensor) -> Tensor:
        """Outputs [N,K] of points [N,*S]; of those in their boxes the lowest are kept."""
        y: Tensor = self.model(x)
        self.margin = self.part.margin(y.detach())
        lost = self.margin.masked_fill(self.margin.isnan(), -torch.inf)
        better = self.area.holds(x) & (lost < self.lowest[self.rows])
        if bool(better.any()):
            self.lowest[self.rows[better]] = lost[better]
            self.best[self.rows[better]] = x.detach()[better]
        return y

    def _logits(self, y: Tensor) -> Tensor:
        """Logits of the view, a row each, from the network's outputs [N,K]."""
        if self.labelled:
            return y
        rows = torch.einsum("pmk,pk->pm", self.part.C.double(), y.double()) + self.part.d.double()
        margin = group_margin(rows, self.part.group).gather(1, self.columns)
        return torch.cat([torch.zeros_like(margin[:, :1]), -margin], 1)

    def _finite(self, logits: Tensor) -> Tensor:
        """Logits in float32, rows that are not finite as zeros: the library would spread them."""
        sick = ~logits.isfinite().all(1, keepdim=True)
        if bool(sick.any()):
            logits = torch.where(sick, 0.0, logits)
        if logits.dtype != torch.float32:
            # The differences matter, so the rounding should not depend on the level.
            logits = (logits - logits.detach().amax(1, keepdim=True)).float()
        return logits
