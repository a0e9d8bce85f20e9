"""Numbering the patches: one for each property, or one for each label that occurs."""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.types import Assignment, PropertySet


def one_each(properties: PropertySet) -> Assignment:
    """Patch i serves property i and bears its name."""
    patch = torch.arange(len(properties), device=properties.label.device)
    return Assignment(patch, properties.names)


def by_label(indicator: str, properties: PropertySet) -> Assignment:
    """Patches in ascending order of the labels that occur, each named ``label 3``."""
    labels, patch = _number(indicator, properties, {"label": properties.label})
    return Assignment(patch, tuple(f"label {label}" for (label,) in labels))


def by_label_and_target(indicator: str, properties: PropertySet) -> Assignment:
    """Patches in ascending order of the pairs that occur, each named ``label 3 over 8``."""
    pair = {"label": properties.label, "target": properties.target}
    pairs, patch = _number(indicator, properties, pair)
    return Assignment(patch, tuple(f"label {label} over {target}" for label, target in pairs))


def _number(
    indicator: str, properties: PropertySet, columns: dict[str, Tensor]
) -> tuple[list[list[int]], Tensor]:
    """Number the distinct rows of the columns in ascending order.

    columns: what to tell apart, such as the labels, each [P].
    Returns the distinct rows, Q of them, and the number of each property's row, [P].
    Raises UsageError if a property lacks one of the columns (-1).
    """
    for what, values in columns.items():
        if bool((values < 0).any()):
            lacking = properties.names[int((values < 0).nonzero()[0])]
            raise UsageError(
                f"indicator {indicator}: it needs labelled properties, but {lacking!r} has no "
                f"{what}; use --indicator property-guided"
            )
    table = torch.stack(list(columns.values()), 1)
    distinct, number = torch.unique(table, dim=0, return_inverse=True)
    return distinct.tolist(), number
