"""Reports: one self-contained page, the terminal's tables, SARIF. Nothing here imports torch."""

from __future__ import annotations

from levada.report.page import Source as Source
from levada.report.page import render_report as render_report
from levada.report.page import write_html as write_html

__all__ = ["Source", "render_report", "write_html"]
