"""What the comparisons with released models share: float64 throughout, what layers are given, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn


class DoubleTorch:
    """The torch module, in which float32 is another name for float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@pytest.fixture
def double(request, monkeypatch):
    """Run the released model in float64 throughout: norms, rotations and coefficients ask for float32 by name."""
    for module in vars(request.module).values():
        if isinstance(module, ModuleType) and module.__name__.startswith("transformers.models."):
            monkeypatch.setattr(module, "torch", DoubleTorch())
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def ids() -> Tensor:
    """Two sequences of 12 tokens below 23."""
    return torch.randint(23, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def given_to() -> Callable[..., list[dict]]:
    """Return a function that runs a model and says which keyword arguments each of its layers gets at first."""

    def run(layers: Iterable[nn.Module], model: nn.Module, ids: Tensor) -> list[dict]:
        caught: dict[nn.Module, dict] = {}

        def catch(module, args, kwargs):
            caught.setdefault(module, kwargs)

        handles = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
        with torch.no_grad():
            model(ids, use_cache=False)
        for handle in handles:
            handle.remove()
        return [caught[layer] for layer in layers]

    return run


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Return a function that holds an output, and gradients by one cotangent, to those of the released code."""

    def equal(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def compare(found: Tensor, expected: Tensor, pairs: list[tuple[Tensor, Tensor]] = ()) -> None:
        equal(found, expected)
        if not pairs:
            return
        ours, theirs = zip(*pairs, strict=True)
        cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=expected.dtype)
        by_ours, by_theirs = (
            torch.autograd.grad(found, ours, cotangent),
            torch.autograd.grad(expected, theirs, cotangent),
        )
        for mine, released in zip(by_ours, by_theirs, strict=True):
            assert released.abs().max() > 1e-6, "a gradient of nothing shows nothing"
            equal(mine, released.view_as(mine))

    return compare
