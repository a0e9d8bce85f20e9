"""The four attacks of the library, run on a view of the properties.

The library attacks classifiers in L-infinity balls of one radius, clipped to [0,1]. Here a
:class:`View` is that classifier, in coordinates z, and the library's four attacks run on it in
the library's own order. The view knows whose point it is asked about, so it judges every point
by its own property, and what it found is what counts: not what the library reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advrepair.core.errors import UsageError
from advrepair.core.interfaces import of_rows
from advrepair.core.types import PropertySet
from advrepair.plugins.attacks.descent import evaluating
from advrepair.plugins.attacks.views import View, groups_in

if TYPE_CHECKING:
    from advrepair.plugins.attacks.autoattack import AutoAttack

_TARGETS = 9  # classes aimed at, at most; of the library's standard version
_DLR_CLASSES = 4  # its targeted DLR loss divides by differences of the four largest logits


def search(
    options: AutoAttack,
    library: Any,
    model: nn.Module,
    properties: PropertySet,
    start: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The point of the lowest margin met, for each property; see :meth:`AutoAttack.perturb`."""
    box = properties.box.to(start.dtype)
    best = box.clamp(start.detach())
    if not bool(box.holds(best).all()):
        raise UsageError("attack autoattack: a starting point holds NaN")
    seed = seed_of(generator)
    with evaluating(model), _untouched(model, start.device), torch.no_grad():
        for index in _alike(properties, options.batch):
            view = View(of_rows(model, index), properties[index], box[index], best[index])
            _run(options, library, view, seed)
            best[index] = view.best
    return best


def _run(options: AutoAttack, library: Any, view: View, seed: int) -> None:
    """Run the attacks on what is not broken yet; the view keeps what they find."""
    kit = _kit(options, library, view)
    last = None
    for attack, target in _stages(options, kit, min(_TARGETS, view.classes - 1)):
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


def _stages(options: AutoAttack, kit: Any, targets: int) -> Iterator[tuple[Any, int]]:
    """The single runs in the library's order; a target is a rank of the logits, from 2."""
    ranks = range(2, targets + 2)
    yield kit.apgd, 0
    yield from ((kit.apgd_targeted, rank) for rank in ranks)
    if options.version == "standard":
        yield from ((kit.fab, rank) for rank in ranks)
        yield kit.square, 0


def _kit(options: AutoAttack, library: Any, view: View) -> Any:
    """The library's attacks with its defaults, those of the options, and silence."""
    kit = library.AutoAttack(
        view, norm="Linf", eps=view.frame.epsilon, version="custom", device=view.device
    )
    kit.logger = kit.apgd.logger = kit.apgd_targeted.logger = _Silence()
    iterations = options.iterations or (10 if options.version == "paper" else 100)
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
    kit.square.n_queries = options.queries
    kit.square.margin_and_loss = view.margin_and_loss
    return kit


def seed_of(generator: torch.Generator) -> int:
    """The library's seed: one draw of the generator."""
    drawn = torch.randint(2**31, (1,), generator=generator, device=generator.device)
    return int(drawn.item())


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


def _alike(properties: PropertySet, batch: int) -> Iterator[Tensor]:
    """Indices of properties that make one classifier, [N] each.

    Those with labels go together, the others by their number of groups. A property without
    a group holds everywhere and is left out.
    """
    if not len(properties):
        return
    groups = groups_in(properties.group).sum(1)
    kind = torch.where(properties.label >= 0, -1, groups)
    for each in kind.unique().tolist():
        if each != 0:
            yield from (kind == each).nonzero()[:, 0].split(batch)
