"""What is to be repaired: the demands of data and property files, with counterexamples."""

from __future__ import annotations

import torch
from attrs import evolve
from torch import Tensor, nn

from advrepair.core.attacking import (
    Problem,
    balls,
    find_counterexamples,
    generator,
    given_counterexamples,
    join,
    shifted,
)
from advrepair.core.bounding import Bounder
from advrepair.core.capping import OBJECTIVE, Hull, capping
from advrepair.core.config import Configuration
from advrepair.core.data import Dataset
from advrepair.core.detecting import INPUTS
from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.evaluation import Around, inputs_around
from advrepair.core.front import Front
from advrepair.core.graph import Network, size
from advrepair.core.inputs import Inputs, clip_of
from advrepair.core.layout import Pieces
from advrepair.core.parting import Parts, parted
from advrepair.core.patching import RepairedNetwork, patch_template
from advrepair.core.preserving import Decisions, sampled
from advrepair.core.properties import refuse_contradictions
from advrepair.core.rounding import Rounding
from advrepair.core.sampling import SampledFront
from advrepair.core.screening import Screen
from advrepair.core.types import PropertySet
from advrepair.core.violations import find_violations
from advrepair.core.work import Work


def find_problem(inputs: Inputs, plan: Configuration, run: Work, count: int | None) -> Problem:
    """What data and property files demand, with counterexamples.

    count: how many balls, or None for all there are. Raises UsageError if there are fewer.
    """
    parts = []
    if inputs.data is not None:
        parts.append(find_balls(inputs.network, inputs.data.repair, plan, run, count))
    if inputs.demanded is not None:
        parts.append(find_broken(inputs.network, inputs.demanded, plan, run))
    others = None if inputs.data is None else others_of(inputs.data.repair, plan)
    if len(parts) == 1:
        return evolve(parts[0], others=others)
    whole, before = join(parts), len(parts[0].properties)
    pieces = parts[1].pieces
    return evolve(
        whole,
        unseen=shifted(parts[1].unseen, before),
        pieces=None if pieces is None else pieces.behind(whole.properties, before),
        others=others,
    )


def others_of(data: Dataset, plan: Configuration) -> tuple[Tensor, Tensor] | None:
    """Inputs that patches should leave alone, [n,*S], and their labels; never of the test data.

    Drawn by the seed alone, whatever is repaired. None unless the objective asks for them.
    """
    if plan.training.objective != "intrusion":
        return None
    order = torch.randperm(len(data), generator=generator(plan.run.seed, 10))
    index = order[:INPUTS].sort().values
    return data.images(index), data.labels[index]


def find_broken(network: Network, demanded: PropertySet, plan: Configuration, run: Work) -> Problem:
    """Which properties do not hold: boxes are cut where N is not proved, and searched there.

    Raises UsageError for demands that cannot hold together.
    """
    refuse_contradictions(demanded)
    bounder, count = make_bounder(network, plan), plan.evaluation.examples
    every, wanted = torch.arange(len(demanded)), (1 + plan.evaluation.samples) * count
    samples = samples_of(network, demanded, plan)

    def cut(most: int) -> Pieces:
        with run.stage("screening", most) as advance:
            screen = Screen(demanded, bounder, plan.refiner, plan.screening, samples, advance)
            return screen.run(every if _few(network, plan) else every[:0], most)

    pieces = cut(plan.screening.pieces)
    with run.stage("attack", len(demanded)) as advance:
        box, owner = pieces.box[pieces.open], pieces.owner[pieces.open]
        found = find_violations(
            network, demanded, every, box, owner, plan.attack, wanted, plan.run.seed, advance
        )
    undecided = ~torch.isin(owner, found.owner)
    if bool(undecided.any()) and plan.screening.patience > plan.screening.pieces:
        pieces = cut(plan.screening.patience)
    first = torch.cat([(found.owner == i).nonzero()[:, 0][:count] for i in every.tolist()])
    rest = torch.ones(len(found.owner), dtype=torch.bool)
    rest[first] = False
    return Problem(
        demanded,
        found.x[first],
        torch.full_like(every, -1),
        found.owner[first],
        (found.x[rest], found.owner[rest]),
        pieces,
    )


def samples_of(
    network: Network, properties: PropertySet, plan: Configuration
) -> tuple[Tensor, Decisions]:
    """Decisions that a repair should keep, of other inputs than those it is measured on."""
    noise, asked = generator(plan.run.seed, 9), plan.problem
    count = plan.evaluation.inputs
    found = inputs_around(network, properties, count, clip_of(asked), asked.decision, noise)
    if found is None:
        found = Around(properties.center[:0], properties.center[:0], asked.decision)
    return sampled(network, found)


def _few(network: Network, plan: Configuration) -> bool:
    """Whether boxes have so few inputs that cutting them can pay."""
    return size(network.input_shape) <= plan.screening.inputs


def find_balls(
    network: Network, data: Dataset, plan: Configuration, run: Work, count: int | None
) -> Problem:
    """Counterexamples: from the data, from an interrupted run, or from the attack.

    count: how many, or None for all there are. Raises UsageError if there are fewer.
    """
    asked, clip = plan.problem, clip_of(plan.problem)
    if data.raw_adv is not None:
        return given_counterexamples(network, data, asked.epsilon, count, clip)
    saved = run.checkpoint.load("counterexamples") if run.checkpoint else None
    if saved is not None:
        properties = balls(network, data, saved["row"], asked.epsilon, clip)
        return Problem(properties, saved["x_adv"], saved["row"])
    with run.stage("attack", count or 0) as advance:
        problem = find_counterexamples(
            network, data, asked.epsilon, count, clip, plan.attack, plan.run.seed, advance
        )
    if run.checkpoint:
        run.checkpoint.save("counterexamples", {"row": problem.row, "x_adv": problem.x_adv})
    return problem


def _front(
    parts: Parts, plan: Configuration, rounding: Rounding, to_train: bool
) -> Front | SampledFront:
    """Samples serve a repair alone: what is asked of a repaired network is to be proved."""
    if to_train and plan.training.objective == OBJECTIVE:
        return Hull(parts.front, plan.front, rounding)
    if to_train and plan.patch.boxes == "sampled":
        return SampledFront(parts, plan.sampling, plan.run.seed)
    return Front(parts.front, plan.front, rounding)


def make_bounder(
    network: Network, plan: Configuration, repaired: RepairedNetwork | None = None
) -> Bounder:
    """Bounds as a configuration wants them, for its patches or for those of a repaired network.

    Raises UsageError for a level that does not fit, or a layer that does not part the network.
    """
    at, rounding = repaired.at if repaired else plan.patch.at, rounding_of(network, plan)
    parts = parted(network, at) if at else None
    tail = parts.tail if parts else network
    template = repaired.bank.template if repaired else patch_template(tail, plan.patch.hidden)
    return Bounder(
        tail,
        template,
        plan.verifier,
        plan.certifier,
        rounding,
        int(plan.run.memory * 2**30),
        torch.device(plan.run.device),
        _front(parts, plan, rounding, repaired is None) if parts else None,
    )


def _proving(network: Network, plan: Configuration) -> Configuration:
    """The plan to prove something of another network: by its features, if it has that layer.

    Where caps were asked for, by its outputs, as that of the repaired one is.
    """
    plan = capping(plan, network)
    try:
        at = parted(network, plan.patch.at).at if plan.patch.at else ""
    except UsageError:
        at = ""
    return evolve(plan, patch=evolve(plan.patch, at=at, boxes="proved"))


def bounder_of(function: nn.Module, plan: Configuration) -> Bounder | None:
    """Bounds of a network or a repaired one; None for another module, or a step not bounded."""
    if isinstance(function, RepairedNetwork):
        return make_bounder(function.base, plan, function)
    if not isinstance(function, Network):
        return None
    bounder = make_bounder(function, _proving(function, plan))
    try:
        plan.certifier.prepare(bounder.network, bounder.rounding)
    except UnsupportedNetworkError:
        return None
    return bounder


def rounding_of(network: Network, plan: Configuration) -> Rounding:
    """The arithmetic of the claim; raises UsageError if the weights do not fit into it."""
    level, own = plan.certification.level, str(network.dtype).removeprefix("torch.")
    if level == "deployed-float32" and own != "float32":
        raise UsageError(f"the network's weights are {own}: use --level deployed-{own}")
    return Rounding(f"deployed-{own}" if level == "deployed" else level)  # type: ignore[arg-type]
