"""A network and its properties as the classifier of images that AutoAttack knows."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.box import Box
from advrepair.core.interfaces import of_rows
from advrepair.core.rounding import round_down
from advrepair.core.types import PropertySet, group_margin

_BIG, _TINY = 1e30, 1e-30  # finite stand-ins for margins that are not, or that are 0


def groups_in(group: Tensor) -> Tensor:
    """Which groups each property has: group [P,M] to bool [P,G]."""
    count = max(int(group.max()) + 1, 0) if group.numel() else 0
    column = torch.where(group < 0, count, group)
    present = torch.zeros(len(group), count + 1, dtype=torch.bool, device=group.device)
    return present.scatter(1, column, True)[:, :count]


@frozen(eq=False)
class Frame:
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
    def of(cls, box: Box, center: Tensor) -> Frame:
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
class Grid:
    """How inputs become the images that Square needs: *S to C,H,W and back.

    Images keep their shape. Other inputs fill a square, line by line, with a row and a column
    to spare: Square never moves a small patch there.
    """

    shape: tuple[int, ...]
    image: tuple[int, int, int]
    cell: Tensor

    @classmethod
    def of(cls, shape: tuple[int, ...], device: torch.device) -> Grid:
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


class View:
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
        self.frame = Frame.of(box, properties.center)
        self.grid = Grid.of(box.input_shape, start.device)
        self.origin = self.grid.pack(self.frame.center)
        self.labelled = int(properties.label[0]) >= 0
        self.label = properties.label.clamp(min=0).to(start.device)
        groups = int(groups_in(properties.group)[0].sum())
        self.classes = properties.C.shape[2] if self.labelled else groups + 1
        self.beyond = False
        self.best = start.clone()
        self.lowest = torch.full((len(box),), torch.inf, dtype=torch.float64, device=start.device)
        self.look_at(torch.arange(len(box), device=start.device))
        self._judge(start)

    def look_at(self, rows: Tensor) -> None:
        """The next calls are about these properties, [N]."""
        self.rows, self.part, self.area = rows, self.properties[rows], self.box[rows]
        self.now = of_rows(self.model, rows)
        self.lower, self.width = self.frame.lower[rows], self.frame.width[rows]
        present = groups_in(self.part.group)
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
        y: Tensor = self.now(x)
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
