"""Findings -> pages. The only floor that draws."""

from tunediff.report.comparison import in_words, members_under, write_comparison
from tunediff.report.page import write_report

__all__ = ["in_words", "members_under", "write_comparison", "write_report"]
