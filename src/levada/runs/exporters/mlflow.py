"""MLflow: a local file store, or whatever tracking address is given."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from levada._errors import UsageError
from levada.runs.exporters.exporter import import_tool, settings

__all__ = ["MLflow"]

# What one call of log_batch takes.
_MOST = 1000


@contextmanager
def _few_retries() -> Iterator[None]:
    """Let a server that is not there be known in some 14 seconds; by the 7 retries of MLflow it takes four minutes.

    While it is written to, MLflow's own number counts, so that a server that is started again loses nothing.
    """
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    chosen = name in os.environ
    os.environ.setdefault(name, "3")
    try:
        yield
    finally:
        if not chosen:
            os.environ.pop(name, None)


@final
class MLflow:
    """Writes one run of the experiment "levada": numbers as metrics, findings as tags.

    Without an address the store is the folder `out/mlruns`. MLflow 3 opens such a store only where
    MLFLOW_ALLOW_FILE_STORE is true, which is set for this process; `mlflow migrate-filestore` makes a database of it.

    Args:
        out: a folder, or an address that MLflow knows: "sqlite:///runs.db" and "postgresql://..." need the package
            mlflow, "http://..." a server.
        name: the run's name.
        config: the run's settings, kept as parameters.

    Raises:
        UsageError: if neither mlflow-skinny nor mlflow is installed, or the address needs the whole of mlflow.
    """

    def __init__(self, out: Path | str, name: str, config: Mapping[str, Any]) -> None:
        # Both are read when mlflow is imported, or the store opened. An export is no reason to call home.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        address = str(out)
        if "://" not in address:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (Path(out) / "mlruns").resolve().as_uri()
        self._entities = import_tool("mlflow.entities", "mlflow-skinny", "Exporting to MLflow")
        tracking = import_tool("mlflow.tracking", "mlflow-skinny", "Exporting to MLflow")
        try:
            with _few_retries():
                self._client = tracking.MlflowClient(tracking_uri=address)
                found = self._client.get_experiment_by_name("levada")
                experiment = found.experiment_id if found else self._client.create_experiment("levada")
        except Exception as error:
            reason = str(error).split(". ")[0].strip(".")
            served = address.startswith(("http:", "https:"))
            advice = "Is the server running?" if served else "A database needs: pip install mlflow"
            raise UsageError(f"MLflow: the store {address} cannot be opened ({reason}). {advice}") from error
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        self.where = address
        opened = "MLFLOW_ALLOW_FILE_STORE=true " if address.startswith("file:") else ""
        self.hint = f"{opened}mlflow ui --backend-store-uri {address}"
        self._open = True
        params = [self._entities.Param(key, text) for key, text in settings(config)]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._run, params=params[start : start + 100])

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Log metrics."""
        metrics = [self._entities.Metric(key, value, round(time * 1000), step) for key, value in values.items()]
        for start in range(0, len(metrics), _MOST):
            self._client.log_batch(self._run, metrics=metrics[start : start + _MOST])

    def tell(self, step: int, time: float, rule: str, text: str) -> None:
        """Set a tag."""
        self._client.set_tag(self._run, f"levada.{rule}.{step}", text[:5000])

    def close(self) -> None:
        """Say that the run is over."""
        if self._open:
            self._open = False
            self._client.set_terminated(self._run, end_time=round(clock.time() * 1000))
