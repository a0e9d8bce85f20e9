"""Tasks for tests of repair methods: one that takes milliseconds, one of the bundled demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from advrepair import demo
from advrepair.core.config import resolve
from advrepair.core.data import Data, load_data, make_dataset
from advrepair.core.finding import find_problem
from advrepair.core.graph import Network
from advrepair.core.inputs import Inputs
from advrepair.core.methods import Bench
from advrepair.core.network import load_network
from advrepair.core.registry import Registry
from advrepair.core.sections import Layer
from advrepair.core.tasks import Task
from advrepair.core.work import Work
from advrepair.testing.networks import fully_connected

_WIDTHS = (6, 12, 12, 4)


def tiny_task(count: int = 4, epsilon: float = 0.1, seed: int = 0) -> Task:
    """Six inputs in [0,1], two hidden layers, four outputs, 300 labelled inputs."""
    network = fully_connected(3, _WIDTHS)
    x = torch.rand(300, _WIDTHS[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(x).argmax(1)
    shape, dtype = network.input_shape, network.dtype
    data = make_dataset("x", x.numpy(), y.numpy(), shape, dtype, (0.0, 1.0), network.outputs)
    return _task(network, Data(data, None), count, epsilon, seed)


def digits_task(count: int = 10, epsilon: float = 0.05, seed: int = 0) -> Task:
    """The network of the demo, 64-32-16-10, and its training images."""
    network = load_network(demo.NETWORK)
    shape, dtype, outputs = network.input_shape, network.dtype, network.outputs
    data = load_data(Path(demo.IMAGES), shape, dtype, (0.0, 1.0), outputs)
    return _task(network, data, count, epsilon, seed)


def digits_test_images() -> tuple[torch.Tensor, torch.Tensor]:
    """The test images of the demo, [N,*S], and their labels, [N]."""
    with np.load(demo.IMAGES, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["x_test"].astype(np.float32) / np.float32(255))
        return x, torch.from_numpy(arrays["y_test"].astype(np.int64))


def _task(network: Network, data: Data, count: int, epsilon: float, seed: int) -> Task:
    asked: Layer = {
        "problem": {"data": "given", "epsilon": epsilon, "count": count},
        "run": {"seed": seed},
    }
    plan = resolve(Registry.load(), [asked])
    inputs = Inputs(network, data, None)
    return Bench(inputs, plan, find_problem(inputs, plan, Work(), count)).task()
