"""Evaluate the repaired network of a run folder, and put the result into its report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from attrs import evolve

from advrepair.core.artefacts import check_digest, read_repaired
from advrepair.core.config import Configuration, as_layer, read_toml, resolve
from advrepair.core.data import load_data
from advrepair.core.devices import device_of
from advrepair.core.errors import UsageError
from advrepair.core.evaluating import full, read_examples
from advrepair.core.files import file_digest, read_json, write_json
from advrepair.core.inputs import anchored, clip_of, data_path
from advrepair.core.registry import Registry
from advrepair.core.reporting import add_assessment
from advrepair.core.run_folder import Checkpoint
from advrepair.core.sections import Layer
from advrepair.core.work import Progress, Work, silent


def evaluate(
    folder: Path, layers: list[Layer], registry: Registry, progress: Progress = silent
) -> dict[str, Any]:
    """The full evaluation of a run; returns its report, which is also written.

    layers: what is to be otherwise than in the run's own configuration. What an interrupted
    evaluation with the same settings has finished is not done again.
    Raises UsageError if the folder holds no complete run, or there is no test data.
    """
    if not (folder / "run.toml").exists():
        raise UsageError(f"{folder} holds no complete run: name the folder of advrepair run")
    plan = resolve(registry, [read_toml(folder / "run.toml"), *layers])
    plan = evolve(plan, problem=anchored(plan.problem))
    plan.evaluation_attack.require()
    check_digest(folder)
    repaired = read_repaired(folder / "repaired.safetensors", registry)
    source = data_path(plan.problem)
    if source is None:
        raise UsageError("the run had no data: name an npz file with --data to evaluate on")
    base = repaired.base
    for part in (repaired, base):
        part.compute_on(device_of(plan.run.device))
    data = load_data(source, base.input_shape, base.dtype, clip_of(plan.problem), base.outputs)
    if data.test is None:
        raise UsageError(f"{source} has no x_test and y_test: unseen inputs are evaluated on those")
    place = _Partial(folder / "evaluation.partial", _settings(folder, plan, source))
    work = Work(progress, place.claim())
    examples = read_examples(folder, repaired)
    try:
        found = full(repaired, examples, data.test, plan, work.stage, work.checkpoint)
    except UsageError:
        place.clear()
        raise
    report = read_json(folder / "report.json")
    add_assessment(report, found, plan)
    write_json(folder / "report.json", report)
    place.clear()
    return report


class _Partial:
    """Parts of an unfinished evaluation, kept for one that asks for the same."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings

    def claim(self) -> Checkpoint:
        """Go on where the same evaluation stopped, or begin anew."""
        stated = self.path / "settings.json"
        if self.path.exists() and not (stated.exists() and read_json(stated) == self.settings):
            shutil.rmtree(self.path)
        self.path.mkdir(exist_ok=True)
        write_json(stated, self.settings)
        return Checkpoint(self.path)

    def clear(self) -> None:
        """The evaluation is complete."""
        shutil.rmtree(self.path)


def _settings(folder: Path, plan: Configuration, source: Path) -> dict[str, Any]:
    files = ("repaired.safetensors", "evaluation.safetensors", "certificate.json")
    return {
        "configuration": as_layer(plan),
        "files": {name: file_digest(folder / name) for name in files},
        "data": file_digest(source),
    }
