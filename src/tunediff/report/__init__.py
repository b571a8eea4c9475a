"""Findings -> pages. The only floor that draws."""

from tunediff.report.page import write_report

__all__ = ["write_report"]
