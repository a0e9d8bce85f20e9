"""Which patch serves which property."""

import pytest
import torch

from advrepair.core.errors import UsageError
from advrepair.core.types import Box, PropertySet
from advrepair.plugins.indicators import advrepair_components
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.indicators.targeted_label import TargetedLabel
from advrepair.plugins.indicators.untargeted_label import UntargetedLabel


def labelled(labels: list[int], targets: list[int]) -> PropertySet:
    count = len(labels)
    return PropertySet(
        box=Box(torch.zeros(count, 2), torch.ones(count, 2)),
        C=torch.zeros(count, 1, 10),
        d=torch.zeros(count, 1),
        group=torch.zeros(count, 1, dtype=torch.long),
        label=torch.tensor(labels),
        target=torch.tensor(targets),
        center=torch.full((count, 2), 0.5),
        names=tuple(f"image {i}" for i in range(count)),
    )


def test_the_hook_brings_all_three() -> None:
    names = {component.name for component in advrepair_components()}
    assert names == {"property-guided", "untargeted-label", "targeted-label"}


def test_property_guided_gives_every_property_its_own_patch() -> None:
    properties = labelled([3, 3, -1], [8, 8, -1])
    assignment = PropertyGuided().assign(properties).checked(3)
    assert assignment.patch.tolist() == [0, 1, 2]
    assert assignment.names == properties.names


def test_untargeted_label_shares_a_patch_among_equal_labels() -> None:
    assignment = UntargetedLabel().assign(labelled([7, 3, 7, 0], [1, -1, 2, 3])).checked(4)
    assert assignment.names == ("label 0", "label 3", "label 7")
    assert assignment.patch.tolist() == [2, 1, 2, 0]


def test_targeted_label_tells_attacked_labels_apart() -> None:
    properties = labelled([3, 3, 0, 3], [8, 5, 8, 8])
    assignment = TargetedLabel().assign(properties).checked(4)
    assert assignment.names == ("label 0 over 8", "label 3 over 5", "label 3 over 8")
    assert assignment.patch.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize(
    ("indicator", "labels", "targets"),
    [
        (UntargetedLabel(), [3, -1], [8, 8]),
        (TargetedLabel(), [3, -1], [8, 8]),
        (TargetedLabel(), [3, 3], [8, -1]),
    ],
)
def test_a_label_indicator_refuses_what_has_no_label(
    indicator: UntargetedLabel | TargetedLabel, labels: list[int], targets: list[int]
) -> None:
    with pytest.raises(UsageError, match=r"'image 1' has no .*property-guided") as refusal:
        indicator.assign(labelled(labels, targets))
    assert indicator.name in str(refusal.value)


@pytest.mark.parametrize(
    ("indicator", "allocator"),
    [(PropertyGuided, "cosine"), (UntargetedLabel, "label-pair"), (TargetedLabel, "label-pair")],
)
def test_the_allocator_that_goes_with_it(indicator: type[PropertyGuided], allocator: str) -> None:
    assert indicator.allocator == allocator
