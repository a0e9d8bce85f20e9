"""What one repair method made of a problem, measured: rates, proofs, cost, and the model's file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import Factory, frozen
from torch import Tensor, nn

from advrepair.core.assessment import (
    Assessment,
    Assessor,
    Examples,
    Shares,
    refuse_repaired_inputs,
)
from advrepair.core.attacking import generalisation_set, generator
from advrepair.core.data import Dataset
from advrepair.core.errors import SoundnessError, UsageError
from advrepair.core.evaluating import settings
from advrepair.core.evaluation import inputs_around
from advrepair.core.finding import bounder_of
from advrepair.core.flags import Flag, flags
from advrepair.core.graph import INPUT, Network
from advrepair.core.inputs import clip_of
from advrepair.core.interfaces import OperatorList
from advrepair.core.methods import Attempt, Bench
from advrepair.core.onnx_export import routed_model
from advrepair.core.onnx_writer import OUTPUT, write_model, write_network
from advrepair.core.operators import Steps
from advrepair.core.patching import RepairedNetwork
from advrepair.core.reporting import METRICS
from advrepair.core.statistics import Share
from advrepair.core.work import Work

Unseen = tuple[Tensor, Tensor]


@runtime_checkable
class Writable(Protocol):
    """A model that writes itself operator by operator, as allocators do."""

    def write(self, to: OperatorList, x: str) -> str:
        """Its outputs for inputs of that name, [N,K]."""
        ...


def find_unseen(bench: Bench, work: Work) -> Unseen:
    """Other counterexamples in the same boxes, for RGR: the same ones for every method."""
    plan, problem, samples = bench.plan, bench.problem, bench.plan.evaluation.samples
    with work.stage("other counterexamples", len(problem.properties) * samples) as advance:
        network, seed = bench.inputs.network, plan.run.seed
        return generalisation_set(network, problem, plan.attack, samples, seed, advance)


def unseen_data(bench: Bench) -> Dataset | None:
    """Unseen labelled inputs; raises UsageError if one of them is repaired."""
    test = None if bench.inputs.data is None else bench.inputs.data.test
    if test is not None:
        refuse_repaired_inputs(bench.problem.properties.center, test)
    return test


@frozen(eq=False)
class Measured:
    """Shares of a model, by metric, and the checks that failed; empty where there is no model."""

    shares: Shares = Factory(dict)
    flags: Sequence[Flag] = ()

    @property
    def figures(self) -> dict[str, float | None]:
        """Every metric of a report; null where it was not measured."""
        known = {name: share.value for name, share in self.shares.items()}
        ours, theirs = known.get("accuracy"), known.get("unrepaired accuracy")
        known["DD"] = None if ours is None or theirs is None else theirs - ours
        return {name: known.get(name) for name in METRICS}

    def as_json(self) -> dict[str, Any]:
        """The figures, the interval and the number behind each, and the flags."""
        named = {name: share for name, share in self.shares.items() if name in METRICS}
        return {
            "figures": self.figures,
            "intervals": {name: share.interval for name, share in named.items()},
            "counts": {name: share.count for name, share in named.items()},
            "flags": list(self.flags),
        }


def measured(bench: Bench, name: str, attempt: Attempt, unseen: Unseen, work: Work) -> Measured:
    """Everything about the model that a method made; what cannot be measured is left out.

    Raises SoundnessError if an example breaks a property that is proved.
    """
    model, plan = attempt.result.model, bench.plan
    if model is None:
        return Measured()
    test, base = unseen_data(bench), bench.inputs.network
    nothing = torch.zeros(0, base.outputs), torch.zeros(0, dtype=torch.bool)
    known = torch.zeros(0, dtype=torch.bool) if attempt.proved is None else attempt.proved
    examples = Examples(bench.problem, unseen, *nothing, known)
    proved = {} if attempt.proved is None else {name: attempt.proved}
    rest = (test, settings(plan), work.stage, work.checkpoint, partial(bounder_of, plan=plan))
    assessor = Assessor(base, {name: model}, proved, examples, *rest)
    _refuse_false_proofs(assessor, name, attempt.proved)
    threats: dict[str, Share] = {}
    if plan.evaluation.scope == "full":
        found, threats = assessor.measure(name, oracle=isinstance(model, RepairedNetwork))
    else:
        found = assessor.plain(name)
    if attempt.proved is None:
        found.pop("certified")
    classes = {} if test is None else {name: assessor.classes(name)}
    checked = flags(Assessment({name: found}, {name: threats}, {}, {}, classes))
    return Measured(found | _around(bench, model), checked)


def model_file(model: nn.Module, network: Network) -> bytes:
    """The model as an ONNX file, whatever it is; the batch is open.

    Raises UsageError for a module that does not write itself, or holds what ONNX has not.
    """
    steps = Steps()
    if isinstance(model, RepairedNetwork):
        return routed_model(model)
    if isinstance(model, Network):
        value = write_network(steps, model)
    elif isinstance(model, Writable):
        value = model.write(steps, INPUT)
    else:
        raise UsageError(f"a model of the class {type(model).__name__} has no method write")
    last = steps.call("Identity", value, name=OUTPUT)
    shapes = {INPUT: network.input_shape}, {last: [network.outputs]}
    return write_model(steps, *shapes, network.dtype)


def _around(bench: Bench, model: nn.Module) -> Shares:
    """FDD and fidelity on random inputs in and around the regions of property files."""
    plan, base = bench.plan, bench.inputs.network
    noise, count = generator(plan.run.seed, 8), plan.evaluation.inputs
    rule, clip = plan.problem.decision, clip_of(plan.problem)
    around = inputs_around(base, bench.problem.properties, count, clip, rule, noise)
    if around is None:
        return {}
    rates, found = around.rates(model, base), {}
    for name, points in (("fidelity", around.right), ("FDD", around.outside)):
        rate = rates[name]
        if rate is not None:
            found[name] = Share(round(rate * len(points)), len(points))
    return found


def _refuse_false_proofs(assessor: Assessor, name: str, proved: Tensor | None) -> None:
    wrong = assessor.known(name) & (torch.zeros(1, dtype=torch.bool) if proved is None else proved)
    if bool(wrong.any()):
        which = assessor.examples.problem.properties.names[int(wrong.nonzero()[0])]
        raise SoundnessError(
            f"{which} is certified and a known counterexample breaks it: a proof is wrong; please "
            "report this with the folder of the comparison"
        )
