"""Where tensors lie: a device of our own, in this machine's memory, that mixes with nothing."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from attrs import evolve
from problems import Mixed, a_problem, some_data, some_parts
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advrepair.core import bounding, devices, paired, solving
from advrepair.core.covering import cover
from advrepair.core.devices import CPU, device_of, moved, on
from advrepair.core.errors import UsageError
from advrepair.core.sections import Training
from advrepair.core.solving import Solver
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.plugins.verifiers.zonotope import Zonotope


class Elsewhere(TorchDispatchMode):
    """Says which tensors lie elsewhere, and refuses an operation on tensors of both places.

    As on an accelerator: one number may come along, and what is made while the device is the
    default lies there.
    """

    def __init__(self):
        super().__init__()
        self.far, self.default, self.seen = {}, False, 0

    def tag(self, tensor):
        """It lies elsewhere from now on, and all that shares its memory."""
        storage = tensor.untyped_storage()
        self.far[storage.data_ptr(), storage.nbytes()] = storage  # kept, so it is not used again

    def holds(self, tensor):
        storage = tensor.untyped_storage()
        return (storage.data_ptr(), storage.nbytes()) in self.far and storage.nbytes() > 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        full = [t for t in given if t.numel()]
        far = [t for t in full if self.holds(t)]
        near = [t for t in full if not self.holds(t) and t.dim()]
        made = "lift_fresh" in str(func) or not given
        assert not (far and near) or made, f"{func} on tensors of two places"
        result = func(*args, **(kwargs or {}))
        if far or (self.default and (made or not full)):
            self.seen += 1
            for t in tree_leaves(result):
                if isinstance(t, torch.Tensor) and t.numel():
                    self.tag(t)
        return result


@pytest.fixture
def elsewhere(monkeypatch):
    """A device named meta, whose tensors are those tagged as lying elsewhere."""
    mode, there = Elsewhere(), torch.device("meta")

    def placed(tensor, device):
        copy = tensor.clone(memory_format=torch.contiguous_format)
        if device == there:
            mode.tag(copy)
        else:
            storage = copy.untyped_storage()
            mode.far.pop((storage.data_ptr(), storage.nbytes()), None)
        return copy

    @contextmanager
    def default(device):
        mode.default = device == there
        with mode:
            yield
        mode.default = False

    monkeypatch.setattr(devices, "_placed", placed)
    monkeypatch.setattr(paired, "_can_sample", lambda: False)  # for tensors in memory alone
    for module in (solving, bounding, devices):
        monkeypatch.setattr(module, "on", default)
    return mode


def outcomes(device, problem=None, budget=None, samples=None, others=None, **options):
    problem = problem or a_problem()
    parts = some_parts(problem, **options)
    indicator = options.get("indicator") or PropertyGuided()
    shards = cover(problem, parts.bounder, indicator, False).shards(parts.bounder.template)
    bounder = evolve(parts.bounder, device=torch.device(device))
    solver = Solver(bounder, GradientWidth(), budget or Training(), 0, samples, others)
    return [solver(shard) for shard in shards]


CASES = {
    "affine": {},
    "hidden": {"hidden": (5,)},
    "interval": {"verifier": Interval()},
    "zonotope": {"certifier": Zonotope()},
    "splits": {
        "problem": a_problem(count=9, epsilon=0.3),
        "indicator": Mixed(),
        "budget": Training(epochs=2, rounds=4, split=2),
    },
    "intrusion": {"others": some_data(40)},
    "intrusion, hidden": {"others": some_data(40), "hidden": (2,)},
    "fallback": {"budget": Training(epochs=1, rounds=1, lr=1e-9, scale=False)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_shard_is_solved_where_it_is_told_to(case, elsewhere):
    here = outcomes("cpu", **CASES[case])
    assert elsewhere.seen == 0
    there = outcomes("meta", **CASES[case])
    assert elsewhere.seen > 100
    for one, other in zip(here, there, strict=True):
        for name, tensor in one.tensors().items():
            found = other.tensors()[name]
            assert not elsewhere.holds(found), f"{name} was left there"
            assert name == "cpu" or torch.equal(tensor, found), name


def test_a_tensor_that_is_left_behind_is_noticed(elsewhere, monkeypatch):
    """The test above would see it: a bound that makes its rows in memory."""
    inner = DeepPoly.prepare

    def forgetful(self, network, rounding=None):
        bound, slope = inner(self, network, rounding), torch.ones(network.outputs)
        return lambda params, box, C, d: bound(params, box, C * slope, d)

    monkeypatch.setattr(DeepPoly, "prepare", forgetful)
    outcomes("cpu")
    with pytest.raises(AssertionError, match="two places"):
        outcomes("meta")


@pytest.mark.parametrize("allocator", [NoAllocator(), Nearest()])
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_a_repaired_network_computes_where_it_is_told_to(hidden, allocator, elsewhere):
    parts = some_parts(hidden=hidden)
    model = parts.repaired
    model.allocator = allocator
    noise = torch.Generator().manual_seed(0)
    parts.bank.put(
        torch.arange(6),
        {n: torch.randn(t.shape, generator=noise) for n, t in parts.bank.stack.items()},
    )
    x = torch.cat([parts.properties.center, torch.rand(20, 6, generator=noise)])

    def outputs():
        point = x.clone().requires_grad_()
        found = model(point)
        (slope,) = torch.autograd.grad(found.sum(), point)
        return found.detach(), slope

    here = outputs()
    model.compute_on(torch.device("meta"))
    there, seen = outputs(), elsewhere.seen
    assert seen > 10
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    parts.bank.put(torch.tensor([0]), {n: t[:1] + 1 for n, t in parts.bank.stack.items()})
    assert not torch.equal(outputs()[0], there[0])  # the copy follows
    wide = copy.deepcopy(model).double()(x.double())
    assert wide.dtype == torch.float64 and torch.allclose(wide.float(), outputs()[0], atol=1e-4)
    assert pickle.loads(pickle.dumps(model.base)).device == CPU
    model.compute_on(CPU)
    assert elsewhere.seen > seen


def test_rows_of_the_network_come_from_there(elsewhere):
    parts = some_parts()
    asked = parts.properties
    there = evolve(parts.bounder, device=torch.device("meta"))
    for rigorous in (True, False):
        one, other = (b.base(asked.box, asked.C, asked.d, rigorous) for b in (parts.bounder, there))
        assert torch.equal(one.A, other.A) and torch.equal(one.b, other.b)
        assert not elsewhere.holds(other.A)
    assert elsewhere.seen > 100


def test_the_processor_is_always_there():
    assert device_of("cpu") == CPU
    with on(CPU):
        assert torch.zeros(1).device == CPU
    network = some_parts().bounder.network
    assert moved(network, CPU) is network


@pytest.mark.parametrize("name", ["nowhere", "meta", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_refused(name):
    with pytest.raises(UsageError, match=rf"^run.device is '{name}', which cannot be used here"):
        device_of(name)
