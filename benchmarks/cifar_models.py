"""Factories of networks for CIFAR-10, for ``--factory benchmarks.cifar_models:NAME``.

Inputs are float32 [N,3,32,32], pixels from 0 to 1; outputs are ten logits. Whatever normalises the
input is part of the network, so radii are in pixels. ``--data`` takes the file
``cifar10/cifar10_lossless.npz`` as it is.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
INPUT_SHAPE = (3, 32, 32)
# Of each colour over the 50,000 training images.
_MEAN, _DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Convolutions of VGG19 between two poolings: how many, and how many channels (arXiv 1409.1556).
_VGG19 = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Keeps height and width where stride is 1; what follows has a bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Normalise(nn.Module):
    """(x - mean) / deviation, both [3,1,1] and stored with the weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_DEVIATION).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


class Residual(nn.Module):
    """Two convolutions beside a shortcut, [N,C,H,W] to [N,outputs,H/stride,W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            matched = _convolution(inputs, outputs, kernel=1, stride=stride)
            self.shortcut = nn.Sequential(matched, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Eight residual blocks in four stages behind one convolution (arXiv 1512.03385).

    For 32 x 32 pixels: the first convolution is 3 x 3 and nothing is pooled behind it. The input
    is not normalised. Names are those of the weights in the package pyautoattack.
    """

    input_shape = INPUT_SHAPE

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        widths = [channels * 2**stage for stage in range(4)]
        self.conv1 = _convolution(3, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = [
            nn.Sequential(Residual(before, after, stride), Residual(after, after, 1))
            for (before, after), stride in zip(
                pairwise([channels, *widths]), (1, 2, 2, 2), strict=True
            )
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class ResNet2b(nn.Module):
    """Two residual blocks and two linear layers: of the size that VNN-COMP verifies.

    Five convolutions, strides in place of pools; 1,024 features before the linear layers.
    """

    input_shape = INPUT_SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.conv1 = _convolution(3, 8, stride=2)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = Residual(8, 16, 2)
        self.layer2 = Residual(16, 16, 1)
        self.hidden = nn.Linear(16 * 8 * 8, 100)
        self.linear = nn.Linear(100, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer2(self.layer1(x)).flatten(1)
        return self.linear(F.relu(self.hidden(x)))


class Vgg19(nn.Module):
    """Sixteen convolutions with batch normalisation, five max pools, one linear layer.

    width: a factor on the channels of VGG19 (arXiv 1409.1556); the features before the linear
    layer are 512 * width.
    """

    input_shape = INPUT_SHAPE

    def __init__(self, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for count, full in _VGG19:
            channels = max(1, round(full * width))
            for _ in range(count):
                layers += [_convolution(last, channels), nn.BatchNorm2d(channels), nn.ReLU()]
                last = channels
            layers.append(nn.MaxPool2d(2))
        self.normalise = Normalise()
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(last, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(self.normalise(x)).flatten(1))


def resnet18() -> nn.Module:
    """For ``pyautoattack/examples/model_test.pt``, 11.2 million parameters."""
    return ResNet18()


def resnet2b() -> nn.Module:
    """A small residual network, 0.1 million parameters."""
    return ResNet2b()


def vgg19_bn(width: float = 0.25) -> nn.Module:
    """VGG19 with batch normalisation, its channels times width."""
    return Vgg19(width)


def vgg19_bn_full() -> nn.Module:
    """Full width, 20.0 million parameters: to be trained on a GPU."""
    return Vgg19(1.0)


def vgg19_bn_quarter() -> nn.Module:
    """A quarter of the width, 1.3 million parameters: one CPU core trains it in under an hour."""
    return Vgg19(0.25)


def vgg19_bn_tiny() -> nn.Module:
    """One channel of 64: for tests."""
    return Vgg19(1 / 64)
