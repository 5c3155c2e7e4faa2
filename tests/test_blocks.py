"""The branches: their equations, shapes and what they refuse."""

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError
from levada.blocks import (
    Attention,
    ConcatenatedReLU,
    Convolution,
    ConvolutionBranch,
    FeedForward,
    Fixup,
    FullyConnected,
    IdentityShortcut,
    ProjectionShortcut,
)


def kinds(module):
    return [type(m).__name__ for m in module.modules() if not list(m.children())]


def test_fully_connected_is_its_equation_in_both_orders():
    torch.manual_seed(0)
    x = torch.randn(7, 5)
    after = FullyConnected(5, nn.Tanh, dim_out=3, norm=nn.LayerNorm)
    before = FullyConnected(5, nn.Tanh, dim_out=3, norm=nn.LayerNorm, pre_activation=True)
    norm = nn.functional.layer_norm
    linear = nn.functional.linear
    torch.testing.assert_close(after(x), norm(linear(x, after.linear.weight, after.linear.bias), (3,)).tanh())
    torch.testing.assert_close(before(x), linear(norm(x, (5,)).tanh(), before.linear.weight, before.linear.bias))


@pytest.mark.parametrize("pre_activation", [False, True])
def test_an_activation_that_widens_keeps_the_width_of_the_block(pre_activation):
    block = FullyConnected(6, ConcatenatedReLU, pre_activation=pre_activation)
    assert block(torch.randn(2, 6)).shape == (2, 6)
    assert tuple(block.linear.weight.shape) == ((6, 12) if pre_activation else (3, 6))
    assert FeedForward(6, 10, activation=ConcatenatedReLU)(torch.randn(2, 6)).shape == (2, 6)


def test_an_activation_that_widens_works_on_channels():
    def activation():
        return ConcatenatedReLU(dim=1)

    x = torch.randn(2, 4, 9, 9)
    assert Convolution(4, activation)(x).shape == x.shape
    assert ConvolutionBranch(4, activation=activation)(x).shape == x.shape
    assert ConvolutionBranch(4, activation=activation, pre_activation=True)(x).shape == x.shape
    with pytest.raises(UsageError, match="must divide the width 5, got 2"):
        FullyConnected(5, ConcatenatedReLU)


def test_convolution_branches_have_the_order_of_their_paper():
    assert kinds(ConvolutionBranch(4)) == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d"]
    assert kinds(ConvolutionBranch(4, dims=1, pre_activation=True)) == ["BatchNorm1d", "ReLU", "Conv1d"] * 2
    bottleneck = ConvolutionBranch(8, hidden=2, dim_out=16, stride=2)
    sizes = [(m.kernel_size[0], m.in_channels, m.out_channels, m.stride[0]) for m in bottleneck if hasattr(m, "stride")]
    assert sizes == [(1, 8, 2, 2), (3, 2, 2, 1), (1, 2, 16, 1)]
    assert kinds(ConvolutionBranch(4, norm=None)) == ["Conv2d", "ReLU", "Conv2d"]
    # Without a norm a convolution keeps its bias, with one it would be subtracted again.
    assert all(
        (m.bias is None) == has_norm
        for has_norm in (True, False)
        for m in ConvolutionBranch(4, norm="batch" if has_norm else None)
        if isinstance(m, nn.Conv2d)
    )


@pytest.mark.parametrize("length", [8, 9])
@pytest.mark.parametrize("dims", [1, 2])
def test_branch_and_shortcuts_change_the_shape_alike(dims, length):
    x = torch.randn(2, 4, *[length] * dims)
    branch = ConvolutionBranch(4, dim_out=6, stride=2, dims=dims)
    padded = IdentityShortcut(4, 6, stride=2)(x)
    assert branch(x).shape == padded.shape == ProjectionShortcut(4, 6, stride=2, dims=dims)(x).shape
    assert torch.equal(padded[:, :4], x[:, :, ::2] if dims == 1 else x[:, :, ::2, ::2])
    assert not padded[:, 4:].any()


def test_attention_is_its_equation():
    torch.manual_seed(0)
    dim, heads, tokens = 12, 3, 5
    block = Attention(dim, heads=heads, norm=None).double()
    x = torch.randn(2, tokens, dim, dtype=torch.float64)
    expected = torch.empty_like(x)
    for h in range(heads):
        part = slice(h * dim // heads, (h + 1) * dim // heads)
        q, k, v = (p(x)[..., part] for p in (block.query, block.key, block.value))
        expected[..., part] = (q @ k.mT / (dim / heads) ** 0.5).softmax(-1) @ v
    torch.testing.assert_close(block(x), block.output(expected))


def test_a_mask_and_causality_both_hold():
    torch.manual_seed(0)
    block = Attention(8, heads=2, causal=True)
    x = torch.randn(1, 6, 8, requires_grad=True)
    boolean = torch.ones(6, 6, dtype=torch.bool)
    boolean[1:, 0] = False  # but for itself, nobody may look at the first token
    added = torch.zeros(6, 6).masked_fill(~boolean, -torch.inf)
    torch.testing.assert_close(block(x, boolean), block(x, added))
    (seen,) = torch.autograd.grad(block(x, boolean)[0, 3].sum(), x)
    assert [bool(g.any()) for g in seen[0]] == [False, True, True, True, False, False]
    (seen,) = torch.autograd.grad(block(x)[0, 3].sum(), x)
    assert [bool(g.any()) for g in seen[0]] == [True, True, True, True, False, False]


def test_a_stack_hands_the_mask_to_all_its_branches():
    mask = torch.eye(5, dtype=torch.bool)
    stack = levada.Stack([Attention(8, heads=2), FeedForward(8)], levada.Residual, dim=8)
    x = torch.randn(1, 5, 8)
    changed = x.clone()
    changed[:, 4, 0] += 1
    assert torch.equal(stack(x, mask)[:, :4], stack(changed, mask)[:, :4])
    assert not torch.equal(stack(x)[:, :4], stack(changed)[:, :4])


@pytest.mark.parametrize(
    ("block", "x"),
    [
        (FullyConnected(4, norm=nn.LayerNorm), torch.randn(2, 4)),
        (FullyConnected(4, norm=nn.LayerNorm, pre_activation=True), torch.randn(2, 4)),
        (FeedForward(4), torch.randn(2, 4)),
        (Attention(4, heads=2), torch.randn(2, 3, 4)),
        (Convolution(4, norm=nn.BatchNorm2d), torch.randn(2, 4, 5, 5)),
    ],
)
def test_modules_are_registered_in_the_order_in_which_they_run(block, x):
    ran = []
    for name, module in block.named_children():
        module.register_forward_hook(lambda module, args, out, name=name: ran.append(name))
    block(x)
    assert ran == [name for name, _ in block.named_children()]


def test_fixup_branch_has_a_scalar_before_every_weight_and_activation():
    branch = Fixup([nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3)])
    names = ["_Shift", "Conv2d", "_Shift", "ReLU", "_Shift", "Conv2d", "_Shift", "ReLU", "_Shift", "Conv2d"]
    assert kinds(branch) == [*names, "_Multiplier", "_Shift"]
    scalars = [p for p in branch.parameters() if p.dim() == 1]
    assert [p.shape for p in scalars] == [(1,)] * 7
    assert sum(p.item() for p in scalars) == 1  # biases 0, multiplier 1
    branch(torch.randn(2, 4, 5, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in branch.parameters())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Attention(8, heads=3), "heads must divide the width 8, got 3"),
        (lambda: Convolution(4, kernel_size=2), "kernel_size must be odd"),
        (lambda: ConvolutionBranch(4, dims=3), "dims must be 1"),
        (lambda: Fixup([nn.Linear(2, 2)]), "weight 0 has a bias"),
        (lambda: Fixup([]), "must be at least 1, got 0"),
        (lambda: IdentityShortcut(8, 4), "dim_out must be at least 8, got 4"),
    ],
)
def test_what_cannot_be_built_says_why(build, message):
    with pytest.raises(UsageError, match=message):
        build()
