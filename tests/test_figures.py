"""Figures: what is refused, what a run keeps of them, and that the page draws any of them without knowing who made it."""

import json

import numpy
import pytest

from tunediff import folders
from tunediff.shapes import Figure, Finding, Refused

DESCRIBED = {"identity": "abc", "study": {"model_pair": "tuned vs base"}}


def figure(name="mine/curve", kind="lines", **more):
    columns = {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "who": ["base", "base", "tuned"]}
    given = {"columns": columns, "x": "step", "y": ["loss"], "section": "Mine", "title": "Loss"}
    return Figure(name, kind, **{**given, **more})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "pie"}, "no kind 'pie'; choose of lines, points, bars, intervals, heat"),
        ({"columns": {"step": [1, 2], "loss": [1.0]}}, "unequal lengths, {'step': 2, 'loss': 1}"),
        ({"y": ["los"]}, "names los; its columns are step, loss, who"),
        ({"group": "model", "choices": ["step", "by"]}, "names by, model"),
        ({"y": "loss"}, r"write y=\['loss'\]"),
        ({"y": []}, "is no list of columns"),
        ({"kind": "heat"}, "the rows of a heat"),
        ({"columns": {"step": [1], "loss": [1.0], "loss_low": [0.5]}}, "loss_low and loss_high"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_in_one_sentence_and_nothing_is_written(tmp_path, wrong, said):
    with pytest.raises(Refused, match=said) as refused:
        folders.write_findings(tmp_path, [Finding("mine/a", 1.0), figure(**wrong)], DESCRIBED, by="mine")
    assert "\n" not in str(refused.value) and str(refused.value).startswith("Figure mine/curve")
    assert not list(tmp_path.iterdir())


def test_figures_stay_until_their_evaluation_runs_again_and_go_with_the_study(tmp_path):
    def named():
        return [(one["name"], one["by"]) for one in folders.figures_of(tmp_path)]

    folders.write_findings(tmp_path, [figure("mine/a"), figure("mine/b")], DESCRIBED, by="mine")
    folders.write_findings(tmp_path, [figure("other/a")], DESCRIBED, by="other")
    folders.write_findings(tmp_path, [Finding("third/x", 1.0)], DESCRIBED, by="third")
    assert named() == [("mine/a", "mine"), ("mine/b", "mine"), ("other/a", "other")]
    folders.write_findings(tmp_path, [figure("mine/b", title="Again")], DESCRIBED, by="mine")
    assert named() == [("other/a", "other"), ("mine/b", "mine")]
    assert folders.figures_of(tmp_path)[1]["title"] == "Again"
    folders.clear(tmp_path)
    assert folders.figures_of(tmp_path) == []


def test_columns_of_arrays_are_written_as_lists_are(tmp_path):
    columns = {"step": numpy.arange(3), "loss": [numpy.float32(0.5)] * 3}
    folders.write_findings(tmp_path, [figure(columns=columns)], DESCRIBED)
    assert folders.figures_of(tmp_path)[0]["columns"] == {"step": [0, 1, 2], "loss": [0.5] * 3}


def test_the_words_of_the_headline_are_kept_where_there_are_any_and_older_findings_have_none(tmp_path):
    found = [Finding("mine/a", 1.0, column="A", line="the A"), Finding("mine/b", 2.0)]
    folders.write_findings(tmp_path, found, DESCRIBED)
    kept = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert list(kept[1]) == ["name", "value", "low", "high", "meaning"]
    assert [Finding(**one) for one in kept] == found
