"""Problems with right answers -> what a model is asked, and pure measures of how it responds. Knows no model."""

from tunediff.benchmarks.tasks import ManyNumbers, Problem, Task, TaskError

__all__ = ["ManyNumbers", "Problem", "Task", "TaskError"]
