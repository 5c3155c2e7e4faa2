"""The sets on which a mixing matrix can lie.

No code of others runs beside the spectral one: the equation by hand, and what it promises, are all that it is held to.
"""

from __future__ import annotations

import pytest
import torch

from levada._errors import UsageError
from levada.connections.manifolds import MANIFOLDS

SIZES = {"permutations": [2, 3, 4, 5], "kronecker": [2, 4, 8], "orthogonal": [2, 3, 5, 8], "isometric": [3, 4, 5, 8]}
# How far the first matrix is from the identity: 119 exp(-8), 2 or 3 exp(-8), nothing, and 1 - tanh(4).
FIRST = {"permutations": 0.04, "kronecker": 1.1e-3, "orthogonal": 1e-15, "isometric": 1e-15, "spectral": 6.8e-4}
SIZES["spectral"] = [2, 3, 4, 5, 8]
CASES = [(name, n) for name, sizes in SIZES.items() for n in sizes]


def drawn(name: str, n: int, std: float, count: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return std * torch.randn(count, MANIFOLDS[name].num_logits(n), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "n"), CASES)
@pytest.mark.parametrize("std", [1.0, 30.0])
def test_matrices_lie_on_the_manifold_for_any_logits(name, n, std):
    matrices, ones = MANIFOLDS[name].project(drawn(name, n, std), n), torch.ones(20, n, dtype=torch.float64)
    if name != "orthogonal":
        torch.testing.assert_close(matrices.sum(-1), ones, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(matrices.sum(-2), ones, rtol=1e-12, atol=1e-12)
    if name in ("permutations", "kronecker"):
        assert matrices.min() >= 0
    elif name == "spectral":
        norms = torch.linalg.matrix_norm(matrices, 2)
        torch.testing.assert_close(norms, torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-12)
        assert n == 2 or matrices.min() < -0.1
    else:
        eye = torch.eye(n, dtype=torch.float64).expand(20, n, n)
        torch.testing.assert_close(matrices @ matrices.mT, eye, rtol=0, atol=1e-11)
    assert (matrices - matrices[:1]).abs().max() > 0.1, "different logits give different matrices"


@pytest.mark.parametrize("std", [1.0, 1e2, 1e3, 1e5, 1e7, 1e30])
@pytest.mark.parametrize("n", [4, 8, 16])
@pytest.mark.parametrize("name", ["orthogonal", "isometric", "spectral"])
def test_in_float32_any_finite_logits_will_do(name, n, std):
    """Where training diverges, too: without a bound 1e7 was a singular matrix, and 1e5 off by 0.01."""
    logits = (std * drawn(name, n, 1.0, count=200)).float().requires_grad_()
    matrices = MANIFOLDS[name].project(logits, n)
    (gradient,) = torch.autograd.grad((matrices * torch.arange(n * n).view(n, n)).sum(), logits)
    assert gradient.isfinite().all()
    found, eye = matrices.detach().double(), torch.eye(n, dtype=torch.float64)
    if name == "spectral":
        assert (torch.linalg.matrix_norm(found, 2) - 1).abs().max() < 2e-6
    else:
        torch.testing.assert_close(found @ found.mT, eye.expand_as(found), rtol=0, atol=2e-6)


def test_the_bound_is_not_felt_at_usual_logits():
    logits = drawn("orthogonal", 4, 1.0)
    skew = torch.zeros(20, 4, 4, dtype=torch.float64)
    skew[:, *torch.triu_indices(4, 4, 1)] = logits
    skew, eye = skew - skew.mT, torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(eye + skew, eye - skew)
    torch.testing.assert_close(MANIFOLDS["orthogonal"].project(logits, 4), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("name", "n"), CASES)
def test_the_first_logits_give_nearly_the_identity(name, n):
    manifold = MANIFOLDS[name]
    logits = manifold.initial_logits(n).double()
    assert logits.shape == (manifold.num_logits(n),)
    assert (manifold.project(logits, n) - torch.eye(n)).abs().max() < FIRST[name]


@pytest.mark.parametrize(("name", "n"), CASES)
def test_gradients_are_those_of_finite_differences(name, n):
    logits = drawn(name, n, 1.0, count=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: MANIFOLDS[name].project(x, n), (logits,), fast_mode=True)


def test_permutations_and_kronecker_by_hand():
    one = torch.full((6,), -60.0)
    one[1] = 0.0  # the second permutation of three in order: 0, 2, 1
    expected = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    torch.testing.assert_close(MANIFOLDS["permutations"].project(one, 3), expected)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    logits = torch.tensor([-60.0, 60.0, 60.0, -60.0])  # the outer factor swaps, the inner one does not
    torch.testing.assert_close(MANIFOLDS["kronecker"].project(logits, 4), torch.kron(swap, torch.eye(2)))


def test_spectral_by_hand():
    project = MANIFOLDS["spectral"].project
    half = torch.tensor([0.75, 0.25], dtype=torch.float64)
    found = project(torch.tensor([0.5], dtype=torch.float64).atanh(), 2)  # the mean, and half of the difference
    torch.testing.assert_close(found, torch.stack([half, half.flip(0)]))
    # With a negative value the streams' deviations from their mean change sign: entries 2/3 and -1/3.
    large = torch.tensor([0.0, 0.0, -40.0, -40.0], dtype=torch.float64)
    torch.testing.assert_close(project(large, 3), 2 / 3 - torch.eye(3, dtype=torch.float64))
    # U turns after V turned back: the same logits leave a symmetric matrix, whatever they are.
    logits = torch.tensor([0.7, 0.7, 0.3, -1.2], dtype=torch.float64)
    found = project(logits, 3)
    torch.testing.assert_close(found, found.mT)
    expected = torch.tensor([1.0, *torch.tanh(logits[2:]).abs().sort(descending=True).values], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(found), expected)
    assert not torch.allclose(project(torch.tensor([0.7, 0.1, 0.3, -1.2], dtype=torch.float64), 3), found)


def test_spectral_never_amplifies_what_differs_between_streams():
    streams = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, spread = streams.mean(0), streams.var(0, correction=0)
    for matrix in MANIFOLDS["spectral"].project(drawn("spectral", 4, 2.0, count=30), 4):
        streams = matrix @ streams
        torch.testing.assert_close(streams.mean(0), mean, rtol=1e-10, atol=1e-10)
        assert streams.var(0, correction=0).sum() <= spread.sum() * (1 + 1e-12)
        spread = streams.var(0, correction=0)


@pytest.mark.parametrize("name", ["permutations", "kronecker", "isometric", "spectral"])
def test_sixty_in_a_row_keep_the_sums(name):
    product = torch.eye(4, dtype=torch.float64)
    for matrix in MANIFOLDS[name].project(drawn(name, 4, 3.0, count=60), 4):
        product = matrix @ product
    torch.testing.assert_close(product.sum(-1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(product.sum(-2), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "n", "words"),
    [
        ("permutations", 6, r"n! = 720 logits, so that streams must be at most 5, got 6\. Use manifold='kronecker'"),
        ("kronecker", 6, r"streams must be a power of two, got 6\. Use manifold='birkhoff'"),
        ("isometric", 2, r"must be at least 3, got 2\. Use manifold='birkhoff'"),
    ],
)
def test_what_does_not_exist_is_said(name, n, words):
    with pytest.raises(UsageError, match=rf"Owner: .*{words}"):
        MANIFOLDS[name].require("Owner", n)
