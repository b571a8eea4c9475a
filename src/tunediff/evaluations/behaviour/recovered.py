"""Graded responses of three models to the same problems -> what share of the change from one to another the third recovers,

    (between - below) / (above - below) of accuracy, of the tokens and of the hesitations a response

with Fieller's interval over problems (measures/). Where there is no change that could be recovered, a sentence
says so in place of a number. Knows no model and how none was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tunediff.evaluations.behaviour.solving import Solved
from tunediff.measures import Interval, Recovered, recovery
from tunediff.measures.clustered import interval_columns
from tunediff.shapes import Figure, Finding, Note

ACCURACY = "accuracy"
MEASURES = {ACCURACY: "accuracy", "tokens": "tokens a response", "hesitations": "hesitations a response"}


class Change(NamedTuple):
    """A change from the model `below` to the model `above`, some of which the model `between` recovers, by the names that an
    evaluation gives them. `otherwise` is what may tell the two apart beside more problems."""

    evaluation: str
    below: str
    between: str
    above: str
    otherwise: str = ""


class Share(NamedTuple):
    """The means of one measure below, between and above, and what is recovered of its change."""

    measure: str
    means: tuple[float, ...]
    recovered: Recovered

    @property
    def interval(self) -> Interval | None:
        """The recovered share with its confidence interval; None where accuracy fell, of which only a gain can be recovered."""
        return None if self.measure == ACCURACY and self.recovered.change < 0 else self.recovered.share


def share(measure: str, answers: Sequence[Sequence[Solved]]) -> Share:
    """The share that is recovered, from the responses below, between and above to the same problems in one order."""
    below, between, above = ([_value(measure, solved) for solved in of_one] for of_one in answers)
    means = tuple(sum(of_one) / len(of_one) for of_one in (below, between, above))
    return Share(measure, means, recovery(below, between, above))


def _value(measure: str, solved: Solved) -> float:
    return float(solved.grade.correct if measure == ACCURACY else getattr(solved.behaviour, measure))


def told(
    of: Change, task: str, found: Share, *, where: str, how: str, words: tuple[str, str] = ("", "")
) -> Finding | Note:
    """The share as a finding named `where`, with these words for a column and a line; a note in its place where nothing was there to recover. `how` is what every number
    depends on."""
    spelled = "{:.1%}".format if found.measure == ACCURACY else "{:.4g}".format
    below, between, above = map(spelled, found.means)
    what, measured = MEASURES[found.measure], found.recovered
    if measured.share is None:
        return Note(
            f"{of.evaluation}, {task}: the {what} of {of.below} ({below}) and {of.above} ({above}) are not told apart: the 95 % "
            f"interval of their difference holds 0, so that there is no share of it that the {of.between} ({between}) could "
            f"recover. Take more problems{of.otherwise} ({how})."
        )
    if found.interval is None:
        return Note(
            f"{of.evaluation}, {task}: {of.above} ({above}) solves fewer problems than {of.below} ({below}); "
            f"there is no gain that the {of.between} ({between}) could recover ({how})."
        )
    meaning = (
        f"({of.between} - {of.below}) / ({of.above} - {of.below}) of {what}: {of.below} {below}, {of.between} {between}, "
        f"{of.above} {above}; Fieller's interval; {how}"
    )
    return Finding(where, *found.interval, meaning, *words, over="problems")


def columns(name: str, found: Share) -> dict[str, float | None]:
    """The share and its ends, None where nothing was there to recover."""
    return interval_columns(name, found.interval or (None, None, None))


def shares_figure(columns: Mapping[str, list], **described: Any) -> Figure:
    """Draws the shares of a table that has a row for each measure of each task."""
    labels = [f"{measure}, {task}" for measure, task in zip(columns["measure"], columns["task"], strict=True)]
    others = {name: values for name, values in columns.items() if name not in ("measure", "task")}
    return Figure(kind="intervals", columns={"share of": labels, **others}, x="share of", **described)
