"""The whole flow on one screen: :func:`repair`; and :func:`run`, the same with a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from advrepair.core import artefacts, evaluating, reporting
from advrepair.core.attacking import (
    Problem,
)
from advrepair.core.bounding import Bounder, bytes_per_box, bytes_per_patch, chunks, fitting
from advrepair.core.certification import Certificate, certify
from advrepair.core.config import Configuration, to_toml
from advrepair.core.data import Dataset
from advrepair.core.errors import UsageError
from advrepair.core.files import FORMAT, read_json, write_json, write_tensors
from advrepair.core.finding import find_problem, make_bounder, rounding_of, samples_of
from advrepair.core.graph import Network, size
from advrepair.core.inputs import in_plain_words, read_inputs
from advrepair.core.patching import RepairedNetwork, attach, patch_template
from advrepair.core.preserving import propose
from advrepair.core.properties import refuse_contradictions
from advrepair.core.refinement import Worklist
from advrepair.core.registry import Registry
from advrepair.core.run_folder import Checkpoint, Folder
from advrepair.core.run_folder import manifest as run_manifest
from advrepair.core.training import Trained, train
from advrepair.core.work import Progress, Work, silent


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

    say: told, before any long work, what property files demand, in words.

    Raises UsageError before any long work for what the user can fix; then nothing is
    written. An interrupted run is kept beside the folder, for ``resume``.
    """
    text = to_toml(configuration)
    place = Folder(folder)
    inputs = read_inputs(configuration.problem)
    network, test = inputs.network, None if inputs.data is None else inputs.data.test
    for line in in_plain_words(inputs):
        say(line)
    manifest = run_manifest(registry, inputs.digests, configuration.run.seed)
    if place.claim(text, manifest, force, resume):
        return read_json(folder / "report.json")
    work = Work(progress, Checkpoint(place.partial))
    try:
        check_bounds(network, configuration)
        problem = find_problem(inputs, configuration, work, configuration.problem.count)
        result = repair(network, problem, configuration, work, test)
    except UsageError:
        place.discard()
        raise
    result.report["folder"] = str(folder)
    _write(place.partial, result)
    Checkpoint(place.partial).clear()
    place.publish()
    return result.report


def repair(
    network: Network,
    problem: Problem,
    configuration: Configuration,
    run: Work,
    test: Dataset | None = None,
) -> Repair:
    """Repair the properties of a problem; the architecture in one function.

    Raises UsageError for demands that cannot hold together or a network that cannot be
    bounded, SoundnessError if an attack falsifies a proof.
    """
    plan, properties = configuration, problem.properties
    refuse_contradictions(properties)
    bounder = make_bounder(network, plan)
    with run.stage("bounds", len(properties)):
        worklist = Worklist.start(properties, bounder, problem.pieces)
        needy = _needy(problem, worklist, plan)
        assignment = plan.indicator.assign(properties[needy.nonzero()[:, 0]])
        assignment = assignment.checked(int(needy.sum())).among(needy)
        regions = worklist.serve(assignment, bounder)
    repaired = attach(
        network, properties, regions, assignment, plan.allocator, plan.patch.hidden, plan.run.seed
    )
    trained = _train(repaired, worklist, bounder, plan, run)
    certificate = _certify(repaired, worklist, bounder, problem, plan, run)
    found = evaluating.quick(
        repaired, worklist, bounder, problem, certificate, plan, run.stage, test
    )
    report = reporting.report(repaired, problem, certificate, trained, found, plan, run.seconds)
    if plan.evaluation.scope == "full" and test is not None:
        whole = evaluating.full(repaired, found.examples, test, plan, run.stage, run.checkpoint)
        reporting.add_assessment(report, whole, plan)
    report["seconds"]["total"] = time.perf_counter() - run.started
    kept = found.arrays | {"epochs": trained.epochs, "margin": worklist.margin()}
    return Repair(repaired, problem, certificate, report, kept)


def _needy(problem: Problem, worklist: Worklist, plan: Configuration) -> Tensor:
    """Properties that are repaired: bool [P]. The others are left alone."""
    if plan.screening.undecided == "repair":
        return problem.broken | ~(worklist.margin() > 0)
    return problem.broken


def _train(
    repaired: RepairedNetwork, worklist: Worklist, bounder: Bounder, plan: Configuration, run: Work
) -> Trained:
    """Train what an interrupted run has not; every chunk that is done is kept on disk."""
    result = Trained.nothing_yet(len(repaired.bank))
    if run.checkpoint:
        for name in run.checkpoint.names("patches"):
            if saved := run.checkpoint.load(name):
                _restore(saved, repaired, result)
    with run.stage("training", len(repaired.bank)) as advance:
        if bool((worklist.properties.label < 0).any()):
            samples = samples_of(repaired.base, worklist.properties, plan)
            propose(repaired, worklist, bounder, samples, result)
        advance(int(result.settled.sum()))

        def settled(patches: Tensor, split: bool) -> None:
            # The pieces of a split chunk are not kept: it is trained again on a resume.
            if run.checkpoint and not split:
                run.checkpoint.save(f"patches-{int(patches[0])}", _kept(patches, repaired, result))
            advance(len(patches))

        train(repaired, worklist, bounder, plan.refiner, plan.training, result, settled)
    return result


def _kept(patches: Tensor, repaired: RepairedNetwork, result: Trained) -> dict[str, Tensor]:
    tensors = {f"stack/{name}": t[patches] for name, t in repaired.bank.stack.items()}
    return tensors | {"patches": patches, "epochs": result.epochs[patches]}


def _restore(saved: dict[str, Tensor], repaired: RepairedNetwork, result: Trained) -> None:
    patches = saved["patches"]
    stack = {n.removeprefix("stack/"): t for n, t in saved.items() if n.startswith("stack/")}
    repaired.bank.put(patches, stack)
    result.epochs[patches] = saved["epochs"]
    result.settled[patches] = True


def _certify(
    repaired: RepairedNetwork,
    worklist: Worklist,
    bounder: Bounder,
    problem: Problem,
    plan: Configuration,
    run: Work,
) -> Certificate:
    attack = plan.attack if plan.certification.attack else None
    return certify(repaired, worklist, bounder, problem, attack, plan.run.seed, run.stage)


def check_bounds(network: Network, plan: Configuration) -> None:
    """Raises UsageError, before any work, if the verifiers and the network do not go together."""
    if not plan.verifier.differentiable:
        raise UsageError(
            f"verifier {plan.verifier.name!r} is not differentiable and cannot train patches: "
            "choose another --verifier"
        )
    plan.attack.require()
    if plan.evaluation.scope == "full":
        plan.evaluation_attack.require()
    plan.verifier.prepare(network)
    plan.certifier.prepare(network, rounding_of(network, plan))
    rows, memory = network.outputs - 1, int(plan.run.memory * 2**30)
    chunks(1, bytes_per_box(network, rows), memory)
    # Counted before any weight is made: the sizes may be absurd.
    sizes = [size(network.input_shape), *plan.patch.hidden, network.outputs]
    parameters = sum((a + 1) * b for a, b in pairwise(sizes))
    fitting(1, 4 * 12 * parameters, memory)
    fitting(1, bytes_per_patch(patch_template(network, plan.patch.hidden), rows, 1), memory)


def _write(path: Path, result: Repair) -> None:
    artefacts.write_repaired(path / "repaired.safetensors", result.network)
    artefacts.write_certificate(path, result.certificate, result.problem.properties, result.network)
    write_tensors(path / "evaluation.safetensors", result.evaluation, {"format": FORMAT})
    write_json(path / "report.json", result.report)
