"""Hypothesis strategies: random networks, boxes, specifications. Needs advrepair[testing].

Weights come from a drawn seed, so an example is small to report, but shrinks only in its
kind of network and in its boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import Network
from advrepair.testing.cases import BOX_KINDS, Case, random_boxes, random_specification
from advrepair.testing.networks import NETWORKS, tiny

seeds = st.integers(0, 2**31 - 1)


def networks(kinds: Sequence[str] = tuple(NETWORKS)) -> st.SearchStrategy[Network]:
    """Networks of the kinds of ``NETWORKS``, float32 weights."""
    return st.builds(lambda kind, seed: NETWORKS[kind](seed), st.sampled_from(list(kinds)), seeds)


def tiny_networks() -> st.SearchStrategy[Network]:
    """Networks that the exact oracle can handle: one or two inputs, 12 ReLUs."""
    return st.builds(tiny, seeds, st.integers(1, 2))


@st.composite
def boxes(
    draw: st.DrawFn,
    shape: Sequence[int],
    most: int = 4,
    kinds: Sequence[str] = BOX_KINDS,
) -> Box:
    """One to most boxes: points, tiny, touching zero, of very unequal widths, wide."""
    chosen = draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=most))
    return random_boxes(chosen, shape, draw(seeds))


@st.composite
def specifications(
    draw: st.DrawFn, count: int, outputs: int, most: int = 4
) -> tuple[Tensor, Tensor]:
    """C [count,M,outputs] and d [count,M] with one to most rows."""
    return random_specification(count, draw(st.integers(1, most)), outputs, draw(seeds))


@st.composite
def cases(
    draw: st.DrawFn,
    network: st.SearchStrategy[Network] | None = None,
    kinds: Sequence[str] = BOX_KINDS,
) -> Case:
    """A network, boxes for it and a specification."""
    drawn = draw(networks() if network is None else network)
    box = draw(boxes(drawn.input_shape, kinds=kinds))
    C, d = draw(specifications(len(box), drawn.outputs))
    return Case("random", drawn, box, C, d)


@st.composite
def generators(draw: st.DrawFn) -> torch.Generator:
    """A torch generator with a drawn seed."""
    return torch.Generator().manual_seed(draw(seeds))
