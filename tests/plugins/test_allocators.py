"""Which patches an input outside every box gets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.interfaces import Allocator
from advrepair.core.types import Centres
from advrepair.plugins.allocators import advrepair_components, labels, similarity
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator

ALLOCATORS = [
    Cosine(),
    Cosine(top=1),
    LabelPair(),
    LabelPair(fallback=False),
    Nearest(),
    Nearest(within=1.0),
    NoAllocator(),
]

Situation = tuple[Tensor, Tensor, Centres]


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Queries and property-guided centres, from few distinct values so that ties abound."""
    queries, count = draw(st.integers(0, 7)), draw(st.integers(1, 9))
    outputs = draw(st.integers(2, 4))
    coarse = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def some(*shape: int) -> Tensor:
        if coarse:
            return torch.randint(-1, 2, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    label = torch.randint(-1, outputs, (count,), generator=generator)
    target = torch.where(label < 0, label, (label + 1) % outputs)
    patch = torch.randperm(count, generator=generator)
    centres = Centres(some(count, 1, 3), some(count, outputs), label, target, patch, count)
    return some(queries, 1, 3), some(queries, outputs), centres


@settings(deadline=None)
@given(situations(), st.sampled_from(ALLOCATORS))
def test_an_allocation_has_no_patch_of_another_label(
    situation: Situation, allocator: Allocator
) -> None:
    x, logits, centres = situation
    on = allocator.allocate(x, logits, centres)
    assert on.dtype == torch.bool and on.shape == (len(x), centres.patches)
    serves = on[:, centres.patch]  # [N,P], as every patch here has one property
    assert (centres.label.expand_as(serves) == logits.argmax(1)[:, None])[serves].all()


@settings(deadline=None)
@given(situations(), st.sampled_from(ALLOCATORS))
def test_an_allocation_does_not_depend_on_the_batch(
    situation: Situation, allocator: Allocator
) -> None:
    x, logits, centres = situation
    together = allocator.allocate(x, logits, centres)
    backwards = allocator.allocate(x.flip(0), logits.flip(0), centres).flip(0)
    assert torch.equal(together, backwards)
    for i in range(len(x)):
        alone = allocator.allocate(x[i : i + 1], logits[i : i + 1], centres)
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_an_allocation_does_not_depend_on_the_chunks(
    allocator: Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(3, (20,), generator=generator)
    logits = torch.randn(20, 3, generator=generator)
    x = torch.randn(20, 5, generator=generator)
    centres = Centres(x, logits, label, (label + 1) % 3, torch.arange(20), 20)
    queries, scores = torch.randn(31, 5, generator=generator), torch.randn(31, 3)
    whole = allocator.allocate(queries, scores, centres)
    monkeypatch.setattr(labels, "CHUNK_NUMBERS", 45)
    assert torch.equal(whole, allocator.allocate(queries, scores, centres))


@settings(deadline=None)
@given(situations(), st.integers(1, 4))
def test_cosine_takes_the_most_similar_of_the_label(situation: Situation, top: int) -> None:
    x, logits, centres = situation
    serves = Cosine(top=top).allocate(x, logits, centres)[:, centres.patch]
    similarity = torch.nn.functional.cosine_similarity(
        logits.double()[:, None], centres.logits.double()[None], dim=2, eps=1e-30
    )
    for i, on in enumerate(serves):
        candidate = centres.label == logits[i].argmax()
        assert int(on.sum()) == min(top, int(candidate.sum()))
        left = candidate & ~on
        if left.any() and on.any():
            assert similarity[i][on].min() >= similarity[i][left].max() - 1e-9


def centres_of(label: list[int], target: list[int], patch: list[int]) -> Centres:
    logits = torch.tensor([[5.0, 1.0, 0.0], [5.0, 0.0, 1.0], [5.0, 4.0, 0.0], [0.0, 5.0, 4.0]])
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.2, 0.9], [0.1, 0.1]])
    columns = torch.tensor([label, target, patch])
    return Centres(x, logits, columns[0], columns[1], columns[2], max(patch) + 1)


CENTRES = centres_of([0, 0, 0, 1], [1, 2, 1, 2], [0, 1, 2, 3])
QUERY = torch.tensor([[0.1, 0.2]])


def chosen(allocator: Allocator, logits: list[float], centres: Centres = CENTRES) -> list[int]:
    on = allocator.allocate(QUERY, torch.tensor([logits]), centres)
    return on[0].nonzero().flatten().tolist()


def test_cosine_by_hand() -> None:
    assert chosen(Cosine(top=1), [10.0, 8.5, 0.0]) == [2]
    assert chosen(Cosine(top=2), [10.0, 8.5, 0.0]) == [0, 2]
    assert chosen(Cosine(), [10.0, 8.5, 0.0]) == [0, 1, 2]
    assert chosen(Cosine(), [0.0, 0.0, 1.0]) == []


def test_cosine_prefers_the_first_of_equally_similar_centres() -> None:
    assert chosen(Cosine(top=1), [1.0, 0.0, 0.0]) == [0]


def test_label_pair_by_hand() -> None:
    assert chosen(LabelPair(), [3.0, 2.0, 1.0]) == [0, 2]
    assert chosen(LabelPair(), [3.0, 1.0, 2.0]) == [1]
    assert chosen(LabelPair(), [2.0, 3.0, 1.0]) == [3]  # no such pair: all of the label
    assert chosen(LabelPair(fallback=False), [2.0, 3.0, 1.0]) == []
    assert chosen(LabelPair(), [1.0, 2.0, 3.0]) == []


def test_label_pair_takes_the_lower_index_of_equal_runners_up() -> None:
    assert chosen(LabelPair(), [3.0, 1.0, 1.0]) == [0, 2]


def test_label_pair_on_the_patches_of_a_label_indicator() -> None:
    shared = centres_of([0, 0, 0, 1], [1, 2, 1, 2], [0, 1, 0, 2])
    assert chosen(LabelPair(), [3.0, 2.0, 1.0], shared) == [0]


def test_nearest_by_hand() -> None:
    assert chosen(Nearest(), [1.0, 0.0, 0.0]) == [0]  # 3 is nearer, but of another label
    assert chosen(Nearest(), [0.0, 1.0, 0.0]) == [3]
    assert chosen(Nearest(), [0.0, 0.0, 1.0]) == []
    assert chosen(Nearest(within=0.3), [1.0, 0.0, 0.0]) == [0]
    assert chosen(Nearest(within=0.1), [1.0, 0.0, 0.0]) == []


def test_the_hook_brings_all_five() -> None:
    names = {component.name for component in advrepair_components()}
    assert names == {"cosine", "kernel", "label-pair", "nearest", "none"}


@pytest.mark.parametrize("top", [1, 3, 10, 1000])
@pytest.mark.parametrize("odd", [None, torch.nan, torch.inf, -torch.inf])
def test_cosine_label_by_label_is_cosine_over_all_centres(top: int, odd: float | None) -> None:
    noise = torch.Generator().manual_seed(top)
    # Few distinct numbers: many centres are equally similar.
    rows = torch.randint(-2, 3, (400, 4), generator=noise).float()
    logits = torch.randint(-2, 3, (90, 4), generator=noise).float()
    if odd is not None:
        logits[7, 2] = odd
    label = rows.argmax(1).masked_fill(rows.argmax(1) == 3, 0)  # nobody bears label 3
    patch = torch.arange(400) // 2 - 1  # two centres a patch; the first two have none
    centres = Centres(rows, rows, label, label, patch, 199)
    found = similarity.most_similar(logits, centres, top)
    assert torch.equal(found, similarity._nearest(logits, centres, top))
    serves = patch[:, None] == torch.arange(199)
    assert torch.equal(centres.to_patches(found), (found.float() @ serves.float()) > 0)
