"""The full evaluation: the deployed function under an attacker who knows it.

Subjects are measured alike: of a run the repair, the constant-bias repair, and the unrepaired
network; of a comparison whatever a method made. The paper's protocol, which tells the network the
clean image, is measured under the name ``DGSR-oracle``, and never alone. Definitions:
``docs/metrics.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from attrs import define, frozen
from torch import Tensor, nn

from advrepair.core.attacking import Problem, balls, generator, perturb
from advrepair.core.bounding import Bounder
from advrepair.core.data import Dataset
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network
from advrepair.core.interfaces import Attack
from advrepair.core.lookup import Insight, insight
from advrepair.core.patching import PatchBank, RepairedNetwork, constant_stack
from advrepair.core.run_folder import Checkpoint
from advrepair.core.statistics import Share
from advrepair.core.threats import THREATS, FixedRoute, Target, route_of, search
from advrepair.core.types import PropertySet
from advrepair.core.unseen import least_margins

_AT_ONCE = 256
_IMAGES = 512  # unrelated images that patches are tried on
SUBJECTS = ("repair", "constant-bias", "none")
Clip = tuple[float, float] | None
Stage = Callable[[str, int], Any]
Shares = dict[str, Share]


@frozen(eq=False)
class Examples:
    """What a run kept: the repaired problem, other counterexamples, and the trivial repair.

    unseen: points [N,*S] and the property of each. constant: [Q,K]. held: bool [P], what it
    is proved for. certified: bool [P], what the repair is proved for.
    """

    problem: Problem
    unseen: tuple[Tensor, Tensor]
    constant: Tensor
    held: Tensor
    certified: Tensor


@frozen(eq=False)
class Settings:
    """How it is measured. epsilon: radius on unseen inputs. limit: of them and of boxes, each."""

    attack: Attack
    quick: Attack
    epsilon: float
    limit: int
    seed: int
    clip: Clip


@frozen(eq=False)
class Assessment:
    """What was measured: shares of every subject, by metric; what each threat broke; insight.

    sweep: share that is right under the quick attack, by subject, protocol and radius. classes: how
    often each class is predicted, and is right, on the test inputs: [2,K] of each subject.
    """

    shares: dict[str, Shares]
    threats: dict[str, dict[str, Share]]
    insight: dict[str, Insight]
    sweep: dict[str, dict[str, dict[float, Share]]]
    classes: dict[str, Tensor]


def _no_bounder(model: nn.Module) -> Bounder | None:
    """Nothing is proved of unseen inputs."""
    return None


@define(eq=False)
class Assessor:
    """One evaluation; every finished part is kept in the checkpoint.

    base: the unrepaired network. subjects: what is measured, by name. proved: bool [P] of each,
    missing where nothing is known. test: None if there are no unseen inputs. bounder: of a subject;
    None for one that nothing is proved of.
    """

    base: Network
    subjects: Mapping[str, nn.Module]
    proved: Mapping[str, Tensor]
    examples: Examples
    test: Dataset | None
    settings: Settings
    stage: Stage
    checkpoint: Checkpoint | None = None
    bounder: Callable[[nn.Module], Bounder | None] = _no_bounder

    def __attrs_post_init__(self) -> None:
        if self.test is not None:
            refuse_repaired_inputs(self.examples.problem.properties.center, self.test)

    @classmethod
    def of_run(cls, repaired: RepairedNetwork, examples: Examples, *rest: Any) -> Assessor:
        """Of a repair, with those beside it that cost nothing. rest: as the other fields."""
        template = repaired.bank.template
        bank = PatchBank(template, constant_stack(template, examples.constant))
        models = (repaired, repaired.with_patches(bank), repaired.base)
        subjects = dict(zip(SUBJECTS, models, strict=True))
        proved = {"repair": examples.certified, "constant-bias": examples.held}
        return cls(repaired.base, subjects, proved, examples, *rest)

    def run(self) -> Assessment:
        """Measure everything."""
        found = {name: self.measure(name, oracle=True) for name in self.subjects}
        repairs = {n: m for n, m in self.subjects.items() if isinstance(m, RepairedNetwork)}
        return Assessment(
            {name: shares for name, (shares, _) in found.items()},
            {name: threats for name, (_, threats) in found.items()},
            {name: self._insight(model) for name, model in repairs.items()},
            {name: self._sweep(model, name) for name, model in repairs.items()},
            {name: self.classes(name) for name in self.subjects},
        )

    def measure(self, subject: str, oracle: bool) -> tuple[Shares, dict[str, Share]]:
        """Shares of one subject, and what each threat broke; of unseen inputs if there are any."""
        shares = self.plain(subject)
        threats: dict[str, Share] = {}
        boxes = self._boxes()
        shares["DSR"], _ = self._attacked(subject, "DSR", boxes, self.known(subject)[: len(boxes)])
        if self.test is not None:
            asked = self._balls(self.settings.epsilon)
            shares["DGSR-query"], threats = self._attacked(subject, "DGSR-query", asked)
            if oracle:
                shares["DGSR-oracle"] = self._oracle(subject, self.settings.epsilon)
            bounder = self.bounder(self.subjects[subject])
            if bounder is not None:
                shares["DGSR-certified"] = self._certified(subject, bounder, asked)
        return shares, threats

    def _boxes(self) -> PropertySet:
        every = self.examples.problem.properties
        return every[torch.arange(min(self.settings.limit, len(every)))]

    @property
    def _unseen(self) -> Dataset:
        """The test data; only asked for where there are some."""
        if self.test is None:
            raise UsageError("there are no unseen inputs to measure on: give x_test and y_test")
        return self.test

    def _balls(self, epsilon: float) -> PropertySet:
        index = torch.arange(min(self.settings.limit, len(self._unseen)))
        return balls(self.base, self._unseen, index, epsilon, self.settings.clip)

    def plain(self, subject: str) -> Shares:
        """What takes no attack."""
        model, examples = self.subjects[subject], self.examples
        problem, (points, owner) = examples.problem, examples.unseen
        found = {
            "RSR": _holding(model, problem.properties[problem.owner], problem.x_adv),
            "RGR": _holding(model, problem.properties[owner], points),
        }
        if self.test is not None:
            found |= self._accuracy(subject, self.test)
        proved = self.proved.get(subject)
        certified = 0 if proved is None else int(proved.sum())
        return found | {"certified": Share(certified, len(problem.properties))}

    def _accuracy(self, subject: str, test: Dataset) -> Shares:
        model, reference, right, kept = self.subjects[subject], 0, 0, 0
        with self.stage(f"{subject}: accuracy", len(test)) as advance:
            for index in torch.arange(len(test)).split(_AT_ONCE):
                x, y = test.images(index), test.labels[index]
                ours, theirs = _classes(model, x), _classes(self.base, x)
                right += int((ours == y).sum())
                reference += int((theirs == y).sum())
                kept += int((ours == theirs).sum())
                advance(len(index))
        return {
            "accuracy": Share(right, len(test)),
            "unrepaired accuracy": Share(reference, len(test)),
            "FDD": Share(len(test) - kept, len(test)),
        }

    def known(self, subject: str) -> Tensor:
        """Properties that an example breaks which is known already, bool [P]: no attack needed."""
        model, problem = self.subjects[subject], self.examples.problem
        broken = torch.zeros(len(problem.properties), dtype=torch.bool)
        for x, owner in ((problem.x_adv, problem.owner), self.examples.unseen):
            for part in torch.arange(len(x)).split(_AT_ONCE):
                wrong = problem.properties[owner[part]].violated(_run(model, x[part]))
                broken[owner[part][wrong]] = True
        return broken

    def _attacked(
        self, subject: str, metric: str, asked: PropertySet, known: Tensor | None = None
    ) -> tuple[Share, dict[str, Share]]:
        """Share of properties that no threat breaks; share that each of them breaks.

        known: bool [P], broken in any case.
        """
        model = self.subjects[subject]
        whole = torch.ones(len(asked), dtype=torch.bool) if known is None else ~known
        broken = {}
        for threat in THREATS if isinstance(model, RepairedNetwork) else ("direct",):

            def hits(part: PropertySet, noise: torch.Generator, threat: str = threat) -> Tensor:
                return self._hits(model, threat, part, noise)

            found = self._each(f"{subject}: {metric}, {threat}", asked, hits)
            broken[threat] = Share(int(found.sum()), len(asked))
            whole &= ~found
        return Share(int(whole.sum()), len(asked)), broken

    def _certified(self, subject: str, bounder: Bounder, asked: PropertySet) -> Share:
        """Unseen inputs whose whole ball is proved to keep their label."""
        function = cast(Network | RepairedNetwork, self.subjects[subject])

        def unproved(part: PropertySet, noise: torch.Generator) -> Tensor:
            return ~(least_margins(function, bounder, part) > 0)

        hits = self._each(f"{subject}: DGSR-certified", asked, unproved)
        return Share(int((~hits).sum()), len(hits))

    def _hits(
        self, model: nn.Module, threat: str, asked: PropertySet, noise: torch.Generator
    ) -> Tensor:
        """Properties that one threat, or no attack at all, breaks: bool [P]."""
        s = self.settings
        if isinstance(model, RepairedNetwork):
            points = THREATS[threat](Target(model, s.attack, s.quick, noise), asked)
        else:
            points = search((s.attack, s.quick), model, asked, noise)
        found = asked.violated(_run(model, asked.center))
        for x in points:
            found |= asked.violated(_run(model, asked.box.clamp(x)))
        return found

    def _oracle(self, subject: str, epsilon: float) -> Share:
        """The paper's protocol: the clean input, of which F knows nothing, fixes the route."""
        model = self.subjects[subject]

        def told(part: PropertySet, noise: torch.Generator) -> Tensor:
            x, fixed = part.center, model
            if isinstance(model, RepairedNetwork):
                fixed = FixedRoute(model, route_of(model, x))
            hits = part.violated(_run(fixed, x))
            for found in search((self.settings.attack, self.settings.quick), fixed, part, noise):
                hits |= part.violated(_run(fixed, found))
            return hits

        hits = self._each(f"{subject}: oracle at {epsilon:g}", self._balls(epsilon), told)
        return Share(int((~hits).sum()), len(hits))

    def _sweep(self, model: RepairedNetwork, subject: str) -> dict[str, dict[float, Share]]:
        """A subject under the quick attack at several radii, by protocol.

        At the largest one every image of the input range can be reached.
        """
        own = self.settings.epsilon

        def quick(part: PropertySet, noise: torch.Generator) -> Tensor:
            x = perturb(self.settings.quick, model, part, part.center, noise)
            return part.violated(_run(model, x)) | part.violated(_run(model, part.center))

        query: dict[float, Share] = {}
        for epsilon in (own / 2, own, 2 * own, self._everything()):
            hits = self._each(f"{subject}: query at {epsilon:g}", self._balls(epsilon), quick)
            query[epsilon] = Share(int((~hits).sum()), len(hits))
        oracle = {e: self._oracle(subject, e) for e in (own, self._everything())}
        return {"query": query, "oracle": oracle}

    def _everything(self) -> float:
        clip = self.settings.clip
        return clip[1] - clip[0] if clip else 1.0

    def _each(
        self,
        title: str,
        asked: PropertySet,
        work: Callable[[PropertySet, torch.Generator], Tensor],
    ) -> Tensor:
        """One bool a property, computed in parts that are kept: [P]."""
        parts = []
        with self.stage(title, len(asked)) as advance:
            for index in torch.arange(len(asked)).split(_AT_ONCE):
                key = hashlib.sha256(f"{title}:{int(index[0])}".encode()).hexdigest()[:16]
                saved = self.checkpoint.load(key) if self.checkpoint else None
                if saved is None:
                    noise = generator(self.settings.seed, int(key[:12], 16))
                    saved = {"hits": work(asked[index], noise)}
                    if self.checkpoint:
                        self.checkpoint.save(key, saved)
                parts.append(saved["hits"])
                advance(len(index))
        return torch.cat(parts)

    def _insight(self, model: RepairedNetwork) -> Insight:
        test, noise = self._unseen, generator(self.settings.seed, 7)
        index = torch.arange(min(_IMAGES, len(test)))
        properties = self.examples.problem.properties
        return insight(model, properties, test.images(index), test.labels[index], noise)

    def classes(self, subject: str) -> Tensor:
        """How often each class is predicted, and is right, on the test inputs: [2,K]."""
        model, outputs, test = self.subjects[subject], self.base.outputs, self._unseen
        parts = torch.arange(len(test)).split(_AT_ONCE)
        predicted = torch.cat([_classes(model, test.images(index)) for index in parts])
        pair = (predicted, test.labels)
        return torch.stack([torch.bincount(each, minlength=outputs)[:outputs] for each in pair])


def refuse_repaired_inputs(center: Tensor, test: Dataset) -> None:
    """Raises UsageError if a test input is one that was repaired: it would not be unseen."""
    known = {row.numpy().tobytes() for row in center}
    for index in torch.arange(len(test)).split(_AT_ONCE):
        for i, row in zip(index.tolist(), test.images(index), strict=True):
            if row.numpy().tobytes() in known:
                raise UsageError(
                    f"{test.name} row {i} is a repaired input: evaluate on other data, or remove it"
                )


def _holding(model: nn.Module, properties: PropertySet, x: Tensor) -> Share:
    """Share of points that no longer break their property."""
    good = 0
    for index in torch.arange(len(x)).split(_AT_ONCE):
        good += int((~properties[index].violated(_run(model, x[index]))).sum())
    return Share(good, len(x))


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model(x)
    return outputs


def _classes(model: nn.Module, x: Tensor) -> Tensor:
    return _run(model, x).argmax(1)
