"""Figures: what is refused, what a run keeps of them, and that the page draws any of them without knowing who made it."""

import json
import re
import sys
from types import SimpleNamespace

import hydra
import numpy
import pytest

from browser import in_browser
from conftest import ROOT
from tunediff import folders
from tunediff.report import in_words, line_of, members_under, write_report
from tunediff.settings import check
from tunediff.shapes import Figure, Finding, Refused
from tunediff.study.parts import STUDY, evaluations_of
from tunediff.study.run import evaluate

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
    head, row = in_words(members_under([elsewhere])).splitlines()
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


def test_what_speaks_of_behaviour_and_of_the_headline_names_no_evaluation():
    options = {path.stem for path in (ROOT / "conf" / "evaluation").glob("*.yaml")} - {"none", "examples"}
    for name in ("behaviour", "headline"):
        text = (ROOT / "src" / "tunediff" / "report" / f"{name}.py").read_text()
        assert not [option for option in options if re.search(rf"\b{option}\b", text)], name
