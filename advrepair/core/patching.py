"""Patches, and the repaired network: which patch an input gets, and the sum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from advrepair.core.box import Box
from advrepair.core.devices import Placed
from advrepair.core.graph import INPUT, Network, Operation, size
from advrepair.core.interfaces import Allocator, SmoothAllocator
from advrepair.core.paired import paired
from advrepair.core.parting import Parts, parted
from advrepair.core.types import Assignment, Centres, PropertySet, Regions

Stack = dict[str, Tensor]  # weights of several patches: name -> [Q, ...]
_CHUNK_BYTES = 2**26  # of queries in flight
_CENTRES = 1024  # centres that go through the network together
_BUSY = 2**17  # multiplications for which a patch is worth a call of its own


def _at_once(x: Tensor) -> int:
    """How many rows of x to copy at a time."""
    return max(1, _CHUNK_BYTES // max(1, x[:1].numel() * x.element_size()))


def patch_template(network: Network, hidden: Sequence[int]) -> Network:
    """A fully connected network from *S to K with ReLU between; its weights are zeros."""
    features = size(network.input_shape)
    operations = [Operation("flatten", "reshape", (INPUT,), (features,))]
    tensors: dict[str, Tensor] = {}
    for layer, units in enumerate([*hidden, network.outputs]):
        if layer:
            before = operations[-1]
            operations.append(Operation(f"relu{layer}", "relu", (before.name,), before.shape))
        before, name = operations[-1], f"linear{layer}"
        tensors[f"{name}.weight"] = torch.zeros(units, *before.shape, dtype=network.dtype)
        tensors[f"{name}.bias"] = torch.zeros(units, dtype=network.dtype)
        roles = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        operations.append(Operation(name, "linear", (before.name,), (units,), roles))
    return Network(operations, tensors, network.input_shape)


def last_layer(template: Network) -> tuple[str, str]:
    """Names of the last layer's weight and bias."""
    roles = template.operations[-1].tensors
    return roles["weight"], roles["bias"]


def initial_stack(template: Network, identifiers: Sequence[str], seed: int) -> Stack:
    """Starting weights of every patch; the last layer is zero, so the patch is too.

    A patch's random numbers come from seed and its own identifier alone, so its result does
    not depend on the order of the properties, on chunks or on a resume.
    """
    stack = {n: t.new_zeros(len(identifiers), *t.shape) for n, t in template.tensors.items()}
    for index, identifier in enumerate(identifiers):
        digest = hashlib.sha256(f"{seed}:{identifier}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        for op in template.operations[:-1]:
            if op.kind == "linear":
                weight = stack[op.tensors["weight"]][index]
                width = weight.shape[1] ** -0.5
                weight.uniform_(-width, width, generator=generator)
                stack[op.tensors["bias"]][index].uniform_(-width, width, generator=generator)
    return stack


def constant_stack(template: Network, value: Tensor) -> Stack:
    """Patches that add value [Q,K] whatever the input; their zeros are stored once."""
    stack = {
        n: t.new_zeros(t.shape).expand(len(value), *t.shape) for n, t in template.tensors.items()
    }
    stack[last_layer(template)[1]] = value.to(template.dtype)
    return stack


class PatchBank(nn.Module):
    """Q patches of one shape, weights stacked."""

    def __init__(self, template: Network, stack: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.template = template
        self._attributes = {name: f"stack_{i}" for i, name in enumerate(sorted(stack))}
        for name, attribute in self._attributes.items():
            self.register_buffer(attribute, stack[name].detach())

    @property
    def stack(self) -> Stack:
        """The weights: name to [Q, ...]."""
        return {name: self.get_buffer(attr) for name, attr in self._attributes.items()}

    def __len__(self) -> int:
        return next(iter(self.stack.values())).shape[0]

    def put(self, index: Tensor, stack: Mapping[str, Tensor]) -> None:
        """Replace the weights of some patches, index [q]."""
        for name, attribute in self._attributes.items():
            self.get_buffer(attribute)[index] = stack[name].detach()

    def add_to(self, logits: Tensor, x: Tensor, gates: Tensor) -> Tensor:
        """``logits + sum of the patches that are on``: [N,K].

        x: [N,*S]. gates: bool [N,Q]. Patches are added one after the other in the order of
        their numbers, so a query with one patch sees one addition.
        """
        query, patch = gates.nonzero().T
        return self.add_pairs(logits, x, query, patch)

    def add_pairs(self, logits: Tensor, x: Tensor, query: Tensor, patch: Tensor) -> Tensor:
        """The same with patch[i] on for query[i]: [.] each, a query's patches in their order."""
        if not len(query):
            return logits
        found: list[Tensor] = []
        begin = 0
        for number, end, count in self._busy(patch):
            if not found:
                patch, order = patch.sort(stable=True)
                query = query.index_select(0, order)
            found += self._of_few(x, query[begin : end - count], patch[begin : end - count])
            found += self._of_one(x, query[end - count : end], number)
            begin = end
        found += self._of_few(x, query[begin:], patch[begin:])
        return logits.index_add(0, query, found[0] if len(found) == 1 else torch.cat(found))

    def _busy(self, patch: Tensor) -> list[tuple[int, int, int]]:
        """Patches with many of the pairs: which, where its pairs end in order, and how many."""
        least = -(-_BUSY // sum(t[0].numel() for t in self.stack.values()))
        if len(patch) < least:
            return []
        used, counts = patch.sort().values.unique_consecutive(return_counts=True)
        many = (counts >= least).nonzero()[:, 0]
        some = (part[many].tolist() for part in (used, counts.cumsum(0), counts))
        return list(zip(*some, strict=True)) if len(many) else []

    def _of_one(self, x: Tensor, query: Tensor, patch: int) -> list[Tensor]:
        """One patch on many queries, in parts of few bytes: [.,K] each. Its weights stay."""
        weights = {name: t[patch] for name, t in self.stack.items()}
        return [
            self.template.apply_tensors(weights, x.index_select(0, some))
            for some in query.split(_at_once(x))
        ]

    def _of_few(self, x: Tensor, query: Tensor, patch: Tensor) -> list[Tensor]:
        """Patch[i] on query[i], in parts of few bytes: [.,K] each."""
        if not len(query):
            return []
        if len(query) == len(x) <= _at_once(x) and bool((query.diff() == 1).all()):
            return [paired(self.template, self.stack, x, patch)]
        size, stack = _at_once(x), self.stack
        return [
            paired(self.template, stack, x.index_select(0, some), which)
            for some, which in zip(query.split(size), patch.split(size), strict=True)
        ]


class RepairedNetwork(Placed):
    """The deployed function: base network, patches and routing. A function of x alone.

    The first region that holds x says which patch is on, only that one or none; outside all
    regions the allocator chooses, or a smooth one takes over. Patches and allocators see x, or
    where ``at`` names a layer what that gives, one row of features.
    """

    box_lower: Tensor
    box_upper: Tensor
    patch: Tensor

    def __init__(
        self,
        base: Network,
        bank: PatchBank,
        regions: Regions,
        assignment: Assignment,
        centres: Centres,
        allocator: Allocator,
        at: str = "",
        center: Tensor | None = None,
    ) -> None:
        """at: the layer that patches see. center: then, inputs [P,*S]; else those of centres."""
        super().__init__()
        self.base, self.bank, self.at = base, bank, at
        parts = parted(base, at) if at else None
        self.front = parts.front if parts else None
        self.tail = parts.tail if parts else base
        self.register_buffer("box_lower", regions.box.lower)
        self.register_buffer("box_upper", regions.box.upper)
        self.register_buffer("patch", regions.patch)
        self.assignment = assignment
        self.centres, self.allocator = centres, allocator
        self.center = centres.x if center is None else center
        self._box = regions.box
        self._silent: tuple[Allocator, Centres, bool] | None = None

    @property
    def box(self) -> Box:
        """Where its regions are, [R,*S]; it keeps their membership test."""
        lower, upper = self.box_lower, self.box_upper
        if self._box.lower is not lower or self._box.upper is not upper:
            self._box = Box(lower, upper)
        return self._box

    @property
    def regions(self) -> Regions:
        """Where which patch is on."""
        return Regions(self.box, self.patch)

    def with_patches(self, bank: PatchBank) -> RepairedNetwork:
        """The same with other patches, computed where this one is."""
        parts = (self.regions, self.assignment, self.centres, self.allocator)
        found = RepairedNetwork(self.base, bank, *parts, self.at, self.center)
        found.compute_on(self.device)
        return found

    def seen(self, x: Tensor) -> Tensor:
        """What patches and allocators see of inputs [N,*S]: these, or their features [N,D]."""
        return x if self.front is None else self.front(x)

    def route(self, x: Tensor, logits: Tensor) -> Tensor:
        """Patches of each query, bool [N,Q]; logits are the base network's."""
        home = self.box.first(x)
        gates = torch.zeros(len(x), len(self.bank), dtype=torch.bool, device=x.device)
        inside, outside = (home >= 0).nonzero()[:, 0], (home < 0).nonzero()[:, 0]
        chosen = self.patch[home[inside]]
        gates[inside[chosen >= 0], chosen[chosen >= 0]] = True
        if len(outside):
            seen = x[outside] if self._never() else self.seen(x[outside])
            gates[outside] = self.allocator.allocate(seen, logits[outside], self.centres)
        return gates

    def compute(self, x: Tensor) -> Tensor:
        """Outputs [N,K] of inputs [N,*S]."""
        seen = self.seen(x)
        logits: Tensor = self.tail(seen)
        query, patch = self._pairs(x.detach(), seen.detach(), logits.detach())
        found = self.bank.add_pairs(logits, seen, query, patch)
        return self.smoothed(found, seen, logits, self.smooth(x))

    def smooth(self, x: Tensor) -> Tensor:
        """Queries that a smooth allocator answers, all that lie in no region: bool [N]."""
        if not isinstance(self.allocator, SmoothAllocator):
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return self.box.first(x.detach()) < 0

    def smoothed(self, found: Tensor, seen: Tensor, logits: Tensor, smooth: Tensor) -> Tensor:
        """Outputs, [N,K], with those of a smooth allocator put in where smooth [N] says so."""
        index = smooth.nonzero()[:, 0]
        if not len(index) or not isinstance(self.allocator, SmoothAllocator):
            return found
        ours = self.allocator.outputs(seen[index], logits[index], self.centres)
        return found.index_copy(0, index, ours)

    def _pairs(self, x: Tensor, seen: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The gates of :meth:`route` as pairs of a query and a patch, [.] each, in order.

        Without a number for every patch, of which there may be many thousand.
        """
        home = self.box.first(x)
        inside = (home >= 0).nonzero()[:, 0]
        if not len(inside) and self._never():
            return inside, inside
        patch = self.patch[home[inside]]
        on = (patch >= 0).nonzero()[:, 0]
        query, patch = inside[on], patch[on]
        if len(inside) < len(x) and not self._never():
            outside = (home < 0).nonzero()[:, 0]
            gates = self.allocator.allocate(seen[outside], logits[outside], self.centres)
            row, chosen = gates.nonzero().T
            query, order = torch.cat([query, outside[row]]).sort(stable=True)
            patch = torch.cat([patch, chosen])[order]
        return query, patch

    def _never(self) -> bool:
        """Whether the allocator says that it never switches a patch on."""
        known = self._silent
        if known is None or known[0] is not self.allocator or known[1] is not self.centres:
            never = self.allocator.most(self.centres) == 0
            self._silent = known = (self.allocator, self.centres, never)
        return known[2]


def attach(
    network: Network,
    properties: PropertySet,
    regions: Regions,
    assignment: Assignment,
    allocator: Allocator,
    bank: PatchBank,
    fitted: Mapping[str, Tensor] | None = None,
    parts: Parts | None = None,
) -> RepairedNetwork:
    """Put network, patches and routing together. fitted: what a smooth allocator found.

    parts: of the network, where patches see the features of its front.
    """
    front, tail = (parts.front, parts.tail) if parts else (nn.Identity(), network)
    with torch.no_grad():
        seen = torch.cat([front(part) for part in properties.center.split(_CENTRES)])
        logits = torch.cat([tail(part) for part in seen.split(_CENTRES)])
    centres = Centres(
        x=seen,
        logits=logits,
        label=properties.label,
        target=properties.target,
        patch=assignment.patch,
        patches=len(assignment),
        fitted=dict(fitted or {}),
    )
    at = parts.at if parts else ""
    known = (regions, assignment, centres, allocator, at, properties.center)
    return RepairedNetwork(network, bank, *known)


def patch_identifiers(properties: PropertySet, assignment: Assignment) -> tuple[str, ...]:
    """A name of each patch that depends only on the properties it serves."""
    served: list[list[str]] = [[] for _ in assignment.names]
    for identifier, patch in zip(properties.identifiers(), assignment.patch.tolist(), strict=True):
        if patch >= 0:
            served[patch].append(identifier)
    return tuple(hashlib.sha256("".join(sorted(ids)).encode()).hexdigest()[:16] for ids in served)
