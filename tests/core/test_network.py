"""Networks from files: what is read, and a sentence for whatever cannot be."""

import os
import pickle
import sys
import types
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file
from torch import nn

from advrepair.core.errors import UsageError
from advrepair.core.graph import Network
from advrepair.core.network import as_network, load_network

DATA = os.environ.get("ADVREPAIR_DATA")
FACTORY = """
from torch import nn

def build():
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    module.input_shape = (4,)
    return module

def shapeless():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def number():
    return 3

def broken():
    raise RuntimeError("no GPU\\nsecond line")

constant = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a factory module in it."""
    (tmp_path / "nets_for_test.py").write_text(FACTORY)
    (tmp_path / "broken_for_test.py").write_text("import surely_not_installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    for name in ("nets_for_test", "broken_for_test"):
        sys.modules.pop(name, None)
    yield tmp_path
    for name in ("nets_for_test", "broken_for_test"):
        sys.modules.pop(name, None)


def module():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def refused(message, *arguments, **options):
    with pytest.raises(UsageError, match=message) as error:
        load_network(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("double", [False, True])
def test_weights_with_a_factory(folder, suffix, double):
    net = module().double() if double else module()
    path = folder / f"net{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(net.state_dict(), path)
    before = list(sys.path)
    x = torch.randn(5, 4, dtype=torch.float64 if double else torch.float32)
    for network in (
        load_network(path, "nets_for_test:build"),
        load_network(str(path), "nets_for_test:shapeless", (4,)),
    ):
        torch.testing.assert_close(network(x), net(x).detach())
    assert sys.path == before


def test_onnx_by_suffix(folder):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 4])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(proto, str(folder / "net.ONNX"))
    assert load_network(folder / "net.ONNX").outputs == 4
    refused("needs no factory", folder / "net.ONNX", "nets_for_test:build")


def test_paths(folder):
    refused("no such file", folder / "none.onnx")
    refused("not a file", folder)
    (folder / "net.h5").write_bytes(b"x")
    refused(r"suffix '\.h5'.*\.onnx, \.nnet, \.safetensors, \.pt, \.pth", folder / "net.h5")


def test_factory_mistakes(folder):
    path = folder / "net.pt"
    torch.save(module().state_dict(), path)
    refused("holds weights only; name the factory", path)
    for text in ("nets_for_test", ":build", "nets_for_test:"):
        refused("write package.module:function", path, text)
    refused("cannot import: ModuleNotFoundError.*no_such", path, "no_such_module:f")
    refused("cannot import.*surely_not_installed", path, "broken_for_test:f")
    refused("has no function 'nothing'", path, "nets_for_test:nothing")
    refused("has no function 'constant'", path, "nets_for_test:constant")
    refused("it failed: RuntimeError: no GPU", path, "nets_for_test:broken")
    refused("must return a torch module, not int", path, "nets_for_test:number")
    refused("input shape is not known", path, "nets_for_test:shapeless")
    refused(r"does not take inputs \[batch,7\]", path, "nets_for_test:build", (7,))


def test_weights_that_do_not_fit(folder):
    path = folder / "net.pt"
    state = module().state_dict()
    torch.save({**state, **{f"extra{i}": torch.zeros(1) for i in range(5)}}, path)
    refused("unexpected extra0, extra1, extra2 and 2 more", path, "nets_for_test:build")
    del state["0.bias"]
    torch.save(state, path)
    refused(r"lacks 0\.bias", path, "nets_for_test:build")
    torch.save({**module().state_dict(), "2.bias": torch.zeros(7)}, path)
    refused(r"another shape for 2\.bias", path, "nets_for_test:build")


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trap_sprang",)


def test_pickled_code_is_never_run(folder):
    path = folder / "net.pt"
    for content in (Trap(), {"0.weight": Trap()}):
        torch.save(content, path)
        refused("holds pickled code", path, "nets_for_test:build")
        path.write_bytes(pickle.dumps(content))
        refused("holds pickled code", path, "nets_for_test:build")
    torch.save(module(), path)
    refused("holds pickled code", path, "nets_for_test:build")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module()).save(str(path))
    refused("holds pickled code", path, "nets_for_test:build")
    assert not (folder / "trap_sprang").exists()


def test_no_state_dict(folder):
    path = folder / "net.pt"
    for content in ([1, 2], {"state_dict": module().state_dict()}, torch.zeros(3)):
        torch.save(content, path)
        refused("not a state dict", path, "nets_for_test:build")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_weights(folder, suffix):
    path = folder / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(module().state_dict(), path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        refused(r"not a (torch|readable safetensors) file", path, "nets_for_test:build")


def test_as_network():
    net = module()
    network = as_network(net, (4,))
    assert isinstance(network, Network) and as_network(network) is network
    assert as_network(network, (4,)) is network
    net.input_shape = (4,)
    assert as_network(net).input_shape == (4,)
    with pytest.raises(UsageError, match="takes inputs"):
        as_network(network, (2, 2))
    with pytest.raises(UsageError, match="pass input_shape"):
        as_network(module())
    with pytest.raises(UsageError, match="torch module is needed, not str"):
        as_network("net.onnx", (4,))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(3136, 100), nn.ReLU(), nn.Linear(100, 10))  # fmt: skip


def fnn(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 32),
                         nn.ReLU(), nn.Linear(32, 10))  # fmt: skip


@pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no networks to read")
def test_onnx_and_safetensors_of_one_network_agree(folder, monkeypatch):
    makers = {"cnn": cnn, "fnn_small": lambda: fnn(50), "fnn_big": lambda: fnn(200)}
    for name, maker in makers.items():
        holder = types.ModuleType("nets_for_test")
        holder.build = maker
        monkeypatch.setitem(sys.modules, "nets_for_test", holder)
        nets = Path(DATA) / "mnist" / "nets"
        read = load_network(nets / f"{name}.onnx")
        traced = load_network(nets / f"{name}.safetensors", "nets_for_test:build", (1, 28, 28))
        x = torch.rand(3, 1, 28, 28)
        torch.testing.assert_close(read(x), traced(x), rtol=1e-5, atol=1e-5)
        assert [op.kind for op in read.operations] == [op.kind for op in traced.operations]
