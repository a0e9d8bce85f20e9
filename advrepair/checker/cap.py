"""Patches that make an output the largest whatever the outputs are: caps.

``F_k = z_k - relu(p_k)`` with ``p_k = z_k - z_y + m + delta (|z_k| + |z_y|)`` for all k but the
label y, ``F_y = z_y``, as two layers of ReLUs over the outputs z. So ``F_y - F_k >= m`` in
exact arithmetic, for all z. When deployed, p_k is a sum of 2K terms and m, whose absolute values
sum to less than 3 S + m, S = |z_k| + |z_y|; with E = gamma(2K + 8) it is off by at most E (3 S + m)
and what underflows, which is less than m / 1000. The other layers copy numbers. The last sum is
rounded once, by u (3 S + m) at most. All that is less than delta S + m / 2, if delta >= 4 E.
"""

import numpy as np

from advrepair.checker.bounds import LEVELS, Pair
from advrepair.checker.network import Network

_LARGEST = {"deployed-float32": 2.0**100}  # of outputs, for which nothing overflows


def cap(outputs: Network, patch: Network, level: str) -> tuple[int, float] | None:
    """Label and proved margin of a cap that sees what a network gives; None if it is no cap.

    outputs: of what lies between that and the outputs, nothing.
    """
    linear = [step for step in patch.steps if step.kind != "reshape"]
    kinds = [step.kind for step in linear]
    K = patch.sizes[-1]
    plain = kinds == ["linear", "relu", "linear", "relu", "linear"] and patch.sizes[0] == K > 1
    if not plain or any(step.kind != "reshape" for step in outputs.steps):
        return None
    chain = [step.sources == (i,) for i, step in enumerate(patch.steps)]
    first, second, last = linear[::2]
    if not all(chain) or [len(first.weight), len(second.weight)] != [2 * K, K]:
        return None
    label = int((last.weight == 0).all(1).argmax())
    others, eye = np.delete(np.arange(K), label), np.eye(K)
    drop = -eye
    drop[label] = 0
    u, terms = LEVELS[level][0], 2 * K + 8
    delta = 4 * terms * u / (1 - terms * u)
    own, rival = second.weight[:, [label, K + label]], second.weight.reshape(K, 2, K)
    rival = rival[np.arange(K), :, np.arange(K)]  # of z_k's two parts in p_k
    wanted = np.array([[1, -1], [-1, 1]])  # of the parts of z_k and of z_y
    more = np.stack([rival, own], 1)[others] - wanted
    rest = second.weight.copy()
    rest[:, [label, K + label]] = 0
    rest[np.arange(K), np.arange(K)] = rest[np.arange(K), K + np.arange(K)] = 0
    m = second.bias[others]
    good = (
        np.array_equal(first.weight, np.vstack([eye, -eye]))
        and np.array_equal(last.weight, drop)
        and not (first.bias.any() or last.bias.any())
        and not (rest.any() or second.weight[label].any() or second.bias[label])
        and (delta <= more).all()
        and (more <= 1 / 8).all()
        and (m >= 2.0**-11).all()
        and (m <= 2.0**60).all()
    )
    return (label, float(m.min() / 2)) if good else None


def tame(seen: Pair, level: str) -> bool:
    """Whether outputs between these faces are so small that a cap overflows nowhere."""
    return bool((np.maximum(-seen[0], seen[1]) <= _LARGEST.get(level, 2.0**400)).all())
