"""Data files: layouts, scaling, and a sentence for whatever does not fit."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advrepair.core.data import load_data, make_dataset
from advrepair.core.errors import UsageError

DATA = os.environ.get("ADVREPAIR_DATA")
rng = np.random.default_rng(0)
Y = np.arange(6) % 3


def unit(*shape):
    return rng.random((6, *shape)).astype(np.float32)


def save(folder, **arrays):
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def load(path, shape=(4,), dtype=torch.float32, input_range=(0.0, 1.0), outputs=3):
    return load_data(path, shape, dtype, input_range, outputs)


def refused(message, path, **options):
    with pytest.raises(UsageError, match=message) as error:
        load(path, **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_plain_file_is_all_for_repair(tmp_path):
    x, adv = unit(4), unit(4)
    data = load(save(tmp_path, x=x, y=Y, x_adv=adv))
    assert data.test is None and data.repair.name == "x" and len(data.repair) == 6
    assert torch.equal(data.repair.images(), torch.from_numpy(x))
    assert torch.equal(data.repair.adversarial([1, 2]), torch.from_numpy(adv[1:3]))
    assert data.repair.labels.tolist() == Y.tolist() and data.repair.labels.dtype == torch.int64


def test_keras_file_is_for_repair_and_evaluation(tmp_path):
    x, test = unit(4), unit(4)[:2]
    path = save(tmp_path, x_train=x, y_train=Y[:, None], x_test=test, y_test=Y[:2], x_adv=x)
    data = load(path)
    assert data.repair.name == "x_train" and data.test.name == "x_test" and len(data.test) == 2
    assert torch.equal(data.test.images(slice(1, 2)), torch.from_numpy(test[1:2]))
    assert torch.equal(data.repair.adversarial(), torch.from_numpy(x))
    with pytest.raises(UsageError, match="no adversarial inputs"):
        data.test.adversarial()
    assert load(save(tmp_path, x_train=x, y_train=Y)).test is None


@pytest.mark.parametrize("index", [slice(2, 5), [2, 3, 4], np.arange(2, 5), torch.arange(2, 5)])
def test_any_index(tmp_path, index):
    x = unit(4)
    images = load(save(tmp_path, x=x, y=Y)).repair.images(index)
    assert torch.equal(images, torch.from_numpy(x[2:5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_are_scaled_by_the_stated_rule(tmp_path, dtype):
    x = rng.integers(0, 256, (6, 4), dtype=np.uint8)
    x[0, :2] = 0, 255
    path = save(tmp_path, x=x, y=Y)
    want = torch.from_numpy(x.astype(np.float32) / 255).to(dtype)
    for declared in ((0.0, 1.0), (0, 1), None):
        assert torch.equal(load(path, dtype=dtype, input_range=declared).repair.images(), want)
    wide = load(path, dtype=dtype, input_range=(-1.0, 1.0)).repair.images()
    assert float(wide.min()) == -1 and float(wide.max()) == 1
    assert torch.equal(wide, (want.float() * 2 - 1).to(dtype))


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_scaled_bytes_stay_in_the_range(low, width):
    x = np.arange(256, dtype=np.uint8)[:, None]
    made = make_dataset(
        "x", x, np.zeros(256, int), (1,), torch.float32, (low, low + width), outputs=1
    )
    images = made.images()
    assert float(images.min()) >= np.float32(low)
    assert float(images.max()) <= np.float32(low + width)
    assert bool((images.diff(dim=0) >= 0).all())


LAYOUTS = {
    "gray to channel": ((5, 4), (1, 5, 4)),
    "channel to gray": ((1, 5, 4), (5, 4)),
    "gray last": ((5, 4, 1), (1, 5, 4)),
    "flat to image": ((20,), (1, 5, 4)),
    "image to flat": ((5, 4), (20,)),
    "colour to flat": ((3, 2, 2), (12,)),
    "acas": ((5,), (1, 1, 5)),
    "equal": ((3, 3, 3), (3, 3, 3)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts_of_one_order(tmp_path, case):
    stored, shape = LAYOUTS[case]
    x = unit(*stored)
    made = load(save(tmp_path, x=x, y=Y), shape).repair
    assert torch.equal(made.images(), torch.from_numpy(x.reshape(6, *shape)))
    assert made.images([0]).is_contiguous()


def test_channels_last(tmp_path):
    x = rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    made = load(save(tmp_path, x=x, y=Y, x_adv=x), (3, 5, 4)).repair
    want = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    assert torch.equal(made.images(), want) and torch.equal(made.adversarial([3]), want[3:4])
    assert made.images().is_contiguous()


@pytest.mark.parametrize(
    ("stored", "shape"), [((4, 5), (1, 5, 4)), ((5,), (4,)), ((4, 5, 3), (3, 5, 4)), ((), (4,))]
)
def test_layouts_that_do_not_fit(tmp_path, stored, shape):
    path = save(tmp_path, x=unit(*stored), y=Y)
    refused(r"x has shape \(6.*the network takes \('N'|x has shape \(6", path, shape=shape)


def test_numbers_outside_the_range(tmp_path):
    x = unit(4)
    x[0, 0] = 2.5
    refused(r"x lies in \[.*2\.5\], outside the input range \[0, 1\]; .*uint8, divide it by 255.*"
            "--input-range", save(tmp_path, x=x, y=Y))  # fmt: skip
    x[0, 0] = -3
    refused("rescale it or pass --input-range", save(tmp_path, x=x, y=Y))
    path = save(tmp_path, x=x, y=Y)
    assert load(path, input_range=None).repair.images()[0, 0] == -3
    assert load(path, input_range=(-3.0, 1.0)).repair.images()[0, 0] == -3
    integers = np.full((6, 4), 200)
    refused("divide it by 255", save(tmp_path, x=integers, y=Y))
    refused("x_adv lies in", save(tmp_path, x=unit(4), y=Y, x_adv=x))
    refused("x_test lies", save(tmp_path, x_train=unit(4), y_train=Y, x_test=x, y_test=Y))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, bad):
    x = unit(4)
    x[3, 2] = bad
    refused("x holds NaN or infinity", save(tmp_path, x=x, y=Y), input_range=None)


def test_no_numbers(tmp_path):
    refused("x holds <U1", save(tmp_path, x=np.full((6, 4), "a"), y=Y))
    refused("x holds complex", save(tmp_path, x=np.ones((6, 4), complex), y=Y))


def test_labels(tmp_path):
    x = unit(4)
    refused("x has 6 inputs and y 4 labels", save(tmp_path, x=x, y=Y[:4]))
    refused(r"y has labels 0\.\.2, the network 2 outputs", save(tmp_path, x=x, y=Y), outputs=2)
    refused(r"y has labels -1\.\.1", save(tmp_path, x=x, y=Y - 1))
    refused("y looks one-hot.*argmax", save(tmp_path, x=x, y=np.eye(3)[Y]))
    refused("y holds float64; store integers", save(tmp_path, x=x, y=Y.astype(float)))
    refused("y has shape", save(tmp_path, x=x, y=np.zeros((6, 2), int)))
    refused("y_test has labels 9", save(tmp_path, x_train=x, y_train=Y, x_test=x, y_test=Y * 0 + 9))


def test_keys(tmp_path):
    x = unit(4)
    refused("holds x but no y", save(tmp_path, x=x))
    refused("holds x_test but no y_test", save(tmp_path, x_train=x, y_train=Y, x_test=x))
    refused("it holds x_test, y_test", save(tmp_path, x_test=x, y_test=Y))
    refused("it holds nothing", save(tmp_path, images=x))
    refused("either x, y or x_train", save(tmp_path, x=x, y=Y, x_train=x, y_train=Y))
    refused("x is empty", save(tmp_path, x=x[:0], y=Y[:0]))
    refused("x_adv has shape", save(tmp_path, x=x, y=Y, x_adv=x[:3]))


class Trap:
    """Leaves a folder behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_never_opened(tmp_path):
    trap = Trap(str(tmp_path / "sprang"))
    objects = np.array([trap] * 6, dtype=object)
    refused("is a pickle", save(tmp_path, x=objects, y=Y))
    for name in ("data.pkl", "renamed.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(trap))
        refused("is a pickle", tmp_path / name)
    assert not (tmp_path / "sprang").exists()


def test_files(tmp_path):
    refused("no such file", tmp_path / "none.npz")
    refused("not a file", tmp_path)
    np.save(tmp_path / "one.npy", unit(4))
    refused("holds one array", tmp_path / "one.npy")
    (tmp_path / "empty.npz").write_bytes(b"")
    refused("is empty", tmp_path / "empty.npz")
    (tmp_path / "data.csv").write_text("1,2")
    refused(r"suffix '\.csv'", tmp_path / "data.csv")
    whole = save(tmp_path, x=unit(4), y=Y).read_bytes()
    for content in (b"junk", whole[:100], whole[: len(whole) // 2], whole[:-30]):
        (tmp_path / "bad.npz").write_bytes(content)
        refused("not a readable npz file", tmp_path / "bad.npz")
    damaged = bytearray(whole)
    damaged[180] ^= 255
    (tmp_path / "bad.npz").write_bytes(damaged)
    refused("not a readable npz file", tmp_path / "bad.npz")


@pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no data to read")
def test_shared_data():
    start = time.perf_counter()
    data = load_data(Path(DATA) / "mnist" / "mnist.npz", (1, 28, 28), torch.float32, (0, 1), 10)
    assert time.perf_counter() - start < 3  # 0.4 s on an idle machine
    assert len(data.repair) == 60000 and len(data.test) == 10000
    assert data.repair.raw.dtype == np.uint8 and data.test.labels[:3].tolist() == [7, 2, 1]
    path = Path(DATA) / "cifar10" / "cifar10_lossless.npz"
    cifar = load_data(path, (3, 32, 32), torch.float32, (0, 1), 10)
    raw = np.load(path)["x_test"][5].astype(np.float32) / 255
    assert torch.equal(cifar.test.images([5])[0], torch.from_numpy(raw).permute(2, 0, 1))
