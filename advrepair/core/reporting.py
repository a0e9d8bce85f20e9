"""``report.json``: what a repair achieved and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from advrepair.core.assessment import Assessment
from advrepair.core.attacking import Problem
from advrepair.core.certification import Certificate
from advrepair.core.config import Configuration
from advrepair.core.evaluating import Measured
from advrepair.core.evaluation import Rates
from advrepair.core.flags import flags
from advrepair.core.interfaces import Component, SmoothAllocator
from advrepair.core.memory import peak_memory
from advrepair.core.options import values
from advrepair.core.patching import RepairedNetwork
from advrepair.core.properties import in_words
from advrepair.core.types import Status

_TRIVIAL = (
    "a constant patch, which looks at no input, reaches the same RSR, RGR and DD{}: these rates "
    "do not show that the patches learned anything"
)


def report(
    repaired: RepairedNetwork,
    problem: Problem,
    certificate: Certificate,
    epochs: Tensor,
    found: Measured,
    plan: Configuration,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Everything of ``report.json`` but the total time. Keys: ``docs/report.md``."""
    stack = repaired.bank.stack.values()
    parameters = sum(t.numel() for t in stack)
    labelled = bool((problem.properties.label >= 0).any())
    return {
        "network": {
            "name": Path(plan.problem.network).name,
            "parameters": repaired.base.parameters_count,
        },
        "problem": {
            "epsilon": plan.problem.epsilon if labelled else None,
            "count": len(problem.properties),
            "decision": plan.problem.decision,
            "input_range": list(plan.problem.input_range),
            "level": certificate.level,
            **{role: component.name for role, component in plan.components.items()},
        },
        "properties": {
            "total": len(certificate.status),
            **{status.value: certificate.count(status) for status in Status},
            "constant": int(certificate.constant.sum()),
            "pieces": len(certificate.proof.owner),
        },
        "demands": _demands(problem, certificate, repaired),
        "screening": _screening(problem, repaired),
        "metrics": _complete(found.metrics),
        "routing": dict(found.routing),
        "allocator": _allocator(repaired),
        "baseline": {name: _complete(rates) for name, rates in found.baseline.items()},
        "intervals": None,
        "counts": None,
        "evaluation": None,
        "lookup": None,
        "flags": [],
        "seconds": {name: seconds.get(name, 0.0) for name in _STAGES},
        "peak_memory_bytes": peak_memory(),
        "patches": {
            "count": len(repaired.bank),
            "parameters": parameters,
            "bytes": sum(t.numel() * t.element_size() for t in stack),
            "ratio_to_network": parameters / repaired.base.parameters_count,
            "mean_epochs": float(epochs.double().mean()) if len(epochs) else 0.0,
        },
        "notes": _notes(problem, certificate, found, plan),
    }


def _allocator(repaired: RepairedNetwork) -> dict[str, Any]:
    """Who answers outside the regions, and what a smooth one was fitted to."""
    allocator, smooth = repaired.allocator, isinstance(repaired.allocator, SmoothAllocator)
    told = allocator.told(repaired.centres) if isinstance(allocator, SmoothAllocator) else None
    return {"name": allocator.name, "smooth": smooth, "fitted": told}


def _demands(
    problem: Problem, certificate: Certificate, repaired: RepairedNetwork
) -> list[dict[str, Any]]:
    """What property files demand, in words, and what became of it."""
    properties = problem.properties
    served = repaired.centres.patch
    return [
        {
            "name": properties.names[i],
            "demand": in_words(properties, i),
            "status": certificate.status[i].value,
            "held": not bool(problem.broken[i]),
            "patched": bool(served[i] >= 0),
        }
        for i in (properties.label < 0).nonzero()[:, 0].tolist()
    ]


def _screening(problem: Problem, repaired: RepairedNetwork) -> dict[str, Any] | None:
    """How boxes were cut, and what was left for patches."""
    if problem.pieces is None or not problem.pieces.history:
        return None
    count, proved, seconds = zip(*problem.pieces.history, strict=True)
    return {
        "pieces": list(count),
        "proved": list(proved),
        "seconds": list(seconds),
        "regions": int((repaired.patch >= 0).sum()),
    }


_STAGES = (
    "screening",
    "attack",
    "bounds",
    "training",
    "certification",
    "branch and bound",
    "evaluation",
)


# Every metric, in the order of the tables; null where it was not measured.
METRICS = (
    "certified",
    "RSR",
    "RGR",
    "DD",
    "FDD",
    "fidelity",
    "DSR",
    "DGSR-query",
    "DGSR-certified",
    "DGSR-oracle",
)


def _complete(rates: Rates) -> Rates:
    return {name: rates.get(name) for name in METRICS}


def add_assessment(report: dict[str, Any], found: Assessment, plan: Configuration) -> None:
    """Put a full evaluation into a report; what was measured before is measured again."""
    for subject, shares in found.shares.items():
        rates: Rates = {name: share.value for name, share in shares.items()}
        ours, theirs = rates["accuracy"], rates["unrepaired accuracy"]
        rates["DD"] = None if ours is None or theirs is None else theirs - ours
        if subject == "repair":
            report["metrics"] = _complete(rates)
            named = {name: share for name, share in shares.items() if name in METRICS}
            report["intervals"] = {name: share.interval for name, share in named.items()}
            report["counts"] = {name: share.count for name, share in named.items()}
        else:
            report["baseline"][subject] = _complete(rates)
    report["lookup"] = found.insight
    report["flags"] = [*_weak(plan.evaluation_attack), *flags(found)]
    report["evaluation"] = {
        "attack": _described(plan.evaluation_attack),
        "epsilon": plan.evaluation.epsilon or plan.problem.epsilon,
        "limit": plan.evaluation.limit,
        "seed": plan.run.seed,
        "threats": {
            subject: {threat: share.value for threat, share in threats.items()}
            for subject, threats in found.threats.items()
        },
        "sweep": {
            subject: {
                protocol: {f"{radius:g}": share.value for radius, share in shares.items()}
                for protocol, shares in sweep.items()
            }
            for subject, sweep in found.sweep.items()
        },
    }


def _weak(attack: Component) -> list[dict[str, str]]:
    """A stamp on what was attacked as the paper's released code attacks."""
    if values(attack).get("version") != "paper":
        return []
    text = (
        "the attack on unseen inputs ran as in the paper's code: two of four parts, 10 steps each"
    )
    return [{"name": "weak attack", "text": text}]


def _described(component: Component) -> dict[str, Any]:
    return {"name": component.name, "options": values(component)}


def _alone(problem: Problem, certificate: Certificate) -> list[str]:
    """Properties of files that no patch serves."""
    notes = []
    for i in (~problem.broken).nonzero()[:, 0].tolist():
        name, status = problem.properties.names[i], certificate.status[i]
        if status is Status.CERTIFIED:
            notes.append(f"{name} holds already: proved, and left alone")
        elif status is Status.UNKNOWN:
            notes.append(
                f"{name}: no counterexample was found and no proof: it is left alone; "
                "--set screening.undecided=repair repairs it all the same"
            )
    return notes


def _notes(
    problem: Problem, certificate: Certificate, found: Measured, plan: Configuration
) -> list[str]:
    """What a reader must know to read the figures rightly."""
    notes, metrics = [], found.metrics
    for status in (Status.EMPIRICAL, Status.FALSIFIED, Status.UNKNOWN):
        if number := certificate.count(status):
            notes.append(f"{number} properties {status.value}: {status.sentence}")
    if constant := int((certificate.constant & (problem.properties.label >= 0)).sum()):
        notes.append(f"{constant} properties are served by a constant patch (training gave up)")
    notes.append(_outside(plan, found.routing))
    notes += _alone(problem, certificate)
    trivial = found.baseline.get("constant-bias")
    compared = ("RSR", "RGR", "DD")
    if (
        trivial
        and len(problem.x_adv)
        and all(_no_better(metrics[key], trivial[key], key) for key in compared)
    ):
        share = certificate.count(Status.CERTIFIED) / len(certificate.status)
        more = (trivial["certified"] or 0.0) > share
        notes.append(_TRIVIAL.format(" and certifies more" if more else ""))
    return notes


def _outside(plan: Configuration, routes: Rates) -> str:
    if plan.allocator.name == "none":
        return "outside the regions the network is unchanged, and nothing is proved there"
    if routes["adversarial"] is None:
        return f"outside the regions nothing is proved: allocator {plan.allocator.name!r} chooses"
    share = routes["adversarial"]
    if isinstance(plan.allocator, SmoothAllocator):
        return (
            f"outside the balls nothing is proved here: allocator {plan.allocator.name!r} answers "
            f"there, also for inputs that no ball holds; alone it is right on {share:.1%} of the "
            "adversarial examples"
        )
    text = f"outside the balls nothing is proved: allocator {plan.allocator.name!r} chooses patches"
    text += f" from the query itself; of the adversarial examples it would send {share:.1%} to the"
    text += " right patch"
    if plan.indicator.name != "property-guided":
        text += ", since it sees their wrong label; inside a ball the ball decides"
    return text


def _no_better(ours: float | None, trivial: float | int | None, key: str) -> bool:
    if ours is None or trivial is None:
        return True
    return ours >= trivial if key == "DD" else ours <= trivial
