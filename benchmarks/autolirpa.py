"""DeepPoly's bounds beside those of auto_LiRPA: the same boxes, one process, one thread.

``ADVREPAIR_DATA=... PYTHONPATH=... python -m benchmarks.autolirpa [--network cnn] [--count 200]``

PYTHONPATH names a checkout of https://github.com/Verified-Intelligence/auto_LiRPA and what it
needs. Its method ``backward`` with ``adaptive`` slopes is DeepPoly, with every intermediate
bound by back-substitution. It is timed at its best: with ``patches`` and ``matrix``, with all
boxes in one call and in parts; then the best one and ours take turns, and the least CPU time
of each counts. The ResNet has the layers of VNN-COMP's ``resnet_2b`` and is trained here, on
CIFAR-10, as no file of it comes with the data. ``--flat`` measures ours alone, for more and more
boxes: the time of one should not grow.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.bounding import Bounder
from advrepair.core.graph import INPUT, STEPS, Network
from advrepair.core.memory import keep_freed_memory
from advrepair.core.onnx_import import read_onnx
from advrepair.core.patching import patch_template
from advrepair.core.rounding import Rounding
from advrepair.core.types import Box
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.testing.networks import Sketch

MNIST = ("fnn_small", "fnn_big", "cnn")
NETWORKS = (*MNIST, "acas_1_1", "resnet")
EPSILON = {"resnet": 1 / 255}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
Bound = Callable[[], Tensor]


@frozen(eq=False)
class Problem:
    """A network with B boxes, and rows C [B,M,K] of which lower bounds are asked."""

    name: str
    network: Network
    box: Box
    C: Tensor

    def __getitem__(self, count: int) -> "Problem":
        return Problem(self.name, self.network, self.box[:count], self.C[:count])


class Plain(nn.Module):
    """A network as the module that another program may read."""

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self.operations = network.operations
        self.weights = nn.ParameterDict(
            {name.replace(".", "_"): t.to(dtype) for name, t in network.tensors.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [N,K] of inputs [N,*S]."""
        values = {INPUT: x}
        for op in self.operations:
            tensors = {name: self.weights[name.replace(".", "_")] for name in op.tensors.values()}
            inputs = [values[name] for name in op.inputs]
            if op.kind == "reshape":  # a batch size written down in the graph would stay
                values[op.name] = inputs[0].flatten(1)
            else:
                values[op.name] = STEPS[op.kind](op, tensors, inputs)
        return values[self.operations[-1].name]


def differences(network: Network, box: Box) -> Tensor:
    """Rows "best output less another one" of each box, [B,K-1,K], in float64."""
    best = network(box.center.to(network.dtype)).argmax(1)
    unit = torch.eye(network.outputs, dtype=torch.float64)
    others = torch.stack([torch.tensor([k for k in range(len(unit)) if k != i]) for i in best])
    return unit[best].unsqueeze(1) - unit[others]


def resnet(data: Path) -> Network:
    """Two residual blocks on CIFAR-10, trained for a moment; always the same one."""
    sketch = Sketch(0, (3, 32, 32)).conv2d(8, 3, stride=2, padding=1).relu()
    before = sketch.last
    sketch.conv2d(16, 3, stride=2, padding=1).relu().conv2d(16, 3, padding=1)
    around, sketch.last = sketch.last, before
    sketch.conv2d(16, 1, stride=2).add(around).relu()
    before = sketch.last
    sketch.conv2d(16, 3, padding=1).relu().conv2d(16, 3, padding=1).add(before).relu()
    network = sketch.flatten().linear(100).relu().linear(10).finish()
    with np.load(data / "cifar10" / "cifar10_lossless.npz") as arrays:
        x = torch.tensor(arrays["x_train"]).permute(0, 3, 1, 2).float().div(255)
        y = torch.tensor(arrays["y_train"]).long()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, t in network.tensors.items():
        scale = (2 / t[0].numel()) ** 0.5 if t.dim() > 1 else 0.0
        tensors[name] = (scale * torch.randn(t.shape, generator=generator)).requires_grad_()
    adam = torch.optim.Adam(list(tensors.values()), lr=2e-3)
    for _ in range(6):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            loss = F.cross_entropy(network.apply_tensors(tensors, x[batch]), y[batch])
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
    return Network(
        network.operations, {n: t.detach() for n, t in tensors.items()}, network.input_shape
    )


def problem(data: Path, name: str, count: int, epsilon: float | None) -> Problem:
    """A network with its boxes: balls around the first test images, or those on record."""
    if name == "acas_1_1":
        reference = data.parent / "reference"
        network = read_onnx(reference / "acas_1_1.onnx")
        with np.load(reference / "acas_1_1_ref.npz") as arrays:
            ends = [torch.tensor(arrays[key][:count]).float() for key in ("lo", "hi")]
        box = Box(*(end.view(-1, *network.input_shape) for end in ends))
    else:
        if name == "resnet":
            network = resnet(data)
            with np.load(data / "cifar10" / "cifar10_lossless.npz") as arrays:
                x = torch.tensor(arrays["x_test"][:count]).permute(0, 3, 1, 2)
        else:
            network = read_onnx(data / "mnist" / "nets" / f"{name}.onnx")
            with np.load(data / "mnist" / "mnist.npz") as arrays:
                x = torch.tensor(arrays["x_test"][:count]).unsqueeze(1)
        radius = EPSILON.get(name, 0.1) if epsilon is None else epsilon
        box = Box.around(x.float().div(255), radius, (0.0, 1.0))
    return Problem(name, network, box, differences(network, box))


def ours(given: Problem, rigorous: bool, dtype: torch.dtype = torch.float64) -> Bound:
    """Least values [B,M] by DeepPoly as a repair calls it; rigorous ones as in a certificate."""
    tensors = {name: t.to(dtype) for name, t in given.network.tensors.items()}
    network = Network(given.network.operations, tensors, given.network.input_shape)
    verifier, level = DeepPoly(), Rounding("deployed-float32")
    template = patch_template(network, ())
    bounder = Bounder(network, template, verifier, verifier, level, 2**33)
    box, C = given.box.to(torch.float64 if rigorous else dtype), given.C.to(dtype)
    d = C.new_zeros(C.shape[:2])

    def bound() -> Tensor:
        found = bounder.base(box, C, d, rigorous)
        return found.minimum_rigorous(box) if rigorous else found.minimum(box)

    return bound


def theirs(given: Problem, dtype: torch.dtype, mode: str, part: int) -> Bound:
    """The same by auto_LiRPA, so many boxes a call."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    box, C = given.box.to(dtype), given.C.to(dtype)
    options = {"conv_mode": mode, "activation_bound_option": "adaptive"}
    calls = []
    for index in torch.arange(len(box)).split(part):
        center, some = box.center[index], box[index]
        model = BoundedModule(Plain(given.network, dtype), center, bound_opts=options, device="cpu")
        ball = PerturbationLpNorm(norm=float("inf"), x_L=some.lower, x_U=some.upper)
        calls.append((model, BoundedTensor(center, ball), C[index]))
        if len(index) == part and len(calls) > 1:  # one module serves all parts of one size
            calls[-1] = (calls[0][0], *calls[-1][1:])

    def bound() -> Tensor:
        found, before = [], torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # some of its arrays have no other
        with torch.no_grad():
            for model, x, C in calls:
                found += model.compute_bounds(x=(x,), C=C, method="backward", bound_upper=False)[:1]
        torch.set_default_dtype(before)
        return torch.cat(found)

    return bound


def seconds(bound: Bound) -> tuple[float, Tensor]:
    """CPU time of one call, and its result in float64."""
    begin = time.process_time()
    found = bound()
    return time.process_time() - begin, found.double()


def best_of_theirs(given: Problem, dtype: torch.dtype) -> tuple[str, Bound]:
    """The mode and the size of a call with which auto_LiRPA is fastest, tried once each."""
    modes = ("patches", "matrix") if given.name in ("cnn", "resnet") else ("patches",)
    count, tried = len(given.box), []
    for mode, part in product(modes, sorted({count, min(count, 50), min(count, 10)})):
        if given.name == "resnet" and mode == "matrix" and part > 10:
            continue  # its matrices of 50 boxes do not fit the memory
        bound = theirs(given, dtype, mode, part)
        seconds(theirs(given[part], dtype, mode, part))  # the first call loads things
        tried.append((seconds(bound)[0], f"{mode}, {part} a call", bound))
    best = min(tried, key=lambda each: each[0])
    print("  auto_LiRPA: " + "; ".join(f"{words} {used:.3f} s" for used, words, _ in tried))
    return best[1], best[2]


def compared(given: Problem, repeats: int) -> Iterator[str]:
    """A line of the table for each dtype."""
    for name, dtype in DTYPES.items():
        words, other = best_of_theirs(given, dtype)
        bounds = [other, ours(given, False, dtype), ours(given, True)]
        results = [[seconds(bound) for bound in bounds] for _ in range(repeats)]
        spent = [min(result[i][0] for result in results) for i in range(3)]
        have, own, rigorous = (found for _, found in results[0])
        off = (own - have) / (1 + have.abs())
        each = 1e3 / len(given.box)
        yield (
            f"| {given.name} | {name} | {len(given.box)} | {spent[0] * each:.3f} ({words}) "
            f"| {spent[1] * each:.3f} | {spent[0] / spent[1]:.1f} | {float(-off.min()):.1e} "
            f"| {float(off.max()):.1e} | {spent[2] * each:.3f} | {spent[0] / spent[2]:.1f} "
            f"| {float(((have - rigorous) / (1 + have.abs())).max()):.1e} |"
        )


def flat(given: Problem) -> Iterator[str]:
    """CPU time of a box by ours, plain in float32 and rigorous, for ever more boxes."""
    for count in (100, 1_000, 10_000, 50_000):
        index = torch.arange(count) % len(given.box)
        more = Problem(given.name, given.network, given.box[index], given.C[index])
        spent = [
            min(seconds(bound)[0] for _ in range(5 if count <= 1_000 else 1))
            for bound in (ours(more, False, torch.float32), ours(more, True))
        ]
        yield f"{given.name}, {count} boxes: " + ", ".join(
            f"{words} {1e3 * used / count:.3f} ms a box"
            for words, used in zip(("float32", "rigorous"), spent, strict=True)
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flat", action="store_true", help="ours alone, for ever more boxes")
    given = parser.parse_args()
    if "ADVREPAIR_DATA" not in os.environ:
        parser.error("set ADVREPAIR_DATA to the folder that holds mnist/")
    data = Path(os.environ["ADVREPAIR_DATA"])
    if given.flat:
        torch.set_num_threads(1)
        keep_freed_memory()
        for name in given.network or ("acas_1_1",):
            for line in flat(problem(data, name, given.count, given.epsilon)):
                print(line, flush=True)
        return
    try:
        import auto_LiRPA
    except ImportError as error:
        print(f"auto_LiRPA cannot be imported ({error}); nothing is compared")
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"auto_LiRPA {auto_LiRPA.__version__}, torch {torch.__version__}, CPU-ms a box\n")
    lines = [
        "| network | dtype | boxes | auto_LiRPA | ours | ratio | looser | tighter "
        "| rigorous | ratio | rigorous looser |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in given.network or NETWORKS:
        case = problem(data, name, given.count, given.epsilon)
        lines += compared(case, given.repeats)
        print(lines[-2], lines[-1], sep="\n", flush=True)
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
