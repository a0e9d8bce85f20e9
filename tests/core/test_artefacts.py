"""The repaired network and its certificate, read back bit for bit."""

import json

import pytest
import safetensors.torch
import torch
from problems import BYTES, a_network, some_data, some_parts, zero_bank

from advrepair.core.artefacts import read_repaired, write_certificate, write_repaired
from advrepair.core.constant import constant_patches
from advrepair.core.errors import UsageError
from advrepair.core.files import (
    file_digest,
    read_tensors,
    write_tensors,
)
from advrepair.core.patching import attach, patch_template
from advrepair.core.registry import Registry
from advrepair.core.types import Regions, SplitPlan
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.indicators.targeted_label import TargetedLabel


def test_what_is_no_part_of_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist: is its folder a complete run"):
        read_tensors(tmp_path / "no")
    (tmp_path / "garbage").write_bytes(b"garbage")
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    for name in ("garbage", "foreign"):
        with pytest.raises(UsageError, match="not readable as part of a run"):
            read_tensors(tmp_path / name)
    write_tensors(tmp_path / "future", {}, {"format": 99})
    with pytest.raises(UsageError, match="has format 99: this version reads 3"):
        read_repaired(tmp_path / "future", Registry.load())


def a_repaired(allocator, hidden):
    parts = some_parts()
    assignment = TargetedLabel().assign(parts.properties)
    network = a_network()
    regions = Regions(parts.properties.box, assignment.patch)
    bank = zero_bank(patch_template(network, hidden), len(assignment))
    repaired = attach(network, parts.properties, regions, assignment, allocator, bank)
    generator = torch.Generator().manual_seed(0)
    stack = repaired.bank.stack
    repaired.bank.put(
        torch.arange(len(assignment)),
        {n: torch.randn(t.shape, generator=generator) for n, t in stack.items()},
    )
    return repaired


def without(key):
    def edit(header, tensors):
        (tensors if "/" in key else header).pop(key)

    return edit


def with_(key, value):
    def edit(header, tensors):
        place = header
        *above, last = key.split(".")
        for name in above:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        *map(without, ("allocator", "patch", "centres/target", "region/lower")),
        with_("allocator", {}),
        with_("allocator.options", []),
        with_("base.operations.0.settings", []),
        with_("base.operations.0.stranger", 1),
        with_("base.input_shape", None),
        lambda header, tensors: tensors.update({"centres/stranger": torch.ones(1)}),
    ],
)
def test_a_file_that_was_written_by_somebody_else_is_one_line(edit, tmp_path):
    write_repaired(tmp_path / "r", a_repaired(NoAllocator(), ()))
    tensors, header = read_tensors(tmp_path / "r")
    edit(header, tensors)
    write_tensors(tmp_path / "r", tensors, header)
    with pytest.raises(UsageError) as error:
        read_repaired(tmp_path / "r", Registry.load())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hidden", [(), (5, 3)])
@pytest.mark.parametrize(
    "allocator", [Cosine(top=2), LabelPair(), Nearest(within=0.3), NoAllocator()]
)
def test_the_deployed_function_comes_back_bit_for_bit(allocator, hidden, tmp_path):
    repaired = a_repaired(allocator, hidden)
    write_repaired(tmp_path / "r.safetensors", repaired)
    found = read_repaired(tmp_path / "r.safetensors", Registry.load())
    assert found.allocator == allocator
    assert found.assignment.names == repaired.assignment.names
    x = torch.cat([some_data(50)[0], repaired.box.lower, repaired.box.upper, repaired.box.center])
    assert torch.equal(found(x), repaired(x))
    assert torch.equal(found.route(x, found.base(x)), repaired.route(x, repaired.base(x)))
    assert found.base.digest() == repaired.base.digest()
    write_repaired(tmp_path / "again", found)
    assert file_digest(tmp_path / "again") == file_digest(tmp_path / "r.safetensors")


def a_certificate(path, **options):
    parts = some_parts(hidden=(4,), **options)
    parts.worklist.split(SplitPlan(torch.tensor([1]), torch.tensor([2])), parts.bounder)
    stack, _ = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    parts.repaired.bank.put(torch.tensor([0, 1]), {n: t[:2] for n, t in stack.items()})
    found = parts.certificate()
    path.mkdir()
    write_repaired(path / "repaired.safetensors", parts.repaired)
    write_certificate(path, found, parts.properties, parts.repaired)
    return found, parts


def test_a_certificate_says_what_holds_and_of_which_files(tmp_path):
    found, parts = a_certificate(tmp_path / "a")
    stated = json.loads((tmp_path / "a" / "certificate.json").read_text())
    assert (stated["level"], stated["certifier"]["name"]) == ("deployed-float32", "deeppoly")
    assert stated["certifier"]["version"] == stated["versions"]["advrepair"]
    assert stated["network"] == a_network().digest()
    for name, digest in stated["files"].items():
        assert digest == file_digest(tmp_path / "a" / name)
    rows = stated["properties"]
    assert [row["status"] for row in rows] == ["certified"] * 2 + ["unknown"] * 4
    assert [row["margin"] for row in rows] == found.margin.tolist()
    assert [row["pieces"] for row in rows] == [1, 2, 1, 1, 1, 1]
    assert [row["constant"] for row in rows] == [True] * 2 + [False] * 4
    assert [row["name"] for row in rows] == list(parts.properties.names)
    assert [row["id"] for row in rows] == list(parts.properties.identifiers())
    arrays, _ = read_tensors(tmp_path / "a" / "certificate.safetensors")
    assert torch.equal(arrays["box.lower"], parts.properties.box.lower)
    assert torch.equal(arrays["piece.margin"], found.proof.margin)
    assert arrays["tree.slope"].shape == (8, a_network().units)
    assert arrays["piece.slope"].shape == (7, 4) and len(arrays["multiplier.piece"]) == 0
    assert arrays["tree.parent"].tolist() == [-1] * 6 + [1, 1]


def test_a_certificate_has_no_time_path_or_machine_in_it(tmp_path):
    for name in ("a", "b"):
        a_certificate(tmp_path / name)
    for name in BYTES:
        one, other = ((tmp_path / where / name).read_bytes() for where in ("a", "b"))
        assert one == other and str(tmp_path).encode() not in one


def test_another_memory_gives_the_same_certificate(tmp_path):
    a_certificate(tmp_path / "a")
    a_certificate(tmp_path / "b", memory=2**20)
    for name in BYTES:
        one, other = ((tmp_path / where / name).read_bytes() for where in ("a", "b"))
        assert one == other, name
