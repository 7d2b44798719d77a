"""Watched runs, one or several side by side: what is read of them, and the documents on them."""

from gradwise.report.watched.document import render_records
from gradwise.report.watched.record import Record, read_records, slug

__all__ = ["Record", "read_records", "render_records", "slug"]
