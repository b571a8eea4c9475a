"""No text of a run is more than text: on a page in a real browser, and in a spreadsheet."""

import base64
import csv
import hashlib
import io
import json
import re
import urllib.parse
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import test_behaviour_page
import test_graph_page
import test_report
from browser import in_browser
from tunediff.folders import write_findings
from tunediff.loggers import Csv
from tunediff.report import members_under, write_comparison, write_report
from tunediff.shapes import Figure, Finding, Note

CONF = Path(__file__).resolve().parent.parent / "conf"
# -- spreadsheets ----------------------------------------------------------------------------------------------------

COMPUTED = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "＝1+1", '=HYPERLINK("http://x")')


def test_a_name_that_a_spreadsheet_would_compute_is_text_in_metrics(tmp_path):
    logger = Csv(str(tmp_path))
    logger.log_metrics({"=cmd": 1.0, "loss": -2.5}, step=0)
    logger.save()
    head, row = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert sorted(head.split(",")) == ["'=cmd", "loss", "step"] and "-2.5" in row.split(",")


# -- the page --------------------------------------------------------------------------------------------------------

# what each tries: to leave its script, its attribute, its element; to be an address; to be a template of the page's own
ESCAPES = (
    '</script><script>owned = 1</script><img src=x onerror="owned = 1">"\'><svg onload=owned=1><iframe src=javascript:owned=1>'
    "</title></style><style>*{display:none}</style><base href=//x>{{SCRIPT}}${owned=1}<!--<script>&lt;b&gt;&#60;\u2028]]>"
)


LABEL = ESCAPES.replace("/", "")


def hostile(value):
    """The value with the escapes behind every text in it."""
    return f"{value}{ESCAPES}" if isinstance(value, str) else value


STRUCTURE = {"role", "model", "kind", "segments", "sign", "written", "of", "by", "group", "which", "question", "place", "gate", "condition", "reference"}  # fmt: skip


def with_escapes(tables):
    """Tables of a run with the escapes in every column of free text."""
    made = {}
    for name, columns in tables.items():
        made[name] = {
            column: values if column in STRUCTURE and not name.endswith("_outputs") else
            [[hostile(v) for v in one] if isinstance(one, list) else hostile(one) for one in values]
            for column, values in columns.items()
        }  # fmt: skip
    return made


def assert_inert(browser, path, fragment="", script=""):
    """Opens the page, does what is asked, and finds no script run, no element that is not the page's own, and every part of
    the text there as text."""
    page = browser.open(path, fragment)
    page.run(script + " await new Promise((done) => setTimeout(done, 50));")
    found = page.run(
        "return [typeof owned, document.title.includes('script'), document.querySelectorAll('iframe, object, embed, base').length,"
        " document.querySelectorAll('img').length, document.scripts.length, document.querySelectorAll('style').length,"
        " [...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => a.name.startsWith('on'))).length,"
        " [...document.querySelectorAll('a')].filter((a) => /^(javascript|data):/i.test(a.href) && !a.download).length,"
        " document.body.textContent.includes('owned = 1'), getComputedStyle(document.querySelector('h1')).display];"
    )
    scripts = path.read_text().count("</script>")
    assert found[0] == "undefined" and found[2:8] == [0, 0, scripts, 1, 0, 0], found
    assert found[8] and found[9] != "none"
    return page


def hostile_study(folder):
    """Findings, notes, labels, figures, training curves: every text in them tries to be more."""
    names = (
        "fidelity/explained_variance/base",
        "geometry/count/shared",
        f"label_alignment/{ESCAPES}/auroc",
        f"x/{ESCAPES}",
    )
    findings = [Finding(name, 0.5, 0.4, 0.6, ESCAPES, ESCAPES, ESCAPES, ESCAPES) for name in names]
    findings.append(Finding(f"label_alignment/{LABEL}/latent", 7))
    figures = [
        Figure(
            f"f/{kind}/{ESCAPES}", kind, {"x": [1, 2] if kind in ("lines", "points") else [ESCAPES, "b"], ESCAPES: [ESCAPES, "c"], "y": [0.5, 0.7], ESCAPES + "!": [ESCAPES, "u"]},
            "x", ["y"], section=f"s {ESCAPES}", title=f"t {ESCAPES}", caption=ESCAPES, group=ESCAPES, facet=ESCAPES + "!" if kind != "heat" else None, words={"x": ESCAPES, "y": ESCAPES},
        )
        for kind in ("lines", "points", "bars", "intervals", "heat")
    ]  # fmt: skip
    study = dict.fromkeys(("model_pair", "dictionary", "hookpoint", "layer", "streams", ESCAPES), ESCAPES)
    write_findings(
        folder,
        [*findings, *figures, Note(ESCAPES)],
        {"identity": ESCAPES, "study": study | {"tokens": 1, "latents": 40}},
    )


@in_browser
@pytest.mark.parametrize("kind", ("latents", "behaviour", "graphs"))
def test_no_text_of_a_run_is_more_than_text_on_its_page(kind, browser, tmp_path):
    folder = tmp_path / "x'><b>"
    made = {"latents": test_report, "behaviour": test_behaviour_page, "graphs": test_graph_page}[kind]
    content = {} if kind == "latents" else with_escapes(made.tables())
    if kind == "latents":
        made.make_run(folder)
        content = {
            path.stem: with_escapes({path.stem: pyarrow.parquet.read_table(path).to_pydict()})[path.stem]
            for path in (folder / "tables").glob("*.parquet")
        }
        content["latents"][f"auroc/{ESCAPES}"] = content["latents"]["firing_rate"]
        content["latent_classes"] = {"latent": [7], "class": [ESCAPES], "domain": [ESCAPES], "mechanism": [ESCAPES], "reason": [ESCAPES]}  # fmt: skip
        (folder / "findings.json").unlink()
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, columns in content.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "tables" / f"{name}.parquet")
    hostile_study(folder)
    choose = "s.selectedIndex = s.options.length - 1; s.dispatchEvent(new Event('change'));"
    everything = f"document.querySelectorAll('select').forEach((s) => {{ {choose} }});"
    if kind == "latents":
        assert_inert(browser, write_report(folder), "#latent-7", f"await wait(() => !panel().hidden); {everything}")
    else:
        assert_inert(browser, write_report(folder), script=everything)


@in_browser
def test_no_text_of_a_run_is_more_than_text_where_runs_are_compared(browser, tmp_path):
    for number in range(2):
        folder = tmp_path / "sweep" / f"javascript:owned=1'\"><b>{number}"
        folder.mkdir(parents=True)
        settings = {
            "settings": {"layer": f"{number}{ESCAPES}", ESCAPES: f"{number}{ESCAPES}"},
            "identity": f"{number}{ESCAPES}",
        }
        (folder / "identity.json").write_text(json.dumps(settings))
        (folder / "state.json").write_text(json.dumps({"state": f"failed {ESCAPES}", "error": ESCAPES, "job": ESCAPES}))
        hostile_study(folder)
        (folder / "run.log").write_text("x")
        write_report(folder)
    page = assert_inert(browser, write_comparison(members_under([tmp_path / "sweep"]), tmp_path / "sweep"))
    links = page.run("return [...document.querySelectorAll('#members a')].map((a) => a.href);")
    assert len(links) == 2 and all(link.startswith("file://") and link.endswith("report.html") for link in links)
    assert all(Path(urllib.parse.unquote(urllib.parse.urlsplit(link).path)).is_file() for link in links)


TRIED = (
    "const s = document.createElement('script'); s.append('owned = 1'); document.body.append(s);",
    "document.body.innerHTML = '<img src=x onerror=owned=1>';",
    "document.body.insertAdjacentHTML('beforeend', '<b onclick=owned=1>'); document.querySelector('b').click();",
    "const a = document.createElement('a'); a.href = 'javascript:owned=1'; document.body.append(a); a.click();",
    "document.body.setAttribute('onclick', 'owned = 1'); document.body.click();",
    "setTimeout('owned = 1', 0);",
    "const f = document.createElement('iframe'); f.srcdoc = '<script>parent.owned = 1</scr' + 'ipt>'; document.body.append(f);",
    "await fetch('data:,x'); await fetch('file:///etc/hostname'); owned = 1;",
)


@in_browser
@pytest.mark.parametrize("attempt", TRIED)
def test_the_policy_lets_no_other_script_run_and_nothing_be_fetched(browser, tmp_path, attempt):
    path = test_report.make_run(tmp_path / "run")
    text = path.read_text()
    (tmp_path / "open.html").write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    found = []
    for place in (path, tmp_path / "open.html"):
        page = browser.open(place)
        script = (
            f"(async () => {{ {attempt} }})().catch(() => 0).then(() => new Promise((done) => setTimeout(done, 40)))"
        )
        browser("Runtime.evaluate", page.session, expression=script, awaitPromise=True)
        browser.complaints.clear()  # the policy says what it stopped
        found.append(page.run("return typeof owned;"))
        browser.complaints.clear()
    assert found[0] == "undefined" and (found[1] == "number" or "fetch" in attempt)


def test_the_policy_names_the_one_script_and_the_one_style_of_the_page(tmp_path):
    text = test_report.make_run(tmp_path / "run").read_text()
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in text and "unsafe" not in text[: text.index("<title>")]


@in_browser
def test_what_is_saved_for_a_spreadsheet_is_not_computed_by_it(browser, tmp_path):
    page = browser.open(test_report.make_run(tmp_path / "run"))
    cells = [*COMPUTED, "a", "-1.5", "-", "1e-05", " =1", 'a"b', -1.5, 3, None, "+3e+07"]
    saved = page.run(f"return csv(['=head', 'b'], {json.dumps([[cell, cell] for cell in cells])});")
    (head, *rows) = list(csv.reader(io.StringIO(saved, newline="")))
    assert head == ["'=head", "b"]
    wanted = [f"'{cell}" for cell in COMPUTED] + ["a", "-1.5", "'-", "1e-05", " =1", 'a"b', "-1.5", "3", "", "+3e+07"]
    assert [row[0] for row in rows] == wanted
