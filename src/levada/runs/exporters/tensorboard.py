"""TensorBoard: event files, written by the package tensorboard; neither torch nor TensorFlow is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from levada._errors import UsageError
from levada.runs.exporters.exporter import import_tool

__all__ = ["TensorBoard"]


@final
class TensorBoard:
    """Writes one event file to `out/name`: numbers as scalars, findings as texts.

    Args:
        out: the folder that `tensorboard --logdir` is given.
        name: the run's name.
        config: the run's settings, kept as a text.

    Raises:
        UsageError: if tensorboard is not installed, or `out/name` holds event files, to which a second would be added
            point by point.
    """

    def __init__(self, out: Path, name: str, config: Mapping[str, Any]) -> None:
        writer = import_tool("tensorboard.summary.writer.event_file_writer", "tensorboard", "Exporting to TensorBoard")
        self._events = import_tool("tensorboard.compat.proto.event_pb2", "tensorboard", "Exporting to TensorBoard")
        folder = out / name
        if any(folder.glob("events.out.tfevents.*")):
            raise UsageError(f"{folder}: a run is exported to a folder without event files. Choose another with --out.")
        self.where = str(folder)
        self.hint = f"tensorboard --logdir {out}"
        self._writer = writer.EventFileWriter(str(folder))
        if config:
            lines = "\n".join(f"    {key}: {value}" for key, value in config.items())
            self._add(0, None, self._text("settings", lines))

    def _text(self, tag: str, text: str) -> dict[str, Any]:
        return {
            "tag": tag,
            "metadata": {"plugin_data": {"plugin_name": "text"}},
            "tensor": {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": 1}]}, "string_val": [text.encode()]},
        }

    def _add(self, step: int, time: float | None, *values: dict[str, Any]) -> None:
        event = self._events.Event(step=step, summary={"value": list(values)})
        if time is not None:
            event.wall_time = time
        self._writer.add_event(event)

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Write scalars."""
        self._add(step, time, *({"tag": tag, "simple_value": value} for tag, value in values.items()))

    def tell(self, step: int, time: float, rule: str, text: str) -> None:
        """Write a text under findings/RULE."""
        self._add(step, time, self._text(f"findings/{rule}", text))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
