"""trackio: a local SQLite file, without a server."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

from levada._errors import UsageError
from levada.runs.exporters.exporter import import_tool

__all__ = ["Trackio"]

_PACKAGE: Final = "trackio>=0.43"  # pip takes a far older one where others hold back what this needs


@final
class Trackio:
    """Writes one run of the project "levada" to a database in `out`: numbers as metrics, findings as alerts.

    trackio prints what it does; nothing is sent anywhere unless its own variables (TRACKIO_SPACE_ID and others) say so.

    Args:
        out: the folder; `TRACKIO_DIR` is set to it, which trackio reads once, when it is imported.
        name: the run's name.
        config: the run's settings.

    Raises:
        UsageError: if trackio is not installed or cannot be imported, or was imported with another folder.
    """

    def __init__(self, out: Path, name: str, config: Mapping[str, Any]) -> None:
        folder = out.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["TRACKIO_DIR"] = str(folder)
        self._trackio = import_tool("trackio", _PACKAGE, "Exporting to trackio")
        present = Path(import_tool("trackio.utils", _PACKAGE, "Exporting to trackio").TRACKIO_DIR).resolve()
        if present != folder:
            raise UsageError(
                f"trackio: its folder is fixed when it is imported, and was {present}; got {folder}. "
                "Export in a new process, or to that folder."
            )
        # In a context of its own: else it would end a run of the loop's own, whose `trackio.log` would then come here.
        config_there = self._trackio.config
        self._run: Any = contextvars.Context().run(
            self._trackio.init,
            project="levada",
            name=name,
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        vars(self._trackio)["config"] = config_there
        self.where = str(folder)
        self.hint = f"TRACKIO_DIR={folder} trackio show --project levada"

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Log numbers at a step."""
        self._run.log(dict(values), step=step)

    def tell(self, step: int, time: float, rule: str, text: str) -> None:
        """Raise an alert, which is kept with the run."""
        levels = self._trackio.AlertLevel
        level = {"error": levels.ERROR, "warn": levels.WARN}.get(text.partition(" ")[0], levels.INFO)
        self._run.alert(rule, text, level=level, step=step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
