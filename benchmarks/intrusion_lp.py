"""The least intrusive affine patch of one box, by a linear program over N's cached rows.

An affine patch is W (x - c) + p, with c the middle of the box and r its half widths. The program is

    least  t + mean over inputs u of s_u
    with   |p_k| + |W_k| r <= t                               for every output k
           |W_k (u - c) + p_k| <= s_u                         for every output k and input u
           A_m c + b_m + C_m p - |A_m + C_m W| r >= slack     for every row m

It needs scipy: ``pip install ".[reference]"``.
"""

from collections.abc import Sequence

import numpy as np
from attrs import frozen

Array = np.ndarray


@frozen
class Optimum:
    """What the program says. weight: [K,S]. middle: the patch at c, [K]. value: of the goal."""

    weight: Array
    middle: Array
    value: float

    def __call__(self, x: Array, center: Array) -> Array:
        """Outputs [n,K] at inputs [n,S]."""
        return (x - center) @ self.weight.T + self.middle

    def largest(self, radius: Array) -> float:
        """The largest output in absolute value over the box."""
        return float((np.abs(self.middle) + np.abs(self.weight) @ radius).max())


def least_intrusion(
    A: Array, b: Array, C: Array, box: tuple[Array, Array], others: Array, slack: float
) -> Optimum | None:
    """The optimum, or None if there is none or HiGHS does not find it.

    A: [M,S]. b: [M]. C: [M,K]. box: its faces, [S] each. others: [n,S].
    """
    from scipy import sparse
    from scipy.optimize import linprog

    (rows, inputs), outputs, count = A.shape, C.shape[1], len(others)
    center, radius = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    one = sparse.identity(outputs)
    pick = sparse.kron(C, sparse.identity(inputs))  # C W, row by row
    away, ones = sparse.kron(one, others - center), np.ones((outputs, 1))
    tops = sparse.kron(ones, sparse.identity(count))
    # Columns: W, p, what is at least |W|, what is at least |A + C W|, s, t.
    sizes = [outputs * inputs, outputs, outputs * inputs, rows * inputs, count, 1]
    blocks: list[Sequence[object]] = []
    limits: list[Array] = []
    for sign in (1.0, -1.0):
        wide = sparse.identity(sizes[0])
        blocks.append([sign * wide, None, -wide, None, None, None])
        blocks.append([sign * pick, None, None, -sparse.identity(sizes[3]), None, None])
        spread = sparse.kron(one, radius[None])
        blocks.append([None, sign * one, spread, None, None, -ones])
        level = sign * sparse.kron(one, np.ones((count, 1)))
        blocks.append([sign * away, level, None, None, -tops, None])
        limits += [np.zeros(sizes[0]), -sign * A.ravel(), np.zeros(outputs)]
        limits.append(np.zeros(outputs * count))
    spread = sparse.kron(sparse.identity(rows), radius[None])
    blocks.append([None, sparse.csr_matrix(-C), None, spread, None, None])
    limits.append(A @ center + b - slack)
    cost = np.concatenate([np.zeros(sum(sizes[:4])), np.full(count, 1 / count), [1.0]])
    free = sizes[0] + sizes[1]
    found = linprog(
        cost,
        sparse.block_array(blocks, format="csr"),
        np.concatenate(limits),
        bounds=[(None, None)] * free + [(0, None)] * (len(cost) - free),
        method="highs-ipm",
    )
    if found.status != 0:
        return None
    weight = found.x[: sizes[0]].reshape(outputs, inputs)
    return Optimum(weight, found.x[sizes[0] : free], float(found.fun))
