"""Patches that act in their boxes and nowhere else: small there, and zero at other inputs.

With every property of a patch demanding the same label, N's rows say what each output lacks at
most. A constant that gives it, half to the label and half from the others, is as small as a
patch can be (docs/intrusion.md). Multiplied by a detector it ends where the boxes end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder
from advrepair.core.box import dot
from advrepair.core.constant import proved_patches
from advrepair.core.detecting import Detectors, fitted
from advrepair.core.graph import Network, Operation
from advrepair.core.patching import PatchBank, Stack, last_layer
from advrepair.core.refinement import Worklist
from advrepair.core.training import Trained
from advrepair.core.types import LinearBound, worst_margin

_FALL = 16.0  # hidden layers: a patch is zero from where its detector says 1/16
_MORE = 0.5  # affine: how much larger than the constant a patch may get in its boxes
_ATTEMPTS = 4
_LEAST = 1e-3  # of margins that are asked for


def propose_specific(
    bank: PatchBank,
    worklist: Worklist,
    bounder: Bounder,
    others: tuple[Tensor, Tensor],
    margin: float,
    result: Trained,
) -> None:
    """Give patches of one label the least intrusive weights we know; what is proved is settled.

    A patch that is not proved, or demands something else, is left as it was: to the training.
    Sound: only a rigorous proof of the weights that are stored settles a patch.

    others: inputs that patches should leave alone, [n,*S], and their labels, [n]. margin: aimed
    at.
    """
    x, labels = others
    asked = (~result.settled).nonzero()[:, 0]
    if not len(x) or not len(asked) or not representable(bounder.template):
        return
    label = one_label(worklist, asked)
    asked, label = asked[label >= 0], label[label >= 0]
    if not len(asked):
        return
    batch = worklist.batch(asked, rigorous=True)
    found = fitted(batch.box, len(asked), x, _harmless(bounder.template, label, labels))
    slack = torch.full((len(asked),), max(margin, _LEAST), dtype=torch.float64)
    for _ in range(_ATTEMPTS):
        value = halved(batch, label, slack)
        stack = specific_stack(bounder.template, found, value, batch, slack)
        proved = _settle(asked, stack, batch, bank, worklist, bounder, result)
        if bool(proved.all()):
            return
        slack = torch.where(proved, slack, 4 * slack)


def representable(template: Network) -> bool:
    """Whether a patch of this shape can end where its boxes end; not with one hidden unit."""
    return [op.shape for op in _layers(template)[:-1]] != [(1,)]


def _harmless(template: Network, label: Tensor, labels: Tensor) -> Tensor:
    """Where a patch may add to its label, but not take from it: bool [q,n].

    Inputs of that label, for an affine patch. One with hidden layers takes nothing anywhere.
    """
    affine = len(_layers(template)) == 1
    return (label[:, None] == labels) & affine


def halved(batch: Batch, label: Tensor, slack: Tensor) -> Tensor:
    """The smallest constants, by their largest output, that give N's rows slack: [q,K].

    Half of what is lacking most goes to the label; from each other output is taken what it
    lacks beyond that. Sound as a bound only where proved; least, since at the input where a row
    lacks most, the two outputs of that row must differ by as much.

    label: [q]. slack: [q], float64.
    """
    q, pieces = batch.real.shape
    own = batch.rows.minimum_rigorous(batch.box) if batch.own is None else batch.own
    lack = (slack.repeat_interleave(pieces)[:, None] - own).clamp(min=0)
    lack = torch.where(batch.group >= 0, lack, 0.0).view(q, -1)
    other = batch.C.argmin(2).view(q, -1)
    needed = lack.new_zeros(q, batch.C.shape[2]).scatter_reduce(1, other, lack, "amax")
    half = needed.amax(1, keepdim=True) / 2
    value = -(needed - half).clamp(min=0)
    return value.scatter(1, label[:, None], half)


def specific_stack(
    template: Network, detectors: Detectors, value: Tensor, batch: Batch, slack: Tensor
) -> Stack:
    """Patches that add about value [q,K] in their boxes and about nothing where detectors are on.

    With hidden layers they add exactly that in the boxes. Affine ones fall off so steeply that
    they grow by half at most, and give back what the rows of N do not need then.
    """
    if len(_layers(template)) > 1:
        return _ending(template, detectors, value)
    fall = (_MORE / detectors.dip.clamp(min=1e-30)).clamp(max=1.0)
    height = 1 - _spared(detectors, value, fall, batch, slack) + fall * detectors.reach
    weight, bias = last_layer(template)
    slope = -(value * fall[:, None])[:, :, None] * detectors.weight[:, None]
    return {
        weight: slope.to(template.dtype),
        bias: (value * height[:, None]).to(template.dtype),
    }


def _ending(template: Network, detectors: Detectors, value: Tensor) -> Stack:
    """value * relu(1 - relu(f)), or value * (1 - relu(f) + relu(f - 1)) with one hidden layer.

    f is steeper than the detector, and its unit is off in the boxes in any arithmetic.
    """
    stack = {n: t.new_zeros(len(value), *t.shape) for n, t in template.tensors.items()}
    first, *between, last = ((op.tensors["weight"], op.tensors["bias"]) for op in _layers(template))
    # So far below 0 in the boxes that no order of summation reaches it.
    low = (detectors.weight.shape[1] + 8) * torch.finfo(template.dtype).eps
    bias = -_FALL * (detectors.reach + low * detectors.size)
    stack[first[0]][:, 0], stack[first[1]][:, 0] = _FALL * detectors.weight, bias
    if not between:
        stack[first[0]][:, 1], stack[first[1]][:, 1] = _FALL * detectors.weight, bias - 1
        stack[last[0]][:, :, 0], stack[last[0]][:, :, 1] = -value, value
        stack[last[1]][:] = value
        return stack
    sign, one = -1.0, 1.0
    for weight_name, bias_name in between:
        stack[weight_name][:, 0, 0], stack[bias_name][:, 0] = sign, one
        sign, one = 1.0, 0.0
    stack[last[0]][:, :, 0] = value
    return stack


def _spared(
    detectors: Detectors, value: Tensor, fall: Tensor, batch: Batch, slack: Tensor
) -> Tensor:
    """The share of value that no row of N needs if an affine patch falls off so: [q].

    At least 0 up to rounding: the patch is at least value on the boxes.
    """
    q, pieces = batch.real.shape
    each = torch.arange(q).repeat_interleave(pieces)
    gain = dot(batch.C.double(), value[each])  # of a row, [q*B,M]
    slope = (-fall[:, None] * detectors.weight)[each]
    A = torch.addcmul(batch.rows.A.flatten(2), gain[:, :, None], slope[:, None])
    least = LinearBound(A.view_as(batch.rows.A), batch.rows.b).minimum(batch.box.to(A.dtype))
    least = least + gain * (1 + fall * detectors.reach)[each][:, None] - slack[each][:, None]
    spare = torch.where(gain > 0, least / gain.clamp(min=1e-30), torch.inf)
    return spare.view(q, -1).amin(1).clamp(min=0, max=1).nan_to_num(0.0)


def _settle(
    asked: Tensor,
    stack: Stack,
    batch: Batch,
    bank: PatchBank,
    worklist: Worklist,
    bounder: Bounder,
    result: Trained,
) -> Tensor:
    """Prove patches as they are and store those that are proved and were not before: bool [q]."""
    margin, slope = bounder.proofs(stack, batch)
    proved = proved_patches(margin, batch.group, batch.real)
    new = proved & ~result.settled[asked]
    if bool(new.any()):
        theirs = (new[:, None] & batch.real).flatten()
        pieces = torch.cat(worklist.pieces_of(asked[new]))
        worst = worst_margin(margin[theirs], batch.group[theirs])
        result.proofs.append((worklist.node[pieces], worst, slope[theirs]))
        bank.put(asked[new], {name: t[new] for name, t in stack.items()})
        result.settled[asked[new]] = True
    return result.settled[asked]


def one_label(worklist: Worklist, patches: Tensor) -> Tensor:
    """The label that every row of a patch puts above another output, [q]; -1 if there is none.

    And where N has no finite bounds.
    """
    properties, least = worklist.properties, worklist.least()
    C, label = properties.C, properties.label
    eye = torch.eye(C.shape[2], dtype=C.dtype)
    above = (C * eye[label.clamp(min=0)].unsqueeze(1)).sum(2) == 1
    plain = above & (C.sum(2) == 0) & (C.abs().sum(2) == 2)
    fine = (plain | (properties.group < 0)).all(1) & (label >= 0)
    found = torch.full((len(patches),), -1)
    for i, index in enumerate(worklist.pieces_of(patches)):
        owner = worklist.owner[index]
        same = bool((label[owner] == label[owner[0]]).all())
        if same and bool(fine[owner].all()) and bool(least[index].isfinite().all()):
            found[i] = label[owner[0]]
    return found


def _layers(template: Network) -> list[Operation]:
    return [op for op in template.operations if op.kind == "linear"]
