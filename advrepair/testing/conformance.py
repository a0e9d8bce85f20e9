"""Is a verifier sound, and does it keep the contract? Checks for authors of verifiers.

A check is a function of one verifier that raises AssertionError with a one-line reason::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_verifier(check):
        check(MyVerifier())

Networks, boxes and specifications are fixed (``cases.py``), so a failure repeats. What a
verifier does not claim (``rigorous``, ``batchable``, ``differentiable``, to be complete) and the
networks it refuses in ``prepare`` are passed over; a fully connected ReLU network it must bound.
Passing is evidence, not a proof: the checks find mistakes, they cannot show there are none.
"""

from __future__ import annotations

from collections.abc import Callable

from advrepair.core.interfaces import Verifier
from advrepair.testing import branches, contract, soundness, stages

Check = Callable[[Verifier], None]

CHECKS: tuple[Check, ...] = (
    contract.check_shapes_and_dtype,
    contract.check_healthy_networks_get_numbers,
    contract.check_unknown_operation_is_refused,
    contract.check_other_operations_are_refused_or_bounded,
    contract.check_calls_are_pure,
    contract.check_each_box_stands_alone,
    contract.check_nan_is_never_a_proof,
    contract.check_vmap_equals_the_loop,
    contract.check_gradient_is_the_slope,
    soundness.check_point_box_is_exact,
    soundness.check_no_point_beats_the_minimum,
    soundness.check_no_point_beats_the_line,
    soundness.check_exact_minimum_is_not_beaten,
    soundness.check_rigorous_in_real_arithmetic,
    soundness.check_rigorous_for_the_deployed_network,
    soundness.check_magnitude_of_rigorous_bounds,
    stages.check_two_stages_are_one,
    branches.check_branches_hold_on_their_part,
    branches.check_rigorous_branches_hold_when_deployed,
    branches.check_smaller_boxes_have_no_lower_bounds,
    branches.check_cuts_name_an_input_or_a_relu,
)


def conformance(verifier: Verifier) -> list[tuple[str, str]]:
    """Run every check; the name and the reason of each that fails, [] if all pass.

    A check that fails in any other way than by its own judgement counts as failed, too.
    """
    failed = []
    for check in CHECKS:
        try:
            check(verifier)
        except AssertionError as error:
            failed.append((check.__name__, str(error)))
        except Exception as error:  # a verifier may break in any way; the others still run
            failed.append((check.__name__, f"{type(error).__name__}: {error}"))
    return failed
