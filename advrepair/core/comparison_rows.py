"""The row of one method in a comparison, and the problem that all of them are given, on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from advrepair.core.agreement import check_model, runtime
from advrepair.core.attacking import Problem
from advrepair.core.box import Box
from advrepair.core.errors import AdvrepairError
from advrepair.core.files import FORMAT, file_digest, read_json, read_tensors, write_tensors
from advrepair.core.isolation import Ended, How
from advrepair.core.measuring import Unseen, model_file
from advrepair.core.methods import Bench
from advrepair.core.reporting import METRICS
from advrepair.core.tasks import MethodResult, MethodStatus, Scope
from advrepair.core.types import PropertySet

RESULT, MODEL, _PROBLEM = "result.json", "model.onnx", "problem.safetensors"
Row = dict[str, Any]
_ROWS = ("C", "d", "group", "label", "target", "center")
_ENDS = {
    How.TIMEOUT: MethodStatus.TIMEOUT,
    How.MEMORY: MethodStatus.OUT_OF_MEMORY,
    How.CRASHED: MethodStatus.FAILED,
}


def write_problem(folder: Path, problem: Problem, unseen: Unseen, key: str) -> None:
    """Keep a problem, and other counterexamples for RGR. key: what they depend on."""
    properties = problem.properties
    tensors = {
        "box.lower": properties.box.lower,
        "box.upper": properties.box.upper,
        **{name: getattr(properties, name) for name in _ROWS},
        "x_adv": problem.x_adv,
        "x_adv.property": problem.owner,
        "row": problem.row,
        "unseen": unseen[0],
        "unseen.property": unseen[1],
    }
    header = {"format": FORMAT, "key": key, "names": list(properties.names)}
    write_tensors(folder / _PROBLEM, tensors, header)


def problem_key(folder: Path) -> str | None:
    """What the problem in a folder depends on; None if there is none."""
    path = folder / _PROBLEM
    return str(read_tensors(path)[1].get("key")) if path.exists() else None


def read_problem(folder: Path) -> tuple[Problem, Unseen]:
    """The problem of a comparison; raises UsageError if the folder has none."""
    kept, header = read_tensors(folder / _PROBLEM)
    properties = PropertySet(
        box=Box(kept["box.lower"], kept["box.upper"]),
        **{name: kept[name] for name in _ROWS},
        names=tuple(header["names"]),
    )
    problem = Problem(properties, kept["x_adv"], kept["row"], kept["x_adv.property"])
    return problem, (kept["unseen"], kept["unseen.property"])


def repaired(result: MethodResult, seconds: float) -> Row:
    """What is known when the repair has ended."""
    return {
        "status": result.status.value,
        "scope": result.scope.value,
        "reason": _reason(result),
        "evidence": _json(result.evidence),
        "seconds": {"repair": seconds, "evaluation": 0.0},
        "model": None,
        "measured": False,
    }


def written_model(place: Path, model: nn.Module | None, bench: Bench) -> Row:
    """The model as an ONNX file that computes what the model does, or why there is none."""
    if model is None:
        return {"model": None, "model_reason": "there is no model"}
    try:
        file = model_file(model, bench.inputs.network)
        if runtime() is not None:
            check_model(file, model, bench.problem.x_adv)
    except AdvrepairError as error:
        return {"model": None, "model_reason": str(error)}
    path = place / MODEL
    path.write_bytes(file)
    return {"model": path.name, "model_bytes": len(file), "model_sha256": file_digest(path)}


def finished(place: Path, ended: Ended, limits: Sequence[float]) -> Row:
    """The row when the process has ended, however it did."""
    kept = place / RESULT
    lived = kept.exists()
    row = read_json(kept) if lived else _never(ended, limits)
    row["peak_memory_bytes"] = ended.peak
    for key in ("figures", "intervals", "counts"):
        row.setdefault(key, {name: None for name in METRICS} if key == "figures" else {})
    row.setdefault("flags", [])
    row.setdefault("model", None)
    told = row.pop("measured", False)
    if lived and not told:
        row["reason"] = f"repaired, but not measured: {_why(ended, limits)}"
    elif lived and ended.how is not How.DONE:
        row["model_reason"] = _why(ended, limits)
    return row


def _never(ended: Ended, limits: Sequence[float]) -> Row:
    """A repair that its process did not live to tell."""
    status = _ENDS.get(ended.how, MethodStatus.FAILED)
    took = limits[0] if ended.how is How.TIMEOUT else 0.0
    nothing = MethodResult(None, status, Scope.NONE, {"reason": _why(ended, limits)})
    return repaired(nothing, took)


def _why(ended: Ended, limits: Sequence[float]) -> str:
    if ended.how is How.TIMEOUT:
        return f"it was ended: it did not stop within {limits[0]:g} s"
    if ended.how is How.MEMORY:
        return ended.said or f"it was ended: it took more than {limits[1]:g} GiB"
    return ended.said or "its process ended without a word"


def _reason(result: MethodResult) -> str | None:
    """Why there is nothing, or why it is not as it was claimed."""
    if result.model is None:
        return str(result.evidence.get("reason", result.status.sentence))
    if "claimed" in result.evidence:
        return f"it said {result.evidence['claimed']}; its model says {result.status.value}"
    return None


def _json(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence as JSON values; what is none becomes text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        if isinstance(value, float):
            return value if abs(value) != float("inf") and value == value else repr(value)
        return value if value is None or isinstance(value, bool | int | str) else str(value)

    found: dict[str, Any] = plain(evidence)
    return found
