"""Architectures and runs as text, Mermaid and HTML."""

from dagrow.report.drawing import html, mermaid
from dagrow.report.history import history_html, sparkline
from dagrow.report.tables import printable, text

__all__ = ["history_html", "html", "mermaid", "printable", "sparkline", "text"]
