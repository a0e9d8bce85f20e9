"""Shards: the parts of a repair that have nothing to do with each other.

Some patches, and all the pieces that they serve. What becomes of a shard depends on it and on
the settings alone, so shards are solved in any order, on any machine, and once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.bounding import bytes_of_rows
from advrepair.core.box import Box
from advrepair.core.graph import Network
from advrepair.core.layout import SplitTree
from advrepair.core.types import LinearBound, PropertySet

_PATCHES_AT_ONCE = 64
_SHARDS = 4  # at least, if there are patches enough: there may be several to solve them
_FEW = 8  # patches at least: below, what each call costs by itself counts
_CACHE_BYTES = 2**24  # of the largest array in flight: memory is slower than arithmetic
STEPS = ("bounds", "training", "proof")
_PROOF = ("A", "b", "magnitude", "slope", "error")


@frozen(eq=False)
class Shard:
    """Some patches, q of them, and all that they have to prove.

    box: w pieces. owner: [w], the property of each. patch: [w], the patch that serves it.
    identifiers: of the patches; they depend on what is served alone. proof: N's rigorous rows
    on the pieces, if they are known already.
    """

    properties: PropertySet
    box: Box
    owner: Tensor
    patch: Tensor
    identifiers: tuple[str, ...]
    proof: LinearBound | None = None

    def key(self, settings: str) -> str:
        """A name that says all that its outcome depends on; settings: those of the solver."""
        asked, sha = self.properties, hashlib.sha256(settings.encode())
        sha.update("".join(self.identifiers).encode())
        tensors = [asked.C, asked.d, asked.group, asked.label, self.owner, self.patch]
        tensors += [self.box.lower, self.box.upper]
        if self.proof is not None:
            tensors += [t for n in _PROOF if (t := getattr(self.proof, n)) is not None]
        for tensor in tensors:
            sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()[:32]


@frozen(eq=False)
class Outcome:
    """What became of a shard.

    stack: its patches, [q,...]. epochs: [q], steps taken. flat: bool [q], whether a patch is
    constant. own: [w], N's margin on the pieces of the shard. constant: [q,K], the trivial
    repair, proved where held: bool [q]. tree: R nodes, the first of them those pieces. slope:
    uint8 [R,U]. node, margin: of its leaves. patch_slope: uint8, one row a leaf. cpu: seconds
    of processor time, for each of STEPS.
    """

    stack: Mapping[str, Tensor]
    epochs: Tensor
    flat: Tensor
    own: Tensor
    constant: Tensor
    held: Tensor
    tree: SplitTree
    slope: Tensor
    node: Tensor
    margin: Tensor
    patch_slope: Tensor
    cpu: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All of it as tensors, for a file."""
        found = {f"stack/{name}": t for name, t in self.stack.items()}
        found |= {name: getattr(self, name) for name in _ARRAYS}
        found |= {f"tree/{name}": torch.tensor(getattr(self.tree, name)) for name in _TREE}
        return found | {"tree/cut": torch.tensor(self.tree.cut, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, found: Mapping[str, Tensor]) -> Outcome:
        """Inverse of :meth:`tensors`."""
        tree = SplitTree(**{name: found[f"tree/{name}"].tolist() for name in (*_TREE, "cut")})
        stack = {n.removeprefix("stack/"): t for n, t in found.items() if n.startswith("stack/")}
        return cls(stack=stack, tree=tree, **{name: found[name] for name in _ARRAYS})


_ARRAYS = (
    "epochs",
    "flat",
    "own",
    "constant",
    "held",
    "slope",
    "node",
    "margin",
    "patch_slope",
    "cpu",
)
_TREE = ("owner", "parent", "dim")


def packed(pieces: list[int], template: Network, rows: int) -> list[slice]:
    """Runs of patches that make a shard each. pieces: of every patch, [Q].

    They follow from the problem alone, never from the memory or the processors at hand: the
    last bits of a result may depend on what is computed beside it.
    """
    most = min(_PATCHES_AT_ONCE, max(_FEW, -(-len(pieces) // _SHARDS)))
    each = bytes_of_rows(template, rows, 1)
    runs, begin, largest = [], 0, 0
    for i, count in enumerate(pieces):
        largest, length = max(largest, count), i - begin + 1
        if length > 1 and (length > most or length * largest * each > _CACHE_BYTES):
            runs.append(slice(begin, i))
            begin, largest = i, count
    return [*runs, slice(begin, len(pieces))] if pieces else []
