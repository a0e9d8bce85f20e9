"""Train the bundled digits network and write ``advrepair/demo/digits.{onnx,npz}``.

Run from anywhere: ``python benchmarks/train_digits.py``. It needs scikit-learn for the
images, which is not a dependency of advrepair; nobody who merely uses the demo runs this.

The recipe is fixed in advance: neither the stopping step nor anything else looks at the
test images. Nothing is adversarial about the training, so that there is something to repair.
A rerun writes the same bytes: everything is seeded, and training in float64 keeps the order
in which a machine sums from showing in the stored float32 weights.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import nn

DEMO = Path(__file__).parents[1] / "advrepair" / "demo"
SEED = 20250101
TRAIN = 1297
WIDTHS = (64, 32, 16, 10)
EPOCHS = 80
BATCH = 32

Images = dict[str, NDArray[np.uint8]]


def images() -> Images:
    """The 1,797 images, shuffled, grey levels 0..16 spread over 0..255; NCHW."""
    data = load_digits()
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(data.images))
    x = np.rint(data.images[order] * 255 / 16).astype(np.uint8)[:, None]
    y = data.target[order].astype(np.uint8)
    return {"x_train": x[:TRAIN], "y_train": y[:TRAIN], "x_test": x[TRAIN:], "y_test": y[TRAIN:]}


def scaled(x: NDArray[np.uint8]) -> torch.Tensor:
    """Grey levels to [0,1], as float32 division gives them, in float64."""
    return (torch.from_numpy(x).float() / 255).double()


def train(data: Images) -> nn.Sequential:
    """A plain fully connected ReLU network, [N,1,8,8] to [N,10], in float64."""
    generator = torch.Generator().manual_seed(SEED)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(WIDTHS):
        linear = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        nn.init.normal_(linear.weight, std=(2 / fan_in) ** 0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    x, y = scaled(data["x_train"]), torch.from_numpy(data["y_train"]).long()
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            adam.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(x[batch]), y[batch]))
            adam.step()
        rate.step()
    return net


def to_onnx(net: nn.Sequential) -> onnx.ModelProto:
    """Flatten, then Gemm and Relu in turn; batch size left open."""
    nodes, weights, last = [], [], "input"
    for position, layer in enumerate(net):
        output = "logits" if position == len(net) - 1 else f"h{position}"
        if isinstance(layer, nn.Linear):
            names = [f"{position}.weight", f"{position}.bias"]
            for name, tensor in zip(names, (layer.weight, layer.bias), strict=True):
                weights.append(numpy_helper.from_array(tensor.detach().float().numpy(), name))
            node = helper.make_node("Gemm", [last, *names], [output], transB=1)
        else:
            node = helper.make_node(type(layer).__name__.replace("ReLU", "Relu"), [last], [output])
        node.name = f"{node.op_type}_{position}"
        nodes.append(node)
        last = output
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", WIDTHS[-1]])],
        weights,
    )
    opset = helper.make_opsetid("", 13)
    # IR version 7 belongs to opset 13; the library's own newest would shut out old runtimes.
    model = helper.make_model(
        graph, opset_imports=[opset], ir_version=7, producer_name="benchmarks/train_digits.py"
    )
    onnx.checker.check_model(model)
    return model


def main() -> None:
    """Write both files and print the accuracies of the network."""
    torch.set_num_threads(1)
    data = images()
    net = train(data)
    DEMO.mkdir(exist_ok=True)
    np.savez_compressed(DEMO / "digits.npz", **data)  # type: ignore[arg-type]
    (DEMO / "digits.onnx").write_bytes(to_onnx(net).SerializeToString())
    for part in ("train", "test"):
        found = net(scaled(data[f"x_{part}"])).argmax(1)
        right = (found == torch.from_numpy(data[f"y_{part}"])).sum().item()
        print(f"{part}: {right} of {len(found)} right ({100 * right / len(found):.2f} %)")


if __name__ == "__main__":
    main()
