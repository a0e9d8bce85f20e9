"""Repaired networks with random patches and regions, and what a model file computes."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor

from advrepair.core.agreement import trial_inputs
from advrepair.core.box import Box
from advrepair.core.graph import INPUT, Network
from advrepair.core.interfaces import Allocator
from advrepair.core.onnx_writer import OUTPUT
from advrepair.core.patching import PatchBank, RepairedNetwork, patch_template
from advrepair.core.routing_steps import GATES, LOGITS, ROUTE
from advrepair.core.types import Assignment, Centres, Regions
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.feature_cosine import FeatureCosine
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator

ALLOCATORS: list[Allocator] = [
    NoAllocator(),
    Nearest(),
    Nearest(within=0.3),
    LabelPair(),
    LabelPair(fallback=False),
    Cosine(),
    Cosine(top=2),
    FeatureCosine(),
    FeatureCosine(top=2),
]


def a_repair(
    base: Network,
    allocator: Allocator,
    seed: int = 0,
    regions: int = 6,
    patches: int = 4,
    hidden: tuple[int, ...] = (),
    radius: float = 0.2,
    spread: float = 0.6,
    idle: float = 0.2,
) -> RepairedNetwork:
    """Random patches and overlapping regions, some without a patch, some of zero width."""
    noise, dtype = torch.Generator().manual_seed(seed), base.dtype

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=noise, dtype=dtype)

    x = spread * (2 * rand(regions, *base.input_shape) - 1)
    wide = radius * rand(regions, *base.input_shape)
    wide[rand(regions) < 0.1] = 0
    x[regions // 2 :: 3] = x[0].clone()  # around the same point
    template = patch_template(base, hidden)
    stack = {n: rand(patches, *t.shape) - 0.5 for n, t in template.tensors.items()}
    patch = torch.randint(patches, (regions,), generator=noise)
    served, patch = patch.clone(), patch.masked_fill(rand(regions) < idle, -1)
    with torch.no_grad():
        logits = base(x)
    target = torch.randint(base.outputs, (regions,), generator=noise)
    centres = Centres(x, logits, logits.argmax(1), target, served, patches)
    names = tuple(f"patch {i}" for i in range(patches))
    return RepairedNetwork(
        base,
        PatchBank(template, stack),
        Regions(Box.checked(x - wide, x + wide), patch),
        Assignment(served, names),
        centres,
        allocator,
    )


def run(model: bytes, x: Tensor, *outputs: str, optimised: bool = True) -> list[Tensor]:
    """Values of the graph, results or not."""
    shown = onnx.load_from_string(model)
    for name in outputs:
        if name != OUTPUT:
            kind = onnx.TensorProto.BOOL if name == ROUTE + GATES else onnx.TensorProto.FLOAT
            if name == LOGITS and x.dtype == torch.float64:
                kind = onnx.TensorProto.DOUBLE
            shown.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [torch.from_numpy(y) for y in session.run(list(outputs), {INPUT: x.numpy()})]


def agrees(y: Tensor, expected: Tensor) -> bool:
    return torch.allclose(y, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def everywhere(repaired: RepairedNetwork, seed: int = 0) -> Tensor:
    """Trial inputs, one with a NaN, one of NaN only, infinite ones."""
    x = trial_inputs(repaired, seed)
    odd = x[:4].clone().flatten(1)
    odd[0, -1], odd[1], odd[2, 0], odd[3, -1] = torch.nan, torch.nan, torch.inf, -torch.inf
    return torch.cat([x, odd.view(4, *x.shape[1:])])
