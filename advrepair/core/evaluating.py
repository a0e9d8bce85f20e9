"""Evaluation as part of a run, and again of a run folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.assessment import Assessment, Assessor, Examples, Settings, Stage
from advrepair.core.attacking import Problem, generalisation_set, generator
from advrepair.core.box import Box
from advrepair.core.certification import Certificate
from advrepair.core.config import Configuration
from advrepair.core.data import Dataset
from advrepair.core.errors import UsageError
from advrepair.core.evaluation import Rates, inputs_around, rates, routing
from advrepair.core.files import read_json, read_tensors
from advrepair.core.finding import bounder_of
from advrepair.core.flat import Trivial, flattened
from advrepair.core.inputs import clip_of
from advrepair.core.interfaces import Attack
from advrepair.core.options import build, values
from advrepair.core.patching import RepairedNetwork
from advrepair.core.run_folder import Checkpoint
from advrepair.core.types import PropertySet, Status

_STRONGER = {"steps": 40, "restarts": 2}


@frozen(eq=False)
class Measured:
    """What every run measures: rates of the repair, of what costs nothing, and of the allocator.

    arrays: the examples, as a run folder keeps them.
    """

    metrics: Rates
    baseline: dict[str, Rates]
    routing: Rates
    examples: Examples
    arrays: dict[str, Tensor]


def quick(
    repaired: RepairedNetwork,
    trivial: Trivial,
    problem: Problem,
    certificate: Certificate,
    plan: Configuration,
    stage: Stage,
    test: Dataset | None,
) -> Measured:
    """Rates of the repair, and of the two repairs that cost nothing, on one set of examples."""
    samples, base = plan.evaluation.samples, repaired.base
    with stage("evaluation", len(problem.properties) * samples + 2) as advance:
        unseen = generalisation_set(base, problem, plan.attack, samples, plan.run.seed, advance)
        certified = torch.tensor([each is Status.CERTIFIED for each in certificate.status])
        around = inputs_around(
            base,
            problem.properties,
            plan.evaluation.inputs,
            clip_of(plan.problem),
            plan.problem.decision,
            generator(plan.run.seed, 8),
        )

        def measured(model: nn.Module, which: Tensor, test: Dataset | None) -> Rates:
            more = {} if around is None else around.rates(model, base)
            return _share(which) | rates(model, base, problem, unseen, test) | more

        metrics = measured(repaired, certified, test)
        advance(1)
        baseline = {"none": measured(base, trivial.own > 0, None)}
        baseline["none"]["DD"] = None if test is None else 0.0
        flat, held = flattened(repaired, trivial, certificate.proof.cover)
        baseline["constant-bias"] = measured(flat, held, test)
        advance(1)
        routes = routing(repaired, problem)
    arrays = {
        "x_adv": problem.x_adv,
        "x_adv.property": problem.owner,
        "row": problem.row,
        "unseen": unseen[0],
        "unseen.property": unseen[1],
        "constant": trivial.constant,
        "constant.certified": held,
    }
    examples = Examples(problem, unseen, trivial.constant, held, certified)
    return Measured(metrics, baseline, routes, examples, arrays)


def full(
    repaired: RepairedNetwork,
    examples: Examples,
    test: Dataset,
    plan: Configuration,
    stage: Stage,
    checkpoint: Checkpoint | None,
) -> Assessment:
    """The deployed function under an adaptive attacker; see :mod:`advrepair.core.assessment`."""
    bounder = partial(bounder_of, plan=plan)
    rest = (test, settings(plan), stage, checkpoint, bounder)
    return Assessor.of_run(repaired, examples, *rest).run()


def settings(plan: Configuration) -> Settings:
    """How a configuration wants unseen inputs to be attacked."""
    return Settings(
        attack=plan.evaluation_attack,
        quick=_descent(plan),
        epsilon=plan.evaluation.epsilon or plan.problem.epsilon,
        limit=plan.evaluation.limit,
        seed=plan.run.seed,
        clip=clip_of(plan.problem),
    )


def read_examples(folder: Path, repaired: RepairedNetwork) -> Examples:
    """The examples that a run kept; raises UsageError if the folder has none."""
    kept, _ = read_tensors(folder / "evaluation.safetensors")
    proof, _ = read_tensors(folder / "certificate.safetensors")
    stated = read_json(folder / "certificate.json")["properties"]
    properties = PropertySet(
        box=Box(proof["box.lower"], proof["box.upper"]),
        C=proof["C"],
        d=proof["d"],
        group=proof["group"],
        label=repaired.centres.label,
        target=repaired.centres.target,
        center=repaired.center,
        names=tuple(each["name"] for each in stated),
    )
    try:
        return Examples(
            Problem(properties, kept["x_adv"], kept["row"], kept["x_adv.property"]),
            (kept["unseen"], kept["unseen.property"]),
            kept["constant"],
            kept["constant.certified"],
            torch.tensor([each["status"] == Status.CERTIFIED for each in stated]),
        )
    except KeyError as error:
        raise UsageError(f"{folder}/evaluation.safetensors has no array {error}") from None


def _descent(plan: Configuration) -> Attack:
    """The attack whose model may tell its rows apart: the run's own, made stronger if it can."""
    known = values(plan.attack)
    stronger = {name: value for name, value in _STRONGER.items() if name in known}
    found: Attack = build(type(plan.attack), known | stronger, plan.attack.name)
    return found


def _share(which: Tensor) -> Rates:
    return {"certified": which.double().mean().item()}
