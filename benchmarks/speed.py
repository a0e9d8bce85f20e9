"""How fast is a repair, as a ratio to what was measured elsewhere.

``ADVREPAIR_DATA=... python -m benchmarks.speed [--count 200] [--network fnn_small]``

Prints CPU-milliseconds a patch (rows of N, training up to the proof, the proof; with the constant
repair that stands beside it) for affine and for hidden patches, beside the target and the
released research code: 60 CPU-ms a patch with one layer on fnn_small, 850 on the cnn, measured
on two cores like these. CPU time is compared, which does not depend on how many there are.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from advrepair.core.attacking import Problem
from advrepair.core.bounding import Bounder
from advrepair.core.covering import cover
from advrepair.core.memory import keep_freed_memory, peak_memory
from advrepair.core.onnx_import import read_onnx
from advrepair.core.patching import patch_template
from advrepair.core.properties import robustness
from advrepair.core.rounding import Rounding
from advrepair.core.sections import Training
from advrepair.core.shards import STEPS
from advrepair.core.solving import Solver
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.verifiers.deeppoly import DeepPoly

RESEARCH_CODE = {"fnn_small": 60.0, "fnn_big": 100.0, "cnn": 850.0}  # CPU-ms a patch
TARGET = {("fnn_small", ()): 1.0, ("fnn_small", (64, 64, 16)): 6.0, ("cnn", ()): 85.0}


def repair_cost(data: Path, name: str, count: int, epsilon: float, hidden: tuple[int, ...]) -> None:
    """Print the CPU-ms a patch of one repair, by stage."""
    network = read_onnx(data / "mnist" / "nets" / f"{name}.onnx")
    with np.load(data / "mnist" / "mnist.npz") as arrays:
        x = torch.tensor(arrays["x_train"][:count]).float().div(255).view(-1, 1, 28, 28)
        y = torch.tensor(arrays["y_train"][:count]).long()
    properties = robustness(x, y, epsilon, network.outputs, clip=(0.0, 1.0))
    verifier, rounding = DeepPoly(), Rounding("deployed-float32")
    bounder = Bounder(network, patch_template(network, hidden), verifier, verifier, rounding, 2**31)
    problem = Problem(properties, x, torch.arange(count))
    ground = cover(problem, bounder, PropertyGuided(), False)
    solver = Solver(bounder, GradientWidth(), Training(), 0)
    begin = time.process_time()
    outcomes = [solver(shard) for shard in ground.shards(bounder.template)]
    whole = (time.process_time() - begin) / count * 1e3
    parts = sum(outcome.cpu for outcome in outcomes) / count * 1e3
    steps = dict(zip(STEPS, parts.tolist(), strict=True))
    proved = sum(int((outcome.margin > 0).sum()) for outcome in outcomes)
    epochs = torch.cat([outcome.epochs for outcome in outcomes]).double().mean()
    words = ", ".join(f"{step} {ms:.2f}" for step, ms in steps.items())
    print(
        f"{name} eps {epsilon} n {count} hidden {list(hidden)}: {whole:6.2f} CPU-ms a patch "
        f"({words}); {proved}/{count} proved; {epochs:.1f} steps; "
        f"research code {RESEARCH_CODE[name]:.0f} CPU-ms: {RESEARCH_CODE[name] / whole:.0f} x"
        + (f"; target {TARGET[name, hidden]:.0f}" if (name, hidden) in TARGET else "")
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--network", default="fnn_small", choices=sorted(RESEARCH_CODE))
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1, help="waiting threads cost CPU time too")
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    data = Path(os.environ["ADVREPAIR_DATA"])
    keep_freed_memory()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    repair_cost(data, given.network, 20, given.epsilon, ())  # the first calls compile and load
    for hidden in ((), (64, 64, 16)):
        repair_cost(data, given.network, given.count, given.epsilon, hidden)
    print(f"peak memory {(peak_memory() or 0) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
