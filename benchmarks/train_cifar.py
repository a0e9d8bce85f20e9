"""Train a network on CIFAR-10 and store its weights.

``ADVREPAIR_DATA=... python -m benchmarks.train_cifar --out vgg.pt
[--model vgg19_bn_quarter] [--epochs 90] [--device cpu]``

Stochastic gradient descent with momentum, a short rise of the rate and then a cosine, labels
smoothed, images mirrored and shifted by up to four pixels. The recipe is fixed in advance: no test
image is looked at before the end. Seeded; another machine rounds otherwise. The file appears when
training has ended, and is whole.

On a GPU and with all 50,000 training images the full width is meant
(``--model vgg19_bn_full --device cuda``). What was trained here is a quarter of the width, on the
8,068 training images that are there without loss, ``cifar10_train10k_jpeg.npz`` not at hand:
90 epochs, 727 seconds on one core; 82.01 % right of the 1,017 lossless test images, 75.61 % of the
10,000 from JPEG files.
"""

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import cifar, cifar_models
from benchmarks.cifar import Part

MODELS = ("resnet2b", "resnet18", "vgg19_bn_full", "vgg19_bn_quarter", "vgg19_bn_tiny")
_SHIFT = 4
_SMOOTHING = 0.1
_MOMENTUM = 0.9
_DECAY = 5e-4
_RISE = 0.05  # of all steps


def scaled(images: Tensor) -> Tensor:
    """uint8 [n,32,32,3] as the network takes them: float32 [n,3,32,32] from 0 to 1."""
    return images.permute(0, 3, 1, 2).float() / 255


def varied(padded: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """Images of a padded set, each shifted, half of them mirrored: uint8 [n,32,32,3].

    padded: [N,32+2s,32+2s,3]. index: [n].
    """
    size, n, device = padded.shape[1] - 2 * _SHIFT, len(index), padded.device
    start = torch.randint(2 * _SHIFT + 1, (2, n, 1), generator=generator).to(device)
    rows, columns = start + torch.arange(size, device=device)
    mirrored = torch.rand(n, 1, generator=generator).to(device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[index.to(device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def factor(step: int, steps: int) -> float:
    """Of the rate at a step from 0: it rises in a line, then falls as a cosine does."""
    rise = _RISE * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def accuracy(module: nn.Module, part: Part, device: str) -> float:
    """The share of images that a module in inference mode labels rightly."""
    x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
    with torch.no_grad():
        found = [module(scaled(piece.to(device))).argmax(1).cpu() for piece in x.split(500)]
    return float((torch.cat(found) == y).float().mean())


def train(
    module: nn.Module, part: Part, epochs: int, batch: int, rate: float, seed: int, device: str
) -> None:
    """Train in place, one line an epoch; the module is in inference mode afterwards."""
    generator = torch.Generator().manual_seed(seed)
    border = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
    padded = torch.from_numpy(np.pad(part.x, border, mode="reflect")).to(device)
    labels = torch.from_numpy(part.y).to(device)
    module.to(device, memory_format=torch.channels_last).train()
    sgd = torch.optim.SGD(
        module.parameters(), rate, momentum=_MOMENTUM, weight_decay=_DECAY, nesterov=True
    )
    steps = epochs * (len(part) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: factor(step, steps))
    started = time.perf_counter()
    for epoch in range(1, epochs + 1):
        loss, right = torch.zeros((), device=device), torch.zeros((), device=device)
        # A last batch that is short would be normalised by few images.
        order = torch.randperm(len(part), generator=generator)
        chosen = order[: len(part) // batch * batch]
        for index in chosen.split(batch):
            out = module(scaled(varied(padded, index, generator)))
            wanted = labels[index.to(device)]
            step = F.cross_entropy(out, wanted, label_smoothing=_SMOOTHING)
            sgd.zero_grad()
            step.backward()
            sgd.step()
            schedule.step()
            loss += step.detach() * len(index)
            right += (out.detach().argmax(1) == wanted).sum()
        spent = time.perf_counter() - started
        left = spent / epoch * (epochs - epoch)
        print(
            f"epoch {epoch}/{epochs}: loss {float(loss) / len(chosen):.3f}, "
            f"{float(right) / len(chosen):.1%} right, {spent:.0f} s, {left:.0f} s left",
            flush=True,
        )
    module.eval()


def save(module: nn.Module, path: Path) -> None:
    """Write the weights, whole or not at all."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ADVREPAIR_DATA"))
    parser.add_argument("--model", choices=MODELS, default="vgg19_bn_quarter")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.05, help="the largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    if given.data is None:
        parser.error("set ADVREPAIR_DATA to the folder that holds cifar10/, or give --data")
    if not (given.data / "cifar10").is_dir():
        parser.error(f"{given.data}: no folder cifar10/ in it")
    if not given.out.parent.is_dir():
        parser.error(f"{given.out.parent}: no such folder; make it first")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; take --device cpu")
    return given


def main() -> None:
    """Train, store the weights, and print the accuracy on both sets of test images."""
    given, started = arguments(), time.perf_counter()
    torch.manual_seed(given.seed)
    try:
        data = cifar.load(given.data)
    except OSError as error:
        raise SystemExit(f"{given.data}: {error}") from None
    module = getattr(cifar_models, given.model)()
    count = sum(tensor.numel() for tensor in module.parameters())
    lossy, images = 0 if data.lossy is None else len(data.lossy), len(data.train)
    print(f"{given.model}: {count:,} parameters", flush=True)
    print(f"{images:,} training images, {lossy:,} of them from JPEG files", flush=True)
    recipe = (given.epochs, given.batch, given.rate, given.seed, given.device)
    train(module, data.train, *recipe)
    save(module, given.out)
    for name, part in (("lossless", data.test), ("JPEG", data.jpeg)):
        print(f"{accuracy(module, part, given.device):.2%} of {len(part):,} {name} test images")
    print(f"{given.out}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
