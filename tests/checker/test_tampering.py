"""Whoever changes a folder gets no VALID for it, nor a crash, nor a long wait."""

import json
import shutil
import time

import folders
import numpy as np
import pytest
from folders import FILES, edited, repaired, verdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import SPLITTING, a_registry, configure, write_inputs

from advrepair.core import pipeline

SECONDS = 5.0
quick = settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with splits: every array matters."""
    place = tmp_path_factory.mktemp("tampering")
    registry = a_registry()
    layers = (SPLITTING, {"problem": {"count": 12}})
    configuration = configure(registry, *write_inputs(place), *layers)
    pipeline.run(configuration, registry, place / "run")
    assert verdict(place / "run").word == "VALID"
    return place / "run"


def answer(folder):
    """The verdict; in time, and in words."""
    start = time.perf_counter()
    found = verdict(folder)
    assert time.perf_counter() - start < SECONDS
    assert found.word in ("VALID", "INVALID", "INCOMPLETE")
    assert found.word == "VALID" or found.line.startswith(f"{found.word}: ")
    return found


def copied(folder):
    target = folder.with_name("changed")
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(folder, target)


@given(st.sampled_from(FILES[1:]), st.integers(0), st.integers(1, 255))
@quick
def test_a_changed_byte_of_the_arrays(folder, name, position, mask):
    target = copied(folder)
    data = bytearray((target / name).read_bytes())
    data[position % len(data)] ^= mask
    (target / name).write_bytes(data)
    assert answer(target).word == "INVALID"


def said(folder):
    """What of the JSON the checker vouches for, and what else each property says."""
    claim = json.loads((folder / FILES[0]).read_text())
    kept = {key: claim[key] for key in ("format", "level", "network", "files")}
    keys = ("label", "patch", "margin")
    properties = [
        tuple(each.get(key) for key in keys) if each["status"] == "certified" else None
        for each in claim["properties"]
    ]
    return kept, properties


@given(st.integers(0), st.integers(0, 7))
@quick
def test_a_flipped_bit_of_the_json(folder, position, bit):
    target = copied(folder)
    data = bytearray((target / FILES[0]).read_bytes())
    data[position % len(data)] ^= 1 << bit
    (target / FILES[0]).write_bytes(data)
    if answer(target).word == "VALID":  # a word that is for people, or a status taken back
        (before, old), (after, new) = said(folder), said(target)
        assert before == after
        assert all(b in (a, None) for a, b in zip(old, new, strict=True))


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True))
@quick
def test_a_truncated_file(folder, name, share):
    target = copied(folder)
    data = (target / name).read_bytes()
    (target / name).write_bytes(data[: int(share * len(data))])
    found = answer(target)
    # The last byte of the JSON is a line break.
    assert found.word == "INVALID" or (name == FILES[0] and share * len(data) >= len(data) - 1)


def arrays_of(folder):
    read = [(name, folders.read(folder, name)[0]) for name in FILES[1:]]
    return [(name, key) for name, arrays in read for key in arrays if arrays[key].size]


@given(st.data())
@quick
def test_a_flipped_bit_with_new_hashes(folder, data):
    """Only what the numbers say can be noticed now; what is VALID must still hold."""
    file, key = data.draw(st.sampled_from(arrays_of(folder)))
    seed = data.draw(st.integers(0))

    def flip(claim, proof, stored):
        array = (proof if file == FILES[1] else stored)[key]
        raw = bytearray(array.tobytes())
        raw[seed // 8 % len(raw)] ^= 1 << seed % 8
        changed = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
        (proof if file == FILES[1] else stored)[key] = changed

    target = edited(folder, folder.with_name("changed"), flip)
    if answer(target).word == "VALID":
        assert holds(target)


def holds(target):
    """Points of every certified box, run through the deployed function."""
    import torch

    import advrepair

    network = advrepair.load(target)
    claim = json.loads((target / FILES[0]).read_text())
    low, high = network.box.lower, network.box.upper
    generator = torch.Generator().manual_seed(0)
    certified = [i for i, e in enumerate(claim["properties"]) if e["status"] == "certified"]
    label = torch.tensor([claim["properties"][i]["label"] for i in certified])
    for _ in range(4):
        weight = torch.rand(low.shape, generator=generator)
        point = torch.minimum(torch.maximum(low + weight.round() * (high - low), low), high)
        with torch.no_grad():
            if not bool((network(point[certified]).argmax(1) == label).all()):
                return False
    return True


def set_margin(value):
    def edit(claim, proof, stored):
        claim["properties"][first(claim)]["margin"] = value

    return edit


def set_property(key, value):
    def edit(claim, proof, stored):
        claim["properties"][first(claim)][key] = value

    return edit


def first(claim):
    """The first property that the checker vouches for."""
    return [each["status"] for each in claim["properties"]].index("certified")


def relabel(claim, proof, stored):
    which = first(claim)
    label = (claim["properties"][which]["label"] + 1) % 4
    claim["properties"][which]["label"] = label
    stored["centres/label"][which] = label


def another_demand(claim, proof, stored):
    relabel(claim, proof, stored)
    eye = np.eye(4, dtype=np.float32)
    which = first(claim)
    label = claim["properties"][which]["label"]
    proof["C"][which] = eye[label] - np.delete(eye, label, 0)


def one_group(claim, proof, stored):
    proof["group"][:] = 0


def no_demand(claim, proof, stored):
    proof["group"][:] = -1


def a_gift(claim, proof, stored):
    proof["d"][:] = 100


def wider(claim, proof, stored):
    for name in ("box.lower", "box.upper"):
        proof[name] = proof[name] + (5 if name == "box.upper" else -5)
        stored[name.replace("box.", "region/")] = proof[name].copy()


def one_sided(claim, proof, stored):
    stored["region/upper"] = stored["region/upper"] + 1


def inside_out(claim, proof, stored):
    proof["box.lower"], proof["box.upper"] = proof["box.upper"], proof["box.lower"]
    stored["region/lower"], stored["region/upper"] = proof["box.lower"], proof["box.upper"]


def drop_piece(claim, proof, stored):
    for name in ("piece.node", "piece.margin"):
        proof[name] = proof[name][:-1]


def repeat_piece(claim, proof, stored):
    proof["piece.node"][-1] = proof["piece.node"][0]


def drop_cut(claim, proof, stored):
    for name in ("owner", "parent", "dim", "cut"):
        proof[f"tree.{name}"] = proof[f"tree.{name}"][:-1]


def move_cut(claim, proof, stored):
    proof["tree.cut"][proof["tree.dim"] >= 0] += 10


def no_half(claim, proof, stored):
    """A cut by the sign of a unit, and one of its halves is gone."""
    proof["tree.dim"][0] = 6


def strange_unit(claim, proof, stored):
    proof["tree.dim"][proof["tree.dim"] >= 0] = 10_000


def unit_not_at_zero(claim, proof, stored):
    cut = proof["tree.dim"] >= 0
    proof["tree.dim"][cut], proof["tree.cut"][cut] = 6, 0.5


def signs_for_halves(claim, proof, stored):
    """The halves of boxes become those of a unit, which is at most 0, or at least."""
    cut = proof["tree.dim"] >= 0
    proof["tree.dim"][cut], proof["tree.cut"][cut] = 6, 0.0
    proof["piece.margin"][:] += 1.0
    for i, each in enumerate(claim["properties"]):
        if each["status"] == "certified":
            mine = proof["tree.owner"][proof["piece.node"]] == i
            each["margin"] = float(proof["piece.margin"][mine].min())


def few_slopes(claim, proof, stored):
    proof["tree.slope"] = proof["tree.slope"][:, :-1]


def slopes_of_no_node(claim, proof, stored):
    proof["tree.slope"] = proof["tree.slope"][:-1]


def slopes_of_no_piece(claim, proof, stored):
    proof["piece.slope"] = proof["piece.slope"][:-1]


def signed_slopes(claim, proof, stored):
    proof["tree.slope"] = proof["tree.slope"].astype(np.int64) - 300


def multiplied(piece=0, unit=0, value=1.0, rows=None):
    def edit(claim, proof, stored):
        rows_ = proof["d"].shape[1] if rows is None else rows
        proof["multiplier.piece"] = np.int64([piece])
        proof["multiplier.unit"] = np.int64([unit])
        proof["multiplier.value"] = np.full((1, rows_), value, np.float32)

    edit.__name__ = f"multiplied_{piece}_{unit}_{value}_{rows}"
    return edit


def swap_dim(claim, proof, stored):
    cut = proof["tree.dim"] >= 0
    proof["tree.dim"][cut] = proof["tree.dim"][cut] + 6000


def cycle(claim, proof, stored):
    proof["tree.parent"][-1] = len(proof["tree.parent"]) - 1


def drop_patch(claim, proof, stored):
    for name in list(stored):
        if name.startswith("patch/"):
            stored[name] = stored[name][:-1]


def one_more_bias(claim, proof, stored):
    """The last patch's bias twice: what is proved could not be run."""
    bias = stored["patch/linear0.bias"]
    stored["patch/linear0.bias"] = np.concatenate([bias, bias[-1:]])


def swap_patches(claim, proof, stored):
    for name in list(stored):
        if name.startswith("patch/"):
            stored[name] = stored[name][::-1].copy()


def reroute(claim, proof, stored):
    stored["region/patch"] = np.roll(stored["region/patch"], 1)


def reroute_both(claim, proof, stored):
    reroute(claim, proof, stored)
    stored["centres/patch"] = stored["region/patch"]
    for each, patch in zip(claim["properties"], stored["region/patch"].tolist(), strict=True):
        each["patch"] = patch


def drop_box(claim, proof, stored):
    for name in ("box.lower", "box.upper"):
        proof[name] = proof[name][:-1]
        stored[name.replace("box.", "region/")] = proof[name].copy()


def swap_boxes(claim, proof, stored):
    for name in ("box.lower", "box.upper"):
        proof[name] = proof[name][::-1].copy()
        stored[name.replace("box.", "region/")] = proof[name].copy()


def no_numbers(claim, proof, stored):
    stored["base/" + "linear_0.weight"] = stored["base/linear_0.weight"] * np.nan


def skip_layer(claim, proof, stored):
    del stored["header"]["base"]["operations"][1]


def huge(claim, proof, stored):
    operation = {"name": "big", "kind": "pad", "inputs": ["input"], "shape": [2**40]}
    operation |= {"tensors": {}, "settings": {"pad": [2**40, 0]}}
    stored["header"]["base"]["operations"].insert(0, operation)


def level(claim, proof, stored):
    claim["level"] = "exact"


EDITS = [
    relabel, another_demand, one_group, no_demand, a_gift, wider, one_sided, inside_out, drop_piece,
    repeat_piece, drop_cut, move_cut, swap_dim, cycle, drop_patch, swap_patches, reroute,
    one_more_bias, no_half, strange_unit,
    unit_not_at_zero, signs_for_halves, few_slopes, slopes_of_no_node, slopes_of_no_piece,
    signed_slopes, multiplied(value=-1e-3), multiplied(value=np.nan), multiplied(value=np.inf),
    multiplied(unit=-1), multiplied(unit=10_000), multiplied(piece=-1), multiplied(piece=10_000),
    multiplied(rows=1), reroute_both, drop_box, swap_boxes, no_numbers, skip_layer, huge, level,
]  # fmt: skip
VALUES = [
    set_margin(value) for value in (0.0, -1.0, None, 1e9, "0.1", True, float("nan"), float("inf"))
] + [
    set_property(key, value)
    for key, value in [
        ("status", "proved"), ("status", None), ("patch", 99), ("patch", -1), ("patch", True),
        ("label", 99), ("label", -1), ("label", None),
    ]
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_a_changed_claim_with_new_hashes(edit, folder, tmp_path):
    assert answer(edited(folder, tmp_path / "changed", edit)).word != "VALID"


@pytest.mark.parametrize("edit", VALUES, ids=range(len(VALUES)))
def test_a_changed_value_of_the_json(edit, folder, tmp_path):
    assert answer(edited(folder, tmp_path / "changed", edit)).word == "INVALID"


def test_a_stranger_key_or_a_missing_one(folder, tmp_path):
    claim = json.loads((folder / FILES[0]).read_text())
    target = copied(folder)
    for key in claim:
        if key not in ("claim", "certifier", "versions"):
            less = {name: value for name, value in claim.items() if name != key}
            (target / FILES[0]).write_text(json.dumps(less))
            assert answer(target).word == "INVALID", key


def test_a_patch_of_another_run(folder, tmp_path):
    other = repaired(tmp_path / "other")
    target = copied(folder)
    shutil.copy(other / FILES[2], target / FILES[2])
    assert answer(target).word == "INVALID"
    folders.rehash(target, json.loads((folder / FILES[0]).read_text()))
    assert answer(target).word == "INVALID"
