"""Findings -> pages. The only floor that draws."""

from tunediff.report.comparison import in_words, members_under, study_of, write_comparison
from tunediff.report.headline import line_of
from tunediff.report.labels import SAY_OF_LABELS, labels_together
from tunediff.report.page import write_report
