"""Problems with right answers -> what a model is asked, grades of what it answers, and how it wrote. Knows no model.

tasks.py       problems and prompts           writing.py  hesitations, repetition
answers.py (by sentences.py, languages.py, choices.py) -> equality.py (by notation.py, relations.py) -> symbolic.py
grading.py     runs these, many outputs at a time
"""

from tunediff.benchmarks.answers import read
from tunediff.benchmarks.choices import Choices
from tunediff.benchmarks.grading import RULES, Grade, Grader, Question, grade
from tunediff.benchmarks.tasks import ManyNumbers, Problem, Task, TaskError
from tunediff.benchmarks.writing import Behaviour, behaviour, closed, distinct, hesitations, repetition
