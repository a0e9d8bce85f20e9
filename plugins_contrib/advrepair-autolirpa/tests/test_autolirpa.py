import re
import subprocess
import sys
import types

import pytest
import torch

from advrepair import Box, UnsupportedNetworkError, UsageError
from advrepair.testing import CHECKS
from advrepair.testing.cases import standard_cases
from advrepair.testing.networks import Sketch, fully_connected
from advrepair_autolirpa import METHODS, SLOPES, AutoLirpa, Bounds, auto_lirpa


def reason_to_skip():
    """Empty where auto_LiRPA is installed. It is imported before other tests pretend that not."""
    try:
        auto_lirpa()
    except UsageError as error:
        return str(error)
    return ""


MISSING = reason_to_skip()
with_library = pytest.mark.skipif(bool(MISSING), reason=MISSING)
CASES = pytest.mark.parametrize("case", standard_cases(), ids=lambda case: case.name)


def around_zero(network, radius, dtype=torch.float64):
    wide = torch.full((1, *network.input_shape), radius, dtype=dtype)
    return Box(-wide, wide)


# Without auto_LiRPA --------------------------------------------------------------------


def test_the_plugin_does_not_import_the_library_by_itself():
    code = "import sys, advrepair_autolirpa; assert 'auto_LiRPA' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_library_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    with pytest.raises(UsageError) as caught:
        AutoLirpa().prepare(fully_connected(1))
    assert re.fullmatch(
        r"verifier 'auto-lirpa' needs auto_LiRPA \(ModuleNotFoundError: .*\): "
        r"install it from https://\S+ or choose another --verifier",
        str(caught.value),
    )


def test_an_old_library_is_named(monkeypatch):
    old = types.ModuleType("auto_LiRPA")
    old.__version__ = "0.6.0"
    monkeypatch.setitem(sys.modules, "auto_LiRPA", old)
    with pytest.raises(UsageError, match=r"needs auto_LiRPA 0\.7, not 0\.6\.0: install it"):
        AutoLirpa().prepare(fully_connected(1))


def test_an_operation_without_a_rule_is_refused_by_name():
    network = Sketch(1, (3,)).linear(4).apply("sigmoid").linear(2).finish()
    with pytest.raises(UnsupportedNetworkError, match=r"'sigmoid_1' \(sigmoid\) has no rule"):
        AutoLirpa().prepare(network)


def test_options_are_checked():
    with pytest.raises(UsageError, match=r"auto-lirpa\.method is 'alpha-CROWN'"):
        AutoLirpa(method="alpha-CROWN")
    with pytest.raises(UsageError, match=r"auto-lirpa\.lower_slope"):
        AutoLirpa(lower_slope="area")


# With it -------------------------------------------------------------------------------


@with_library
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_conformance(check, method):
    check(AutoLirpa(method=method))


@with_library
@pytest.mark.parametrize("slope", SLOPES[1:])
@pytest.mark.parametrize("check", [c for c in CHECKS if "point" in c.__name__])
def test_other_slopes_are_sound(check, slope):
    check(AutoLirpa(lower_slope=slope))


@with_library
@CASES
def test_every_network_of_the_kit_is_bounded(case):
    """The checks pass over what is refused; here nothing is, and CROWN is not vacuous."""
    bound = AutoLirpa().prepare(case.network)(case.params, case.box, case.C, case.d)
    assert bound.b.isfinite().all()
    assert bound.A.any()


@with_library
@CASES
@pytest.mark.parametrize("method", METHODS[:2])
def test_the_line_is_the_one_that_return_A_gives(case, method):
    """It gives them without gradients, so the verifier takes them elsewhere."""
    library = auto_lirpa()
    bounds = Bounds(library, case.network, method, "adaptive")
    have = bounds(case.params, case.box, case.C, case.d)
    module = bounds._module
    for name, key in bounds._keys.items():
        module.get_parameter(key).data = case.params.get(name, bounds._kernels.get(name)).double()
    region = library.PerturbationLpNorm(x_L=case.box.lower, x_U=case.box.upper)
    first, last = module.input_name[0], module.output_name[0]
    torch.set_default_dtype(torch.float64)
    try:
        _, _, found = module.compute_bounds(
            x=(library.BoundedTensor(case.box.center, region),),
            C=case.C,
            method=method,
            bound_upper=False,
            return_A=True,
            needed_A_dict={last: [first]},
        )
    finally:
        torch.set_default_dtype(torch.float32)
    line = found[last][first]
    assert torch.allclose(have.A, line["lA"].view_as(have.A), rtol=1e-9, atol=1e-9)
    assert torch.allclose(have.b, line["lbias"] + case.d, rtol=1e-9, atol=1e-9)


@with_library
@CASES
def test_gradients_of_the_line_are_its_slopes(case):
    """Of A and b each; the kit looks at the minimum, where errors in both could cancel."""
    bound = AutoLirpa().prepare(case.network)
    box, C, d = case.box[4:6], case.C[4:6], case.d[4:6]
    generator = torch.Generator().manual_seed(3)

    def some(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shares = some((*d.shape, *box.input_shape)), some(d.shape)

    def parts(params):
        found = bound(params, box, C, d)
        return (found.A * shares[0]).sum(), (found.b * shares[1]).sum()

    weights = {name: t.requires_grad_() for name, t in case.params.items()}
    here = parts(weights)
    way = {name: some(t.shape) for name, t in weights.items()}
    step = 1e-6
    plus, minus = (
        parts({name: t.detach() + side * step * way[name] for name, t in weights.items()})
        for side in (1, -1)
    )
    for value, above, below in zip(here, plus, minus, strict=True):
        slopes = torch.autograd.grad(
            value, list(weights.values()), retain_graph=True, materialize_grads=True
        )
        have = sum((g * w).sum().item() for g, w in zip(slopes, way.values(), strict=True))
        sides = (above - value).item() / step, (value - below).item() / step
        allowed = abs(sides[0] - sides[1]) + 1e-4 * (1 + abs(have))
        assert abs(have - sum(sides) / 2) <= allowed


@with_library
def test_a_call_leaves_flags_and_the_default_dtype_alone():
    network = fully_connected(1)
    bound = AutoLirpa().prepare(network)
    C = torch.eye(4, dtype=torch.float64)[None]
    for wanted in (True, False):
        params = {n: t.double().requires_grad_(wanted) for n, t in network.tensors.items()}
        found = bound(params, around_zero(network, 0.1), C, C.new_zeros(1, 4))
        assert found.b.requires_grad is wanted
        assert all(t.requires_grad is wanted for t in params.values())
    assert torch.get_default_dtype() is torch.float32


@with_library
@pytest.mark.parametrize("pad", [(1, 0, 0, 1), (2, 1, 0, 3), (-1, 2, 1, -2), (-1, -1, 0, 0)])
def test_padding(pad):
    """By a convolution; on a point the bound is the network's value."""
    sketch = Sketch(3, (2, 6, 6)).conv2d(2, 2).apply("pad", pad=pad).conv2d(3, 2).relu()
    network = sketch.flatten().linear(3).finish()
    tensors = {name: t.double() for name, t in network.tensors.items()}
    x = torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    C = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    bound = AutoLirpa().prepare(network)(tensors, Box(x, x), C, C.new_zeros(5, 3))
    assert torch.allclose(bound.minimum(Box(x, x)), network.apply_tensors(tensors, x))


@with_library
def test_what_the_library_reads_in_another_way_is_refused():
    """A mean over the values that a window really has: it counts the padding, too."""
    sketch = Sketch(2, (1, 5, 5)).conv2d(2, 2)
    sketch.apply(
        "avg_pool2d", kernel_size=(2, 2), stride=(2, 2), padding=(1, 1), count_include_pad=False
    )
    network = sketch.relu().flatten().linear(3).finish()
    with pytest.raises(UnsupportedNetworkError, match=r"'conv2d_0' to 'linear_4' \(Arithmetic"):
        AutoLirpa().prepare(network)


@with_library
def test_its_warnings_and_filters_stay_inside():
    code = (
        "import warnings; from advrepair_autolirpa import AutoLirpa;"
        "from advrepair.testing.networks import fully_connected;"
        "before = list(warnings.filters);"
        "AutoLirpa().prepare(fully_connected(1)); assert warnings.filters == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, text=True)
    assert (done.returncode, done.stderr) == (0, "")
