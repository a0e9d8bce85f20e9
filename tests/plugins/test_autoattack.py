"""AutoAttack on boxes: as strong as the library itself, and right about every demand."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advrepair
from advrepair.cli import main
from advrepair.core.data import load_data
from advrepair.core.errors import UsageError
from advrepair.core.interfaces import RowWise
from advrepair.core.network import load_network
from advrepair.core.properties import robustness
from advrepair.core.types import Box, PropertySet
from advrepair.demo import IMAGES, NETWORK
from advrepair.plugins.attacks import advrepair_components, four_attacks
from advrepair.plugins.attacks.autoattack import AutoAttack
from advrepair.plugins.attacks.four_attacks import seed_of
from advrepair.plugins.attacks.pgd import Pgd

DATA = os.environ.get("ADVREPAIR_DATA")
QUICK = AutoAttack(iterations=20, queries=60)

library = pytest.importorskip("pyautoattack", reason="the extra autoattack is not installed")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def demanded(box: Box, C: Tensor, d: Tensor, group: Tensor, label: int = -1) -> PropertySet:
    count = len(box)
    rows = (each.expand(count, *each.shape) for each in (C, d, group))
    none = torch.full((count,), -1)
    names = tuple(f"property {i}" for i in range(count))
    return PropertySet(box, *rows, torch.full_like(none, label), none, box.center, names)


def first_is_largest(box: Box, outputs: int, label: int) -> PropertySet:
    """Output 0 is the largest; label 0 says so, label -1 leaves it to the rows."""
    C = torch.cat([torch.ones(outputs - 1, 1), -torch.eye(outputs - 1)], 1)
    return demanded(box, C, torch.zeros(outputs - 1), torch.arange(outputs - 1), label)


def network(seed: int, size: int, outputs: int) -> nn.Module:
    generator = seeded(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, outputs))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net


def digits(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    data = load_data(IMAGES, (1, 8, 8), torch.float32, (0.0, 1.0), 10).test
    assert data is not None
    return load_network(NETWORK), data.images(slice(0, count)), data.labels[:count]


def mnist(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    folder = Path(DATA or ".") / "mnist"
    data = load_data(folder / "mnist.npz", (1, 28, 28), torch.float32, (0.0, 1.0), 10).test
    assert data is not None
    net = load_network(folder / "nets" / "fnn_small.onnx")
    return net, data.images(slice(0, count)), data.labels[:count]


# Against the library -------------------------------------------------------------------


def by_the_library(
    net: nn.Module, x: Tensor, y: Tensor, epsilon: float, queries: int, attack: str = ""
) -> tuple[Tensor, Tensor]:
    """What is robust by the library's own evaluation, bool [P], and its points.

    attack: one of its attacks, as its standard version has it; empty for all four.
    """
    kit = library.AutoAttack(
        net, norm="Linf", eps=epsilon, seed=seed_of(seeded()), version="standard"
    )
    kit.attacks_to_run = [attack] if attack else kit.attacks_to_run
    kit.square.n_queries = queries
    trace = sys.gettrace()
    found, _ = kit.run_standard_evaluation(x, y, batch_size=len(x))
    sys.settrace(trace)  # its check for dynamic defences ends any tracing
    return net(found).argmax(1) == y, found


def agrees(
    net: nn.Module, x: Tensor, y: Tensor, epsilon: float, queries: int, attack: str = ""
) -> None:
    with torch.no_grad():
        robust, theirs = by_the_library(net, x, y, epsilon, queries, attack)
        properties = robustness(x, y, epsilon, 10, clip=(0.0, 1.0))
        found = AutoAttack(queries=queries).perturb(net, properties, x, seeded())
        margin = properties.margin(net(found))
    assert 0 < int(robust.sum()) < len(x)
    assert torch.equal(margin > 0, robust)
    assert properties.box.holds(found).all()
    # The same random numbers: what the library met was met here, and the lowest kept.
    assert (margin <= properties.margin(net(theirs)) + 1e-5).all()


def test_it_is_as_strong_as_the_library() -> None:
    agrees(*digits(12), epsilon=0.08, queries=500)


@pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no MNIST")
def test_it_is_as_strong_as_the_library_on_mnist() -> None:
    agrees(*mnist(8), epsilon=0.06, queries=50)


@pytest.mark.parametrize(
    ("stage", "attack"),
    [("apgd", "apgd-ce"), ("apgd_targeted", "apgd-t"), ("fab", "fab-t"), ("square", "square")],
)
def test_each_attack_is_as_strong_as_the_library_has_it(
    stage: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = four_attacks._stages

    def one(options: AutoAttack, kit: Any, targets: int) -> Iterator[tuple[Any, int]]:
        yield from (each for each in every(options, kit, targets) if each[0] is getattr(kit, stage))

    monkeypatch.setattr(four_attacks, "_stages", one)
    agrees(*digits(8), epsilon=0.09, queries=100, attack=attack)


def test_other_coordinates_find_as_much() -> None:
    """One ball of another radius in the set, and every box is attacked by itself."""
    net, x, y = digits(12)
    small, large = (robustness(x, y, e, 10, clip=(0.0, 1.0)) for e in (0.05, 0.1))
    attack = AutoAttack(iterations=20, queries=100)
    mixed = PropertySet(
        Box(
            torch.cat([small.box.lower, large.box.lower]),
            torch.cat([small.box.upper, large.box.upper]),
        ),
        *(
            torch.cat([getattr(small, name), getattr(large, name)])
            for name in ("C", "d", "group", "label", "target", "center")
        ),
        small.names + large.names,
    )
    found = attack.perturb(net, mixed, mixed.center, seeded())
    alike = [attack.perturb(net, each, x, seeded()) for each in (small, large)]
    assert mixed.box.holds(found).all()
    apart = [p.violated(net(f)) for p, f in zip((small, large), alike, strict=True)]
    assert torch.equal(mixed.violated(net(found)), torch.cat(apart))


def test_paper_is_weaker() -> None:
    net, x, y = digits(25)
    properties = robustness(x, y, 0.07, 10, clip=(0.0, 1.0))
    weak, strong = (
        properties.violated(net(attack.perturb(net, properties, x, seeded())))
        for attack in (AutoAttack(version="paper"), AutoAttack(iterations=40, queries=50))
    )
    assert (strong | ~weak).all()
    assert int(weak.sum()) > 0


def test_square_finds_what_gradients_do_not() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            high = (x > 0.6).sum(1, keepdim=True).to(x.dtype)
            return torch.cat([3.5 - high, 0 * high, -1 + 0 * high, -2 + 0 * high], 1)

    # Not an image: every coordinate, the last one too, must be moved for a violation.
    box = Box.around(torch.full((3, 4), 0.5), 0.2)
    properties = first_is_largest(box, 4, 0)
    paper = AutoAttack(version="paper").perturb(Steps(), properties, box.center, seeded())
    found = AutoAttack(iterations=5, queries=500).perturb(Steps(), properties, box.center, seeded())
    assert properties.violated(Steps()(found)).all()
    assert not properties.violated(Steps()(paper)).all()


# Demands -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (5,), (1,), (2, 3), (3, 2, 2), (1, 1, 6), (1, 2, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_lie_in_boxes_of_any_kind(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = seeded()
    x = 4 * torch.rand(4, *shape, generator=generator, dtype=dtype) - 2
    radius = torch.rand(4, *shape, generator=generator, dtype=dtype)
    radius[:, ..., 0] *= 1e-6
    radius[1] = 0
    box = Box(x - radius, x + radius)
    net = network(1, x[0].numel(), 3).to(dtype)
    properties = first_is_largest(box, 3, 0)
    found = QUICK.perturb(net, properties, x, generator)
    assert found.dtype == dtype
    assert box.holds(found).all()
    assert torch.equal(found[1], x[1])


@pytest.mark.parametrize("label", [0, -1])
@pytest.mark.parametrize("outputs", [2, 3, 4, 5, 12])
@pytest.mark.parametrize("epsilon", [0.1, 3.0])
def test_any_number_of_classes(outputs: int, label: int, epsilon: float) -> None:
    """What PGD breaks, this breaks too, labels or not, in float64."""
    net = network(outputs, 6, outputs).double()
    x = torch.rand(12, 6, generator=seeded(), dtype=torch.float64) * 4 - 2
    right = net(x).argmax(1) == 0
    properties = first_is_largest(Box.around(x, epsilon), outputs, label)
    found = QUICK.perturb(net, properties, x, seeded())
    broken = properties.violated(net(found))
    plain = properties.violated(net(Pgd().perturb(net, properties, x, seeded())))
    assert (broken | right).all()
    assert (broken | ~plain).all()


def test_a_linear_classifier_is_broken_exactly_where_it_can_be() -> None:
    net = nn.Linear(24, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=seeded())
    x = torch.rand(30, 24, generator=seeded())
    widths = torch.linspace(0.01, 0.6, 30)[:, None].expand(-1, 24)
    for box in (Box.around(x, 0.2, (0.0, 1.0)), Box(x - widths, x + widths / 3)):
        weight = net.weight.detach().double()
        slope = weight[0] - weight[1]
        corner = torch.where(slope > 0, box.lower.double(), box.upper.double())
        with torch.no_grad():
            net.bias.copy_(torch.stack([-(corner @ slope).median(), torch.tensor(0.0)]))
        least = corner @ slope + net.bias.detach().double()[0]
        assert 0 < int((least > 0).sum()) < 30
        rows = (torch.tensor([[1.0, -1.0]]), torch.zeros(1))
        for properties in (
            first_is_largest(box, 2, 0),
            first_is_largest(box, 2, -1),
            demanded(box, *rows, torch.tensor([3])),
        ):
            found = QUICK.perturb(net, properties, box.center, seeded())
            clear = least.abs() > 1e-5
            assert torch.equal(properties.violated(net(found))[clear], (least <= 0)[clear])


def test_groups_of_rows_without_a_label() -> None:
    """Output 0 is not the largest, and output 1 stays below 3."""
    net = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    # The margins are max(-x1, -x0) and 3 - x0.
    lower = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -2.0]])
    upper = torch.tensor([[0.5, 0.5], [-0.1, 0.5], [3.5, -1.0]])
    C = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    d, group = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([2, 2, 0])
    properties = demanded(Box(lower, upper), C, d, group)
    found = QUICK.perturb(net, properties, properties.center, seeded())
    assert properties.violated(net(found)).tolist() == [True, False, True]


def test_demands_of_several_kinds_at_once() -> None:
    net = network(3, 6, 3)
    x = torch.rand(6, 6, generator=seeded())
    plain = first_is_largest(Box.around(x, 0.3), 3, -1)
    label, group = plain.label.clone(), plain.group.clone()
    label[::3] = 0
    group[1] = torch.tensor([-1, 1])
    group[2] = -1  # nothing is demanded
    mixed = PropertySet(
        plain.box, plain.C, plain.d, group, label, plain.target, plain.center, plain.names
    )
    found = QUICK.perturb(net, mixed, x, seeded())
    assert mixed.box.holds(found).all()
    assert torch.equal(found[2], x[2])
    again = QUICK.perturb(net, mixed[torch.arange(6)], x, seeded())
    assert torch.equal(found, again)
    pgd = Pgd().perturb(net, mixed, x, seeded())
    assert (mixed.violated(net(found)) | ~mixed.violated(net(pgd))).all()


@pytest.mark.parametrize("label", [0, -1])
def test_a_tie_breaks_its_property(label: int) -> None:
    class Flat(nn.Module):
        """Output 0 is ahead, but above 0.7 the two are the same."""

        def forward(self, x: Tensor) -> Tensor:
            margin = (0.7 - x[:, :1]).relu()
            return torch.cat([margin, 0 * margin], 1)

    box = Box(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.6, 1.0]]))
    properties = first_is_largest(box, 2, label)
    found = QUICK.perturb(Flat(), properties, torch.zeros(2, 2), seeded())
    assert properties.violated(Flat()(found)).tolist() == [True, False]


@pytest.mark.parametrize("label", [0, -1])
def test_a_nan_output_breaks_its_property(label: int) -> None:
    class Sick(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sick = torch.where(x[:, :1] > 0.6, torch.nan, 2.0 - x[:, :1])
            return torch.cat([sick, 0 * x[:, :1]], 1)

    box = Box(torch.zeros(3, 2), torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.61, 1.0]]))
    properties = first_is_largest(box, 2, label)
    start = torch.zeros(3, 2)
    found = QUICK.perturb(Sick(), properties, start, seeded())
    assert properties.violated(Sick()(found)).tolist() == [True, False, True]
    assert box.holds(found).all()


def test_a_slope_that_is_nan_counts_as_none() -> None:
    class Torn(nn.Module):
        """The slope in coordinate 0 is NaN; all others must go down together."""

        def forward(self, x: Tensor) -> Tensor:
            torn = torch.where(x[:, :1] > 2, (x[:, :1] - 2).sqrt(), 1e-3)
            return torch.cat([x[:, 1:].mean(1, keepdim=True) + torn, 0 * x[:, :1]], 1)

    box = Box.around(torch.full((2, 30), 0.5), 0.51)
    properties = first_is_largest(box, 2, 0)
    found = AutoAttack(version="paper").perturb(Torn(), properties, box.center, seeded())
    assert properties.violated(Torn()(found)).all()


def test_a_network_that_ignores_its_input() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]).expand(len(x), -1)

    box = Box.around(torch.rand(3, 4, generator=seeded()), 0.1)
    properties = first_is_largest(box, 5, 0)
    found = QUICK.perturb(Constant(), properties, box.center, seeded())
    assert not properties.violated(Constant()(found)).any()


def test_a_start_that_breaks_its_property_counts() -> None:
    net = network(2, 4, 3)
    x = torch.rand(5, 4, generator=seeded())
    properties = first_is_largest(Box.around(x, 0.4), 3, 0)
    start = Pgd(steps=50, restarts=3).perturb(net, properties, x, seeded())
    found = AutoAttack(version="paper").perturb(net, properties, start, seeded())
    assert (properties.margin(net(found)) <= properties.margin(net(start)) + 1e-6).all()


def test_it_repairs_and_is_beaten_by_the_repair() -> None:
    with np.load(IMAGES, allow_pickle=False) as images:
        x, y = images["x_train"][:60], images["y_train"][:60]
    result = advrepair.repair(
        load_network(NETWORK),
        x,
        y,
        epsilon=0.1,
        count=3,
        settings={
            "plan": {"attack": "autoattack"},
            "autoattack": {"iterations": 10, "queries": 20},
            "evaluation": {"samples": 2},
        },
    )
    properties = result.problem.properties
    assert result.report["properties"]["certified"] == 3
    before = QUICK.perturb(load_network(NETWORK), properties, properties.center, seeded())
    found = QUICK.perturb(result.network, properties, properties.center, seeded())
    assert properties.violated(load_network(NETWORK)(before)).all()
    assert not properties.violated(result.network(found)).any()


# Manners -------------------------------------------------------------------------------


def test_the_generator_decides() -> None:
    net = network(1, 6, 5)
    x = torch.rand(9, 6, generator=seeded(1))
    properties = first_is_largest(Box.around(x, 0.2), 5, 0)
    torch.manual_seed(1)
    first = QUICK.perturb(net, properties, x, seeded())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first, QUICK.perturb(net, properties, x, seeded()))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, QUICK.perturb(net, properties, x, seeded(5)))


class Shifted(RowWise):
    """Two outputs, one linear and one 0; each row has its own bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        first = x @ self.weight + self.bias
        return torch.stack([first, torch.zeros_like(first)], 1)

    def of_rows(self, index: Tensor) -> Shifted:
        return Shifted(self.weight, self.bias[index])


@pytest.mark.parametrize("label", [0, -1])
def test_a_model_whose_rows_differ(label: int) -> None:
    weight = torch.randn(24, generator=seeded())
    box = Box.around(torch.rand(30, 24, generator=seeded()), 0.2, (0.0, 1.0))
    lowest = torch.where(weight > 0, box.lower, box.upper) @ weight
    bias = -lowest + torch.linspace(-1, 1, 30)
    properties, model = first_is_largest(box, 2, label), Shifted(weight, bias)
    attack = attrs.evolve(QUICK, batch=7)
    found = attack.perturb(model, properties, box.center, seeded())
    assert torch.equal(properties.violated(model(found)), lowest + bias <= 0)


def test_batches_find_as_much() -> None:
    net, x, y = digits(15)
    properties = robustness(x, y, 0.07, 10, clip=(0.0, 1.0))
    whole, parts = (
        properties.violated(net(attack.perturb(net, properties, x, seeded())))
        for attack in (QUICK, attrs.evolve(QUICK, batch=6))
    )
    assert torch.equal(whole, parts)


def test_nothing_of_the_caller_is_changed() -> None:
    net = nn.Sequential(nn.BatchNorm1d(6), network(0, 6, 4))
    net[1].eval()
    frozen = next(net[1].parameters()).requires_grad_(False)
    x = torch.rand(4, 6, generator=seeded())
    before = x.clone()
    trace = sys.gettrace()
    with torch.no_grad():
        net[1][3].bias[0] = 1e3  # so that every attack has its turn
        QUICK.perturb(net, first_is_largest(Box.around(x, 0.2), 4, 0), x, seeded())
    assert torch.equal(x, before) and not x.requires_grad
    assert net.training and net[0].training and not net[1].training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [p.requires_grad for p in net.parameters()].count(False) == 1
    assert not frozen.requires_grad
    assert sys.gettrace() is trace


def test_it_says_nothing_and_leaves_no_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    x = torch.rand(3, 6, generator=seeded())
    QUICK.perturb(network(2, 6, 3), first_is_largest(Box.around(x, 0.1), 3, 0), x, seeded())
    flat = nn.Linear(6, 5)  # of which the library warns
    with torch.no_grad():
        flat.weight.zero_()
        flat.bias.copy_(torch.arange(5.0).flip(0))
    QUICK.perturb(flat, first_is_largest(Box.around(x, 0.1), 5, 0), x, seeded())
    out, err = capfd.readouterr()
    assert (out, err, caplog.records, list(tmp_path.iterdir())) == ("", "", [], [])


def test_no_property_is_no_work() -> None:
    nothing = torch.empty(0, 6)
    properties = first_is_largest(Box(nothing, nothing), 3, 0)
    assert QUICK.perturb(network(0, 6, 3), properties, nothing, seeded()).shape == (0, 6)


def test_a_start_that_is_nan_is_refused() -> None:
    box = Box(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(UsageError, match="NaN"):
        QUICK.perturb(
            network(0, 2, 2), first_is_largest(box, 2, 0), torch.full((1, 2), torch.nan), seeded()
        )


def without_the_library(
    monkeypatch: pytest.MonkeyPatch, instead: types.ModuleType | None = None
) -> None:
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> types.ModuleType:
        if name == "autoattack" and instead is not None:
            return instead
        if name in ("pyautoattack", "autoattack"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)


def test_without_the_library_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_library(monkeypatch)
    x = torch.rand(1, 6, generator=seeded())
    with pytest.raises(UsageError, match=r'pip install "advrepair\[autoattack\]"') as caught:
        QUICK.perturb(network(0, 6, 3), first_is_largest(Box.around(x, 0.1), 3, 0), x, seeded())
    assert "\n" not in str(caught.value)


def test_it_is_listed_without_the_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_the_library(monkeypatch)
    assert main(["plugins", "autoattack"]) == 0
    assert "queries" in capsys.readouterr().out


@pytest.mark.parametrize("useful", [True, False])
def test_a_module_autoattack_will_do(monkeypatch: pytest.MonkeyPatch, useful: bool) -> None:
    other = types.ModuleType("autoattack")
    if useful:
        other.AutoAttack = library.AutoAttack  # type: ignore[attr-defined]
    without_the_library(monkeypatch, other)
    x = torch.rand(3, 6, generator=seeded())
    properties = first_is_largest(Box.around(x, 0.1), 3, 0)
    if useful:
        assert QUICK.perturb(network(0, 6, 3), properties, x, seeded()).shape == x.shape
    else:
        with pytest.raises(UsageError, match="pip install"):
            QUICK.perturb(network(0, 6, 3), properties, x, seeded())


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, advrepair.plugins.attacks as a; a.advrepair_components(); "
        "sys.exit('pyautoattack' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_hook_brings_it() -> None:
    assert AutoAttack in advrepair_components()
