"""Finished runs as one HTML page that opens offline."""

from compress_agents.html_report.page import make_page, write_page
from compress_agents.html_report.reading import Run, read_run

__all__ = ["Run", "make_page", "read_run", "write_page"]
