"""Rows of the network once, rows of the patches often: their sum bounds the sum."""

from fractions import Fraction
from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from advrepair.core import bounding
from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder, chunks
from advrepair.core.errors import PluginError, UsageError
from advrepair.core.graph import INPUT, Network, Operation
from advrepair.core.interfaces import Verifier
from advrepair.core.patching import last_layer, patch_template
from advrepair.core.rounding import Rounding
from advrepair.core.types import Box, LinearBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.testing.cases import random_boxes, random_specification
from advrepair.testing.networks import NETWORKS, fully_connected

KINDS = ("small", "tiny", "point", "unequal", "small", "wide")
VERIFIERS = {"deeppoly": DeepPoly(), "interval": Interval()}


def in_float64(network):
    tensors = {name: t.double() for name, t in network.tensors.items()}
    return Network(network.operations, tensors, network.input_shape)


def a_bounder(network, hidden=(4,), verifier=None, memory=2**30, level="deployed-float64"):
    template = patch_template(network, hidden)
    return Bounder(network, template, verifier or DeepPoly(), DeepPoly(), Rounding(level), memory)


def some_boxes(network, count, seed):
    box = random_boxes((KINDS * 3)[:count], network.input_shape, seed)
    return Box(box.lower.to(network.dtype), box.upper.to(network.dtype))


def a_stack(template, patches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.5 * torch.randn(patches, *t.shape, generator=generator).to(t.dtype)
        for name, t in template.tensors.items()
    }


def a_batch(bounder, patches=3, seed=1, rigorous=False):
    """Two pieces a patch; the last is padding of the last patch."""
    network = bounder.network
    box = some_boxes(network, 2 * patches, seed)
    C, d = random_specification(2 * patches, 4, network.outputs, seed)
    rows = bounder.base(box, C, d, rigorous)
    real = torch.ones(patches, 2, dtype=torch.bool)
    real[-1, -1] = False
    group = torch.arange(4).expand(2 * patches, 4)
    return Batch(box, rows, C, group, real), C, d


def joint(network, template, stack, index):
    """Network and one patch as a single network that adds the two."""
    operations = list(network.operations)
    for op in template.operations:
        inputs = [name if name == INPUT else f"patch/{name}" for name in op.inputs]
        roles = {role: f"patch/{name}" for role, name in op.tensors.items()}
        operations.append(
            Operation(f"patch/{op.name}", op.kind, inputs, op.shape, roles, op.settings)
        )
    ends = (network.operations[-1].name, operations[-1].name)
    operations.append(Operation("sum", "add", ends, (network.outputs,)))
    tensors = dict(network.tensors) | {f"patch/{n}": t[index] for n, t in stack.items()}
    return Network(operations, tensors, network.input_shape)


@given(st.integers(0, 300), st.integers(0, 2**28))
def test_chunks_cover_the_range_in_order(count, each):
    parts = chunks(count, each, 2**40)
    assert torch.equal(torch.cat(parts), torch.arange(count))
    assert len({len(part) for part in parts[:-1]}) <= 1


@given(st.integers(1, 300), st.integers(1, 2**28), st.integers(1, 2**30))
@example(9, 52706759, 474360798)  # nine boxes in one chunk, and room for eight
def test_chunks_follow_from_the_shapes_or_are_refused(count, each, memory):
    free = chunks(count, each, 2**40)
    if len(free[0]) * each <= memory:
        found = chunks(count, each, memory)
        assert [len(part) for part in found] == [len(part) for part in free]
    else:
        with pytest.raises(UsageError, match=r"run\.memory is .* raise it"):
            chunks(count, each, memory)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_sum_of_rows_bounds_the_joint_network(name, verifier):
    network = in_float64(NETWORKS[name](2))
    bounder = a_bounder(network, verifier=VERIFIERS[verifier])
    batch, C, d = a_batch(bounder)
    stack = a_stack(bounder.template, 3)
    found = (batch.rows + bounder.patched(stack, batch)).minimum(batch.box)
    for i in range(6):
        whole = joint(network, bounder.template, stack, i // 2)
        part = slice(i, i + 1)
        prepared = VERIFIERS[verifier].prepare(whole)
        bound = prepared(whole.tensors, batch.box[part], C[part], d[part])
        expected = bound.minimum(batch.box[part])
        if verifier == "deeppoly":
            assert torch.allclose(found[part], expected, rtol=1e-9, atol=1e-9)
        else:  # its rows are merged into the last layer, here the sum: never better
            assert (found[part] >= expected - 1e-9).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from(["real", "deployed-float32"]))
def test_margins_are_never_above_the_function(seed, level):
    network = fully_connected(seed, (3, 6, 5, 4))
    bounder = a_bounder(network, level=level)
    batch, C, d = a_batch(bounder, seed=seed % 1000, rigorous=True)
    stack = a_stack(bounder.template, 3, seed)
    margin = bounder.margins(stack, batch)
    generator = torch.Generator().manual_seed(seed)
    for i in range(6):
        share = torch.rand(40, 3, generator=generator, dtype=torch.float64)
        share[:20] = share[:20].round()
        lower, upper = batch.box.lower[i].double(), batch.box.upper[i].double()
        x = (lower + share * (upper - lower)).clamp(lower, upper)
        weights = {name: t[i // 2].double() for name, t in stack.items()}
        base = {name: t.double() for name, t in network.tensors.items()}
        y = network.apply_tensors(base, x) + bounder.template.apply_tensors(weights, x)
        assert (y @ C[i].T + d[i] >= margin[i] - 1e-9).all()


def test_the_deployed_level_costs_margin_and_the_exact_one_hardly_any():
    network = fully_connected(4, (3, 6, 5, 4))
    margins = {}
    for level in ("deployed-float32", "deployed-float64", "real"):
        bounder = a_bounder(network, level=level)
        batch, *_ = a_batch(bounder, rigorous=True)
        margins[level] = bounder.margins(a_stack(bounder.template, 3), batch)
    stack = {name: t.double() for name, t in a_stack(bounder.template, 3).items()}
    plain = (batch.rows + bounder.patched(stack, batch)).minimum(batch.box)
    assert (margins["deployed-float32"] < margins["real"]).all()
    assert (margins["deployed-float64"] <= margins["real"]).all()
    assert (margins["real"] < plain).all() and (plain - margins["real"]).max() < 1e-9
    assert (plain - margins["deployed-float32"]).max() < 1e-2


@pytest.mark.parametrize("rigorous", [False, True])
def test_chunking_the_base_changes_nothing(rigorous, monkeypatch):
    network = fully_connected(4, (3, 6, 5, 4))
    box = some_boxes(network, 18, 0)
    C, d = random_specification(18, 4, 4, 0)
    whole = a_bounder(network).base(box, C, d, rigorous)
    monkeypatch.setattr(bounding, "_FEW", 1)
    monkeypatch.setattr(bounding, "_MANY", 1)
    monkeypatch.setattr(bounding, "_CACHE_BYTES", 1)
    small = a_bounder(network).base(box, C, d, rigorous)
    monkeypatch.setattr(bounding, "_CACHE_BYTES", 5000)
    some = a_bounder(network).base(box, C, d, rigorous)
    for other in (small, some):
        assert torch.allclose(whole.A, other.A, atol=1e-12 if rigorous else 1e-5)
        assert torch.allclose(whole.b, other.b, atol=1e-12 if rigorous else 1e-5)


@frozen
class Unmapped(DeepPoly):
    """DeepPoly that is not mapped over patches."""

    batchable: ClassVar[bool] = False


def test_a_verifier_that_cannot_be_mapped_gives_the_same():
    network = in_float64(fully_connected(4, (3, 6, 5, 4)))
    mapped, alone = a_bounder(network), a_bounder(network, verifier=Unmapped())
    batch, *_ = a_batch(mapped)
    stack = a_stack(mapped.template, 3)
    one, other = mapped.patched(stack, batch), alone.patched(stack, batch)
    assert torch.allclose(one.A, other.A, atol=1e-12)
    assert torch.allclose(one.b, other.b, atol=1e-12)


def moved_at_the_end(bounder, stack, seed=5):
    """The same patches with other last layers."""
    last, other = last_layer(bounder.template), a_stack(bounder.template, len(stack), seed)
    return {n: other[n][: len(t)] if n in last else t for n, t in stack.items()}


@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("verifier", [DeepPoly(), DeepPoly(lower_slope="zero"), Unmapped()])
def test_what_is_known_of_hidden_layers_changes_no_bound(verifier, patches):
    network = fully_connected(4, (3, 6, 5, 4))
    bounder = a_bounder(network, hidden=(5, 4), verifier=verifier, level="deployed-float32")
    batch, *_ = a_batch(bounder, patches, rigorous=True)
    stack = a_stack(bounder.template, patches)
    known = bounder.with_hidden(stack, batch)
    assert known.hidden is not None and batch.hidden is None
    assert (known.hidden.proof is not None) == bounder.one_verifier
    stack = moved_at_the_end(bounder, stack)
    for one, other in zip(bounder.proofs(stack, known), bounder.proofs(stack, batch), strict=True):
        assert torch.equal(one, other)
    rows, plain = bounder.patched(stack, known), bounder.patched(stack, batch)
    assert torch.allclose(rows.A, plain.A, atol=1e-4) and torch.allclose(rows.b, plain.b, atol=1e-4)


def test_what_is_known_of_hidden_layers_follows_the_patches_that_stay():
    network = fully_connected(4, (3, 6, 5, 4))
    bounder = a_bounder(network, level="deployed-float32")
    batch, *_ = a_batch(bounder, rigorous=True)
    stack, keep = a_stack(bounder.template, 3), torch.tensor([True, False, True])
    part = bounder.with_hidden(stack, batch).part(keep)
    kept = moved_at_the_end(bounder, {n: t[keep] for n, t in stack.items()})
    plain = bounder.margins(kept, batch.part(keep))
    assert torch.equal(bounder.margins(kept, part), plain)
    first = part.hidden.part(torch.tensor([False, True]), 1)
    alone = Batch(part.box[2:3], part.rows[2:3], part.C[2:3], part.group[2:3], part.real[1:, :1])
    last = {n: t[1:] for n, t in kept.items()}
    found = bounder.margins(last, evolve(alone, hidden=first))
    assert torch.equal(found, bounder.margins(last, alone))


def test_nothing_is_known_of_affine_patches_and_by_other_verifiers():
    network = fully_connected(4, (3, 6, 5, 4))
    for bounder in (a_bounder(network, hidden=()), a_bounder(network, verifier=Interval())):
        batch, *_ = a_batch(bounder)
        assert bounder.with_hidden(a_stack(bounder.template, 3), batch) is batch


def test_gradients_reach_the_patches():
    bounder = a_bounder(fully_connected(4, (3, 6, 5, 4)))
    batch, *_ = a_batch(bounder)
    stack = {n: t.requires_grad_() for n, t in a_stack(bounder.template, 3).items()}
    loss = (batch.rows + bounder.patched(stack, batch)).minimum(batch.box).sum()
    gradients = torch.autograd.grad(loss, list(stack.values()))
    assert all(bool(g.flatten(1).any(1).all()) for g in gradients)


def test_a_part_of_a_batch_keeps_whole_patches():
    bounder = a_bounder(fully_connected(4, (3, 6, 5, 4)))
    batch, C, _ = a_batch(bounder)
    part = batch.part(torch.tensor([True, False, True]))
    assert torch.equal(part.C, C[[0, 1, 4, 5]])
    assert torch.equal(part.box.lower, batch.box.lower[[0, 1, 4, 5]])
    assert torch.equal(part.rows.b, batch.rows.b[[0, 1, 4, 5]])
    assert part.real.tolist() == [[True, True], [True, False]]


def test_the_certifier_must_be_rigorous():
    network = fully_connected(1)
    template = patch_template(network, ())

    class Loose(Interval):
        rigorous = False

    with pytest.raises(PluginError, match="'interval' is not rigorous"):
        Bounder(network, template, Interval(), Loose(), Rounding(), 2**30)


def test_one_verifier_only_if_options_agree_too():
    network = fully_connected(1)
    template = patch_template(network, ())

    def one(verifier):
        return Bounder(network, template, verifier, DeepPoly(), Rounding(), 2**30).one_verifier

    assert one(DeepPoly())
    assert not one(DeepPoly(lower_slope="zero")) and not one(Interval())


@frozen
class Forgetful(Verifier):
    """Claims to be rigorous and says nothing of magnitudes."""

    name: ClassVar[str] = "forgetful"
    differentiable: ClassVar[bool] = False
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = True

    def prepare(self, network, rounding=None):
        def bound(params, box, C, d):
            zero = box.lower.new_zeros(()).expand(*C.shape[:2], *box.lower.shape[1:])
            return LinearBound(zero, d - 1e9)

        return bound


def test_a_certifier_without_magnitudes_is_a_broken_plugin():
    network = fully_connected(4, (3, 6, 5, 4))
    template = patch_template(network, ())
    bounder = Bounder(network, template, DeepPoly(), Forgetful(), Rounding(), 2**30)
    batch, *_ = a_batch(bounder, rigorous=True)
    with pytest.raises(PluginError, match="'forgetful' returned no magnitude"):
        bounder.margins(a_stack(template, 3), batch)


def test_the_rounding_of_the_sum_itself_is_subtracted():
    """The two parts allow for their own rounding; adding them up rounds once more."""
    network = fully_connected(4, (3, 6, 5, 4))
    bounder = a_bounder(network, level="deployed-float32")
    batch, *_ = a_batch(bounder, rigorous=True)
    stack = a_stack(bounder.template, 3)
    alone = DeepPoly().prepare(bounder.template, Rounding("deployed-float32"))
    margin = bounder.margins(stack, batch)
    for i in range(6):
        weights = {name: t[i // 2].double() for name, t in stack.items()}
        part = slice(i, i + 1)
        C = batch.C[part].double()
        patch = alone(weights, batch.box[part].to(torch.float64), C, C.new_zeros(1, 4))
        parts = (batch.rows[part] + patch).minimum_rigorous(batch.box[part])
        x = batch.box.center[part]
        y = network(x) + bounder.template.apply_tensors(
            {n: t.float() for n, t in weights.items()}, x
        )
        rounding = 2.0**-24 * (C[0].abs() @ y[0].double().abs())
        assert (parts[0] - margin[i] >= rounding).all()


@given(st.integers(0, 2**32), st.sampled_from(["real", "deployed-float32", "deployed-float64"]))
def test_a_constant_moves_margins_by_no_more_than_it_adds(seed, level):
    """The sum as it is computed is never below, for outputs of any size that may cancel."""
    bounder = a_bounder(fully_connected(1, (3, 5, 4)), (), level=level)
    random = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if level == "deployed-float32" else torch.float64
    C = torch.randn(6, 3, 4, generator=random)
    C[:2] = C[:2].sign()
    scale = 10.0 ** torch.randint(-3, 9, (6, 1), generator=random)
    y = (scale * torch.randn(6, 4, generator=random)).to(dtype)
    value = (scale * torch.randn(6, 4, generator=random)).to(dtype)
    value[3:] = -y[3:] * (1 + 1e-6 * torch.randn(3, 4, generator=random)).to(dtype)
    total = [[Fraction(number) for number in row] for row in (y + value).double().tolist()]
    if level == "real":
        both = zip(y.tolist(), value.tolist(), strict=True)
        total = [[Fraction(a) + Fraction(b) for a, b in zip(*pair, strict=True)] for pair in both]

    d = 1e9 * torch.randn(6, 1, generator=random).round() * (scale > 1)

    def rows(outputs):
        return [
            [sum((Fraction(c) * v for c, v in zip(row, at, strict=True)), shift) for row in matrix]
            for matrix, at, shift in zip(
                C.tolist(), outputs, map(Fraction, d[:, 0].tolist()), strict=True
            )
        ]

    exact = rows([[Fraction(number) for number in row] for row in y.double().tolist()])
    own = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    high = torch.tensor(
        [
            [Fraction(f) > v for f, v in zip(got, row, strict=True)]
            for got, row in zip(own.tolist(), exact, strict=True)
        ]
    )
    own = torch.where(high, torch.nextafter(own, own - torch.inf), own)
    base = LinearBound(torch.zeros(6, 3, 1), own, y.double().abs())
    found = bounder.shifted(own, base, C, value.double())
    for bounds, values in zip(found.tolist(), rows(total), strict=True):
        for bound, number in zip(bounds, values, strict=True):
            assert Fraction(bound) <= number
            assert bound >= float(number) - 1e-5 * float(scale.max()) ** 2 - 1
