"""A traced module computes what the module computes, or is refused by the node's name."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advrepair.core.errors import UnsupportedNetworkError, UsageError
from advrepair.core.graph import Network
from advrepair.core.tracing import trace


class Forward(nn.Module):
    """A module around a function of (module, x), with some tensors to compute with."""

    def __init__(self, function, **members):
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, nn.Module):
                self.add_module(name, member)
            else:
                self.register_buffer(name, member)

    def forward(self, x):
        return self.function(self, x)


def check(module, shape, dtype=torch.float32) -> Network:
    network = trace(module, shape)
    x = torch.randn(4, *shape, dtype=dtype)
    expected = copy.deepcopy(module).eval()(x.clone()).detach()
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    return network


def trained(module):
    """Batch norms with statistics that differ from the initial ones."""
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return module


IMAGE = (3, 6, 8)
LAYERS = {
    "linear": (lambda: [nn.Linear(4, 3)], (4,)),
    "no bias": (lambda: [nn.Linear(4, 3, bias=False)], (4,)),
    "linear on ones": (lambda: [nn.Linear(4, 3), nn.ReLU(), nn.Flatten()], (1, 1, 4)),
    "activations": (lambda: [nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.ReLU()], (4,)),
    "gelu": (lambda: [nn.GELU(), nn.Linear(4, 3), nn.GELU()], (4,)),
    "conv": (lambda: [nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten()], IMAGE),
    "conv same": (lambda: [nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)),
                           nn.Flatten()], IMAGE),
    "conv valid": (lambda: [nn.Conv2d(3, 6, (2, 3), (1, 2), "valid", groups=3, bias=False),
                            nn.Flatten()], IMAGE),
    "batch norm 1d": (lambda: [nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)], (4,)),
    "batch norm 2d": (lambda: [nn.BatchNorm2d(3, eps=1e-2), nn.Flatten()], IMAGE),
    "max pool": (lambda: [nn.MaxPool2d(3, 2, 1), nn.Flatten()], IMAGE),
    "max pool ceil without effect": (lambda: [nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()],
                                     IMAGE),
    "average": (lambda: [nn.AvgPool2d((3, 2), 2, (1, 0)), nn.Flatten()], IMAGE),
    "average uncounted": (lambda: [nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                                   nn.Flatten()], IMAGE),
    "adaptive": (lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten()], IMAGE),
    "adaptive parts": (lambda: [nn.AdaptiveAvgPool2d((3, None)), nn.Flatten()], IMAGE),
    "unflatten": (lambda: [nn.Unflatten(1, (3, -1)), nn.Flatten(1), nn.Identity(),
                           nn.Dropout(), nn.ReLU()], (12,)),
    "zero pad": (lambda: [nn.ZeroPad2d((1, 0, 2, 1)), nn.Flatten()], IMAGE),
    "nested": (lambda: [nn.Sequential(nn.Flatten(), nn.Linear(144, 5)), nn.ReLU()], IMAGE),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("case", LAYERS)
def test_layer(case, double):
    torch.manual_seed(0)
    make, shape = LAYERS[case]
    module = trained(nn.Sequential(*make()))
    dtype = torch.float64 if double and list(module.parameters()) else torch.float32
    network = check(module.to(dtype), shape, dtype)
    assert not network.tensors or network.dtype == dtype


MATRIX = torch.linspace(-1, 1, 12).reshape(4, 3)
FUNCTIONS = {
    "view": (lambda m, x: x.view(x.size(0), -1), IMAGE),
    "view of shape": (lambda m, x: x.view(x.shape[0], x.shape[1] * 6, 8).flatten(1), IMAGE),
    "reshape": (lambda m, x: x.reshape((-1, 144)), IMAGE),
    "torch reshape": (lambda m, x: torch.reshape(x, (x.shape[0], -1)), IMAGE),
    "flatten": (lambda m, x: torch.flatten(x, start_dim=1), IMAGE),
    "relu": (lambda m, x: F.relu(x) + torch.relu(x) + x.relu(), (4,)),
    "activations": (lambda m, x: torch.tanh(x).sigmoid() - F.leaky_relu(x, 0.3), (4,)),
    "erf": (lambda m, x: torch.erf(x) + x.erf() + torch.special.erf(x), (4,)),
    "expit": (lambda m, x: torch.special.expit(x), (4,)),
    "gelu": (lambda m, x: F.gelu(x) + F.gelu(x + 1, approximate="none"), (4,)),
    "gelu by erf": (lambda m, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), (4,)),
    "constants": (lambda m, x: (3 - (2 * x + 1) / 4.0) * -1, (4,)),
    "buffers": (lambda m, x: ((x - m.mean) / m.std.view(1, 3, 1, 1)).flatten(1), IMAGE),
    "in place": (lambda m, x: _in_place(x), (4,)),
    "residual": (lambda m, x: x + torch.relu(x), (4,)),
    "negated": (lambda m, x: -x, (4,)),
    "matmul": (lambda m, x: x @ m.w + m.b, (4,)),
    "linear": (lambda m, x: F.linear(x, m.w.t(), m.b), (4,)),
    "mean": (lambda m, x: x.mean((2, 3)), IMAGE),
    "mean kept": (lambda m, x: torch.mean(x, dim=[-1, -2], keepdim=True).flatten(1), IMAGE),
    "pools": (lambda m, x: F.max_pool2d(F.avg_pool2d(x, 2), kernel_size=2, stride=1).flatten(1),
              IMAGE),
    "adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1), IMAGE),
    "pad": (lambda m, x: F.pad(x, (1, 2)).flatten(1), IMAGE),
    "dropout": (lambda m, x: F.dropout(F.relu(x), training=m.training), (4,)),
    "permute": (lambda m, x: x.permute(0, 2, 3, 1).transpose(1, 2).contiguous().flatten(1), IMAGE),
    "squeeze": (lambda m, x: x.unsqueeze(1).squeeze(1).unsqueeze(-1).squeeze(-1).relu(), (4,)),
    "precision": (lambda m, x: x.float().to(x.dtype).relu(), (4,)),
    "dead": (lambda m, x: (torch.softmax(x, 1), x.relu())[1], (4,)),
}  # fmt: skip


def _in_place(x):
    x = x * 1.5
    x += 1
    x *= 2
    return F.relu(x, inplace=True)


@pytest.mark.parametrize("case", FUNCTIONS)
def test_function(case):
    function, shape = FUNCTIONS[case]
    module = Forward(
        function,
        mean=torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1),
        std=torch.tensor([0.5, 0.6, 0.7]),
        w=MATRIX,
        b=torch.ones(3),
    )
    check(module, shape)


def test_batch_norm_function_and_shared_layers():
    module = Forward(
        lambda m, x: m.r(m.r(F.batch_norm(x, m.mean, m.var)) - 0.1),
        mean=torch.randn(4),
        var=torch.rand(4) + 0.5,
        r=nn.ReLU(),
    )
    names = [op.name for op in check(module, (4,)).operations]
    assert names[1] == "r" and names[-1] == "r_1"


def test_names_are_the_layers_and_the_module_is_left_alone():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(), nn.ReLU()).train()
    before = copy.deepcopy(module.state_dict())
    network = check(module, (2, 2))
    assert [op.name for op in network.operations] == ["0", "1", "3"]
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert not any(t.requires_grad for t in network.tensors.values())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_a_network_passes_through_and_can_be_a_layer():
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    assert trace(network, (1, 2, 2)) is network
    around = Forward(lambda m, x: m.inner((x - 0.5) / 2), inner=network)
    assert [op.name for op in check(around, (1, 2, 2)).operations][-2:] == ["0", "1"]
    with pytest.raises(UnsupportedNetworkError, match="takes inputs"):
        trace(Forward(lambda m, x: m.inner(x.flatten(1)), inner=network), (1, 2, 2))


REFUSED = {
    "layer": (lambda m, x: m.p(x), (4,), "'p'.*Softplus"),
    "softmax": (lambda m, x: m.s(x), (4,), "return the logits"),
    "reflect": (lambda m, x: m.c(x).flatten(1), IMAGE, "padding mode 'reflect'"),
    "function": (lambda m, x: torch.exp(x), (4,), "'exp'"),
    "method": (lambda m, x: x.cumsum(1), (4,), "cumsum.*not supported"),
    "gelu by tanh": (lambda m, x: F.gelu(x, approximate="tanh"), (4,), "'gelu'.*'tanh'.*'none'"),
    "layer by tanh": (lambda m, x: m.g(x), (4,), "'g'.*'tanh' is another function.*'none'"),
    "gelu of another": (lambda m, x: x.relu() * (1 + torch.erf(x / math.sqrt(2))), (4,),
                        "multiplies two computed values"),
    "product": (lambda m, x: x * torch.relu(x), (4,), "multiplies"),
    "quotient": (lambda m, x: 1 / (x + 100), (4,), "divides"),
    "branch": (lambda m, x: x if x.sum() > 0 else -x, (4,), "cannot be traced"),
    "batch": (lambda m, x: x.reshape(1, -1).reshape(x.size(0), 4), (4,), "moves the batch"),
    "batch size": (lambda m, x: x.view(x.size(0) * 1, 4), (4,), "batch size"),
    "flatten all": (lambda m, x: x.flatten().view(-1, 4), (4,), "the batch"),
    "permute": (lambda m, x: x.permute(1, 0).permute(1, 0), (4,), "move the batch"),
    "tuple": (lambda m, x: (x, x), (4,), "one tensor"),
    "constant": (lambda m, x: torch.ones(2, 4), (4,), "depends on its input"),
    "image": (lambda m, x: x.relu(), IMAGE, r"not \[batch,K\]"),
    "identity": (lambda m, x: x, (4,), "nothing to do"),
    "dropout": (lambda m, x: F.dropout(x), (4,), "at inference too"),
    "chance": (lambda m, x: x + torch.rand(4), (4,), "on chance"),
    "noise": (lambda m, x: x + torch.randn_like(x), (4,), "randn_like"),
    "in place": (lambda m, x: F.relu(x, inplace=True) + x, (4,), "in-place"),
    "batch mean": (lambda m, x: x - x.mean(0), (4,), "the batch"),
    "rows": (lambda m, x: m.l(x).flatten(1), (2, 4), "flatten the input first"),
    "adaptive": (lambda m, x: F.adaptive_avg_pool2d(x, 5).flatten(1), IMAGE, "does not divide"),
    "ceil": (lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True).flatten(1), IMAGE, "ceil"),
    "precision": (lambda m, x: x.double().relu(), (4,), "precision"),
    "statistics": (lambda m, x: m.n(x), (4,), "running statistics"),
    "cat": (lambda m, x: torch.cat([x, x], 1), (4,), "'cat'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case):
    function, shape, message = REFUSED[case]
    module = Forward(
        function,
        p=nn.Softplus(),
        g=nn.GELU("tanh"),
        s=nn.Softmax(1),
        c=nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"),
        l=nn.Linear(4, 3),
        n=nn.BatchNorm1d(4, track_running_stats=False),
    )
    with pytest.raises(UnsupportedNetworkError, match=message) as error:
        trace(module, shape)
    assert "\n" not in str(error.value)


def test_a_layer_with_a_hook_is_noticed():
    module = nn.Sequential(nn.Linear(4, 3))
    module[0].register_forward_hook(lambda m, inputs, y: y + 1)
    with pytest.raises(UnsupportedNetworkError, match="differs"):
        trace(module, (4,))


def test_two_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, x, y=None):
            return torch.relu(x if y is None else y)

    with pytest.raises(UnsupportedNetworkError):
        trace(Two(), (4,))


def test_wrong_shape_and_precision():
    with pytest.raises(UsageError, match=r"does not take inputs \[batch,5\]"):
        trace(nn.Linear(4, 3), (5,))
    with pytest.raises(UnsupportedNetworkError, match="bfloat16"):
        trace(nn.Linear(4, 3).bfloat16(), (4,))
    with pytest.raises(UnsupportedNetworkError, match="mix"):
        trace(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double()), (4,))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    same=st.booleans(),
)
@settings(deadline=None)
def test_any_convolution(kernel, stride, padding, dilation, same):
    if same:
        stride, padding = 1, "same"
    layer = nn.Conv2d(2, 3, kernel, stride, padding, dilation)
    check(nn.Sequential(layer, nn.Flatten()), (2, 6, 7))
