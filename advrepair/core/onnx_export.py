"""A repaired network as one ONNX file: base network, patches and routing.

Two forms. ``routed`` computes what ``RepairedNetwork.forward`` does, comparisons included.
``relu`` has no comparisons; see :mod:`advrepair.core.relu_form`. docs/export.md states what
agrees with what, and how far.
"""

from __future__ import annotations

from collections.abc import Mapping

from advrepair.core.graph import INPUT
from advrepair.core.onnx_writer import OUTPUT, write_model, write_network
from advrepair.core.operators import Steps
from advrepair.core.patching import RepairedNetwork
from advrepair.core.routing_steps import LOGITS, ROUTE, SEEN, write_deployed


def routed_model(repaired: RepairedNetwork, about: Mapping[str, str] | None = None) -> bytes:
    """The routed form. Its input is called ``input``, its output ``output``, the batch is open.

    about: goes into the file's metadata. Raises UsageError, naming it, for an allocator that
    has no method ``write``; UnsupportedNetworkError, naming the node, for an operation that
    has no ONNX operator.
    """
    steps, base = Steps(), repaired.base
    seen = INPUT
    if repaired.front is not None:
        seen = steps.call("Identity", write_network(steps, repaired.front), name=SEEN)
    logits = steps.call("Identity", write_network(steps, repaired.tail, seen), name=LOGITS)
    steps.prefix = ROUTE
    total = write_deployed(steps, repaired, INPUT, seen, logits)
    steps.prefix = ""
    last = steps.call("Identity", total, name=OUTPUT)
    return write_model(steps, {INPUT: base.input_shape}, {last: [base.outputs]}, base.dtype, about)
