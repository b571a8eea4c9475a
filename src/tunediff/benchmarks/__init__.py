"""Outputs of a model on benchmark problems -> grades.

    answers.py (by sentences.py) -> equality.py (by notation.py) -> symbolic.py        grading.py runs them, many at a time

Nothing here knows a model: an output is a string, and so is the gold answer.
"""

from tunediff.benchmarks.answers import READ, Answer, read
from tunediff.benchmarks.grading import RULES, Grade, Grader, grade

__all__ = ["READ", "RULES", "Answer", "Grade", "Grader", "grade", "read"]
