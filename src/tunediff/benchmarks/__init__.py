"""Problems with right answers -> what a model is asked, and pure measures of how it responds. Knows no model."""

from tunediff.benchmarks.measures import (
    Estimate,
    Paired,
    Scaling,
    difference,
    mcnemar,
    scaling,
    scaling_difference,
    wilson,
)
from tunediff.benchmarks.tasks import ManyNumbers, Problem, Task, TaskError
from tunediff.benchmarks.writing import HESITATIONS, Behaviour, behaviour, closed, distinct, hesitations, repetition

__all__ = [
    "HESITATIONS",
    "Behaviour",
    "Estimate",
    "ManyNumbers",
    "Paired",
    "Problem",
    "Scaling",
    "Task",
    "TaskError",
    "behaviour",
    "closed",
    "difference",
    "distinct",
    "hesitations",
    "mcnemar",
    "repetition",
    "scaling",
    "scaling_difference",
    "wilson",
]
