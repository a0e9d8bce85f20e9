"""``report.json``: what a repair achieved and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advrepair.core.attacking import Problem
from advrepair.core.certification import Certificate
from advrepair.core.config import Configuration
from advrepair.core.evaluation import Rates
from advrepair.core.memory import peak_memory
from advrepair.core.patching import RepairedNetwork
from advrepair.core.training import Trained
from advrepair.core.types import Status

_TRIVIAL = (
    "a constant patch, which looks at no input, reaches the same RSR, RGR and DD{}: these rates "
    "do not show that the patches learned anything"
)


def report(
    repaired: RepairedNetwork,
    problem: Problem,
    certificate: Certificate,
    trained: Trained,
    metrics: Rates,
    baseline: Mapping[str, Mapping[str, float | int | None]],
    routes: Rates,
    plan: Configuration,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Everything of ``report.json`` but the total time. Keys: ``docs/report.md``."""
    stack = repaired.bank.stack.values()
    parameters = sum(t.numel() for t in stack)
    return {
        "network": {
            "name": Path(plan.problem.network).name,
            "parameters": repaired.base.parameters_count,
        },
        "problem": {
            "epsilon": plan.problem.epsilon,
            "count": len(problem.properties),
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
        "metrics": dict(metrics),
        "routing": dict(routes),
        "baseline": {name: dict(rates) for name, rates in baseline.items()},
        "seconds": {name: seconds.get(name, 0.0) for name in _STAGES},
        "peak_memory_bytes": peak_memory(),
        "patches": {
            "count": len(repaired.bank),
            "parameters": parameters,
            "bytes": sum(t.numel() * t.element_size() for t in stack),
            "ratio_to_network": parameters / repaired.base.parameters_count,
            "mean_epochs": float(trained.epochs.double().mean()),
        },
        "notes": _notes(certificate, metrics, baseline, routes, plan),
    }


_STAGES = ("attack", "bounds", "training", "certification", "branch and bound", "evaluation")


def _notes(
    certificate: Certificate,
    metrics: Rates,
    baseline: Mapping[str, Mapping[str, float | int | None]],
    routes: Rates,
    plan: Configuration,
) -> list[str]:
    """What a reader must know to read the figures rightly."""
    notes = []
    for status in (Status.FALSIFIED, Status.UNKNOWN):
        if number := certificate.count(status):
            notes.append(f"{number} properties {status.value}: {status.sentence}")
    if constant := int(certificate.constant.sum()):
        notes.append(f"{constant} properties are served by a constant patch (training gave up)")
    notes.append(_outside(plan, routes))
    trivial = baseline.get("constant-bias")
    if trivial and all(_no_better(metrics[key], trivial[key], key) for key in metrics):
        share = certificate.count(Status.CERTIFIED) / len(certificate.status)
        more = (trivial["certified"] or 0.0) > share
        notes.append(_TRIVIAL.format(" and certifies more" if more else ""))
    return notes


def _outside(plan: Configuration, routes: Rates) -> str:
    if plan.allocator.name == "none":
        return "outside the balls the network is unchanged, and nothing is proved there"
    share = routes["adversarial"] or 0.0
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
