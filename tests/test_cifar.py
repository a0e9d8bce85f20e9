"""Networks for CIFAR-10 are trained as described, and advrepair reads what was stored."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from advrepair.core.network import load_network
from benchmarks import cifar, cifar_models, train_cifar

TINY = "benchmarks.cifar_models:vgg19_bn_tiny"
LOSSLESS, JPEG, TEST = "cifar10_lossless", "cifar10_train10k_jpeg", "cifar10_test_jpeg"


@pytest.fixture
def data(tmp_path):
    """A data folder: 100 training images without loss, 60 from JPEG files, half of them new."""
    draw = np.random.default_rng(0)

    def part(name, n):
        x = draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        return {f"x_{name}": x, f"y_{name}": draw.integers(0, 10, n, dtype=np.uint8)}

    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    exact = {**part("train", 100), **part("test", 20)}
    np.savez(folder / f"{LOSSLESS}.npz", train_index=np.arange(100), **exact)
    np.savez(folder / f"{JPEG}.npz", train_index=np.arange(70, 130), **part("train", 60))
    np.savez(folder / f"{TEST}.npz", **part("test", 30))
    return folder.parent


@pytest.fixture
def train(data, tmp_path, monkeypatch, capsys):
    """Two steps of the smallest network: the weights, and what was printed."""

    def one(name, *further):
        out = tmp_path / name
        given = ["--data", str(data), "--out", str(out), "--model", "vgg19_bn_tiny", *further]
        monkeypatch.setattr(sys, "argv", ["train_cifar", *given, "--epochs", "1"])
        train_cifar.main()
        return out, capsys.readouterr().out

    return one


def test_what_was_trained_is_read_and_computes_the_same(train):
    path, shown = train("vgg.pt")
    assert "130 training images, 30 of them from JPEG files" in shown
    assert "epoch 1/1" in shown and " left" in shown
    assert "of 20 lossless test images" in shown and "of 30 JPEG test images" in shown
    network, module = load_network(path, TINY), cifar_models.vgg19_bn_tiny().eval()
    module.load_state_dict(torch.load(path, weights_only=True))
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)
    assert network.input_shape == (3, 32, 32)
    # Two batches of 64, each seen by every normalisation: it was trained, for two steps.
    assert int(module.features[1].num_batches_tracked) == 2


def test_a_seed_gives_the_same_weights_and_another_seed_others(train):
    once, again, other = (
        torch.load(train(name, "--seed", seed)[0], weights_only=True)["linear.weight"]
        for name, seed in (("a.pt", "1"), ("b.pt", "1"), ("c.pt", "2"))
    )
    assert torch.equal(once, again) and not torch.equal(once, other)


def test_images_without_loss_come_first_and_none_comes_twice(data):
    found = cifar.load(data)
    assert found.lossy is not None
    with np.load(data / "cifar10" / f"{JPEG}.npz") as stored:
        assert np.array_equal(found.lossy.x, stored["x_train"][30:])
        assert np.array_equal(found.lossy.y, stored["y_train"][30:])
    assert np.array_equal(found.train.x[:100], found.exact.x)
    assert np.array_equal(found.train.y[100:], found.lossy.y)
    (data / "cifar10" / f"{JPEG}.npz").unlink()
    assert len(cifar.load(data).train) == 100


def test_a_missing_file_is_named_before_training(train, data, tmp_path):
    (data / "cifar10" / f"{TEST}.npz").unlink()
    with pytest.raises(SystemExit, match=TEST):
        train("vgg.pt")
    assert not (tmp_path / "vgg.pt").exists()


def test_an_image_is_shifted_by_up_to_four_pixels_or_mirrored_as_well():
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)), "reflect"))
    index = torch.arange(3).repeat(100)
    seen, mirrored = set(), 0
    for which, found in zip(
        index, train_cifar.varied(padded, index, torch.Generator().manual_seed(0)), strict=True
    ):
        views = {
            (row, column, flipped): torch.equal(found, crop.flip(1) if flipped else crop)
            for row in range(9)
            for column in range(9)
            for crop in [padded[which, row : row + 32, column : column + 32]]
            for flipped in (False, True)
        }
        (view,) = [view for view, same in views.items() if same]
        seen.add(view[:2])
        mirrored += view[2]
    assert 100 < mirrored < 200
    assert {row for row, _ in seen} == {column for _, column in seen} == set(range(9))


@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_the_rate_rises_and_falls_and_never_exceeds_its_largest(steps):
    rates = [train_cifar.factor(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= 0.05 * steps + 1  # the rise is short


def test_the_rate_ends_near_nothing():
    assert max(train_cifar.factor(step, 1000) for step in range(1000)) == pytest.approx(1, abs=1e-4)
    assert train_cifar.factor(525, 1000) == pytest.approx(0.5, abs=1e-3)
    assert train_cifar.factor(999, 1000) < 1e-4


def test_weights_that_were_not_written_to_the_end_leave_the_old_ones(tmp_path, monkeypatch):
    path, module = tmp_path / "vgg.pt", cifar_models.vgg19_bn_tiny()
    path.write_text("old")

    def broken(state, target):
        Path(target).write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError):
        train_cifar.save(module, path)
    assert path.read_text() == "old" and [path] == list(tmp_path.iterdir())


def test_normalisation_is_part_of_the_network():
    module = cifar_models.vgg19_bn_tiny().eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    deviation = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]
    torch.testing.assert_close(module.normalise(x), (x - mean) / deviation)
    assert {"normalise.mean", "normalise.deviation"} <= module.state_dict().keys()


@pytest.mark.parametrize(("width", "features"), [(1, 512), (0.25, 128)])
def test_vgg19_has_sixteen_convolutions_of_its_width(width, features):
    module = cifar_models.vgg19_bn(width)
    shapes = [t.shape for t in module.parameters() if t.dim() == 4]
    assert len(shapes) == 16 and shapes[0][0] == 64 * width
    assert module.linear.weight.shape == (10, features)


def test_resnet18_takes_the_weights_of_a_package_and_is_read():
    package = pytest.importorskip("pyautoattack")
    weights = Path(package.__file__).parent / "examples" / "model_test.pt"
    network = load_network(weights, "benchmarks.cifar_models:resnet18")
    module = cifar_models.resnet18().eval()
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(x), module(x), rtol=1e-3, atol=1e-4)
