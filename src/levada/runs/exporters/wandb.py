"""Weights & Biases, offline: no network, no login, no prompt, and no file outside the folder given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from levada.runs.exporters.exporter import import_tool

__all__ = ["WeightsAndBiases"]


@final
class WeightsAndBiases:
    """Writes an offline run below `out/wandb`; `wandb sync` uploads it, if and when its owner wants that.

    Findings are the run's tags, and texts in its summary. The machine's statistics, the repository and the console are
    not recorded.

    Args:
        out: the folder.
        name: the run's name.
        config: the run's settings.

    Raises:
        UsageError: if wandb is not installed.
    """

    def __init__(self, out: Path, name: str, config: Mapping[str, Any]) -> None:
        wandb = import_tool("wandb", "wandb", "Exporting to Weights & Biases")
        out.mkdir(parents=True, exist_ok=True)
        # Settings, caches and staged files go to the home directory unless these say otherwise.
        own = {f"WANDB_{kind}_DIR": str(out / "wandb" / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA")}
        self._before = {key: os.environ.get(key) for key in own}
        os.environ.update(own)
        self._run: Any = None
        try:
            self._run = wandb.init(
                mode="offline",
                dir=str(out),
                project="levada",
                name=name,
                config=dict(config),
                reinit="create_new",
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    disable_job_creation=True,
                    x_disable_stats=True,
                    x_disable_meta=True,
                ),
            )
        except BaseException:
            self._restore()
            raise
        self.where = str(Path(self._run.dir).parent)
        self.hint = f"wandb sync {self.where}"
        self._texts: dict[str, str] = {}

    def _restore(self) -> None:
        for key, value in self._before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Log numbers at a step; what is logged twice at one step becomes one row."""
        self._run.log({**values, "time": time}, step=step)

    def tell(self, step: int, time: float, rule: str, text: str) -> None:
        """Add a tag, and a text to the summary."""
        if rule not in (self._run.tags or ()):
            self._run.tags = (*(self._run.tags or ()), rule)
        self._texts[f"step {step}, {rule}"] = text
        self._run.summary["findings"] = dict(self._texts)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
            self._restore()
