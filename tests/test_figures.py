"""Figures: what is refused, what a run keeps of them, and that the page draws any of them without knowing who made it."""

import ast
import json
import re
import sys
from types import SimpleNamespace

import hydra
import numpy
import pytest
import torch

from browser import in_browser
from conftest import ROOT
from tunediff import folders
from tunediff.report import in_words, line_of, members_under, write_report
from tunediff.settings import check
from tunediff.shapes import Figure, Finding, Note, Refused, Table
from tunediff.study.parts import STUDY, evaluations_of
from tunediff.study.run import evaluate

DESCRIBED = {"identity": "abc", "study": {"model_pair": "tuned vs base"}}


def columns(**more):
    return {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], **more}


def figure(name="mine/curve", kind="lines", **more):
    given = {
        "columns": columns(who=["base", "base", "tuned"]),
        "x": "step",
        "y": ["loss"],
        "section": "Mine",
        "title": "Loss",
    }
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
        ({"x": "who"}, "row 0 of its column who is of type str, and only numbers and None are drawn"),
        ({"kind": "points", "x": "who"}, "column who is of type str"),
        ({"kind": "bars", "y": ["who"]}, "column who is of type str"),
        ({"columns": columns(loss=[1.0, None, "2"])}, "row 2 of its column loss is of type str"),
        ({"columns": columns(loss=[1.0, True, 2.0])}, "row 1 of its column loss is of type bool"),
        ({"columns": columns(loss_low=["a"] * 3, loss_high=[1] * 3)}, "column loss_low is of type str"),
        ({"columns": columns(loss_low=[1] * 3, loss_high=["a"] * 3)}, "column loss_high is of type str"),
        ({"columns": columns(more=[1, 2, [3]])}, "row 2 of its column more is of type list, not a number, string"),
        ({"columns": columns(more=[object()] * 3)}, "type object, not a number, string, bool or None"),
        ({"columns": columns(more=numpy.ones((3, 2)))}, "type list, not a number"),
        ({"columns": columns(more=range(3))}, "column more is of type range, not a list or an array"),
        ({"columns": columns(more={1, 2, 3})}, "type set, not a list"),
        ({"columns": columns(more=7)}, "type int, not a list"),
        ({"columns": columns(more="abc")}, "type str, not a list"),
        ({"columns": columns(more=numpy.float32(1))}, "type float, not a list"),
        ({"columns": columns(more=(n for n in range(3)))}, "type generator, not a list"),
        ({"columns": columns(more=object())}, "type object, not a list"),
        ({"columns": [("step", [1])]}, "columns are of type list, not a mapping"),
        ({"columns": None}, "columns are of type NoneType, not a mapping"),
        ({"words": None}, "words is no mapping"),
        ({"words": {"loss": 3}}, "words is no mapping of columns to strings"),
        ({"log": None}, r"log is no list of columns; write log=\[\] for none"),
        ({"log": "loss"}, "log is no list"),
        ({"choices": None}, "choices is no list"),
        ({"choices": {"who"}}, "choices is no list"),
        ({"y": None}, r"y=None is no list of columns; write y=\['value'\]"),
        ({"y": [["loss"]]}, "is no list of columns"),
        ({"x": None}, "x is of type NoneType, not a string"),
        ({"group": ["who"]}, "group is of type list, not a string"),
        ({"title": None}, "title is of type NoneType"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused_in_one_sentence_and_nothing_is_written(tmp_path, wrong, said):
    with pytest.raises(Refused, match=said) as refused:
        found = [Table("mine", {"a": [1]}), Finding("mine/a", 1.0), figure(**wrong)]
        folders.write_findings(tmp_path, found, DESCRIBED, by="mine")
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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([figure("mine/a"), figure("mine/a")], "Figure mine/a: two figures have this name"),
        ([Finding("mine/b", "high")], "Finding mine/b: its value is of type str, not a number"),
        ([Finding("mine/b", 1.0, numpy.ones(2), 2.0)], "Finding mine/b: its low is of type list"),
        *(([Finding(name, 1.0)], "its name is .*, and has to be a string") for name in (7, None, "")),
        ([Finding("mine/b", 1.0, column=5)], "Finding 'mine/b': its column is 5, and has to be a string"),
        ([Note(5)], "Note 5: it has to be a string"),
        ([Table("mine", {"a": [1, 2], "b": [1]})], "Table mine: its columns have unequal lengths, {'a': 2, 'b': 1}"),
        ([Table("mine", {"a": [1, 2]}), Table("mine", {"b": [1]})], "Table mine: its columns have unequal lengths"),
        ([Table(3, {"a": [1]})], "Table 3: its name has to be a string of at most 100 letters"),
        ([Table("long" * 30, {"a": [1]})], "its name has to be a string of at most 100 letters"),
        ([Table("mine", {3: [1]})], "Table mine: its columns are lists under names"),
        ([Table("mine", {"a": 5})], "Table mine: its columns are lists under names"),
        ([Table("mine", None)], "Table mine: its columns are lists under names"),
        ([Table("mine", {"a": [1, "x"]})], "Table mine: it cannot be kept"),
        ([Table("mine", {"a": [10**30]})], "Table mine: it cannot be kept"),
        ([Table("mine", {"a": [object()]})], "Table mine: it cannot be kept"),
        *(([Table(name, {"a": [1]})], "its name has no slash") for name in ("in/mine", "../mine", "..", ".", "")),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_sentence_and_nothing_is_written(tmp_path, wrong, said):
    with pytest.raises(Refused, match=said) as refused:
        folders.write_findings(tmp_path, [Table("whole", {"a": [1]}), Finding("mine/a", 1.0), *wrong], DESCRIBED)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_table_is_written_inside_its_run_folder_alone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(Refused, match="its name has no slash"):
        folders.write_findings(folder, [Table(str(tmp_path / "outside"), {"a": [1]})], DESCRIBED)
    assert list(tmp_path.iterdir()) == [folder] and not list(folder.iterdir())


def test_arrays_and_their_scalars_are_written_as_lists_and_numbers_and_what_is_not_finite_as_null(tmp_path):
    def strictly(name):
        return json.loads((tmp_path / name).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    wild = [numpy.float32(0.5), float("nan"), torch.tensor(float("inf"))]
    drawn = figure(columns={"step": numpy.arange(3), "loss": wild, "more": torch.tensor([1.0, 2.0, -torch.inf])})
    ends = (torch.tensor(0.25), numpy.float64("inf"))
    found = [drawn, Finding("mine/a", numpy.float32(0.5), *ends), Finding("mine/b", float("nan"))]
    folders.write_findings(tmp_path, found, DESCRIBED)
    assert strictly("figures.json")["figures"][0]["columns"] == {
        "step": [0, 1, 2],
        "loss": [0.5, None, None],
        "more": [1.0, 2.0, None],
    }
    kept = [[one[name] for name in ("value", "low", "high")] for one in strictly("findings.json")["findings"]]
    assert kept == [[0.5, 0.25, None], [None] * 3]


def test_the_words_of_the_headline_are_kept_where_there_are_any_and_older_findings_have_none(tmp_path):
    found = [Finding("mine/a", 1.0, column="A", line="the A"), Finding("mine/b", 2.0)]
    folders.write_findings(tmp_path, found, DESCRIBED)
    kept = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert list(kept[1]) == ["name", "value", "low", "high", "meaning"]
    assert [Finding(**one) for one in kept] == found


# -- an evaluation from elsewhere ------------------------------------------------------------------------------------

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
PACKAGE = '''
from tunediff.evaluations import Needs
from tunediff.shapes import Figure, Finding

HOSTILE = {hostile!r}


class Spread:
    """A number, and a figure of every kind."""

    needs = Needs.PAIR

    def __init__(self, *, scale):
        self.scale = scale

    def run(self, trained):
        yield Finding("spread/largest", 4.25 * self.scale, column="largest spread", line="spread at most")
        given = dict(section="Spread of my own", caption=f"A caption {{HOSTILE}}")
        steps = dict(step=[1, 10, 100, 1, 10, 100], spread=[0.5, 1.5, 4.25, 1, 1, 1], spread_low=[0.4, 1, 4, 0, 0, 0],
                     spread_high=[0.6, 2, 4.5, 2, 2, 2], who=["base"] * 3 + [HOSTILE] * 3, part=["all"] * 5 + ["few"])
        for kind in ("lines", "points"):
            yield Figure(f"spread/{{kind}}", kind, steps, x="step", y=["spread"], title=f"My {{kind}} {{HOSTILE}}", group="who",
                         log=["step"], choices=["part"] if kind == "points" else [], **given)
        rows = dict(name=["one", HOSTILE], size=[3.0, 5.0], size_low=[2.5, 4.5], size_high=[3.5, 5.5], drawn=[False, True], more=["x", HOSTILE])
        for kind in ("bars", "intervals"):
            yield Figure(f"spread/{{kind}}", kind, rows, x="name", y=["size"], title=f"My {{kind}}", control="drawn", **given)
        cells = dict(column=[0, 1, 0, 1], row=[0, 0, 1, 1], share=[0.1, 0.2, 0.3, None])
        yield Figure("spread/heat", "heat", cells, x="column", y=["share"], title="My heat", group="row", words=dict(share="of it"), **given)
'''


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The folder of a run that was evaluated by a class and an option that this package has never heard of."""
    root = tmp_path_factory.mktemp("elsewhere")
    (root / "evaluation").mkdir()
    (root / "spread_of_mine.py").write_text(PACKAGE.format(hostile=HOSTILE))
    (root / "evaluation" / "spread.yaml").write_text(
        "# Choose it for its spread.\nspread:\n  _target_: spread_of_mine.Spread\n  scale: 2\n"
    )
    words = [f"hydra.searchpath=[file://{root}]", "evaluation=spread", "trust=[spread_of_mine]"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose("train", words)
    folder = root / "run"
    folder.mkdir()
    (folder / "identity.json").write_text(json.dumps({"identity": "abc", "settings": {"seed": 0}}))
    sys.path.insert(0, str(root))
    try:
        check(cfg, STUDY)
        evaluations = evaluations_of(cfg.evaluation, learns=False, inside=False)
        evaluate(evaluations, SimpleNamespace(folder=folder), folder, DESCRIBED)
    finally:
        sys.path.remove(str(root))
    return folder


def test_it_has_its_column_beside_other_runs_and_its_word_in_the_last_line(elsewhere):
    head, row, *_ = in_words(members_under([elsewhere])).splitlines()
    assert "largest spread" in head and "8.5" in row
    findings = json.loads((elsewhere / "findings.json").read_text())["findings"]
    assert line_of({finding["name"]: finding for finding in findings}) == "spread at most 8.5"


@in_browser
def test_it_has_its_pictures_and_its_words_are_text(elsewhere, browser):
    page = browser.open(write_report(elsewhere))
    found = page.run("""
      const part = document.querySelector('#to-spread-of-my-own'), saved = [], keep = save;
      const figures = [...part.querySelectorAll('figure')];
      save = (name, type, content) => saved.push(content);
      for (const one of figures) for (const button of one.querySelectorAll('.tools button')) if (button.textContent !== 'PNG') button.click();
      save = keep;
      return { titles: figures.map((one) => one.querySelector('figcaption span').textContent), captions: [...part.querySelectorAll('p.soft')].map((one) => one.textContent),
        shapes: figures.map((one) => ['polyline', 'polygon', 'circle', 'rect.cell', 'svg rect:not(.cell)'].map((what) => one.querySelectorAll(what).length)),
        legend: part.querySelector('.legend').textContent, cells: [...part.querySelectorAll('tbody td')].map((cell) => cell.textContent),
        said: [...part.querySelectorAll('title')].map((one) => one.textContent), saved, images: document.querySelectorAll('img').length, page: document.title };""")
    assert found["titles"] == [
        f"My lines {HOSTILE}",
        f"My points {HOSTILE}, part all",
        "My bars",
        "My intervals",
        "My heat",
    ]
    assert found["shapes"] == [[2, 2, 6, 0, 0], [0, 0, 5, 0, 0], [0, 0, 0, 0, 2], [0, 0, 2, 0, 0], [0, 0, 0, 4, 0]]
    assert found["captions"][0] == f"A caption {HOSTILE}" and HOSTILE in found["legend"] and HOSTILE in found["cells"]
    assert (
        "base, step 100: 4.250 (4 to 4.500)" in found["said"] and f"{HOSTILE}: size 5 (4.500 to 5.500)" in found["said"]
    )
    assert "row 1, column 0: 0.300 of it" in found["said"]
    assert len(found["saved"]) == 10 and all("<img" not in text for text in found["saved"] if text.startswith("<svg"))
    assert (found["images"], found["page"]) == (0, "tunediff: tuned vs base")
    said = page.run("""
      const heat = [...document.querySelectorAll('#to-spread-of-my-own svg')].at(-1), read = () => document.querySelector('.readout').textContent;
      heat.dispatchEvent(new Event('focus')); const first = read();
      for (const way of ['ArrowUp', 'ArrowUp']) heat.dispatchEvent(new KeyboardEvent('keydown', { key: way }));
      set('part', 'few');
      return [first, read(), document.querySelectorAll('#to-spread-of-my-own figure')[1].querySelectorAll('circle').length];""")
    assert said == ["row 0, column 0: 0.100 of it", "row 1, column 0: 0.300 of it", 1]


@in_browser
def test_a_figure_that_is_broken_long_or_huge_leaves_the_page_whole(tmp_path, browser):
    top = 1.7e308
    huge = {
        "step": [-top, 0.0, top],
        "loss": [top, None, -top],
        "loss_low": [0, None, -top],
        "loss_high": [top, None, top],
    }
    huge |= {"name": ["a", "b", "c"], "wide": [1e-300, 1.0, top], "level": [top] * 3}
    kinds = {"lines": "step", "points": "step", "bars": "name", "intervals": "name", "heat": "name"}
    found = [
        figure(
            f"{kind}/{y}", kind, columns=huge, x=x, y=[y], title=f"{kind} of {y}", group="name", log=["step", "wide"]
        )
        for kind, x in kinds.items()
        for y in ("loss", "wide", "level")
    ]
    found += [figure("flat", columns=huge, x="level", y=["level"], title="flat"), figure("last", title="lone \ud800")]
    folders.write_findings(tmp_path, found, {**DESCRIBED, "study": {"model_pair": "\udfff"}})
    drawn = folders.figures_of(tmp_path)
    flaws = [{"kind": "pie"}, {"choices": None}, {"group": "who", "columns": None}]
    wrong = [{**drawn[-1], "title": f"flaw {n}", **flaw} for n, flaw in enumerate(flaws)]
    (tmp_path / "figures.json").write_text(json.dumps({"figures": [*wrong, *drawn]}))
    page = browser.open(write_report(tmp_path))
    titles, said, unplaced = page.run("""
      const figures = [...document.querySelectorAll('#to-mine figure')], marks = [...document.querySelectorAll('#to-mine svg, #to-mine svg *')];
      const unplaced = marks.filter((one) => [...one.attributes].some(({ value }) => /NaN|Infinity|undefined/.test(value)));
      return [figures.map((one) => one.querySelector('figcaption span').textContent.split(';')[0]),
        figures.slice(0, 3).map((one) => one.querySelector('p').textContent), unplaced.map((one) => one.outerHTML.slice(0, 200))];""")
    assert titles == [
        *("flaw 0", "flaw 1", "flaw 2"),
        *(f"{kind} of {y}" for kind in kinds for y in ("loss", "wide", "level")),
        *("flat", "lone ?"),
    ]
    assert all(one.startswith("This figure could not be drawn: ") for one in said)
    assert unplaced == []
    # a hundred and fifty thousand rows, without their dots, which take a browser seconds
    long = page.run("""
      const points = Array.from({ length: 150000 }, (_, n) => ({ at: n + 1, value: n + 1, low: n, high: n + 2, said: '' })), of = points.map((point) => ({ size: point.at }));
      const line = plot('long', [{ word: '', colour: 'red', points }], { xWord: '', xLog: true, yLog: true, dots: false, rows: null });
      return [line.querySelector('polyline').getAttribute('points').split(' ').length, element('div', {}, of.map(() => '.')).textContent.length, lowest(of.map((row) => row.size)), highest(of.map((row) => row.size))];""")
    assert long == [150_000, 150_000, 1, 150_000]


def test_what_speaks_of_behaviour_and_of_the_headline_names_no_evaluation():
    options = {path.stem for path in (ROOT / "conf" / "evaluation").glob("*.yaml")} - {
        "none",
        "examples",
        "labels",
    }  # words of their own
    for name in ("behaviour", "headline"):
        text = (ROOT / "src" / "tunediff" / "report" / f"{name}.py").read_text()
        assert not [option for option in options if re.search(rf"\b{option}\b", text)], name


# files whose intervals do not yet say what they run over; one leaves when it does
def bounded_findings(path):
    """The calls of Finding in a file that give an end of an interval, and whether each says `over`, by name or place: the ends
    are a spread value among the first three words, the third word, or `low`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
            names, spread = {word.arg for word in node.keywords}, [isinstance(word, ast.Starred) for word in node.args]
            if any(spread[:3]) or len(node.args) > 2 or "low" in names:
                last = isinstance(node.args[-1], ast.Constant) and node.args[-1].value == "documents"
                yield f"{path.name}:{node.lineno}", "over" in names or None in names or last


def test_every_finding_with_an_interval_says_over_what_it_runs():
    files = [path for path in (ROOT / "src").rglob("*.py")]
    calls = dict(call for path in files for call in bounded_findings(path))
    assert len(calls) > 20 and not [place for place, said in calls.items() if not said]


def test_what_an_interval_is_over_is_kept_where_there_is_one_and_checked(tmp_path):
    written = {}
    for low, over in ((0.5, "documents"), (None, "documents"), (0.5, "")):
        entry = folders.findings._told(Finding("mine/a", 1.0, low, None if low is None else 2.0, "a number", over=over))
        written[low, over] = entry.get("over")
    assert written == {(0.5, "documents"): "documents", (None, "documents"): None, (0.5, ""): None}
    with pytest.raises(Refused, match="its over is 3"):
        folders.findings._told(Finding("mine/a", 1.0, 0.5, 2.0, "a number", over=3))
