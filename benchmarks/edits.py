"""Ways to change a run folder, as somebody would who wants a false claim to be believed."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.contents import SPECIFIED, Arrays, Content

Random = np.random.Generator


def _flip_bit(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    changed[random.integers(len(data))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _set_byte(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    changed[random.integers(len(data))] ^= int(random.integers(1, 256))
    return bytes(changed)


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.integers(len(data))]


def _append(data: bytes, random: Random) -> bytes:
    return data + random.bytes(int(random.integers(1, 64)))


RAW: dict[str, Callable[[bytes, Random], bytes]] = {
    "bit": _flip_bit,
    "byte": _set_byte,
    "truncated": _cut,
    "longer": _append,
}


def _random_array(content: Content, random: Random) -> tuple[Arrays, str]:
    arrays = (content.proof, content.stored)[random.integers(2)]
    names = [name for name in sorted(arrays) if arrays[name].size]
    return arrays, names[random.integers(len(names))]


def array_bit(content: Content, random: Random) -> None:
    """One bit of any array."""
    arrays, name = _random_array(content, random)
    each = arrays[name]
    raw = _flip_bit(each.tobytes(), random)
    if each.dtype == bool:
        raw = bytes(np.frombuffer(raw, np.uint8) & 1)
    arrays[name] = np.frombuffer(raw, each.dtype).reshape(each.shape)


def array_value(content: Content, random: Random) -> None:
    """One number of any array becomes one of the numbers that often go unnoticed."""
    arrays, name = _random_array(content, random)
    kinds = {"f": [0.0, -1.0, 1e30, np.nan, np.inf, -np.inf, 1e-40], "b": [False, True]}
    few = kinds.get(arrays[name].dtype.kind, [0, 1, 2, 127])
    arrays[name].flat[random.integers(arrays[name].size)] = few[random.integers(len(few))]


def array_rows(content: Content, random: Random) -> None:
    """The rows of any array in another order, or without the last, or with the last twice."""
    arrays, name = _random_array(content, random)
    each, kind = arrays[name], random.integers(3)
    if not each.ndim:
        return
    rows = [random.permutation(len(each)), np.arange(len(each) - 1)]
    rows.append(np.append(np.arange(len(each)), len(each) - 1))
    arrays[name] = each[rows[kind]]


def wider_bounds(content: Content, random: Random) -> None:
    """Faces of one box or of all, in both places, moved outward by a little or a lot."""
    size = 10.0 ** random.integers(-7, 2)
    rows: Any = slice(None) if random.random() < 0.3 else random.integers(len(_boxes(content)))
    for name, sign in (("box.lower", -1), ("box.upper", 1)):
        faces = content.proof[name]
        faces[rows] += faces.dtype.type(sign * size)
        content.stored[name.replace("box.", "region/")] = faces.copy()


def one_sided_bounds(content: Content, random: Random) -> None:
    """One face, for the router or for the proof only."""
    side, size = ("lower", "upper")[random.integers(2)], 10.0 ** random.integers(-7, 2)
    faces = (content.proof[f"box.{side}"], content.stored[f"region/{side}"])[random.integers(2)]
    at = random.integers(faces.size)
    changed = faces.flat[at] + faces.dtype.type(random.choice([-1, 1]) * size)
    faces.flat[at] = changed if changed != faces.flat[at] else np.nextafter(changed, np.float32(9))


def margins(content: Content, random: Random) -> None:
    """A larger margin of one property, told alike everywhere."""
    owner = content.proof["tree.owner"][content.proof["piece.node"]]
    i, factor = random.integers(len(_boxes(content))), 1 + 10.0 ** random.integers(-9, 4)
    content.proof["piece.margin"][owner == i] *= factor
    each = content.claim["properties"][i]
    each["margin"] = float(content.proof["piece.margin"][owner == i].min(initial=np.inf))


def margin_in_json(content: Content, random: Random) -> None:
    """A margin in the JSON only."""
    few = (0.0, -1.0, None, 1e9, "0.1", True, float("inf"), float("nan"))
    each = content.claim["properties"][random.integers(len(_boxes(content)))]
    each["margin"] = few[random.integers(len(few))]


def status(content: Content, random: Random) -> None:
    """A property that is not certified is called so, or the other way round."""
    each = content.claim["properties"][random.integers(len(_boxes(content)))]
    certified = each["status"] == "certified"
    each["status"] = "unknown" if certified else "certified"


def label(content: Content, random: Random) -> None:
    """Another label; half of the time with the demand that belongs to it."""
    i, outputs = random.integers(len(_boxes(content))), content.proof["C"].shape[2]
    each = content.claim["properties"][i]
    each["label"] = int((each["label"] + random.integers(1, outputs)) % outputs)
    content.stored["centres/label"][i] = each["label"]
    rows = content.proof["C"][i]
    if random.random() < 0.5 and len(rows) == outputs - 1:
        eye = np.eye(outputs, dtype=rows.dtype)
        content.proof["C"][i] = eye[each["label"]] - np.delete(eye, each["label"], 0)


def demand(content: Content, random: Random) -> None:
    """An easier demand: a gift, one group, no rows, no label, other rows."""
    i, kind = random.integers(len(_boxes(content))), random.integers(5)
    C, d, group = (content.proof[name] for name in ("C", "d", "group"))
    if kind == 0:
        d[i] += 100
    elif kind in (1, 2):
        group[i] = kind - 2
    elif kind == 3:
        C[i] = 0
        d[i] = 1
        content.claim["properties"][i]["label"] = -1
        content.stored["centres/label"][i] = -1
    else:
        C[i] = C[i][::-1].copy()


def drop_piece(content: Content, random: Random) -> None:
    """One piece less, or in place of another."""
    node = content.proof["piece.node"]
    at = random.integers(len(node))
    pieces = [name for name in content.proof if name.startswith("piece.")]
    for name in pieces:
        content.proof[name] = np.delete(content.proof[name], at, 0)
    owner = content.proof["tree.owner"]
    each = content.claim["properties"][owner[node[at]]]
    each["pieces"] -= 1
    if random.random() < 0.5 and len(node) > 1:
        other = random.integers(len(node) - 1)
        for name in pieces:
            rows = content.proof[name]
            content.proof[name] = np.concatenate([rows, rows[other : other + 1]])
        content.claim["properties"][owner[node[other]]]["pieces"] += 1


def swap_pieces(content: Content, random: Random) -> None:
    """Two pieces exchange what is said of them."""
    if len(content.proof["piece.node"]) < 2:
        return
    i, j = random.choice(len(content.proof["piece.node"]), 2, replace=False)
    names = [name for name in content.proof if name.startswith("piece.")]
    for name in names[: random.integers(1, len(names) + 1)]:
        content.proof[name][[i, j]] = content.proof[name][[j, i]]


def cuts(content: Content, random: Random) -> None:
    """A cut at another place or along another axis, or a node with another parent."""
    name = ("tree.cut", "tree.dim", "tree.parent", "tree.owner")[random.integers(4)]
    each = content.proof[name]
    inner = (content.proof["tree.dim"] >= 0).nonzero()[0]
    at = inner[random.integers(len(inner))] if len(inner) else random.integers(len(each))
    each[at] += each.dtype.type(random.choice([-1, 1]) * (1 if each.dtype.kind == "i" else 0.01))


def whole_tree(content: Content, random: Random) -> None:
    """A leaf is cut further, at an input or by a sign, with one half only as a piece."""
    proof, leaf = content.proof, content.proof["piece.node"][0]
    low, high = (proof[f"box.{side}"][proof["tree.owner"][leaf]] for side in ("lower", "upper"))
    by_sign = random.random() < 0.5 and (units := _units(content)) > 0
    axis = low.size + random.integers(units) if by_sign else random.integers(low.size)
    middle = 0.0 if by_sign else (float(low.flat[axis]) + float(high.flat[axis])) / 2
    proof["tree.dim"][leaf], proof["tree.cut"][leaf] = axis, middle
    first = len(proof["tree.owner"])
    values = {"owner": proof["tree.owner"][leaf], "parent": leaf, "dim": -1, "cut": 0.0}
    for name in [name for name in proof if name.startswith("tree.")]:
        rows = proof[name]
        new = np.stack([rows[leaf]] * 2)
        if name.removeprefix("tree.") in values:
            new[:] = values[name.removeprefix("tree.")]
        proof[name] = np.concatenate([rows, new])
    proof["piece.node"][0] = first + random.integers(2)


def multipliers(content: Content, random: Random) -> None:
    """Multipliers of units whose sign is known or not, some of them negative or no numbers."""
    names = [f"multiplier.{name}" for name in ("piece", "unit", "value")]
    if any(name not in content.proof for name in names) or not _units(content):
        return
    count, value = int(random.integers(1, 9)), content.proof[names[2]]
    few = [1e-3, 1.0, 1e3, 1e30, -1.0, -1e3, np.nan, np.inf]
    new = (
        random.integers(len(content.proof["piece.node"]), size=count),
        random.integers(_units(content), size=count),
        np.full((count, *value.shape[1:]), few[random.integers(len(few))]),
    )
    for name, rows in zip(names, new, strict=True):
        old = content.proof[name]
        content.proof[name] = np.concatenate([old, rows.astype(old.dtype)])


def _units(content: Content) -> int:
    """ReLUs of the network and of a patch, if the certificate speaks about them."""
    slopes = [content.proof.get(name) for name in ("tree.slope", "piece.slope")]
    return sum(each.shape[1] for each in slopes if each is not None)


def drop_patch(content: Content, random: Random) -> None:
    """One patch less, or all of one patch is zero."""
    names = [name for name in content.stored if name.startswith("patch/")]
    at, drop = random.integers(len(content.header["patches"])), random.random() < 0.5
    for name in names:
        if drop:
            content.stored[name] = np.delete(content.stored[name], at, 0)
        else:
            content.stored[name][at] = 0
    if drop:
        del content.header["patches"][at]


def swap_patches(content: Content, random: Random) -> None:
    """Two patches exchange weights, or two properties their patches."""
    count = len(content.header["patches"])
    i, j = random.choice(max(2, count), 2, replace=False) % count
    if random.random() < 0.5:
        for name in content.stored:
            if name.startswith("patch/"):
                content.stored[name][[i, j]] = content.stored[name][[j, i]]
        return
    i, j = random.integers(len(_boxes(content)), size=2)
    patch = content.stored["centres/patch"]
    patch[[i, j]] = patch[[j, i]]
    if random.random() < 0.7:
        for at in (i, j):
            content.claim["properties"][at]["patch"] = int(patch[at])


def swap_boxes(content: Content, random: Random) -> None:
    """Two boxes exchange places, for the router and the proof."""
    i, j = random.integers(len(_boxes(content)), size=2)
    for name in ("box.lower", "box.upper"):
        faces = content.proof[name]
        faces[[i, j]] = faces[[j, i]]
        content.stored[name.replace("box.", "region/")] = faces.copy()


def drop_box(content: Content, random: Random) -> None:
    """One property less, in all or in some of its places."""
    count = len(_boxes(content))
    at, share = random.integers(count), random.choice([0.5, 0.9, 1.0])
    rows = [(content.proof, name) for name in SPECIFIED]
    rows += [(content.stored, f"region/{side}") for side in ("lower", "upper")]
    rows += [(content.stored, name) for name in content.stored if name.startswith("centres/")]
    for arrays, name in rows:
        if random.random() < share and len(arrays[name]) == count:
            arrays[name] = np.delete(arrays[name], at, 0)
    if random.random() < share:
        del content.claim["properties"][at]


def overlap(content: Content, random: Random) -> None:
    """A box that lies before another moves onto it, so its patch is the one that is on."""
    i, j = np.sort(random.integers(len(_boxes(content)), size=2))
    for name in ("box.lower", "box.upper"):
        content.proof[name][i] = content.proof[name][j]
        content.stored[name.replace("box.", "region/")] = content.proof[name].copy()
    if random.random() < 0.5:
        content.claim["properties"][i]["status"] = "unknown"


def weights(content: Content, random: Random) -> None:
    """Other weights of the network or of the patches, by a little or a lot."""
    names = [name for name in sorted(content.stored) if name.startswith(("base/", "patch/"))]
    each, size = content.stored[names[random.integers(len(names))]], 10.0 ** random.integers(-6, 3)
    noise = random.standard_normal(each.shape) * (size * (float(np.abs(each).mean()) + 1e-9))
    each += noise.astype(each.dtype)


def operations(content: Content, random: Random) -> None:
    """A node of the network or the patch less, twice, of another kind, or with other numbers."""
    listed = content.header[("base", "patch")[random.integers(2)]]["operations"]
    at, kind = random.integers(len(listed)), random.integers(5)
    op = listed[at]
    if kind == 0:
        del listed[at]
    elif kind == 1:
        op["kind"] = str(random.choice(["relu", "linear", "add", "scale", "pad", "reshape"]))
    elif kind == 2 and op["settings"]:
        key = sorted(op["settings"])[random.integers(len(op["settings"]))]
        value = int(random.choice([-1, 0, 2, 3, 2**40]))
        op["settings"][key] = value if random.random() < 0.5 else [value, value]
    elif kind == 3 and op["tensors"]:
        del op["tensors"][sorted(op["tensors"])[0]]
    else:
        before = ["input", *(each["name"] for each in listed[:at])]
        op["inputs"] = [before[random.integers(len(before))] for _ in op["inputs"]]


def words(content: Content, random: Random) -> None:
    """Any value of the JSON or of a header becomes another."""
    places = list(_places([content.claim, content.header, content.other]))
    holder, key = places[random.integers(len(places))]
    few = [None, -1, 0, 1, 2, 2**70, 0.5, "", "real", "deployed-float64", [], {}, True, "input"]
    holder[key] = copy.deepcopy(few[random.integers(len(few))])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything inside of JSON values: what holds it, and its key there."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(each, dict | list):
            yield from _places(each)
        if not (isinstance(value, list) and isinstance(each, dict) and "operations" in each):
            yield value, key


EDITS: tuple[Callable[[Content, Random], None], ...] = (
    array_bit, array_value, array_rows, wider_bounds, one_sided_bounds, margins, margin_in_json,
    status, label, demand, drop_piece, swap_pieces, cuts, whole_tree, multipliers, drop_patch,
    swap_patches, swap_boxes, drop_box, overlap, weights, operations, words,
)  # fmt: skip


def _boxes(content: Content) -> np.ndarray:
    return content.proof["box.lower"]
