"""The functions of the Python interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from advrepair.core.artefacts import check_digest, read_repaired
from advrepair.core.config import resolve
from advrepair.core.data import Data, Dataset, make_dataset
from advrepair.core.errors import UsageError
from advrepair.core.finding import find_problem, make_bounder
from advrepair.core.inputs import Inputs, clip_of
from advrepair.core.network import as_network
from advrepair.core.patching import RepairedNetwork
from advrepair.core.pipeline import Repair, check_bounds
from advrepair.core.pipeline import repair as run_repair
from advrepair.core.properties import robustness
from advrepair.core.registry import Registry
from advrepair.core.sections import Layer
from advrepair.core.types import PropertySet
from advrepair.core.unseen import least_margins
from advrepair.core.work import Progress, Work, silent


def load(folder: str | Path) -> RepairedNetwork:
    """The repaired network of a run folder; its ``forward(x)`` is the deployed function.

    Raises UsageError if the folder holds no complete run, or another network than the one
    that its certificate is about.
    """
    check_digest(Path(folder))
    return read_repaired(Path(folder) / "repaired.safetensors", Registry.load()).eval()


def repair(
    network: nn.Module,
    x: ArrayLike | Tensor | None = None,
    y: ArrayLike | Tensor | None = None,
    *,
    epsilon: float | None = None,
    properties: PropertySet | None = None,
    x_adv: ArrayLike | Tensor | None = None,
    x_test: ArrayLike | Tensor | None = None,
    y_test: ArrayLike | Tensor | None = None,
    count: int | None = None,
    input_range: Sequence[float] | None = (0.0, 1.0),
    indicator: str | None = None,
    verifier: str | None = None,
    preset: str | None = None,
    seed: int | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    progress: Progress = silent,
) -> Repair:
    """Repair a network so that every input within epsilon of x_i keeps the label y_i.

    And so that properties hold, if there are any; with them alone, leave x, y and epsilon out.

    Args:
        network: any feed-forward ``nn.Module``; it is not changed.
        x: inputs [N,*S]; uint8 is scaled to the input range.
        y: labels [N].
        epsilon: radius in input units.
        properties: of boxes and rows, from :func:`advrepair.demands`.
        x_adv: counterexamples [N,*S], if you have them; otherwise an attack looks for them
            among the inputs that are classified correctly.
        x_test, y_test: data for the drawdown; it is not measured without them.
        count: how many to repair; all that are given or found if None.
        input_range: lowest and highest input, () or None for unbounded.
        indicator, verifier, preset: names, as on the command line, with its defaults.
        seed: of everything random, 0 by default.
        settings: any other option: ``{"patch": {"hidden": [64, 64, 16]}}``. The parameters
            above win over it.
        progress: called with stage, done, total.

    Returns: the repaired network, its certificate and the report.

    Raises: UsageError for what you can mend, UnsupportedNetworkError for a module that
        cannot be read or bounded, SoundnessError if an attack falsifies a proof.
    """
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UsageError(f"count is {count!r}: it must be an integer, at least 1, or None")
    given: dict[str, dict[str, Any]] = {
        "plan": {"indicator": indicator, "verifier": verifier},
        "run": {"seed": seed},
    }
    chosen = {s: {n: v for n, v in o.items() if v is not None} for s, o in given.items()}
    if properties is None and x is None:
        raise UsageError("there is nothing to repair: give x, y and epsilon, or properties")
    if (x is None) != (y is None) or (x is None) != (epsilon is None):
        raise UsageError("x, y and epsilon go together: give all of them or none")
    asked: dict[str, object] = {"input_range": list(input_range or ()) if x is not None else []}
    asked |= {} if epsilon is None else {"epsilon": epsilon}
    asked |= {"data": "" if x is None else "given", "network": type(network).__name__}
    asked |= {} if properties is None else {"property": ["given"]}
    beneath: list[Layer] = [] if preset is None else [{"run": {"preset": preset}}]
    layers: list[Layer] = [*beneath, settings or {}, chosen, {"problem": asked}]
    plan = resolve(Registry.load(), layers)
    shape = properties.box.input_shape if properties is not None else np.shape(_array(x))[1:]
    known = as_network(network, None if hasattr(network, "input_shape") else shape)

    def dataset(name: str, x: Any, y: Any, x_adv: Any = None) -> Dataset:
        arrays = (None if a is None else _array(a) for a in (x, y, x_adv))
        x, y, x_adv = arrays
        clip = clip_of(plan.problem)
        return make_dataset(name, x, y, known.input_shape, known.dtype, clip, known.outputs, x_adv)

    if (x_test is None) != (y_test is None):
        raise UsageError("x_test and y_test go together: give both or neither")
    data = None if x is None else Data(dataset("x", x, y, x_adv), None)
    test = dataset("x_test", x_test, y_test) if x_test is not None else None
    check_bounds(known, plan)
    work = Work(progress)
    if properties is not None and tuple(properties.box.input_shape) != known.input_shape:
        raise UsageError(f"properties: their boxes are not of inputs {known.input_shape}")
    problem = find_problem(Inputs(known, data, properties), plan, work, count)
    return run_repair(known, problem, plan, work, test, None if data is None else data.repair)


def certify(
    repaired: RepairedNetwork,
    x: ArrayLike | Tensor,
    epsilon: float,
    label: ArrayLike | Tensor | None = None,
    *,
    input_range: Sequence[float] | None = (0.0, 1.0),
    verifier: str | None = None,
) -> Tensor:
    """Prove for inputs, repaired or not, that the deployed function keeps its decision near them.

    Args:
        repaired: from :func:`load` or ``repair(...).network``.
        x: inputs [N,*S]; uint8 is scaled to the input range.
        epsilon: radius in input units.
        label: which class is to be kept, [N]; the one that F decides for if None.
        input_range: lowest and highest input, which clip the balls; () or None for unbounded.
        verifier: rigorous, by name; the default of ``advrepair run``.

    Returns: [N], float64: a lower bound of the least ``F_label - F_k`` over the ball, in the
    deployed arithmetic. Where it is above 0 every input of the ball gets the label; -inf where
    nothing is known. Sound: see :func:`advrepair.core.unseen.least_margins`.

    Raises: UsageError for inputs that do not fit; UnsupportedNetworkError for a network that
        the verifier cannot bound.
    """
    base, bounds = repaired.base, list(input_range or ())
    asked: dict[str, dict[str, Any]] = {
        "problem": {"input_range": bounds, "epsilon": epsilon, "data": "given"},
        "plan": {} if verifier is None else {"certifier": verifier},
        "patch": {"at": repaired.at},
    }
    plan = resolve(Registry.load(), [asked])
    clip = clip_of(plan.problem)
    given = _array(x)
    labels = np.zeros(len(given), dtype=np.int64) if label is None else _array(label)
    shape, dtype, outputs = base.input_shape, base.dtype, base.outputs
    data = make_dataset("x", given, labels, shape, dtype, clip, outputs)
    images = data.images()
    kept = data.labels if label is not None else _decisions(repaired, images)
    bounder = make_bounder(base, plan, repaired)
    return least_margins(repaired, bounder, robustness(images, kept, epsilon, outputs, clip=clip))


def _decisions(repaired: RepairedNetwork, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([repaired(part).argmax(1) for part in x.split(1000)])


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
