"""Patches, their sum with the network, and the routing in between."""

import copy
import inspect
import io
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import zero_bank

from advrepair.core import patching
from advrepair.core.box import Box
from advrepair.core.paired import paired
from advrepair.core.patching import (
    PatchBank,
    RepairedNetwork,
    attach,
    constant_stack,
    initial_stack,
    patch_identifiers,
    patch_template,
)
from advrepair.core.properties import robustness
from advrepair.core.types import Assignment, Centres, Regions
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.testing.networks import convolutional, fully_connected


def random_stack(template, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, *t.shape, generator=generator, dtype=t.dtype)
        for name, t in template.tensors.items()
    }


def repaired_network(hidden=(4,), allocator=None, epsilon=0.05, centres=None):
    """Four balls, the patch of ball i adds i + 1 to every output."""
    network = fully_connected(1, (2, 6, 3))
    x = torch.tensor([[0.1, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.9]])
    x = x if centres is None else centres
    label = torch.zeros(len(x), dtype=torch.long)
    properties = robustness(x, label, epsilon, 3)
    assignment = Assignment(torch.arange(len(x)), properties.names)
    regions = Regions(properties.box, assignment.patch)
    chosen = allocator or NoAllocator()
    bank = zero_bank(patch_template(network, hidden), len(x))
    repaired = attach(network, properties, regions, assignment, chosen, bank)
    steps = torch.arange(1.0, len(x) + 1)[:, None].expand(-1, 3)
    repaired.bank.put(torch.arange(len(x)), constant_stack(repaired.bank.template, steps))
    return repaired


@pytest.mark.parametrize("hidden", [(), (4,), (5, 3)])
def test_a_template_is_fully_connected_with_relus_between(hidden):
    network = convolutional(1)
    template = patch_template(network, hidden)
    assert (template.input_shape, template.outputs) == (network.input_shape, network.outputs)
    kinds = [op.kind for op in template.operations]
    assert kinds == ["reshape", "linear", *["relu", "linear"] * len(hidden)]
    sizes = [36, *hidden, 3]
    weights = sum(a * b + b for a, b in pairwise(sizes))
    assert template.parameters_count == weights


def test_a_new_patch_adds_nothing():
    template = patch_template(fully_connected(1), (5, 4))
    stack = initial_stack(template, ["a", "b"], 0)
    x = torch.randn(7, 3)
    assert any(bool(t.any()) for t in stack.values())
    for i in range(2):
        weights = {name: t[i] for name, t in stack.items()}
        assert not template.apply_tensors(weights, x).any()


def test_starting_weights_depend_on_seed_and_identifier_alone():
    template = patch_template(fully_connected(1), (5,))
    first = initial_stack(template, ["a", "b", "c"], 0)
    other = initial_stack(template, ["c", "x", "a"], 0)
    seeded = initial_stack(template, ["a"], 1)
    name = "linear0.weight"
    assert torch.equal(first[name][[0, 2]], other[name][[2, 0]])
    assert not torch.equal(first[name][0], first[name][1])
    assert not torch.equal(first[name][0], seeded[name][0])


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_a_constant_patch_looks_at_no_input(hidden):
    template = patch_template(fully_connected(1), hidden)
    value = torch.tensor([[1.0, 2.0, -3.0, 0.5]])
    weights = {name: t[0] for name, t in constant_stack(template, value).items()}
    x = torch.randn(9, 3)
    assert torch.equal(template.apply_tensors(weights, x), value.expand(9, -1))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([1, 2**26]))
def test_the_sum_is_that_of_the_patches_that_are_on(seed, chunk):
    generator = torch.Generator().manual_seed(seed)
    template = patch_template(fully_connected(1), (4,))
    bank = PatchBank(template, random_stack(template, 5, seed))
    x, logits = torch.randn(8, 3, generator=generator), torch.randn(8, 4, generator=generator)
    gates = torch.rand(8, 5, generator=generator) < 0.4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patching, "_CHUNK_BYTES", chunk)
        found = bank.add_to(logits, x, gates)
    for i in range(8):
        expected = logits[i].double()
        for j in gates[i].nonzero()[:, 0].tolist():
            weights = {name: t[j].double() for name, t in bank.stack.items()}
            expected = expected + template.apply_tensors(weights, x[i : i + 1].double())[0]
        assert torch.allclose(found[i].double(), expected, atol=1e-4)


def test_as_many_pairs_as_queries_need_not_be_one_each():
    template = patch_template(fully_connected(1), ())
    bank = PatchBank(template, random_stack(template, 3))
    x, logits = torch.randn(3, 3), torch.randn(3, 4)
    gates = torch.tensor([[True, False, True], [False] * 3, [False, True, False]])
    found = bank.add_to(logits, x, gates).double()
    assert torch.allclose(found, one_by_one(bank, logits, x, gates), atol=1e-4)


def test_no_patch_leaves_every_bit():
    template = patch_template(fully_connected(1), ())
    bank = PatchBank(template, random_stack(template, 2))
    x, logits = torch.randn(3, 3), torch.randn(3, 4)
    assert torch.equal(bank.add_to(logits, x, torch.zeros(3, 2, dtype=torch.bool)), logits)


def test_put_replaces_some_patches_only():
    template = patch_template(fully_connected(1), ())
    bank = PatchBank(template, random_stack(template, 4))
    before = {name: t.clone() for name, t in bank.stack.items()}
    new = random_stack(template, 2, seed=9)
    bank.put(torch.tensor([3, 1]), new)
    for name, t in bank.stack.items():
        assert torch.equal(t[[3, 1]], new[name]) and torch.equal(t[[0, 2]], before[name][[0, 2]])


def test_inside_a_ball_its_patch_is_on_and_outside_nothing_changes():
    repaired = repaired_network()
    x = torch.tensor([[0.9, 0.9], [0.5, 0.5], [0.12, 0.88], [0.1, 0.16]])
    added = repaired(x) - repaired.base(x)
    assert torch.allclose(added, torch.tensor([4.0, 0, 2, 0])[:, None].expand(-1, 3), atol=1e-5)
    assert torch.equal(repaired(x)[[1, 3]], repaired.base(x)[[1, 3]])


def test_faces_belong_to_the_ball_and_one_step_further_does_not():
    repaired = repaired_network()
    box, far = repaired.box, torch.full_like(repaired.box.lower, torch.inf)
    logits = repaired.base(box.lower)
    every = torch.eye(4, dtype=torch.bool)
    assert torch.equal(repaired.route(box.lower, logits), every)
    assert torch.equal(repaired.route(box.upper, logits), every)
    assert not repaired.route(torch.nextafter(box.upper, far), logits).any()
    assert not repaired.route(torch.nextafter(box.lower, -far), logits).any()


def test_of_overlapping_balls_the_first_decides():
    repaired = repaired_network(centres=torch.tensor([[0.5, 0.5], [0.52, 0.5]]))
    x = torch.tensor([[0.5, 0.5], [0.52, 0.5], [0.56, 0.5]])
    added = (repaired(x) - repaired.base(x))[:, 0]
    assert torch.allclose(added, torch.tensor([1.0, 1.0, 2.0]), atol=1e-5)


def test_outside_the_allocator_chooses_and_inside_it_is_not_asked():
    repaired = repaired_network(allocator=Cosine(top=4))
    x = torch.tensor([[0.9, 0.9], [0.5, 0.5]])
    logits = torch.tensor([[5.0, 0, 0]]).expand(2, -1)  # the label of all four balls
    assert repaired.route(x, logits).tolist() == [[False, False, False, True], [True] * 4]


def test_another_allocator_is_asked_at_once():
    repaired, x = repaired_network(), torch.tensor([[0.5, 0.5]])
    assert torch.equal(repaired(x), repaired.base(x))
    repaired.allocator = Cosine(top=4)
    repaired.centres.label.fill_(int(repaired.base(x).argmax()))
    assert torch.allclose(repaired(x), repaired.base(x) + 10, atol=1e-5)
    repaired.allocator = NoAllocator()
    assert torch.equal(repaired(x), repaired.base(x))


def test_forward_takes_x_and_keeps_nothing():
    repaired = repaired_network(allocator=Cosine())
    assert list(inspect.signature(repaired.forward).parameters) == ["x"]
    names = {name for name, _ in repaired.named_buffers()} | set(vars(repaired))
    state = {name: t.clone() for name, t in repaired.state_dict().items()}
    first = repaired(torch.rand(20, 2))
    repaired(torch.rand(3, 2))
    assert first.shape == (20, 3)
    assert {name for name, _ in repaired.named_buffers()} | set(vars(repaired)) == names
    assert all(torch.equal(t, state[name]) for name, t in repaired.state_dict().items())


def test_gradients_reach_the_input_through_the_patch():
    repaired = repaired_network()
    bank = repaired.bank
    weights = random_stack(bank.template, 4)
    bank.put(torch.arange(4), weights)
    x = torch.tensor([[0.9, 0.9]], requires_grad=True)
    (slope,) = torch.autograd.grad(repaired(x)[0, 0], x)
    (base,) = torch.autograd.grad(repaired.base(x)[0, 0], x)
    (patch,) = torch.autograd.grad(
        bank.template.apply_tensors({n: t[3] for n, t in weights.items()}, x)[0, 0], x
    )
    assert patch.any() and torch.allclose(slope, base + patch, atol=1e-5)


def test_identifiers_of_patches_follow_the_properties_they_serve():
    x = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    properties = robustness(x, torch.tensor([0, 1, 0, 1]), 0.05, 3)
    ids = patch_identifiers(properties, Assignment(torch.tensor([0, 1, 0, 1]), ("a", "b")))
    order = torch.tensor([3, 2, 1, 0])
    turned = Assignment(torch.tensor([0, 1, 0, 1]), ("b", "a"))
    assert patch_identifiers(properties[order], turned) == (ids[1], ids[0])
    alone = patch_identifiers(properties, Assignment(torch.arange(4), tuple("abcd")))
    assert len({*alone, *ids}) == 6


def skewed():
    """One patch with all queries beside many with one."""
    network = fully_connected(3, (6, 12, 12, 4))
    template = patch_template(network, ())
    bank = PatchBank(template, random_stack(template, 50))
    x = torch.rand(200, 6)
    gates = torch.zeros(200, 50, dtype=torch.bool)
    gates[:, 7] = True
    gates[torch.arange(50), torch.arange(50)] = True
    return bank, network(x), x, gates


def one_by_one(bank, logits, x, gates):
    """The sum as it is defined, in float64."""
    total = logits.double()
    for i, j in gates.nonzero().tolist():
        weights = {name: t[j].double() for name, t in bank.stack.items()}
        total[i] += bank.template.apply_tensors(weights, x[i : i + 1].double())[0]
    return total


@pytest.mark.parametrize("busy", [1, 28 * 10, 2**17])
@pytest.mark.parametrize("chunk", [1, 200 * 6 * 2, 2**26])
def test_a_busy_patch_and_idle_ones_are_added_alike_in_little_memory(monkeypatch, busy, chunk):
    bank, logits, x, gates = skewed()
    sizes = []
    plain = patching.paired

    def watched(template, stack, x, patch):
        sizes.append(x.numel() * x.element_size())
        return plain(template, stack, x, patch)

    monkeypatch.setattr(patching, "_BUSY", busy)
    monkeypatch.setattr(patching, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(patching, "paired", watched)
    found = bank.add_to(logits, x, gates)
    assert torch.allclose(found.double(), one_by_one(bank, logits, x, gates), atol=1e-5)
    assert all(size <= max(chunk, 24) for size in sizes)


@pytest.mark.parametrize("hidden", [(), (64, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_patch_on_one_query_gives_the_same_bits_in_any_company(hidden, dtype):
    template = patch_template(fully_connected(1, (40, 6, 3)), hidden)
    stack = {name: t.to(dtype) for name, t in random_stack(template, 30).items()}
    x, patch = torch.rand(30, 40, dtype=dtype), torch.randperm(30)
    whole = paired(template, stack, x, patch)
    for i in range(30):
        alone = paired(template, stack, x[i : i + 1], patch[i : i + 1])
        assert torch.equal(alone[0], whole[i])
        weights = {name: t[patch[i]] for name, t in stack.items()}
        plain = template.apply_tensors(weights, x[i : i + 1])[0]
        assert torch.allclose(whole[i], plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_weights_that_do_not_lie_in_rows_are_not_copied_whole(monkeypatch, hidden):
    template = patch_template(fully_connected(1, (6, 6, 3)), hidden)
    stack = random_stack(template, 9)
    x, patch = torch.rand(20, 6), torch.randint(9, (20,))
    turned = {n: t.transpose(-1, -2).contiguous().transpose(-1, -2) for n, t in stack.items()}
    monkeypatch.setattr("advrepair.core.paired._COPIED", 300)
    there = paired(template, turned, x, patch)
    assert torch.allclose(there, paired(template, stack, x, patch), atol=1e-5)


def test_weights_that_can_only_be_read_are_read_where_they_lie(tmp_path):
    template = patch_template(convolutional(1), (5,))
    bank = PatchBank(template, random_stack(template, 6))
    x, gates = torch.rand(4, 1, 6, 6), torch.rand(4, 6) < 0.5
    logits = torch.zeros(4, 3)
    expected = bank.add_to(logits, x, gates)
    for name, attribute in bank._attributes.items():
        path = tmp_path / attribute
        path.write_bytes(bank.stack[name].numpy().tobytes())
        shape = tuple(bank.stack[name].shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of arrays that cannot be written to
            mapped = torch.from_numpy(np.memmap(path, np.float32, "r", shape=shape))
        bank._buffers[attribute] = mapped
    assert torch.equal(bank.add_to(logits, x, gates), expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([1, 2**17]), st.booleans())
def test_the_quick_way_is_the_route_and_the_sum(seed, busy, some):
    """Overlaps, regions without a patch, shared patches; patches by an allocator outside."""
    noise = torch.Generator().manual_seed(seed)
    network = fully_connected(1, (2, 6, 3))
    count, patches = (int(torch.randint(1, 9, (1,), generator=noise)) for _ in range(2))
    lower = torch.rand(count, 2, generator=noise)
    box = Box(lower, lower + 0.4 * torch.rand(count, 2, generator=noise))
    patch = torch.randint(-1, patches, (count,), generator=noise)
    template = patch_template(network, ())
    bank = PatchBank(template, random_stack(template, patches, seed))
    label = torch.randint(0, 3, (count,), generator=noise)
    centres = Centres(box.center, network(box.center), label, label, patch, patches)
    names = tuple(map(str, range(patches)))
    allocator = Cosine(top=3) if some else NoAllocator()
    repaired = RepairedNetwork(
        network, bank, Regions(box, patch), Assignment(patch, names), centres, allocator
    )
    x = torch.cat([torch.rand(20, 2, generator=noise) * 1.5, lower, box.upper])
    logits = network(x)
    gates = torch.zeros(len(x), patches, dtype=torch.bool)
    for i, point in enumerate(x):
        home = ((lower <= point) & (point <= box.upper)).all(1).nonzero()[:, 0].tolist()
        if home and patch[home[0]] >= 0:
            gates[i, patch[home[0]]] = True
        elif not home:
            gates[i] = allocator.allocate(x[i : i + 1], logits[i : i + 1], centres)[0]
    assert torch.equal(repaired.route(x, logits), gates)
    with pytest.MonkeyPatch.context() as change:
        change.setattr(patching, "_BUSY", busy)
        assert torch.equal(repaired(x), bank.add_to(logits, x, gates))
    assert torch.allclose(repaired(x).double(), one_by_one(bank, logits, x, gates), atol=1e-4)


@pytest.mark.parametrize("hidden", [(), (64, 64, 16)])
def test_gradients_through_many_patches_are_those_of_each(hidden):
    network = convolutional(1)
    template = patch_template(network, hidden)
    bank = PatchBank(template, random_stack(template, 8))
    x = torch.rand(8, 1, 6, 6, requires_grad=True)
    on = torch.arange(8).flip(0)
    total = bank.add_pairs(network(x), x, torch.arange(8), on)
    (slope,) = torch.autograd.grad(total[:, 1].sum(), x)
    for i in range(8):
        y = x[i : i + 1].detach().requires_grad_()
        weights = {name: t[on[i]] for name, t in bank.stack.items()}
        alone = network(y) + template.apply_tensors(weights, y)
        (own,) = torch.autograd.grad(alone[0, 1], y)
        assert torch.allclose(slope[i], own[0], rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("hidden", [(), (4,)])
def test_derivatives_of_every_kind_are_those_of_the_plain_sum(hidden):
    template = patch_template(fully_connected(1, (5, 4, 3)), hidden)
    bank = PatchBank(template, random_stack(template, 6))
    x, patch = torch.rand(4, 5), torch.tensor([5, 0, 0, 2])
    weights = [{n: t[i] for n, t in bank.stack.items()} for i in patch]

    def ours(x):
        return bank.add_pairs(x[:, :3] ** 2, x, torch.arange(4), patch)

    def plain(x):
        rows = zip(weights, x, strict=True)
        added = torch.cat([template.apply_tensors(own, row[None]) for own, row in rows])
        return x[:, :3] ** 2 + added

    def slope_of_slope(f):
        y = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((f(y) ** 2).sum(), y, create_graph=True)
        return torch.autograd.grad((slope**2).sum(), y)[0]

    ways = (
        slope_of_slope,
        lambda f: torch.func.grad(lambda y: f(y).sum())(x),
        lambda f: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        lambda f: torch.func.jacrev(f)(x),
        lambda f: torch.autograd.functional.jacobian(f, x, vectorize=True),
    )
    for way in ways:
        assert torch.allclose(way(ours), way(plain), rtol=1e-4, atol=1e-4)


def test_the_index_follows_the_regions(monkeypatch):
    monkeypatch.setattr("advrepair.core.membership._PAYS", 1)
    repaired = repaired_network()
    x = torch.tensor([[0.9, 0.9], [0.5, 0.5], [0.12, 0.88]])
    expected = repaired(x)
    twin = copy.deepcopy(repaired)
    assert twin.box.lower is twin.box_lower and twin.box is not repaired.box
    assert torch.equal(twin(x), expected)
    stored = io.BytesIO()
    torch.save(repaired, stored)
    stored.seek(0)
    assert torch.equal(torch.load(stored, weights_only=False)(x), expected)
    twin.box_lower += 10  # in place
    twin.box_upper += 10
    assert torch.equal(twin(x), twin.base(x)) and torch.equal(repaired(x), expected)
    twin.load_state_dict(repaired.state_dict())
    assert torch.equal(twin(x), expected)
    twin.double()
    assert torch.allclose(twin(x.double()), expected.double(), atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(repaired(x), expected)
        assert torch.equal(copy.deepcopy(repaired)(x), expected)
    twin.float()
    twin.box_lower, twin.box_upper = twin.box_lower + 10, twin.box_upper + 10
    assert torch.equal(twin(x), twin.base(x))
    assert not any("kept" in key or "_box" in key for key in repaired.state_dict())
