"""Run the fault trials: python -m benchmarks.faults. A trial that fails raises; the rows count what was tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from benchmarks.faults import mendings, racing, trials, volume
from benchmarks.measure import Row, main, ratio_of


def _tried(case: str, trial: Callable[[], dict[str, Any]]) -> Iterator[Row]:
    found = trial()
    count = found.get("trials", 1)
    yield Row(
        benchmark="faults",
        case=case,
        baseline="trials",
        candidate="failures",
        ratio=ratio_of([0.0]),  # the first failure would have raised
        repetitions=count,
        target=0.0,
        extra=found,
    )


def _number(case: str, unit: str, value: float, target: float | None, extra: dict[str, Any]) -> Row:
    return Row(
        benchmark="faults",
        case=case,
        baseline=f"1 {unit}",
        candidate=case,
        ratio=ratio_of([value]),
        repetitions=1,
        target=target,
        extra=extra,
    )


def _volume(quick: bool) -> Iterator[Row]:
    depth, samples = (6, 40) if quick else (200, 1024)
    real, changes = volume.real_record(depth, samples)
    name = f"{depth} sites x {samples} samples x 8 signals of a real training"
    yield _number(f"bytes a value: {name}", "byte", real["all"], 1.5, real)
    sites, samples = (100, 40) if quick else (10_000, 1000)
    found = volume.volume(sites, samples, changes, depth=6 if quick else 200)
    name = f"{sites} sites x {samples} samples x 8 signals"
    yield _number(f"bytes a value: {name}", "byte", found["bytes_per_value"]["all"], 1.5, found["bytes_per_value"])
    yield _number(f"open and read a site: {name}", "second", found["opened_s"], 2.0, {"signals_s": found["signals_s"]})
    extra = {key: found[key] for key in ("step_ms", "handing_over_ms", "first_sample_ms", "closing_s")}
    for what, ratios in (("time", found["ratios"]), ("CPU seconds of its thread", found["cpu_ratios"])):
        yield Row(
            benchmark="faults",
            case=f"training beside, every step sampled, {what}: {name}",
            baseline="the same steps, nothing recorded",
            candidate="recorded",
            ratio=ratio_of(ratios),
            repetitions=len(ratios),
            target=None,
            extra=extra,
        )


def _beside(quick: bool, what: str) -> Iterator[Row]:
    """The default distance: what of it is sealed (after 256 samples) is in the row where every step is sampled."""
    sites, samples, every = (100, 16, 2) if quick else (10_000, 16, 20)
    found = volume.beside(sites, samples, every, depth=6 if quick else 200)
    yield Row(
        benchmark="faults",
        case=f"{what}: {sites} sites, {samples} samples x 8 signals, every {every}th step",
        baseline="the same steps, nothing recorded",
        candidate="recorded",
        ratio=ratio_of(found["ratios"]),
        repetitions=len(found["ratios"]),
        target=1.01,
        extra={"processor": ratio_of(found["processor"]), "step_ms": found["step_ms"]},
    )


def cases(quick: bool) -> Iterable[Callable[[], Iterator[Row]]]:
    """Give all trials, small ones if `quick`."""
    for form in ("parquet", "frames"):
        yield partial(_tried, f"kill -9 at a random moment, {form}", partial(trials.kills, 4 if quick else 100, form))
        yield partial(
            _tried, f"a file cut at every byte, {form}", partial(trials.cuts, form, stride=97 if quick else 1)
        )
        yield partial(_tried, f"a random bit flipped, {form}", partial(trials.flips, 50 if quick else 5000, form))
        yield partial(_tried, f"sealed again after a flip, {form}", partial(trials.resealed, 5 if quick else 300, form))
    mended = partial(mendings.mended_logs, stride=17 if quick else 1)
    yield partial(_tried, "a log cut, or a bit flipped, at every byte, and written again", mended)
    yield partial(_tried, "kill -9 of a log's mending, before all that it does to a file", mendings.killed_mendings)
    yield partial(
        _tried, "kill -9 of a log's mending at a random moment", partial(mendings.kill_mendings, 6 if quick else 200)
    )
    yield partial(_tried, "a full disk", trials.full_disk)
    yield partial(_tried, "a clock that goes backwards", trials.clock)
    yield partial(_tried, "two writers on one folder", partial(racing.two_writers, 6 if quick else 600))
    yield partial(_volume, quick)
    yield partial(_beside, quick, "training beside, the default distance")


if __name__ == "__main__":
    raise SystemExit(main("faults", cases))
