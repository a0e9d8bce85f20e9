"""Bounds in two stages are the bounds in one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.graph import Network
from advrepair.core.rounding import Rounding
from advrepair.core.types import Box, LinearBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.relaxations import SLOPES
from advrepair.plugins.verifiers.staged import Staged
from advrepair.testing.cases import BOX_KINDS, random_boxes, random_specification
from advrepair.testing.networks import NETWORKS
from advrepair.testing.strategies import seeds

ROUNDINGS = (None, Rounding("real"), Rounding("deployed-float32"), Rounding("deployed-float64"))
LINEAR_LAST = sorted(n for n, make in NETWORKS.items() if make(0).operations[-1].kind == "linear")
Asked = tuple[Box, Tensor, Tensor]


def a_question(network: Network, seed: int) -> Asked:
    box = random_boxes(BOX_KINDS, network.input_shape, seed)
    C, d = random_specification(len(box), 3, network.outputs, seed)
    return Box(box.lower.double(), box.upper.double()), C, d


def with_another_end(network: Network, seed: int) -> dict[str, Tensor]:
    """Weights of which those of the last layer are new."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: t.double() for name, t in network.tensors.items()}
    for name in network.operations[-1].tensors.values():
        noise = torch.randn(found[name].shape, generator=generator, dtype=torch.float64)
        found[name] = 3 * noise
    return found


def require_same(one: LinearBound, other: LinearBound) -> None:
    for name in ("A", "b", "magnitude", "slope", "error"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("name", LINEAR_LAST)
@given(seeds, st.sampled_from(SLOPES), st.sampled_from(ROUNDINGS))
def test_only_the_last_layer_has_to_be_done_again(
    name: str, seed: int, slope: str, rounding: Rounding | None
) -> None:
    network = NETWORKS[name](seed)
    bound = DeepPoly(lower_slope=slope).prepare(network, rounding)
    assert isinstance(bound, Staged)
    box, C, d = a_question(network, seed)
    before = {name: t.double() for name, t in network.tensors.items()}
    hidden = bound.hidden(before, box)
    assert all(len(t) == len(box) for t in hidden.values())
    for params in (before, with_another_end(network, seed)):
        require_same(bound.onward(params, box, hidden, C, d), bound(params, box, C, d))


@given(seeds)
def test_what_a_rigorous_call_found_serves_a_plain_one(seed: int) -> None:
    """Nearly the same rows: the lines allow for rounding."""
    network = NETWORKS["fully connected"](seed)
    plain, rigorous = (DeepPoly().prepare(network, r) for r in (None, Rounding("real")))
    assert isinstance(plain, Staged) and isinstance(rigorous, Staged)
    box, C, d = a_question(network, seed)
    params = {name: t.double() for name, t in network.tensors.items()}
    found = plain.onward(params, box, rigorous.hidden(params, box), C, d)
    least, expected = found.minimum(box), plain(params, box, C, d).minimum(box)
    assert torch.allclose(least, expected, atol=1e-6, rtol=1e-6)


def test_another_operation_at_the_end_is_refused() -> None:
    """The lines around a ReLU at the end are not kept, so nobody takes old ones for new."""
    network = NETWORKS["fully connected"](0)
    cut = Network(network.operations[:-1], dict(network.tensors), network.input_shape)
    bound = DeepPoly().prepare(cut)
    assert cut.operations[-1].kind == "relu" and isinstance(bound, Staged)
    box, C, d = a_question(cut, 0)
    params = {name: t.double() for name, t in cut.tensors.items()}
    hidden = bound.hidden(params, box)
    with pytest.raises(KeyError):
        bound.onward(params, box, hidden, C, d)
