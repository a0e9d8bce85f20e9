"""What makes a measured robustness implausible: checks that run by themselves.

After the checklists of arXiv 1902.06705 and 2002.08347: a defence whose figures trip one of
these is evaluated badly, or does something else than look at the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from advrepair.core.assessment import Assessment

_NOTICEABLE = 0.02  # a difference that is more than a few inputs
_FORCED = 0.99

Flag = dict[str, str]


def flags(found: Assessment) -> list[Flag]:
    """The name of each check that failed, and a sentence about it."""
    every = (_not_image_dependent, _not_monotone, _masked, _constant_predictor, _forced_labels)
    return [{"name": name, "text": text} for check in every for name, text in check(found)]


Found = Iterator[tuple[str, str]]


def _not_image_dependent(found: Assessment) -> Found:
    """Where every image can be reached, no function of the image is right more than by chance."""
    for subject, sweep in found.sweep.items():
        oracle = sweep["oracle"]
        radius = max(oracle)
        value, chance = oracle[radius].value, 1 / found.classes["none"].shape[1]
        if value is not None and value > chance + 0.1:
            yield (
                "not image dependent",
                f"{subject}: under the oracle protocol {value:.1%} are right at radius "
                f"{radius:g}, where the attacker may replace the whole image: the answer comes "
                "from the route, not from the image",
            )


def _not_monotone(found: Assessment) -> Found:
    for subject, sweep in found.sweep.items():
        pairs = sorted(sweep["query"].items())
        for (small, before), (large, after) in pairwise(pairs):
            if (after.value or 0.0) > (before.value or 0.0) + _NOTICEABLE:
                yield (
                    "not monotone",
                    f"{subject}: more inputs stand at radius {large:g} ({after.value:.1%}) than "
                    f"at {small:g} ({before.value:.1%}): the attack is too weak",
                )


def _masked(found: Assessment) -> Found:
    for subject, threats in found.threats.items():
        if not {"transferred", "straight-through"} <= set(threats):
            continue
        knows_less, knows_all = threats["transferred"].value, threats["straight-through"].value
        if (knows_less or 0.0) > (knows_all or 0.0) + _NOTICEABLE:
            yield (
                "black box better than white box",
                f"{subject}: an attack on the network alone breaks {knows_less:.1%}, one through "
                f"the deployed function only {knows_all:.1%}: the route hides the gradient",
            )


def _constant_predictor(found: Assessment) -> Found:
    for subject, classes in found.classes.items():
        predicted, real = classes.double()
        share, usual = predicted / predicted.sum(), real / real.sum()
        most = int(share.argmax())
        if share[most] > 0.5 and share[most] > 2 * usual[most]:
            yield (
                "constant predictor",
                f"{subject}: {float(share[most]):.1%} of the clean test inputs are given class "
                f"{most}, which {float(usual[most]):.1%} have",
            )


def _forced_labels(found: Assessment) -> Found:
    for subject, known in found.insight.items():
        shares = [known["forced_images"], known["forced_noise"]]
        if all(share is not None and share >= _FORCED for share in shares):
            yield (
                "predictions independent of the image",
                f"{subject}: an active patch sends {shares[0]:.1%} of images with another label "
                f"and {shares[1]:.1%} of noise to its own label",
            )
