"""Does the kernel allocator mask gradients? Every attack alone, and the surface that they climb.

``ADVREPAIR_DATA=... python -m benchmarks.masking [--network fnn_small] [--points 10000]
[--copies 6] [--images 200] [--radius 0.1] [--plot docs/surface.svg] [--only FAB-T,Square]``

Where gradients mislead, attacks without them do better than those with, more iterations or
restarts go on finding more, and points found on another network do better than those found on the
function itself (arXiv 1802.00420, 1902.06705). Each attack here runs alone on the first test
images, proved or not; a last line is about all together. The surrogate is a network trained to
give the outputs of F on training images and on points around them.

The plot shows, for some images, the margin of F (label's output less the largest other) in the
plane of the direction that PGD took and a random one; no smaller than 0 is right.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from markupsafe import Markup
from torch import Tensor, nn

from advrepair.core.attacking import balls, generator, perturb
from advrepair.core.data import Dataset
from advrepair.core.files import write_text
from advrepair.core.interfaces import Attack
from advrepair.core.patching import RepairedNetwork
from advrepair.core.statistics import Share
from advrepair.core.types import PropertySet
from advrepair.html.svg import svg
from advrepair.plugins.attacks.pgd import Pgd
from benchmarks.generalisation import Straight, add_arguments, hits, repair_of

_CELL, _GRID, _SHOWN, _GAP = 7.0, 25, 4, 16.0
_QUERIES = 5000
Points = Callable[[PropertySet], Tensor]


def surrogate(model: nn.Module, data: Dataset, inputs: int = 20000, epochs: int = 12) -> nn.Module:
    """A network of two hidden layers that imitates the model where it is attacked."""
    noise = generator(0, 31)
    x = data.images(torch.arange(min(inputs, len(data))))
    x = torch.cat([x, (x + 0.2 * (torch.rand(x.shape, generator=noise) - 0.5)).clamp(0, 1)])
    with torch.no_grad():
        wanted = torch.cat([model(part).softmax(1) for part in x.split(1000)])
    size = x[0].numel()
    layers = [nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    torch.manual_seed(0)
    found = nn.Sequential(nn.Flatten(), *layers)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    adam = torch.optim.Adam(found.parameters(), lr=1e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=noise).split(256):
            loss = F.cross_entropy(found(x[index]), wanted[index])
            adam.zero_grad()
            loss.backward()
            adam.step()
    with torch.no_grad():
        same = torch.cat([found(part).argmax(1) for part in x.split(1000)]) == wanted.argmax(1)
    print(f"  surrogate: agrees on {float(same.float().mean()):.1%} of what it learned", flush=True)
    return found.requires_grad_(False)


def descending(attack: Attack, on: nn.Module) -> Points:
    """Points that an attack of ours finds on a function."""
    return lambda asked: perturb(attack, on, asked, asked.center, generator(0, 21))


def library(model: nn.Module, name: str, radius: float) -> Points:
    """Points that one attack of AutoAttack finds."""
    import pyautoattack

    kit = pyautoattack.AutoAttack(
        model, norm="Linf", eps=radius, version="custom", attacks=[name], seed=0
    )
    kit.verbose, kit.square.n_queries = False, _QUERIES

    def found(asked: PropertySet) -> Tensor:
        points, *_ = kit.run_standard_evaluation(asked.center, asked.label, batch_size=len(asked))
        return asked.box.clamp(points)

    return found


def attacks(model: RepairedNetwork, imitation: nn.Module, radius: float) -> dict[str, Points]:
    """Every attack by its name."""
    ours: dict[str, Points] = {
        "PGD, 40 steps": descending(Pgd(steps=40), model),
        "PGD, 400 steps": descending(Pgd(steps=400), model),
        "PGD, 40 steps, 10 restarts": descending(Pgd(steps=40, restarts=10), model),
        "PGD through a straight ramp": descending(Pgd(steps=40), Straight(model)),
        "transfer from N": descending(Pgd(steps=40), model.base),
        "transfer from a surrogate": descending(Pgd(steps=40), imitation),
    }
    names = {"apgd-ce": "APGD-CE", "apgd-t": "APGD-T", "fab-t": "FAB-T", "square": "Square"}
    return ours | {told: library(model, name, radius) for name, told in names.items()}


def surface(model: nn.Module, asked: PropertySet, points: Tensor, radius: float) -> str:
    """Margins of the first images around each centre, as an SVG file."""
    steps, noise = torch.linspace(-1, 1, _GRID), generator(0, 22)
    marks, side = [], _CELL * _GRID
    for i in range(_SHOWN):
        center = asked.center[i]
        first = (points[i] - center).sign() * radius
        second = (torch.rand(center.shape, generator=noise) - 0.5).sign() * radius
        across, up = torch.meshgrid(steps, steps, indexing="xy")
        each = (-1,) + (1,) * center.dim()
        x = center + across.reshape(each) * first + up.reshape(each) * second
        with torch.no_grad():
            out = model(x.clamp(0, 1))
        label = int(asked.label[i])
        own = out[:, label]
        other = out.index_fill(1, torch.tensor([label]), -torch.inf).amax(1)
        marks += _cells((own - other).view(_GRID, _GRID), _GAP + i * (side + _GAP))
    title = "Margin of F around four images"
    told = "Across: the direction that PGD took; up: a random one. Blue is right, red is wrong."
    drawn = svg(_SHOWN * (side + _GAP) + _GAP, side + 2 * _GAP, title, told, marks)
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _cells(margin: Tensor, left: float) -> list[Markup]:
    """One square a point: blue where the label is right, red where it is not."""
    largest = float(margin.abs().max()) or 1.0
    marks = []
    for row, line in enumerate(margin.tolist()):
        for column, value in enumerate(line):
            shade = round(235 - 175 * abs(value) / largest)
            red, blue = (shade, 235) if value > 0 else (235, shade)
            x, y = left + _CELL * column, _GAP + _CELL * (_GRID - 1 - row)
            marks.append(
                Markup(
                    '<rect x="{:.0f}" y="{:.0f}" width="7" height="7" fill="rgb({},{},{})"/>'
                ).format(x, y, red, shade, blue)
            )
    return marks


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(points=10000, copies=6, images=200)
    parser.add_argument("--radius", type=float, default=0.1)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", default="", help="names of attacks, with commas; left out: all")
    given = parser.parse_args()
    found, data = repair_of(given)
    model, test = found.network, data.test
    assert test is not None
    chosen = [name for name in given.only.split(",") if name]
    imitation = surrogate(model, data.repair) if not chosen else model.base
    asked = balls(model.base, test, torch.arange(given.images), given.radius, (0.0, 1.0))
    wrong = hits(model, asked, asked.center)
    print(f"| no attack | {Share(int((~wrong).sum()), len(asked)).value:.1%} | |")
    broken, shown = wrong.clone(), None
    for name, points in attacks(model, imitation, given.radius).items():
        if chosen and name not in chosen:
            continue
        begin = time.perf_counter()
        at = points(asked)
        shown = at if shown is None else shown
        hit = wrong | hits(model, asked, at)
        broken |= hit
        took = time.perf_counter() - begin
        print(f"| {name} | {1 - float(hit.float().mean()):.1%} | {took:.0f} s |", flush=True)
    print(f"| all | {1 - float(broken.float().mean()):.1%} | |")
    if given.plot and shown is not None:
        write_text(given.plot, surface(model, asked, shown, given.radius))


if __name__ == "__main__":
    main()
