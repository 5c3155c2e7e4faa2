"""MLflow: a local file store, or whatever tracking address is given."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

from levada._errors import UsageError
from levada.runs.exporters.exporter import import_tool, settings

__all__ = ["MLflow", "brief"]

# What one call of log_batch takes.
_MOST = 1000


# Of one question, in seconds, and how often it is asked again: 54 s in all with the pauses between, where MLflow's own
# 120 s and 7 times are 20 minutes.
_BRIEF: Final = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}


@contextmanager
def brief() -> Iterator[None]:
    """Let a server that is not there, or hangs, be known within a minute; numbers that the user has set stay.

    A training's listener opens its run so. While it writes, MLflow's own numbers count: its thread can wait for a
    server that is started again, and nothing is lost. What is stored can be exported once more.

    Example:
        >>> import os
        >>> with brief():
        ...     os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        '10'
        >>> "MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ
        False
    """
    own = [name for name in _BRIEF if name not in os.environ]
    os.environ.update({name: _BRIEF[name] for name in own})
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    """Say in a few words what a request failed by."""
    if "timed out" in str(error):
        seconds, times = (os.environ.get(name, "") for name in _BRIEF)
        limits = f" within {seconds} s, asked {int(times) + 1} times" if seconds and times.isdecimal() else ""
        return f"it gave no answer{limits}"
    return str(error).split(". ")[0].strip(".")


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
        UsageError: if neither mlflow-skinny nor mlflow is installed, the address needs the whole of mlflow, or its
            server gives no answer within a minute.
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
        self.where, self._open = address, False
        with brief():
            try:
                self._client = tracking.MlflowClient(tracking_uri=address)
                found = self._client.get_experiment_by_name("levada")
                experiment = found.experiment_id if found else self._client.create_experiment("levada")
                self._run = self._client.create_run(experiment, run_name=name).info.run_id
            except Exception as error:
                advice = "Is the server running?" if self._served else "A database needs: pip install mlflow"
                raise UsageError(
                    f"MLflow: the store {address} cannot be opened ({_reason(error)}). {advice}"
                ) from error
            self._open = True
            params = [self._entities.Param(key, text) for key, text in settings(config)]
            for start in range(0, len(params), 100):
                self._ask(self._client.log_batch, params=params[start : start + 100])
        opened = "MLFLOW_ALLOW_FILE_STORE=true " if address.startswith("file:") else ""
        self.hint = f"{opened}mlflow ui --backend-store-uri {address}"

    @property
    def _served(self) -> bool:
        return self.where.startswith(("http:", "https:"))

    def _ask(self, request: Callable[..., Any], *args: Any, **named: Any) -> None:
        """Make a request about the run; after one that failed no other is made, which might hang as long."""
        try:
            request(self._run, *args, **named)
        except Exception as error:
            self._open = False
            advice = "Is the server still running? " if self._served else ""
            raise UsageError(
                f"MLflow: the store {self.where} did not take everything ({_reason(error)}). {advice}"
                f"The run {self._run} there has what came before; export again to begin another."
            ) from error

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Log metrics."""
        metrics = [self._entities.Metric(key, value, round(time * 1000), step) for key, value in values.items()]
        for start in range(0, len(metrics), _MOST):
            self._ask(self._client.log_batch, metrics=metrics[start : start + _MOST])

    def tell(self, step: int, time: float, rule: str, text: str) -> None:
        """Set a tag."""
        self._ask(self._client.set_tag, f"levada.{rule}.{step}", text[:5000])

    def close(self) -> None:
        """Say that the run is over."""
        if self._open:
            self._open = False
            self._ask(self._client.set_terminated, end_time=round(clock.time() * 1000))
