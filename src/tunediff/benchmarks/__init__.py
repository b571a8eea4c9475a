"""Problems with right answers -> what a model is asked, grades of what it answers, and how it wrote. Knows no model.

tasks.py       problems and prompts           answers.py (by sentences.py) -> equality.py (by notation.py) -> symbolic.py
grading.py     runs these, many outputs at a time     choices.py  multiple choice     writing.py  hesitations, repetition
"""

from tunediff.benchmarks.answers import read
from tunediff.benchmarks.choices import Choices
from tunediff.benchmarks.grading import RULES, Grade, Grader, grade
from tunediff.benchmarks.tasks import ManyNumbers, Problem, Task, TaskError
from tunediff.benchmarks.writing import Behaviour, behaviour, closed, distinct, hesitations, repetition
