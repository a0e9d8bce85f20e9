"""Which patches an input outside every box gets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.interfaces import Allocator
from advrepair.core.types import Centres
from advrepair.plugins.allocators import advrepair_components, closeness, labels, similarity
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.feature_cosine import FeatureCosine
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator

ALLOCATORS = [
    Cosine(),
    Cosine(top=1),
    FeatureCosine(),
    FeatureCosine(top=1),
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


def test_the_hook_brings_all_six() -> None:
    names = {component.name for component in advrepair_components()}
    assert names == {"cosine", "feature-cosine", "kernel", "label-pair", "nearest", "none"}


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


# Near and similar in what patches see --------------------------------------------------------


def distances(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and cosine of every query and repaired input, [N,P], by the plain formulas."""
    query, centre = x.flatten(1).double()[:, None], known.flatten(1).double()[None]
    apart = (query - centre).norm(dim=2)
    return apart, torch.nn.functional.cosine_similarity(query, centre, dim=2, eps=1e-30)


@settings(deadline=None)
@given(situations(), st.integers(1, 4))
def test_feature_cosine_takes_the_near_and_similar_of_the_label(
    situation: Situation, top: int
) -> None:
    x, logits, centres = situation
    serves = FeatureCosine(top=top).allocate(x, logits, centres)[:, centres.patch]
    apart, cosine = distances(x, centres.x)
    score = apart * (2 - cosine)
    for i, on in enumerate(serves):
        candidate = centres.label == logits[i].argmax()
        assert int(on.sum()) == min(top, int(candidate.sum()))
        left = candidate & ~on
        if left.any() and on.any():
            assert score[i][on].max() <= score[i][left].min() + 1e-4
        # Nobody is passed over who is nearer and more similar than one that is taken.
        for taken in on.nonzero()[:, 0].tolist():
            better = (apart[i] < apart[i, taken] - 1e-4) & (cosine[i] > cosine[i, taken] + 1e-4)
            assert not (better & left).any()


@settings(deadline=None)
@given(situations())
def test_feature_cosine_looks_at_no_logit_but_for_the_label(situation: Situation) -> None:
    x, logits, centres = situation
    other = centres.logits.flip(0) * 3 + 1
    known = Centres(centres.x, other, centres.label, centres.target, centres.patch, centres.patches)
    first, second = (FeatureCosine(top=2).allocate(x, logits, c) for c in (centres, known))
    assert torch.equal(first, second)


def features_of(x: list[list[float]]) -> Centres:
    known, nothing = torch.tensor(x), torch.zeros(len(x), dtype=torch.long)
    return Centres(known, torch.zeros(len(x), 2), nothing, nothing, torch.arange(len(x)), len(x))


def closest_to(query: list[float], x: list[list[float]], top: int) -> list[int]:
    found = FeatureCosine(top=top).allocate(
        torch.tensor([query]), torch.tensor([[1.0, 0.0]]), features_of(x)
    )
    return found[0].nonzero().flatten().tolist()


def test_feature_cosine_by_hand() -> None:
    # In one direction: the nearer. The product of the paper, cosine times distance, takes 2.
    assert closest_to([1.0, 1.0], [[2.0, 2.0], [1.5, 1.5], [9.0, 9.0]], 1) == [1]
    # At one distance: the more similar.
    assert closest_to([1.0, 0.0], [[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]], 1) == [1]
    assert closest_to([1.0, 0.0], [[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]], 2) == [0, 1]
    # The same point, and the first of equals.
    assert closest_to([1.0, 1.0], [[3.0, 1.0], [1.0, 1.0], [1.0, 1.0]], 1) == [1]
    # Nothing has a direction at zero, and everything a distance.
    assert closest_to([0.0, 0.0], [[3.0, 1.0], [1.0, -1.0], [-1.0, -3.0]], 1) == [1]


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("of", ["query", "centre"])
def test_feature_cosine_of_numbers_that_are_none(odd: float, of: str) -> None:
    label = torch.tensor([0, 0, 1, -1])
    x, known = torch.ones(2, 3), torch.eye(4, 3) + 0.5
    (x if of == "query" else known)[0, 1] = odd
    centres = Centres(known, torch.zeros(4, 2), label, label, torch.arange(4), 4)
    found = FeatureCosine().allocate(x, torch.tensor([[1.0, 0.0]] * 2), centres)
    both, lost = [True, True, False, False], [False, True, False, False]
    if odd == odd:
        assert found.tolist() == [both, both]
    else:
        assert found.tolist() == ([[False] * 4, both] if of == "query" else [lost, lost])


@pytest.mark.parametrize("width", [1, 512, 3136])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_sums_over_many_features_are_exact_in_any_order(width: int, size: float) -> None:
    noise = torch.Generator().manual_seed(width)
    known = size * torch.randn(40, width, generator=noise)
    x = 3 * size * torch.randn(130, width, generator=noise)
    x[0], x[1], x[2] = known.abs().max(), -1e3 * known.abs().max(), known[7]
    grid = closeness._Grid.of(known)
    query, centre = grid.multiples(x), grid.multiples(known)
    assert float(query.abs().max()) <= grid.most
    assert grid.most / 4 <= float(centre.abs().max()) <= grid.most / 2
    assert torch.equal(query, query.round()) and torch.equal(centre, centre.float().double())
    whole = closeness._closeness(query, centre)
    order = torch.randperm(width, generator=noise)
    for part in (slice(0, 1), slice(2, 9), slice(0, 130)):
        again = closeness._closeness(query[part][:, order], centre[:, order])
        assert torch.equal(whole[part], again)
    exact = [sum(int(a) * int(b) for a, b in zip(query[i], centre[5], strict=True)) for i in (0, 1)]
    assert (query[:2] @ centre[5]).tolist() == exact
    sure = query.abs().amax(1) < grid.most  # nothing was cut off
    apart, cosine = distances(x[sure].double() / size, known.double() / size)
    expected = apart * size * grid.inverse * (cosine - 2)
    torch.testing.assert_close(whole[sure], expected, rtol=1e-3, atol=2.0 * width**0.5)


def test_an_allocation_by_many_features_does_not_depend_on_the_batch() -> None:
    noise = torch.Generator().manual_seed(0)
    known, x = torch.rand(60, 3136, generator=noise), torch.rand(33, 3136, generator=noise)
    known[30:] = known[:30] * (1 + 2**-22 * torch.rand(30, 1, generator=noise))  # nearly ties
    label = torch.arange(60) % 2
    centres = Centres(known, torch.zeros(60, 2), label, label, torch.arange(60), 60)
    logits = torch.rand(33, 2, generator=noise)
    whole = FeatureCosine(top=5).allocate(x, logits, centres)
    for size in (1, 2, 7):
        parts = zip(x.split(size), logits.split(size), strict=True)
        found = [FeatureCosine(top=5).allocate(*part, centres) for part in parts]
        assert torch.equal(whole, torch.cat(found))
