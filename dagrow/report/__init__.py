"""Architectures and runs as text, Mermaid and HTML."""

from dagrow.graph import Architecture
from dagrow.report.drawing import html, mermaid
from dagrow.report.history import history_html, sparkline
from dagrow.report.tables import printable, text

# Architectures draw themselves in a notebook; the graph itself knows nothing of drawing.
Architecture._repr_html_ = html

__all__ = ["Architecture", "history_html", "html", "mermaid", "printable", "sparkline", "text"]
