"""Repair methods on one task: what each is given, and what is true of its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from attrs import Factory, evolve, frozen
from torch import Tensor, nn

from advrepair.core.attacking import Problem, generator, perturb
from advrepair.core.capping import OBJECTIVE
from advrepair.core.config import Configuration
from advrepair.core.covering import cover
from advrepair.core.data import Dataset
from advrepair.core.errors import PluginError, SoundnessError, UsageError
from advrepair.core.evaluation import DECISIONS, inputs_around
from advrepair.core.finding import bounder_of, find_problem, make_bounder
from advrepair.core.flat import Trivial, flattened
from advrepair.core.graph import Network
from advrepair.core.inputs import Inputs, clip_of
from advrepair.core.interfaces import Method
from advrepair.core.memory import out_of_memory
from advrepair.core.parting import parted
from advrepair.core.patching import PatchBank, RepairedNetwork, attach, constant_stack
from advrepair.core.pipeline import check_layer, mend
from advrepair.core.remembering import not_repaired, remember
from advrepair.core.sections import Patch
from advrepair.core.tasks import Hotfix, Labelled, MethodResult, MethodStatus, Scope, Task
from advrepair.core.types import PropertySet, Status
from advrepair.core.unseen import least_margins
from advrepair.core.verifying import Outcome, Verification
from advrepair.core.work import Progress, Work, silent

CLEAN, HELD = 10_000, 2_000  # labelled inputs a method is given, at most
_HELD_SHARE = 0.2  # of what there is
_AT_ONCE = 256


@frozen
class Limits:
    """What a repair may take. seconds, memory in bytes."""

    seconds: float = float("inf")
    memory: int = 2**62


@frozen(eq=False)
class Attempt:
    """What one method made of a task. seconds: the repair took, measured from outside.

    proved: bool [P], None if nobody can bound the model.
    """

    result: MethodResult
    seconds: float
    proved: Tensor | None


@frozen(eq=False)
class Bench:
    """One problem, for one method after the other.

    proofs: what advrepair has proved of models that it made itself, bool [P] each.
    """

    inputs: Inputs
    plan: Configuration
    problem: Problem
    limits: Limits = Limits()
    progress: Progress = silent
    proofs: dict[nn.Module, Tensor] = Factory(dict)

    def attempt(self, method: Method) -> Attempt:
        """Let a method repair, see whether it did, and what can be proved of what it made.

        Whatever the method does is a result, but for SoundnessError: a broken method stops
        nothing else.
        """
        result, seconds = self.repair(method)
        return Attempt(result, seconds, self.proved(result.model))

    def repair(self, method: Method) -> tuple[MethodResult, float]:
        """The first half of :meth:`attempt`: the result, and the seconds it took."""
        begin = time.perf_counter()
        task = self.task(begin + self.limits.seconds)
        result = self._tried(method, task)
        seconds = time.perf_counter() - begin
        return _judged(result, task), seconds

    def task(self, deadline: float = float("inf")) -> Task:
        """The problem as methods get it."""
        clean, held = labelled_inputs(self.inputs, self.plan, self.problem)
        plan = self.plan

        def attack(
            model: nn.Module, asked: PropertySet, start: Tensor, noise: torch.Generator
        ) -> Tensor:
            return perturb(plan.attack, model, asked, start, noise)

        return Task(
            network=self.inputs.network,
            properties=self.problem.properties,
            x_adv=self.problem.x_adv,
            owner=self.problem.owner,
            clean=clean,
            held=held,
            attack=attack,
            prepare=plan.verifier.prepare,
            own=self._hotfix,
            clip=clip_of(plan.problem),
            decision=plan.problem.decision,
            deadline=deadline,
            memory=self.limits.memory,
            seed=plan.run.seed,
            progress=self.progress,
        )

    def proved(self, model: nn.Module | None) -> Tensor | None:
        """Properties that are proved of a model, bool [P]; None if nobody can bound it.

        Sound: by rigorous bounds of the model itself, whatever a method says; a model that
        advrepair made has its certificate.
        """
        if model is None:
            return None
        if model in self.proofs:
            return self.proofs[model]
        bounder, properties = bounder_of(model, self.plan), self.problem.properties
        if bounder is None or not isinstance(model, Network | RepairedNetwork):
            return None
        found = least_margins(model, bounder, properties) > 0
        search = Verification(
            model, bounder, self.plan.attack, self.plan.screening.patience, self.plan.run.seed
        )
        for i in (properties.label < 0).nonzero()[:, 0].tolist():
            answer = search.answer(properties[torch.tensor([i])], None, lambda more: None)
            found[i] = answer.outcome is Outcome.HOLDS
        return found

    def _tried(self, method: Method, task: Task) -> MethodResult:
        """The result of a method, with what it raised in its place."""
        try:
            return method.repair(task)
        except SoundnessError:
            raise
        except TimeoutError as error:
            return _nothing(MethodStatus.TIMEOUT, error)
        except UsageError as error:
            return _nothing(MethodStatus.REFUSED, error)
        except Exception as error:  # a plugin may break in any way
            status = MethodStatus.OUT_OF_MEMORY if out_of_memory(error) else MethodStatus.FAILED
            return _nothing(status, error)

    def _hotfix(self, task: Task, kind: Hotfix) -> MethodResult:
        work, plan = Work(task.tell), self.plan
        if kind == "constant":
            return self._constant(work)
        if kind == "cap":
            training = evolve(plan.training, objective=OBJECTIVE, clamp=True)
            plan = evolve(plan, training=training, patch=Patch())
            check_layer(plan)
        return self._repaired(work, plan)

    def _problem(self, work: Work) -> Problem:
        """With the cuts that were made in search of counterexamples, where there are files."""
        if self.inputs.demanded is None or self.problem.pieces is not None:
            return self.problem
        return find_problem(self.inputs, self.plan, work, self.plan.problem.count)

    def _labelled(self) -> Dataset | None:
        return None if self.inputs.data is None else self.inputs.data.repair

    def _repaired(self, work: Work, plan: Configuration) -> MethodResult:
        """What ``advrepair run`` would deploy."""
        made = mend(self.inputs.network, self._problem(work), plan, work, self._labelled())
        proved = torch.tensor([each is Status.CERTIFIED for each in made.certificate.status])
        self.proofs[made.network] = proved
        stack = made.network.bank.stack.values()
        evidence = {
            "certified": int(proved.sum()),
            "level": made.certificate.level,
            "patches": len(made.network.bank),
            "parameters": sum(t.numel() for t in stack),
            "constant": int(made.certificate.constant.sum()),
            "allocator": made.network.allocator.name,
        }
        return MethodResult(made.network, MethodStatus.REPAIRED, Scope.REGION, evidence)

    def _constant(self, work: Work) -> MethodResult:
        """Patches that look at no input, on the same regions and with the same allocator."""
        network, plan, problem = self.inputs.network, self.plan, self._problem(work)
        bounder, properties = make_bounder(network, plan), problem.properties
        fitted = remember(network, problem, plan, self._labelled(), work)
        with work.stage("bounds", len(properties)):
            ground = cover(problem, bounder, plan.indicator, plan.screening.undecided == "repair")
        with work.stage("constants", len(ground.assignment)) as advance:
            trivial = Trivial.alone(ground, bounder, advance).under(bounder)
        bank = PatchBank(bounder.template, constant_stack(bounder.template, trivial.constant))
        parts = (ground.layout.regions, ground.assignment, plan.allocator, bank, fitted)
        layers = parted(network, plan.patch.at) if plan.patch.at else None
        whole = attach(network, properties, *parts, layers)
        whole.compute_on(network.device)
        flat, held = flattened(whole, trivial, ground)
        self.proofs[flat] = held
        evidence = {
            "certified": int(held.sum()),
            "level": bounder.rounding.level,
            "patches": len(trivial.held),
            "allocator": plan.allocator.name,
        }
        return MethodResult(flat, MethodStatus.REPAIRED, Scope.REGION, evidence)


def labelled_inputs(
    inputs: Inputs, plan: Configuration, problem: Problem
) -> tuple[Labelled | None, Labelled | None]:
    """Labelled inputs to keep the accuracy by, and others to choose by; none is repaired.

    Of data, training inputs in the order in which a smooth allocator takes them; without data
    random inputs in the regions and around them, with the decisions of the network.
    """
    if inputs.data is not None:
        data = inputs.data.repair
        rest = not_repaired(problem.row[problem.row >= 0], len(data), plan.run.seed)
        held = min(HELD, int(_HELD_SHARE * len(rest)))
        first, last = rest[: min(CLEAN, len(rest) - held)], rest[len(rest) - held :]
        parts = [Labelled(data.images(index), data.labels[index]) for index in (first, last)]
    else:
        noise, rule = generator(plan.run.seed, 14), plan.problem.decision
        count = CLEAN + HELD
        clip = clip_of(plan.problem)
        around = inputs_around(inputs.network, problem.properties, count // 2, clip, rule, noise)
        if around is None:
            return None, None
        x = torch.cat([around.right, around.outside])
        x = x[torch.randperm(len(x), generator=noise)]
        with torch.no_grad():
            known = Labelled(x, DECISIONS[rule](inputs.network(x)))
        held = min(HELD, int(_HELD_SHARE * len(x)))
        parts = [known[held:], known[:held]]
    clean, held_out = (part if len(part) else None for part in parts)
    return clean, held_out


def _nothing(status: MethodStatus, error: BaseException) -> MethodResult:
    said = " ".join(str(error).split())
    known = status is not MethodStatus.FAILED
    reason = said if known and said else f"{type(error).__name__}: {said}".removesuffix(": ")
    return MethodResult(None, status, Scope.NONE, {"reason": reason})


def _judged(result: object, task: Task) -> MethodResult:
    """The result with the status that its model has: what was claimed stays in the evidence."""
    if not isinstance(result, MethodResult):
        error = PluginError(f"repair returned {type(result).__name__}, not a MethodResult")
        return _nothing(MethodStatus.FAILED, error)
    if result.model is None:
        return result
    try:
        wrong = _wrong(result.model.eval(), task)
    except Exception as error:  # the model is a plugin's, too
        return _nothing(MethodStatus.FAILED, PluginError(f"its model cannot be run: {error}"))
    status = MethodStatus.NOT_REPAIRED if wrong else MethodStatus.REPAIRED
    evidence: Mapping[str, Any] = result.evidence
    if status is not result.status:
        evidence = {**evidence, "claimed": result.status.value}
    return evolve(result, status=status, evidence=evidence)


def _wrong(model: nn.Module, task: Task) -> int:
    """Counterexamples that a model still gets wrong."""
    found = 0
    for index in torch.arange(len(task.x_adv)).split(_AT_ONCE):
        with torch.no_grad():
            outputs = model(task.x_adv[index])
        want = (len(index), task.network.outputs)
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != want:
            have = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UsageError(f"it gives {have}, not {want}")
        found += int(task.properties[task.owner[index]].violated(outputs).sum())
    return found
