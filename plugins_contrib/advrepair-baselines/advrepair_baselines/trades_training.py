"""The training of TRADES: its loss, the inner search, and the choice of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from advrepair import Labelled, MethodResult, MethodStatus, Network, Scope, Task
from advrepair_baselines.weights import trainable, with_weights

if TYPE_CHECKING:
    from advrepair_baselines.trades import Trades

_NOISE = 0.001  # where the inner search begins; at x itself KL has no gradient
_AT_ONCE = 1000
_ONE_CLASS = 1.5  # effective number of predicted classes below which a network has collapsed
Outputs = Callable[[Tensor], Tensor]
Clip = tuple[float, float] | None


@frozen(eq=False)
class Natural:
    """The natural inputs, [n,*S], their labels, [n], and the radius around each, [n,1,...]."""

    x: Tensor
    label: Tensor
    radius: Tensor

    def __getitem__(self, index: Tensor) -> Natural:
        return Natural(self.x[index], self.label[index], self.radius[index])


@frozen
class Look:
    """What is known of one epoch. robust: None unless it was asked for."""

    epoch: int
    repaired: float
    accuracy: float | None
    robust: float | None
    classes: float | None

    @property
    def collapsed(self) -> bool:
        """Whether nearly everything is predicted to be one class."""
        return self.classes is not None and self.classes < _ONE_CLASS


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """Sum over the batch of KL(softmax clean | softmax other). Logits [n,K] each."""
    log_p, log_q = F.log_softmax(clean, 1), F.log_softmax(other, 1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def trades_loss(outputs: Outputs, given: Natural, adversarial: Tensor, beta: float) -> Tensor:
    """Equation 3 of arXiv 1901.08573 on one batch, both sides of KL differentiated."""
    clean, other = outputs(given.x), outputs(adversarial)
    return F.cross_entropy(clean, given.label) + beta / len(given.x) * divergence(clean, other)


def search(
    outputs: Outputs,
    given: Natural,
    loss: Callable[[Tensor], Tensor],
    steps: int,
    travel: float,
    clip: Clip,
    noise: torch.Generator,
) -> Tensor:
    """Where the loss of the outputs is large inside each ball and the range: [n,*S].

    travel: of the whole search, in radii.
    """
    low, high = given.x - given.radius, given.x + given.radius
    if clip is not None:
        low, high = low.clamp(*clip), high.clamp(*clip)
    start = _NOISE * torch.randn(given.x.shape, generator=noise, dtype=given.x.dtype)
    x = torch.minimum(torch.maximum(given.x + start, low), high)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(outputs(x)), x)
        x = x.detach() + travel / steps * given.radius * slope.sign()
        x = torch.minimum(torch.maximum(x, low), high)
    return x.detach()


def natural_inputs(task: Task, anchor: str) -> Natural:
    """What is to be learnt; the radius of a ball that is clipped is that of its longer side."""
    asked = task.properties[task.owner]
    faces = torch.maximum(asked.box.upper - asked.center, asked.center - asked.box.lower)
    radius = faces.flatten(1).amax(1).view(-1, *(1 for _ in task.network.input_shape))
    x = task.x_adv if anchor == "adversarial" else asked.center
    return Natural(x, asked.label, radius)


def train(options: Trades, task: Task) -> MethodResult:
    """Train, look at every epoch, and give the best that keeps the accuracy."""
    return _Training(options, task).run()


class _Training:
    """One training. Everything random comes from the seed of the task."""

    def __init__(self, options: Trades, task: Task) -> None:
        self.options, self.task = options, task
        self.noise = torch.Generator().manual_seed(task.seed * 1000 + 31)
        self.given = natural_inputs(task, options.anchor)
        self.weights = trainable(task.network)
        self.looks: list[Look] = []

    def outputs(self, x: Tensor) -> Tensor:
        """Of the network as it is now."""
        return self.task.network.apply_tensors(self.task.network.tensors | self.weights, x)

    def run(self) -> MethodResult:
        """All epochs; the first look is at the network as it was given."""
        options, task = self.options, self.task
        self.looks.append(self.look(0))
        best, kept = self.looks[0], {name: t.clone() for name, t in self.weights.items()}
        for tensor in self.weights.values():
            tensor.requires_grad_()
        optimiser = torch.optim.SGD(
            list(self.weights.values()),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        for epoch in range(1, options.epochs + 1):
            task.tell("trades", epoch - 1, options.epochs)
            done = (epoch - 1) / options.epochs
            optimiser.param_groups[0]["lr"] = options.lr * (1 + math.cos(math.pi * done)) / 2
            grown = min(1.0, epoch / max(1.0, options.warmup * options.epochs))
            self.learn(optimiser, grown)
            self.looks.append(self.look(epoch))
            if self.keeps(self.looks[-1]) and self.rank(self.looks[-1]) > self.rank(best):
                best = self.looks[-1]
                kept = {name: t.detach().clone() for name, t in self.weights.items()}
        task.tell("trades", options.epochs, options.epochs)
        return self.result(best, kept)

    def learn(self, optimiser: torch.optim.Optimizer, grown: float) -> None:
        """One epoch. grown: what the radius has of its full size."""
        options, clean = self.options, self.task.clean
        for index in torch.randperm(len(self.given.x), generator=self.noise).split(options.batch):
            part = self.given[index]
            part = Natural(part.x, part.label, grown * part.radius)
            with torch.no_grad():
                now = self.outputs(part.x)
            adversarial = search(
                self.outputs,
                part,
                lambda other, now=now: divergence(now, other),
                options.steps,
                options.step,
                self.task.clip,
                self.noise,
            )
            loss = trades_loss(self.outputs, part, adversarial, options.beta)
            if options.clean and clean is not None:
                drawn = torch.randint(len(clean), (len(index),), generator=self.noise)
                other = clean[drawn]
                loss = loss + F.cross_entropy(self.outputs(other.x), other.label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def look(self, epoch: int) -> Look:
        """Rates of the network as it is now; none of the inputs is one of a test."""
        task, held = self.task, self.task.held
        asked = task.properties[task.owner]
        with torch.no_grad():
            repaired = float((~asked.violated(self.outputs(task.x_adv))).double().mean())
        if held is None:
            return Look(epoch, repaired, None, None, None)
        decided = self.decided(held.x)
        shares = torch.bincount(decided).double() / len(decided)
        classes = float(torch.special.entr(shares).sum().exp())
        right = decided == held.label
        robust = self.robust(held, right) if self.options.select == "robust" else None
        return Look(epoch, repaired, float(right.double().mean()), robust, classes)

    def decided(self, x: Tensor) -> Tensor:
        """Predicted classes, [n]."""
        with torch.no_grad():
            return torch.cat([self.outputs(part).argmax(1) for part in x.split(_AT_ONCE)])

    def robust(self, held: Labelled, right: Tensor) -> float:
        """Share of held-out inputs that are right and stay so under a search for errors.

        The same noise each time, so that epochs differ by their weights alone.
        """
        radius, noise = float(self.given.radius.max()), torch.Generator().manual_seed(17)
        stand = 0
        for index in right.nonzero()[:, 0].split(_AT_ONCE):
            x, label = held.x[index], held.label[index]
            part = Natural(x, label, x.new_full((len(x), *(1 for _ in x.shape[1:])), radius))
            worst = search(
                self.outputs,
                part,
                lambda other, label=label: F.cross_entropy(other, label, reduction="sum"),
                self.options.steps,
                self.options.step,
                self.task.clip,
                noise,
            )
            stand += int((self.decided(worst) == label).sum())
        return stand / len(held)

    def keeps(self, look: Look) -> bool:
        """Whether an epoch keeps the accuracy on held-out inputs."""
        before = self.looks[0].accuracy
        if before is None or look.accuracy is None:
            return True
        return before - look.accuracy <= self.options.drawdown + 1e-12

    def rank(self, look: Look) -> tuple[float, float]:
        """What makes an epoch better; the first of equals is kept."""
        score = look.robust if self.options.select == "robust" else look.repaired
        return (look.repaired if score is None else score, look.accuracy or 0.0)

    def result(self, best: Look, kept: Mapping[str, Tensor]) -> MethodResult:
        """The network of the best epoch, and what became of the others."""
        model: Network = with_weights(self.task.network, kept)
        status = MethodStatus.REPAIRED if best.repaired == 1.0 else MethodStatus.NOT_REPAIRED
        before = self.looks[0].accuracy
        lost = None if before is None or best.accuracy is None else before - best.accuracy
        last = self.looks[-1]
        evidence = {
            "anchor": self.options.anchor,
            "inputs": len(self.given.x),
            "radius": float(self.given.radius.max()),
            "epoch": best.epoch,
            "held-out inputs": 0 if self.task.held is None else len(self.task.held),
            "held-out drawdown": lost,
            "held-out robust": best.robust,
            "predicted classes": best.classes,
            "collapsed": best.collapsed,
            "collapsed epochs": sum(look.collapsed for look in self.looks),
            "last epoch": {"repaired": last.repaired, "accuracy": last.accuracy},
        }
        return MethodResult(model, status, Scope.NONE, evidence)
