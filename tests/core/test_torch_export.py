"""The files for torch compute what the repaired network does."""

from __future__ import annotations

from typing import ClassVar

import onnx
import pytest
import torch
from attrs import frozen
from exports import ALLOCATORS, a_repair, agrees, everywhere
from torch import Tensor

from advrepair.core.agreement import trial_inputs
from advrepair.core.errors import UsageError
from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.onnx_export import routed_model
from advrepair.core.torch_export import (
    OPERATORS,
    ExportableNetwork,
    exported_program,
    load_exported_program,
    load_torchscript,
    torchscript,
)
from advrepair.core.types import Centres
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.feature_cosine import FeatureCosine
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.testing.networks import NETWORKS, convolutional, fully_connected


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=str)
def test_the_module_for_torch_decides_alike(allocator):
    repaired = a_repair(convolutional(1), allocator, 7, 9, 40, (4,))
    x = everywhere(repaired)
    finite = x.flatten(1).isfinite().all(1)
    y, expected = ExportableNetwork(repaired)(x), repaired(x)
    assert agrees(y[finite], expected[finite])


@pytest.mark.parametrize("allocator", [NoAllocator(), Cosine(top=2), FeatureCosine()], ids=str)
def test_torch_files_take_any_batch(allocator):
    repaired = a_repair(convolutional(1), allocator, 7)
    x, module = trial_inputs(repaired)[:140], ExportableNetwork(repaired).eval()
    for loaded in (
        load_torchscript(torchscript(module)),
        load_exported_program(exported_program(module)),
    ):
        for batch in (1, 7, 140):
            assert agrees(loaded(x[:batch]), repaired(x[:batch]))


@pytest.mark.parametrize("name", ["max pooled", "curved"])
def test_torch_files_of_networks_with_other_functions(name):
    repaired = a_repair(NETWORKS[name](1), NoAllocator(), 7)
    x, module = trial_inputs(repaired), ExportableNetwork(repaired).eval()
    for loaded in (
        load_torchscript(torchscript(module)),
        load_exported_program(exported_program(module)),
    ):
        assert agrees(loaded(x), repaired(x))


@frozen
class Odd(Allocator):
    """Patch 0 for all, with an operator that only ONNX has."""

    name: ClassVar[str] = "odd"

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        raise NotImplementedError

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        mine = to.constant(torch.arange(centres.patches)[None] == 0)
        return to.call(
            "Cast", to.call("Ceil", to.call("Cast", mine, to=torch.float32)), to=torch.bool
        )


def test_an_operator_that_torch_lacks_is_refused_by_name():
    repaired = a_repair(fully_connected(1), Odd())
    routed_model(repaired)
    with pytest.raises(UsageError, match="'odd' uses the operator Ceil, which only ONNX has"):
        ExportableNetwork(repaired)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_for_torch_is_one_of_onnx(name):
    onnx.defs.get_schema(name, 17)
