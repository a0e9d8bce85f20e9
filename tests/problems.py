"""Tiny repair problems, in memory and as files, for the tests of more than one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from attrs import evolve, frozen
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from advrepair.core.attacking import Problem, balls, find_counterexamples
from advrepair.core.bounding import Bounder
from advrepair.core.certification import Certificate, Stage, certify
from advrepair.core.config import Configuration, resolve
from advrepair.core.covering import Shards, cover
from advrepair.core.data import make_dataset
from advrepair.core.graph import Network
from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Attack, Component, Indicator, Verifier
from advrepair.core.patching import (
    PatchBank,
    RepairedNetwork,
    attach,
    initial_stack,
    patch_template,
)
from advrepair.core.proof import Proof
from advrepair.core.refinement import Worklist
from advrepair.core.registry import Registry
from advrepair.core.rounding import Rounding
from advrepair.core.shards import Outcome
from advrepair.core.solving import are_constant, prove, stated
from advrepair.core.training import Trained
from advrepair.core.types import Assignment, PropertySet
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.attacks.pgd import Pgd
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.testing.networks import fully_connected

WIDTHS = (6, 12, 12, 4)
EPSILON = 0.1
BYTES = (
    "certificate.json",
    "certificate.safetensors",
    "repaired.safetensors",
)
# With patches that must tell boxes of different labels apart, a few boxes are split.
SPLITTING = {
    "plan": {"indicator": "mixed", "allocator": "none"},
    "training": {"epochs": 2, "rounds": 6, "split": 2},
}


@contextmanager
def untold(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A stage whose progress nobody hears of."""
    yield lambda more: None


@frozen
class Mixed(Indicator):
    """Three patches in turn, whatever the labels: hard to train."""

    name: ClassVar[str] = "mixed"
    allocator: ClassVar[str] = "none"

    def assign(self, properties: PropertySet) -> Assignment:
        """Property i gets patch i modulo 3."""
        patches = min(3, len(properties))
        names = tuple(f"patch {i}" for i in range(patches))
        return Assignment(torch.arange(len(properties)) % patches, names)


def a_registry(*components: type[Component]) -> Registry:
    """The installed plugins, Mixed and others."""
    plugin = ModuleType("tests_plugin")
    found = (Mixed, *components)
    plugin.advrepair_components = hookimpl(lambda: found)  # type: ignore[attr-defined]
    return Registry.load(plugin)


def a_network(seed: int = 3) -> Network:
    """Six inputs, two hidden layers, four outputs."""
    return fully_connected(seed, WIDTHS)


def a_module(seed: int = 3) -> nn.Module:
    """The same function as an ordinary torch module."""
    network = a_network(seed)
    layers: list[nn.Module] = []
    for op in network.operations:
        if op.kind == "relu":
            layers.append(nn.ReLU())
            continue
        weight, bias = (network.tensors[op.tensors[role]] for role in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return nn.Sequential(*layers)


def some_data(count: int = 60, network: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Inputs in [0,1] and the labels that the network gives them."""
    x = torch.rand(count, WIDTHS[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return x, (network or a_network())(x).argmax(1)


def a_problem(network: Network | None = None, count: int = 6, epsilon: float = EPSILON) -> Problem:
    """The first counterexamples that the attack finds."""
    network = network or a_network()
    x, y = some_data(network=network)
    shape, dtype = network.input_shape, network.dtype
    data = make_dataset("x", x.numpy(), y.numpy(), shape, dtype, (0.0, 1.0), network.outputs)
    return find_counterexamples(
        network, data, epsilon, count, (0.0, 1.0), Pgd(), 0, lambda more: None
    )


@frozen(eq=False)
class Parts:
    """Everything that training works on: one shard of all patches, in their order."""

    problem: Problem
    repaired: RepairedNetwork
    bounder: Bounder
    worklist: Worklist
    shards: Shards

    @property
    def properties(self) -> PropertySet:
        """What is demanded."""
        return self.problem.properties

    @property
    def bank(self) -> PatchBank:
        """The patches."""
        return self.repaired.bank

    def outcome(self) -> Outcome:
        """What became of the shard, as things stand."""
        nothing = Trained.nothing_yet(len(self.bank))
        return stated(self.bank, self.worklist, self.bounder, torch.zeros(0), nothing)

    def margins(self) -> Tensor:
        """Of the pieces of the worklist, with the patches as they are: [w]."""
        nothing = Trained.nothing_yet(len(self.bank))
        return prove(self.bank, self.worklist, self.bounder, nothing)[0]

    def proof(self) -> Proof:
        """What is proved about the patches as they are."""
        return Proof.joined(self.shards, [self.outcome()], self.bounder.template.units)

    def certificate(
        self, attack: Attack | None = None, stage: Stage = untold, problem: Problem | None = None
    ) -> Certificate:
        """What is stated about the patches as they are."""
        return certify(
            self.repaired,
            self.proof(),
            are_constant(self.bank),
            self.bounder,
            problem or self.problem,
            attack,
            0,
            stage,
        )


def one_shard(
    problem: Problem, bounder: Bounder, indicator: Indicator, seed: int = 0
) -> tuple[Shards, Worklist, PatchBank]:
    """All patches of a problem in one shard, in their order; every property gets a patch."""
    properties = problem.properties
    every = torch.arange(len(properties))
    broken = evolve(problem, x_adv=properties.center, owner=every)
    ground = cover(broken, bounder, indicator, False)
    pieces = torch.argsort(ground.patch, stable=True)[int((ground.patch < 0).sum()) :]
    shards = Shards(ground, (torch.arange(len(ground.assignment)),), (pieces.sort().values,))
    worklist = Worklist.start(shards[0], bounder)
    stack = initial_stack(bounder.template, shards[0].identifiers, seed)
    return shards, worklist, PatchBank(bounder.template, stack)


def zero_bank(template: Network, count: int) -> PatchBank:
    """Patches that add nothing."""
    return PatchBank(
        template, {n: t.new_zeros(count, *t.shape) for n, t in template.tensors.items()}
    )


def some_parts(
    problem: Problem | None = None,
    network: Network | None = None,
    hidden: tuple[int, ...] = (),
    indicator: Indicator | None = None,
    verifier: Verifier | None = None,
    certifier: Verifier | None = None,
    level: str = "deployed-float32",
    memory: int = 2**31,
    seed: int = 0,
) -> Parts:
    """A repair up to the moment before training."""
    network = network or a_network()
    problem = problem or a_problem(network)
    bounder = Bounder(
        network,
        patch_template(network, hidden),
        verifier or DeepPoly(),
        certifier or DeepPoly(),
        Rounding(level),  # type: ignore[arg-type]
        memory,
    )
    shards, worklist, bank = one_shard(problem, bounder, indicator or PropertyGuided(), seed)
    ground = shards.cover
    regions, assignment = ground.layout.regions, ground.assignment
    repaired = attach(network, problem.properties, regions, assignment, NoAllocator(), bank)
    return Parts(problem, repaired, bounder, worklist, shards)


def the_balls(network: Network, x: Tensor, y: Tensor, epsilon: float = EPSILON) -> PropertySet:
    """Robustness around every row."""
    shape, dtype = network.input_shape, network.dtype
    data = make_dataset("x", x.numpy(), y.numpy(), shape, dtype, None, network.outputs)
    return balls(network, data, torch.arange(len(x)), epsilon, None)


def write_onnx(path: Path, network: Network, extra: tuple[str, ...] = ()) -> Path:
    """A fully connected network as a file; extra: kinds of nodes put behind it."""
    nodes, weights, last = [], [], "input"
    for op in network.operations:
        inputs = [last]
        if op.kind == "linear":
            for role in ("weight", "bias"):
                name = f"{op.name}.{role}"
                array = network.tensors[op.tensors[role]].numpy()
                weights.append(numpy_helper.from_array(array, name))
                inputs.append(name)
        kind, options = ("Gemm", {"transB": 1}) if op.kind == "linear" else ("Relu", {})
        nodes.append(helper.make_node(kind, inputs, [op.name], name=op.name, **options))
        last = op.name
    for index, kind in enumerate(extra):
        nodes.append(helper.make_node(kind, [last], [f"extra{index}"], name=f"extra{index}"))
        last = f"extra{index}"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_value("input", network.input_shape)],
        [_value(last, (network.outputs,))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def write_inputs(folder: Path, count: int = 60, **arrays: Any) -> tuple[Path, Path]:
    """``net.onnx`` and ``data.npz`` with x and y, or with other arrays."""
    network = a_network()
    x, y = some_data(count, network)
    np.savez(folder / "data.npz", **(arrays or {"x": x.numpy(), "y": y.numpy()}))
    return write_onnx(folder / "net.onnx", network), folder / "data.npz"


def configure(
    registry: Registry, network: Path, data: Path, *layers: Mapping[str, Mapping[str, Any]]
) -> Configuration:
    """A run on files, with few counterexamples."""
    files = {"network": str(network), "data": str(data), "count": 6, "epsilon": EPSILON}
    quick = {"problem": files, "evaluation": {"samples": 2}}
    return resolve(registry, [quick, *layers])


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The files of a run that must not depend on how it was done."""
    return {name: (folder / name).read_bytes() for name in BYTES}


def entries(folder: Path) -> list[str]:
    """Everything below a folder, for "nothing was written"."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
