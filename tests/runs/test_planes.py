"""Codes as they lie are what `read` decodes, also where a run took steps again and its sites changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from levada._errors import UsageError
from levada.runs import RunWriter, Signals, SignalWriter
from levada.runs.codes import decoded, encode


def written(folder: Path) -> Signals:
    """Write 60 samples of 3 sites, then from step 200 on 40 of 2 sites in another order."""
    RunWriter.create(folder, kind="watch", name="x").close()
    for sites, steps in ((["a", "b", "c"], range(0, 600, 10)), (["c", "a"], range(200, 600, 10))):
        table = [{"name": name, "order": i} for i, name in enumerate(sites)]
        with SignalWriter(folder, sites=table, signals=["x", "y"]) as writer:
            for step in steps:
                writer.append(step, 0.0, encode([2.0 ** (-i - step // 100) for i in range(2 * len(sites))]), {})
                writer.flush()
    return Signals(folder / "signals" / "rank-00000")


@pytest.mark.parametrize("resolution", [1, 16, 256])
@pytest.mark.parametrize("bounds", [(0, 10**9), (55, 333), (590, 700), (700, 800)])
def test_planes_are_what_is_read(tmp_path: Path, resolution: int, bounds: tuple[int, int]) -> None:
    signals = written(tmp_path / "run")
    for name in signals.names:
        found = signals.read(name, first=bounds[0], last=bounds[1], resolution=resolution)
        at = 0
        for piece in signals.planes(name, *bounds, resolution):
            per = len(piece.planes[0]) // len(piece.columns)
            for row, first, last, count in piece.rows:
                assert (first, last, count) == (found.steps[at], found.last_steps[at], found.counts[at])
                for place, column in enumerate(piece.columns):
                    ends = (piece.planes[0], piece.planes[len(piece.planes) // 2], piece.planes[-1])
                    numbers = decoded(plane[place * per + row] for plane in ends)
                    assert numbers == [found.low[at][column], found[at][column], found.high[at][column]]
                at += 1
        assert at == len(found)
    assert signals.sampled == [*range(0, 200, 10), *range(200, 600, 10)]
    with pytest.raises(UsageError, match="no signal 'z'"):
        list(signals.planes("z", 0, 1))
