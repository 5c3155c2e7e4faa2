"""How often a sampled step waits for the device, or copies from it: counted where nothing can be copied at all."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import levada
from levada.watching import arguments
from levada.watching.measure import transfer


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Count what is asked of the device; what comes back is ones, as tensors on "meta" have no numbers."""
    asked: list[Tensor] = []

    def host(self: transfer.OnItsWay) -> Tensor:
        asked.append(self._values)
        return torch.ones(self._values.shape, dtype=torch.float64)

    monkeypatch.setattr(transfer.OnItsWay, "host", host)
    monkeypatch.setattr(arguments, "require_values", lambda model: None)
    return asked


@pytest.mark.parametrize("scaled", [False, True])
def test_a_sampled_step_makes_one_copy_and_any_other_step_none(copies: list[Tensor], scaled: bool) -> None:
    """The first one makes another, of whether each weight has a gradient."""
    with torch.device("meta"):
        model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.ReLU())])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Scaler:
        def get_scale(self) -> float:
            return 8.0

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a copy that is not counted raises, which ends the watch with a warning
        with levada.watch(
            model, optimizer, every=3, max_overhead=math.inf, scaler=Scaler() if scaled else None
        ) as watch:
            for step in range(12):
                optimizer.zero_grad()
                model(torch.ones(4, 8, device="meta")).square().mean().backward()
                before = len(copies)
                optimizer.step()
                assert len(copies) - before == (step % 3 == 1) + (step == 0), "numbers arrive on the next step"
    assert [sample.step for sample in watch.samples] == [0, 3, 6, 9]
    assert all(values.is_meta for values in copies), "all of it was on the device until then"
    assert len(copies) == len(watch.samples) + 1


def test_the_count_sees_a_second_copy(copies: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    from levada.watching.measure.reading import Reading

    table = Reading.table

    def reading_one_number(self: Reading, places: int, device: torch.device) -> Tensor:
        found = table(self, places, device)
        assert found.isfinite().all().item() in (True, False)
        return found

    monkeypatch.setattr(Reading, "table", reading_one_number)
    with torch.device("meta"):
        model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = levada.watch(model, optimizer, every=1)
    model(torch.ones(4, 8, device="meta")).square().mean().backward()
    with pytest.warns(UserWarning, match="meta"):
        optimizer.step()
    watch.close()
