"""The kernel allocator: its function, its bound, its fit, and the copies it remembers."""

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.errors import UsageError
from advrepair.core.properties import robustness
from advrepair.core.types import Centres, Points
from advrepair.plugins.allocators import density_bounds
from advrepair.plugins.allocators.density import Density, feature_map
from advrepair.plugins.allocators.density_bounds import least_difference, least_probabilities
from advrepair.plugins.allocators.kernel import Kernel
from advrepair.plugins.allocators.moved_copies import moved_copies
from advrepair.testing.networks import Sketch

K, SHAPE = 3, (1, 4, 4)


def fitted(seed: int, points: int = 12, rank: int = 5, **numbers: float) -> dict[str, Tensor]:
    """What a kernel keeps, of random points of every class."""
    noise = torch.Generator().manual_seed(seed)
    r = torch.rand(points, 16, generator=noise)
    to_features = feature_map([r], SHAPE, 1.0, rank, r.dtype)
    label = (torch.arange(points) % K).sort().values
    known = {"low": 0.2, "scale": 1.5, "temperature": 0.3, "weight": 0.8} | numbers
    features = (r @ to_features).half()
    return {
        "map": to_features,
        "points": features,
        "square": features.double().square().sum(1).float(),
        "counts": torch.bincount(label, minlength=K),
        "numbers": torch.tensor(list(known.values()), dtype=torch.float64),
        "validation": torch.zeros(4, dtype=torch.float64),
    }


def centres(found: dict[str, Tensor], count: int = 2) -> Centres:
    zeros = torch.zeros(count, dtype=torch.long)
    return Centres(torch.zeros(count, *SHAPE), torch.zeros(count, K), zeros, zeros, zeros, 1, found)


def the_network():
    return Sketch(1, SHAPE).flatten().linear(8).relu().linear(K).finish()


def plainly(found: dict[str, Tensor], x: Tensor, logits: Tensor, trust: float) -> Tensor:
    """F by its formula, in float64, with squared distances of features."""
    low, scale, temperature, weight = found["numbers"].tolist()
    phi = ((x.double().flatten(1) - low) * scale).clamp(0, 1) @ found["map"].double()
    apart = (phi[:, None] - found["points"].double()[None]).square().sum(2)
    label = torch.arange(K).repeat_interleave(found["counts"])
    sums = torch.stack([(-apart / temperature)[:, label == k].logsumexp(1) for k in range(K)], 1)
    sums = sums - sums.logsumexp(1, keepdim=True)
    return (logits.double().softmax(1) + trust).log() + weight * sums


def test_it_is_the_formula_of_its_docstring():
    found, noise = fitted(0), torch.Generator().manual_seed(1)
    x = torch.rand(300, *SHAPE, generator=noise)
    logits = the_network()(x)
    ours = Kernel().outputs(x, logits, centres(found))
    torch.testing.assert_close(ours.double(), plainly(found, x, logits, 0.5), rtol=1e-4, atol=1e-4)


def test_it_answers_each_query_by_itself():
    found, x = fitted(0), torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(1))
    kernel, logits = Kernel(), the_network()(x)
    whole = kernel.outputs(x, logits, centres(found))
    for i in (0, 7, 299):
        alone = kernel.outputs(x[i : i + 1], logits[i : i + 1], centres(found))
        torch.testing.assert_close(alone, whole[i : i + 1])


def test_its_gradient_is_that_of_the_function():
    density = Density.of(fitted(2), torch.float64)
    x = 0.3 + 0.3 * torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(density, x.requires_grad_(True))


def test_no_patch_of_a_box_is_on():
    known, x = centres(fitted(0)), torch.zeros(5, *SHAPE)
    assert not Kernel().allocate(x, torch.zeros(5, K), known).any()
    assert Kernel().most(known) == 0


# The bound ----------------------------------------------------------------------------------


@st.composite
def situations(draw: st.DrawFn) -> tuple[dict[str, Tensor], Box, Tensor, torch.Generator]:
    """A kernel, boxes and labels."""
    found = fitted(
        draw(st.integers(0, 99)),
        points=draw(st.integers(3, 30)),
        rank=draw(st.sampled_from([1, 5, 0])),
        temperature=draw(st.sampled_from([0.01, 0.3, 5.0])),
        weight=draw(st.sampled_from([0.01, 1.0, 50.0])),
        low=draw(st.sampled_from([0.0, 0.2])),
        scale=draw(st.sampled_from([1.0, 4.0])),
    )
    noise = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.rand(4, *SHAPE, generator=noise)
    radius = draw(st.sampled_from([0.0, 1e-3, 0.05, 0.3]))
    label = torch.randint(K, (4,), generator=noise)
    return found, Box.around(x, radius, (0.0, 1.0)), label, noise


def lowest(found: dict[str, Tensor], box: Box, label: Tensor, noise: torch.Generator) -> Tensor:
    """The least differences seen in boxes, [B,K], of the density alone: at corners and inside."""
    seen = torch.full((len(box), K), torch.inf, dtype=torch.float64)
    density = Density.of(found, torch.float32)
    for turn in range(60):
        share = torch.rand(box.lower.shape, generator=noise)
        share = share.round() if turn % 2 else share
        x = box.clamp(box.lower + share * (box.upper - box.lower))
        known = density.weight * density(x)
        own = known.gather(1, label[:, None])
        seen = torch.minimum(seen, (own - known).double())
    return seen


@settings(deadline=None, max_examples=60)
@given(situations())
def test_no_point_of_a_box_lies_below_the_bound(situation):
    found, box, label, noise = situation
    margins = torch.zeros(len(box), K, dtype=torch.float64)  # N says nothing at all
    least = least_difference(1.0, box, label, margins, found)
    base = least_probabilities(1.0, margins.masked_fill(torch.arange(K) == label[:, None], 99))
    assert (least.gather(1, label[:, None]) == torch.inf).all()
    other = torch.arange(K) != label[:, None]
    assert (least - base <= lowest(found, box, label, noise))[other].all()


def test_it_is_tight_at_a_point():
    found, noise = fitted(3), torch.Generator().manual_seed(0)
    x = torch.rand(5, *SHAPE, generator=noise)
    label, box = torch.tensor([0, 1, 2, 0, 1]), Box(x, x)
    margins = torch.zeros(5, K, dtype=torch.float64)
    least = least_difference(1.0, box, label, margins, found)
    base = least_probabilities(1.0, margins.masked_fill(torch.arange(K) == label[:, None], 99))
    seen, other = lowest(found, box, label, noise), torch.arange(K) != label[:, None]
    assert ((seen - (least - base)).abs() < 1e-2)[other].all()


@pytest.mark.parametrize("bug", ["radius", "tangent", "far points"])
def test_a_bound_with_a_planted_bug_is_seen(bug, monkeypatch):
    broken, kind = 0, density_bounds._Bounds
    most, tangent = kind._most, kind._tangent
    if bug == "radius":
        monkeypatch.setattr(
            kind,
            "_most",
            lambda self, p, s, m, radius, *rest: most(self, p, s, m, radius / 2, *rest),
        )
    elif bug == "tangent":

        def steeper(self, middle):
            mean, constant = tangent(self, middle)
            return mean, constant + 0.5

        monkeypatch.setattr(kind, "_tangent", steeper)
    else:
        monkeypatch.setattr(torch.linalg, "matrix_norm", lambda m, order: m.new_zeros(()))
    for seed in range(30):
        found, noise = fitted(seed, points=30, temperature=0.3), torch.Generator().manual_seed(seed)
        box = Box.around(torch.rand(4, *SHAPE, generator=noise), 0.3, (0.0, 1.0))
        label = torch.randint(K, (4,), generator=noise)
        margins = torch.zeros(4, K, dtype=torch.float64)
        least = least_difference(1.0, box, label, margins, found)
        base = least_probabilities(1.0, margins.masked_fill(torch.arange(K) == label[:, None], 99))
        other = torch.arange(K) != label[:, None]
        broken += int((least - base > lowest(found, box, label, noise))[other].sum())
    assert broken


@settings(deadline=None)
@given(
    st.lists(st.floats(-30, 30), min_size=4, max_size=4),
    st.sampled_from([1e-6, 0.01, 1.0]),
    st.integers(0, 99),
)
def test_probabilities_are_bounded(least, trust, seed):
    """Logits whose differences are at least so large have no lower difference of logs."""
    margins = torch.tensor([[torch.inf, *least]], dtype=torch.float64)
    bound = least_probabilities(trust, margins)
    noise = torch.Generator().manual_seed(seed)
    more = torch.rand(200, 4, generator=noise).double() ** 4 * 40
    more[0] = 0
    logits = torch.cat([torch.zeros(200, 1).double(), -(margins[:, 1:] + more)], 1)
    known = (logits.softmax(1) + trust).log()
    assert (bound[:, 1:] <= (known[:, :1] - known)[:, 1:] + 1e-12).all()


def test_what_is_not_known_of_the_network_is_not_proved():
    margins = torch.tensor([[torch.inf, -torch.inf, 3.0]], dtype=torch.float64)
    bound = least_probabilities(0.01, margins)
    assert bound[0, 1] == pytest.approx(torch.tensor(0.01 / 1.01).log().item())


# What is deployed ---------------------------------------------------------------------------


def broken(found: dict[str, Tensor], x: Tensor, logits: Tensor, trust: float) -> tuple[int, int]:
    """How often a difference of F at x is not above what is proved of x alone; proofs above 0."""
    outputs, hits, proofs = Kernel(trust=trust).outputs(x, logits, centres(found)), 0, 0
    for label in range(K):
        margins = (logits[:, label, None] - logits).double()
        box, labels = Box(x, x), torch.full((len(x),), label)
        least = least_difference(trust, box, labels, margins, found)
        seen = (outputs[:, label, None] - outputs).double()
        other = torch.arange(K) != label
        hits += int((~(least <= seen) & (least > -torch.inf))[:, other].sum())
        proofs += int((least[:, other] > 0).sum())
    return hits, proofs


@pytest.mark.parametrize(
    "numbers",
    [
        {"temperature": 1e-38},
        {"weight": 1e39},
        {"scale": 1e39},
        {"scale": 1e-45},
        {"low": 1e30},
        {"low": 1e-40},
    ],
)
def test_nothing_is_proved_of_numbers_that_the_format_does_not_hold(numbers):
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    found, logits = fitted(0, **numbers), torch.zeros(4, K)
    assert broken(found, x, logits, 0.01) == (0, 0)


def test_nothing_is_proved_of_points_that_overflow():
    found, x = fitted(0), torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    found["map"] = found["map"] * 1e38
    assert broken(found, x, torch.zeros(4, K), 0.01) == (0, 0)


@pytest.mark.parametrize("trust", [1.0, 1e-6, 1e-12, 1e-17, 1e-20, 1e-30, 1e-44, 1e-60])
@pytest.mark.parametrize("apart", [1.0, 17.0, 37.5, 60.0, 110.0])
def test_little_trust_is_bounded_as_it_is_computed(trust, apart):
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([[0.0, -apart, -apart], [-apart, 0.0, -2 * apart], [0.0, 0.0, -apart]])
    hits, proofs = broken(fitted(0, weight=0.01), x, logits, trust)
    assert not hits and (proofs > 0) == (trust > 2.0**-60)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_a_ramp_that_has_hardly_begun_errs_as_much_as_any(scale):
    """Its beginning is rounded to the float below, so one float further it is twice as high.

    The points lie so that the exact feature falls to one, and twice of it to the other.
    """
    low, count = 0.5 + 2.0**-25, 16
    x = torch.full((1, *SHAPE), 0.5 + 2.0**-24)
    near = 2 * count * scale * 2.0**-25
    points = (torch.tensor([[near / 2], [near], [4 * near]])).half()
    found = fitted(0, low=low, scale=scale, temperature=near**2 / 1e6, weight=1.0) | {
        "map": torch.ones(count, 1),
        "points": points,
        "square": points.double().square().sum(1).float(),
        "counts": torch.ones(K, dtype=torch.long),
    }
    logits = torch.zeros(1, K)
    exact, ours = (
        plainly(found, x, logits, 1.0),
        Kernel(trust=1.0).outputs(x, logits, centres(found)),
    )
    assert exact.argmax() == 0 and ours.argmax() == 1
    assert broken(found, x, logits, 1.0)[0] == 0


def test_a_network_that_may_overflow_is_not_proved_by_the_kernel_alone():
    """Its softmax is NaN there, and so is F."""
    found, noise = fitted(0, weight=50.0), torch.Generator().manual_seed(0)
    box = Box.around(torch.rand(4, *SHAPE, generator=noise), 0.0, (0.0, 1.0))
    for label in range(K):
        labels = torch.full((4,), label)
        for nothing in (-torch.inf, torch.nan):
            margins = torch.zeros(4, K, dtype=torch.float64)
            margins[:, (label + 1) % K] = nothing
            least = least_difference(0.01, box, labels, margins, found)
            assert (least[:, torch.arange(K) != label] == -torch.inf).all()


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize("unknown", [torch.inf, -torch.inf, torch.nan])
def test_nothing_is_proved_of_a_box_with_a_face_that_is_not_known(side, unknown):
    """A feature may have overflowed there, and the ramp of NaN is NaN."""
    found, noise = fitted(0, weight=50.0), torch.Generator().manual_seed(0)
    x = torch.rand(3, *SHAPE, generator=noise)
    faces = {"lower": x.clone(), "upper": x.clone()}
    faces[side][1, 0, 2, 2] = unknown
    margins = torch.full((3, K), 5.0, dtype=torch.float64)
    labels = torch.zeros(3, dtype=torch.long)
    least = least_difference(0.01, Box(faces["lower"], faces["upper"]), labels, margins, found)
    assert (least[1, 1:] == -torch.inf).all() and (least[1, 0] == torch.inf).all()
    assert least[[0, 2]].isfinite()[:, 1:].all()


def test_of_features_the_range_is_that_of_the_points():
    """What is attacked are inputs, what is compared and where the ramp ends are features."""
    matrix = torch.randn(16, 7, generator=torch.Generator().manual_seed(3))
    asked = []

    def see(x: Tensor) -> Tensor:
        asked.append(x.shape[1:])
        return (10 * x.flatten(1) @ matrix).relu()

    given, network = some_points(see=see), the_network()
    found = Kernel(rank=4, steps=3).fit(network, given)
    seen = see(given.x)
    assert set(asked) == {torch.Size(SHAPE)}
    assert found["map"].shape == (7, 4) and found["points"].shape == (45, 4)
    low, scale, _, _ = found["numbers"].tolist()
    width = float(seen.max() - seen.min())
    assert low == pytest.approx(float(seen.min()) + 0.2 * width)
    assert scale == pytest.approx(1 / (0.6 * width))
    density = Density.of(found, torch.float32)
    points = density.features(seen)[given.label.argsort(stable=True)]
    torch.testing.assert_close(points.half(), found["points"], rtol=1e-2, atol=1e-2)
    assert found["validation"][1] >= found["validation"][0]


# The fit ------------------------------------------------------------------------------------


def some_points(held: int = 60, **more) -> Points:
    """Points of three blurred patterns, and inputs of the same to fit by."""
    noise = torch.Generator().manual_seed(0)
    patterns = torch.rand(K, *SHAPE, generator=noise)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        label = torch.arange(count) % K
        x = patterns[label] + 0.25 * torch.randn(count, *SHAPE, generator=noise)
        return x.clamp(0, 1), label

    (x, label), (other, kept) = drawn(45), drawn(held)
    asked = robustness(other, kept, 0.05, K, clip=(0.0, 1.0))
    given = Points(x, label, asked, False, (0.0, 1.0), torch.Generator().manual_seed(0))
    return evolve(given, **more)


def test_the_fit_keeps_what_the_network_can_do():
    kernel, network = Kernel(rank=0, ramp=()), the_network()
    found = kernel.fit(network, some_points())
    own, accuracy, standing, count = found["validation"].tolist()
    assert count == 60 and accuracy >= own and 0 <= standing <= 1
    low, scale, temperature, weight = found["numbers"].tolist()
    assert (low, scale) == (0, 1) and temperature > 0 and weight > 0
    told = kernel.told(centres(dict(found)))
    assert told["points"] == 45 and told["validation accuracy"] == accuracy


def test_the_fit_says_how_far_it_is():
    heard = []
    Kernel(rank=4, ramp=(), steps=10).fit(the_network(), some_points(tell=heard.append))
    assert len(heard) >= 12 and heard == sorted(heard)
    assert 0 < heard[0] < 0.1 and 0.5 < heard[-1] < 1


def test_the_same_points_give_the_same_fit():
    kernel, network = Kernel(copies=1), the_network()
    first, second = (kernel.fit(network, some_points()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_numbers_that_are_given_are_taken():
    found = Kernel(temperature=0.5, weight=2.0).fit(the_network(), some_points(held=0))
    assert found["numbers"].tolist()[2:] == [0.5, 2.0]
    assert not found["validation"].any()


def test_what_was_held_out_is_remembered_after_it_has_served():
    found = Kernel().fit(the_network(), some_points(keep=True))
    assert int(found["counts"].sum()) == 45 + 60


def test_too_little_is_refused():
    with pytest.raises(UsageError, match="fitted by labelled inputs beside its points"):
        Kernel().fit(the_network(), some_points(held=0))
    given = some_points()
    with pytest.raises(UsageError, match="has no point of class 2"):
        Kernel().fit(the_network(), evolve(given, label=given.label.clamp(max=1)))
    with pytest.raises(UsageError, match="all points are the same"):
        Kernel().fit(the_network(), evolve(given, x=torch.ones(45, *SHAPE), clip=None))


@pytest.mark.parametrize("ramp", [(0.5, 0.5), (0.1,), (-0.1, 0.5), (0.2, 1.1)])
def test_a_ramp_that_is_none_is_refused(ramp):
    with pytest.raises(UsageError, match=r"kernel.ramp is .* or \[\] for none"):
        Kernel(ramp=ramp)


# Copies -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.sampled_from([(9, 9), (1, 8, 12), (3, 10, 10)]))
def test_copies_are_images_of_the_same_label(copies, shape):
    noise = torch.Generator().manual_seed(0)
    x, label = torch.rand(5, *shape, generator=noise), torch.arange(5)
    many, labels = moved_copies(x, label, copies, noise)
    assert many.shape == (5 * copies, *shape) and torch.equal(many[:5], x)
    assert torch.equal(labels, label.repeat(copies))
    assert float(many.min()) >= 0 and float(many.max()) <= 1
    if copies > 1:
        assert not torch.equal(many[5:10], x)


def test_what_is_no_image_has_no_copies():
    with pytest.raises(UsageError, match="are no images that can be moved"):
        moved_copies(torch.zeros(3, 20), torch.zeros(3), 2, torch.Generator())


def test_directions_do_not_depend_on_their_sign():
    r = torch.rand(40, 16, generator=torch.Generator().manual_seed(0))
    found = feature_map(r.split(7), SHAPE, 0.0, 4, r.dtype)
    torch.testing.assert_close(found.T @ found, torch.eye(4), rtol=1e-4, atol=1e-5)
    assert (found.gather(0, found.abs().argmax(0)[None]) > 0).all()
