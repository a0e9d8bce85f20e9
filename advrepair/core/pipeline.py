"""The whole flow on one screen: :func:`repair`; and :func:`run`, the same with a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair.core import artefacts, evaluating, reporting
from advrepair.core.attacking import Problem
from advrepair.core.bounding import Bounder
from advrepair.core.capping import OBJECTIVE, capping
from advrepair.core.certification import Certificate, certify
from advrepair.core.config import Configuration, to_toml
from advrepair.core.covering import Cover, cover
from advrepair.core.data import Dataset
from advrepair.core.devices import device_of
from advrepair.core.errors import UsageError
from advrepair.core.estimate import Estimate, estimate
from advrepair.core.files import FORMAT, read_json, settle, write_json, write_tensors
from advrepair.core.finding import find_problem, make_bounder, rounding_of, samples_of
from advrepair.core.flat import Trivial
from advrepair.core.graph import Network
from advrepair.core.inputs import anchored, in_plain_words, read_inputs
from advrepair.core.interfaces import CompleteVerifier, SmoothAllocator
from advrepair.core.parting import parted
from advrepair.core.patching import RepairedNetwork, attach
from advrepair.core.proof import Proof
from advrepair.core.properties import refuse_contradictions
from advrepair.core.registry import Registry
from advrepair.core.remembering import check_allocator, remember
from advrepair.core.results import Results
from advrepair.core.room import refuse, refuse_flight
from advrepair.core.run_folder import Checkpoint, Folder
from advrepair.core.run_folder import manifest as run_manifest
from advrepair.core.sampling import SampledFront
from advrepair.core.solving import Solver
from advrepair.core.types import PropertySet
from advrepair.core.work import Progress, Work, silent, untold

_AT_ONCE = 256


@frozen(eq=False)
class Repair:
    """A finished repair. network: the deployed function. report: as in report.json.

    evaluation: arrays of what was measured on, as in evaluation.safetensors.
    """

    network: RepairedNetwork
    problem: Problem
    certificate: Certificate
    report: dict[str, Any]
    evaluation: dict[str, Tensor]

    def save(self, folder: str | Path) -> None:
        """Write network and certificate into a folder, without the configuration of a run."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        _write(path, self)


def run(
    configuration: Configuration,
    registry: Registry,
    folder: Path,
    progress: Progress = silent,
    force: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Repair as configured and leave a run folder; returns its report.

    say: told, before any long work, what property files demand and what the run will take.

    Raises UsageError before any long work for what the user can fix; then nothing is
    written. An interrupted run is kept beside the folder, for ``resume``.
    """
    configuration = evolve(configuration, problem=anchored(configuration.problem))
    text = to_toml(configuration)
    place = Folder(folder)
    inputs = read_inputs(configuration.problem)
    network, data = inputs.network, inputs.data
    test, labelled = (None, None) if data is None else (data.test, data.repair)
    for line in in_plain_words(inputs):
        say(line)
    asked = configuration.run
    manifest = run_manifest(registry, inputs.digests, asked.seed, asked.device)
    if place.claim(text, manifest, force, resume):
        return read_json(folder / "report.json")
    work = Work(progress, Checkpoint(place.partial), say=untold if place.began else say)
    try:
        check_bounds(network, configuration)
        check_allocator(configuration, labelled)
        predicted = estimate(inputs, configuration)
        refuse(predicted, place.partial)
        for line in predicted.lines():
            say(line)
        problem = find_problem(inputs, configuration, work, configuration.problem.count)
        result = repair(network, problem, configuration, work, test, labelled)
    except UsageError:
        place.discard()
        raise
    result.report["estimate"] = predicted.as_json()
    result.report["folder"] = str(folder)
    _write(place.partial, result)
    place.publish()
    return result.report


def predict(configuration: Configuration, folder: Path) -> Estimate:
    """What a run would take; nothing is written. Raises UsageError as :func:`run` does."""
    inputs = read_inputs(configuration.problem)
    check_bounds(inputs.network, configuration)
    check_allocator(configuration, None if inputs.data is None else inputs.data.repair)
    predicted = estimate(inputs, configuration)
    refuse(predicted, folder)
    return predicted


def repair(
    network: Network,
    problem: Problem,
    configuration: Configuration,
    run: Work,
    test: Dataset | None = None,
    labelled: Dataset | None = None,
) -> Repair:
    """Repair the properties of a problem, and measure what came of it.

    labelled: inputs that a smooth allocator may remember, those of the problem among them.
    Raises UsageError for demands that cannot hold together or a network that cannot be
    bounded, SoundnessError if an attack falsifies a proof.
    """
    plan = configuration
    made = mend(network, problem, plan, run, labelled)
    repaired, certificate = made.network, made.certificate
    found = evaluating.quick(repaired, made.trivial, problem, certificate, plan, run.stage, test)
    report = reporting.report(repaired, problem, certificate, made.epochs, found, plan, run.seconds)
    report["features"] = made.features
    report["cpu"] = made.cpu
    if plan.evaluation.scope == "full" and test is not None:
        whole = evaluating.full(repaired, found.examples, test, plan, run.stage, run.checkpoint)
        reporting.add_assessment(report, whole, plan)
    report["seconds"]["total"] = time.perf_counter() - run.started
    kept = found.arrays | {"epochs": made.epochs, "margin": made.trivial.own}
    return Repair(repaired, problem, certificate, report, kept)


@frozen(eq=False)
class Mended:
    """A repair that nobody has measured yet.

    epochs: of each patch, [Q]. cpu: seconds. features: what patches see, if not the input.
    """

    network: RepairedNetwork
    certificate: Certificate
    trivial: Trivial
    epochs: Tensor
    cpu: dict[str, float]
    features: dict[str, Any] | None = None


def mend(
    network: Network,
    problem: Problem,
    plan: Configuration,
    run: Work,
    labelled: Dataset | None = None,
) -> Mended:
    """The deployed function and what is proved of it. Arguments and errors as :func:`repair`."""
    plan, properties = capping(plan, network), problem.properties
    refuse_contradictions(properties)
    bounder = make_bounder(network, plan)
    fitted = remember(network, problem, plan, labelled, run)
    with run.stage("bounds", len(properties)):
        undecided = plan.screening.undecided == "repair"
        ground = cover(problem, bounder, plan.indicator, undecided)
    results = _solved(ground, problem.others, network, bounder, plan, run)
    bank, outcomes = results.bank(bounder.template), results.ordered()
    regions, assignment = ground.layout.regions, ground.assignment
    parts = parted(network, plan.patch.at) if plan.patch.at else None
    known = (assignment, plan.allocator, bank, fitted, parts)
    repaired = attach(network, properties, regions, *known)
    repaired.compute_on(network.device)
    proof = Proof.joined(results.shards, outcomes, bounder.template.units)
    attack = plan.attack if plan.certification.attack else None
    flat = results.gathered("flat")
    certificate = certify(repaired, proof, flat, bounder, problem, attack, plan.run.seed, run.stage)
    epochs = results.gathered("epochs")
    trivial = Trivial.joined(results).under(bounder)
    told = _told(bounder, properties, plan, run)
    return Mended(repaired, certificate, trivial, epochs, results.cpu(), told)


def _solved(
    ground: Cover,
    others: tuple[Tensor, Tensor] | None,
    network: Network,
    bounder: Bounder,
    plan: Configuration,
    run: Work,
) -> Results:
    """Patches, and what is proved about them; every shard that is done is kept on disk."""
    properties, samples = ground.properties, None
    if bool((properties.label < 0).any()):
        samples = samples_of(network, properties, plan)
    training = plan.training
    if bounder.front is not None:  # what patches see of a part of a box is not a part of a box
        training = evolve(training, split=0)
        others = (
            None if others is None else (_features(bounder.front.network, others[0]), others[1])
        )
    solver = Solver(bounder, plan.refiner, training, plan.run.seed, samples, others)
    results = Results(ground.shards(bounder.template), run.checkpoint)
    found = results.found(solver)
    run.say(f"resuming: {found} of {len(ground.order)} patches are done")
    with run.stage("training", len(ground.order)) as advance:
        advance(found)
        for patches in results.solve(solver, plan.executor):
            advance(len(patches))
    return results


def _told(
    bounder: Bounder, properties: PropertySet, plan: Configuration, run: Work
) -> dict[str, Any] | None:
    """What patches see, where that is not the input; of sampled boxes, how often they fail."""
    front = bounder.front
    if front is None:
        return None
    missed = None
    if isinstance(front, SampledFront):
        with run.stage("evaluation", len(properties)):
            missed = dict(front.missed(properties.box))
    numbers = bounder.network.input_shape[0]
    return {"at": plan.patch.at, "count": numbers, "boxes": plan.patch.boxes, "missed": missed}


def _features(front: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([front(part) for part in x.split(_AT_ONCE)])


def check_bounds(network: Network, plan: Configuration) -> None:
    """Raises UsageError, before any work, if the verifiers and the network do not go together."""
    if not plan.verifier.differentiable:
        raise UsageError(
            f"verifier {plan.verifier.name!r} is not differentiable and cannot train patches: "
            "choose another --verifier"
        )
    plan = capping(plan, network)
    network.compute_on(device_of(plan.run.device))
    plan.attack.require()
    plan.executor.require()
    if plan.evaluation.scope == "full":
        plan.evaluation_attack.require()
    tail = network
    if plan.patch.at:
        check_layer(plan)
        parts = parted(network, plan.patch.at)
        plan.front.prepare(parts.front, rounding_of(network, plan))
        tail = parts.tail
    plan.verifier.prepare(tail)
    plan.certifier.prepare(tail, rounding_of(network, plan))
    refuse_flight(tail, plan, tail.outputs - 1)


def check_layer(plan: Configuration) -> None:
    """Raises UsageError for what cannot be done yet with patches that see a layer."""
    if plan.problem.property:
        raise UsageError(
            "patch.at and training.objective=cap go with --data: boxes of property files are cut "
            "in inputs"
        )
    if plan.patch.boxes == "sampled" and plan.certification.level == "real":
        raise UsageError(
            "patch.boxes is 'sampled', which says nothing at level real: leave one out"
        )
    if isinstance(plan.certifier, CompleteVerifier):
        raise UsageError(
            f"certifier {plan.certifier.name!r} does not go with patch.at and caps yet: it cuts "
            "inputs"
        )
    if isinstance(plan.allocator, SmoothAllocator) and plan.training.objective == OBJECTIVE:
        raise UsageError(
            f"allocator {plan.allocator.name!r} does not go with caps yet: it would see outputs"
        )


def _write(path: Path, result: Repair) -> None:
    artefacts.write_repaired(path / "repaired.safetensors", result.network)
    artefacts.write_certificate(path, result.certificate, result.problem.properties, result.network)
    write_tensors(path / "evaluation.safetensors", result.evaluation, {"format": FORMAT})
    settle(path)
    write_json(path / "report.json", result.report)  # last: it says that the others are whole
