"""What lies inside of layers, in the run folder: tables of their own beside the signals of a rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.runs import SignalWriter
from levada.runs.inside import EVENT, GATES, entry, rest
from levada.watching.measure.coded import codes_of, rest_of, to_bytes
from levada.watching.measure.mixing import MIXED, Mixed
from levada.watching.measure.sample import Sample

__all__ = ["KeptCoefficients"]


@final
class KeptCoefficients:
    """Writes the coefficients of samples: the parts "mixing" and "gates" of the rank, each made when there are some.

    Args:
        folder: the run.
        rank: of this process.
        keep: how many of the newest samples are kept in full detail.
        add: keeps an event.

    Attributes:
        problem: why something is not stored, or None.
    """

    def __init__(self, folder: Path, rank: int, keep: int, add: Callable[..., None]) -> None:
        self._folder, self._rank, self._keep, self._add = folder, rank, keep, add
        self._writers: dict[str, tuple[Sequence[Mapping[str, Any]], SignalWriter]] = {}
        self._told: Mapping[str, Any] | None = None
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why something is not stored, or None."""
        found = (writer.problem or writer.left for _, writer in self._writers.values())
        return self._problem or next((told for told in found if told), None)

    def sampled(self, sample: Sample) -> None:
        """Keep what was taken with a sample."""
        taken = sample.taken
        if taken is None:
            return
        mixing = taken.mixing
        layers = 0 if mixing is None else mixing.total
        gates = taken.gates
        told = {
            "mixing": {"layers": layers, "compiled": taken.compiled},
            "gates": {
                "sites": 0 if gates is None else len(gates.sites),
                "unseen": {} if gates is None else gates.unseen,
            },
        }
        if told != self._told and (not self._rank or layers or taken.compiled or gates is not None):
            self._told = told
            self._add(EVENT, step=sample.step, **told)
        if mixing is not None:
            sites = [
                {"name": name, "order": i, "kind": kind, "shape": list(matrix.shape), "parameters": [], "chain": chain}
                for i, (name, kind, chain, matrix) in enumerate(
                    zip(mixing.layers, mixing.kinds, mixing.chains, mixing.matrices, strict=True)
                )
            ]
            self._write("mixing", sample, sites, *_rows(mixing))
        if gates is not None and gates.sites:
            sites = [
                {"name": name, "order": i, "kind": kind, "shape": [], "parameters": [], "gate": gate}
                for i, (name, kind, gate) in enumerate(zip(gates.sites, gates.kinds, gates.gates, strict=True))
            ]
            rows = torch.stack([gates.signals[name] for name in GATES]).double()
            self._write("gates", sample, sites, [*GATES, *map(rest, GATES)], torch.cat([rows, rest_of(rows)]))

    def _write(
        self, part: str, sample: Sample, sites: Sequence[Mapping[str, Any]], names: Sequence[str], rows: Tensor
    ) -> None:
        held = self._writers.get(part)
        if held is not None and held[0] != sites:
            held[1].close()
            held = None
        if held is None:
            if self._problem is not None:
                return
            try:
                options: Any = {"rank": self._rank, "keep": self._keep, "part": part}
                writer = SignalWriter(self._folder, sites=sites, signals=names, warn=False, **options)
            except (OSError, UsageError) as error:
                self._problem = f"{error}"
                return
            held = self._writers[part] = sites, writer
        held[1].append(sample.step, sample.time, lambda: to_bytes(codes_of(rows)))

    def mark(self, step: int) -> None:
        """Keep the full detail around a step."""
        for _, writer in self._writers.values():
            writer.mark(step)

    def flush(self, seconds: float = 60.0) -> bool:
        """Wait until what was heard is handed to the operating system; False if it is not in so many seconds."""
        done = [writer.flush(seconds) for _, writer in self._writers.values()]
        return all(done)

    def close(self) -> None:
        """Store what waits; again is harmless."""
        for _, writer in self._writers.values():
            writer.close()


_MISSING: Final = float("nan")


def _rows(mixing: Mixed) -> tuple[list[str], Tensor]:
    """Return the names of a layer's numbers, and these, `(names, layers)`; of fewer streams, NaN for the others."""
    streams = max(len(matrix) for matrix in mixing.matrices)
    entries = torch.full((streams, streams, len(mixing.layers)), _MISSING)
    for i, matrix in enumerate(mixing.matrices):
        entries[: len(matrix), : len(matrix), i] = matrix
    cells = [entry(i, j) for i in range(streams) for j in range(streams)]
    told = torch.stack([mixing.signals[name] for name in MIXED]).double()
    flat = entries.flatten(0, 1).double()
    return [*MIXED, *cells, *map(rest, cells)], torch.cat([told, flat, rest_of(flat)])
