"""The bundled network is what its description says, and has something to repair."""

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from numpy.typing import NDArray
from onnx import load_model, numpy_helper
from torch import Tensor, nn

from advrepair.core.types import Box, PropertySet
from advrepair.demo import IMAGES, NETWORK
from advrepair.plugins.attacks.pgd import Pgd


@pytest.fixture(scope="module")
def images() -> dict[str, NDArray[np.uint8]]:
    with np.load(IMAGES, allow_pickle=False) as archive:
        return dict(archive)


def scaled(x: NDArray[np.uint8]) -> NDArray[np.float32]:
    return x.astype(np.float32) / np.float32(255)


def as_torch() -> nn.Module:
    weights = [
        torch.tensor(numpy_helper.to_array(w)) for w in load_model(NETWORK).graph.initializer
    ]
    layers: list[nn.Module] = [nn.Flatten()]
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def logits(x: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(NETWORK, providers=["CPUExecutionProvider"])
    (result,) = session.run(["logits"], {"input": scaled(x)})
    return np.asarray(result, dtype=np.float32)


def test_the_images_are_as_described(images: dict[str, NDArray[np.uint8]]) -> None:
    for part, count in (("train", 1297), ("test", 500)):
        x, y = images[f"x_{part}"], images[f"y_{part}"]
        assert x.shape == (count, 1, 8, 8) and y.shape == (count,)
        assert x.dtype == y.dtype == np.uint8
        assert set(np.unique(y)) == set(range(10))
    levels = np.rint(np.arange(17) * 255 / 16)
    assert set(np.unique(images["x_train"])) == set(levels)


def test_no_test_image_is_a_training_image(images: dict[str, NDArray[np.uint8]]) -> None:
    train = {image.tobytes() for image in images["x_train"]}
    assert not train & {image.tobytes() for image in images["x_test"]}


def test_the_network_is_as_accurate_as_described(images: dict[str, NDArray[np.uint8]]) -> None:
    accuracy = (logits(images["x_test"]).argmax(1) == images["y_test"]).mean()
    assert accuracy == pytest.approx(0.976)


def test_the_batch_size_is_open(images: dict[str, NDArray[np.uint8]]) -> None:
    together = logits(images["x_test"][:7])
    alone = np.concatenate([logits(images["x_test"][i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    with torch.no_grad():
        ours = as_torch()(torch.from_numpy(scaled(images["x_test"][:7]))).numpy()
    np.testing.assert_allclose(ours, together, atol=1e-5)


def demand(x: Tensor, label: Tensor, epsilon: float) -> PropertySet:
    """The label wins in the ball: 9 rows, a group each."""
    others = torch.tensor([[k for k in range(10) if k != y] for y in label.tolist()])
    C = torch.nn.functional.one_hot(label, 10)[:, None] - torch.nn.functional.one_hot(others, 10)
    group = torch.arange(9).expand(len(x), -1)
    box = Box.around(x, epsilon, clip=(0.0, 1.0))
    names = tuple(f"image {i}" for i in range(len(x)))
    none = torch.full((len(x),), -1)
    return PropertySet(box, C.float(), torch.zeros(len(x), 9), group, label, none, x, names)


def test_there_is_something_to_repair(images: dict[str, NDArray[np.uint8]]) -> None:
    net = as_torch()
    x, y = torch.from_numpy(scaled(images["x_train"])), torch.tensor(images["y_train"]).long()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero().squeeze(1)[:300]
    properties = demand(x[right], y[right], 0.1)
    found = Pgd().perturb(net, properties, x[right], torch.Generator().manual_seed(0))
    assert int(properties.violated(net(found)).sum()) >= 50
