"""Put a watched run where people look already: TensorBoard, Weights & Biases, MLflow, trackio."""

from levada.runs.exporters.exporter import Exporter as Exporter
from levada.runs.exporters.exporter import chosen as chosen
from levada.runs.exporters.exporter import tag as tag
from levada.runs.exporters.exporter import told as told
from levada.runs.exporters.stored import EXPORTERS as EXPORTERS
from levada.runs.exporters.stored import export as export
from levada.runs.exporters.stored import open_exporter as open_exporter

__all__ = ["EXPORTERS", "Exporter", "chosen", "export", "open_exporter", "tag", "told"]
