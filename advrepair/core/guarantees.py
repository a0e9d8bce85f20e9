"""What is proved of unseen inputs: shares at several radii, of a run folder, F and N alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen

from advrepair.core.artefacts import check_digest, read_repaired
from advrepair.core.attacking import balls
from advrepair.core.config import read_toml, resolve
from advrepair.core.data import load_data
from advrepair.core.errors import UsageError
from advrepair.core.finding import make_bounder
from advrepair.core.inputs import anchored, clip_of, data_path
from advrepair.core.registry import Registry
from advrepair.core.sections import Layer
from advrepair.core.statistics import Share
from advrepair.core.unseen import least_margins
from advrepair.core.work import Progress, Work, silent


@frozen
class Guarantee:
    """At one radius: inputs whose whole ball is proved to keep its label, by F and by N."""

    epsilon: float
    repaired: Share
    unrepaired: Share

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        named = {"repaired": self.repaired, "unrepaired": self.unrepaired}
        return {"epsilon": self.epsilon} | {
            name: {"share": share.value, "interval": share.interval, "count": share.count}
            for name, share in named.items()
        }


def guarantees(
    folder: Path,
    layers: list[Layer],
    radii: Sequence[float],
    registry: Registry,
    progress: Progress = silent,
) -> list[Guarantee]:
    """Shares of the test inputs, as many as ``evaluation.limit`` says, at each radius.

    layers: what is to be otherwise than in the run's own configuration.
    Raises UsageError if the folder holds no complete run, or there is no test data.
    """
    if not (folder / "run.toml").exists():
        raise UsageError(f"{folder} holds no complete run: name the folder of advrepair run")
    plan = resolve(registry, [read_toml(folder / "run.toml"), *layers])
    plan = evolve(plan, problem=anchored(plan.problem))
    check_digest(folder)
    repaired = read_repaired(folder / "repaired.safetensors", registry).eval()
    source, base, clip = data_path(plan.problem), repaired.base, clip_of(plan.problem)
    if source is None:
        raise UsageError("the run had no data: name an npz file with --data")
    test = load_data(source, base.input_shape, base.dtype, clip, base.outputs).test
    if test is None:
        raise UsageError(f"{source} has no x_test and y_test: unseen inputs are taken from those")
    bounder = make_bounder(base, plan, repaired)
    index = torch.arange(min(plan.evaluation.limit, len(test)))
    work, found = Work(progress), []
    for epsilon in radii:
        asked = balls(base, test, index, epsilon, clip)
        shares = []
        for name, function in (("F", repaired), ("N", base)):
            with work.stage(f"{name} at {epsilon:g}", len(asked)) as advance:
                proved = least_margins(function, bounder, asked, advance) > 0
            shares.append(Share(int(proved.sum()), len(asked)))
        found.append(Guarantee(epsilon, *shares))
    return found
