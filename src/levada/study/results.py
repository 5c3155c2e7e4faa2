"""What a study computes: cells of a static grid, and the results that are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from levada._errors import UsageError

__all__ = ["Cell", "Results"]


@final
class Cell:
    """One configuration and the seeds that one call of the study's `run` computes.

    Args:
        config: everything that the result depends on, as what JSON can hold.
        seeds: the seeds; several where they are cheaper together.

    Raises:
        UsageError: if `config` is not JSON, or a seed comes twice.

    Example:
        >>> Cell({"depth": 20, "lr": 0.1}, [0]).key(0) == Cell({"lr": 0.1, "depth": 20}, [0, 1]).key(0)
        True
    """

    def __init__(self, config: Mapping[str, Any], seeds: Iterable[int]) -> None:
        self.config = dict(config)
        self.seeds = tuple(seeds)
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"Cell: seeds must differ, got {self.seeds}.")
        try:
            self._text = _canonical(self.config)
        except (TypeError, ValueError) as error:
            raise UsageError(f"Cell: config must be what JSON can hold, finite numbers only: {error}.") from error

    def key(self, seed: int) -> str:
        """Return the content hash of the configuration and a seed: sha256 of their canonical JSON.

        Args:
            seed: the seed.
        """
        return hashlib.sha256(f"{self._text} {seed}".encode()).hexdigest()

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.config.items())


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@final
class Results:
    """The cells of a grid, and the values measured so far.

    Args:
        cells: the whole grid.
        values: what was measured, by key.
        failures: what went wrong, by key.

    Example:
        >>> cells = [Cell({"depth": depth}, range(3)) for depth in (20, 56)]
        >>> values = {cell.key(s): {"error": cell.config["depth"] + s} for cell in cells for s in cell.seeds}
        >>> Results(cells, values).column("error", depth=56)
        [56, 57, 58]
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        values: Mapping[str, Mapping[str, Any]],
        failures: Mapping[str, str] | None = None,
    ) -> None:
        self.cells = tuple(cells)
        self.values = values
        self.failures = failures or {}

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the grid, sorted."""
        return tuple(sorted({seed for cell in self.cells for seed in cell.seeds}))

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The configurations, in the order of the grid, each once."""
        unique: list[dict[str, Any]] = []
        for cell in self.cells:
            if cell.config not in unique:
                unique.append(cell.config)
        return unique

    def where(self, **fields: Any) -> list[tuple[int, Mapping[str, Any]]]:
        """Return (seed, values) of every result whose configuration has these fields, by seed.

        Args:
            **fields: what the configuration must hold.
        """
        found = [
            (seed, self.values[cell.key(seed)])
            for cell in self.cells
            for seed in cell.seeds
            if cell.key(seed) in self.values and all(cell.config.get(key) == value for key, value in fields.items())
        ]
        return sorted(found, key=lambda pair: pair[0])

    def column(self, name: str, **fields: Any) -> list[Any]:
        """Return one value of every result whose configuration has these fields, by seed.

        Args:
            name: the value's name.
            **fields: what the configuration must hold.
        """
        return [values[name] for _, values in self.where(**fields)]

    def missing(self) -> list[str]:
        """Name the results that the grid wants and that are not there, with the error where one is known."""
        names = []
        for cell in self.cells:
            for seed in cell.seeds:
                key = cell.key(seed)
                if key not in self.values:
                    error = self.failures.get(key)
                    names.append(f"{cell}, seed={seed}{f' ({error})' if error else ''}")
        return names
