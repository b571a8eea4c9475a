"""What the page says of behaviour: the numbers of the tables, the words that differ, and nothing that hostile text asks."""

import csv
import io
import json
import math
import re

import pyarrow
import pyarrow.parquet
import pytest

from browser import in_browser
from tunediff.evaluations.behaviour import benchmark, recovery, steering_sweep
from tunediff.evaluations.lora import ablation as lora_ablation
from tunediff.evaluations.pair import attention_sinks
from tunediff.evaluations.reading import kl_patching
from tunediff.folders import write_findings
from tunediff.report import write_report
from tunediff.report.behaviour import CHARACTERS, PROBLEMS, behaviour, shortened
from tunediff.shapes import Figure, Finding, Note, Refused

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><del>all</del>"

# key, title, is a control, compared with, accuracy, hesitations, tokens, perplexity, touched
CONDITIONS = [
    ("unedited", "without edits", False, None, 0.42, 11.5, 412.0, 1.83, None),
    ("random_latents/zero/delta/0", "zero, delta: latents that contribute as much", True, "unedited", 0.41, 11.1, 405.0, 1.85, 0.9),
    ("random_latents/zero/delta/1", "zero, delta: latents that contribute as much", True, "unedited", 0.43, 11.9, 418.0, 1.84, 0.9),
    ("zero/delta", "zero, delta", False, "unedited", 0.3, 2.25, 301.0, 1.97, 0.96),
    ("random_direction/zero/delta/0", "a random direction of the same size", True, "unedited", 0.4, 10.8, 409.0, 1.9, 1.0),
    ("reconstruction", "the dictionary's reconstruction in place of the stream", False, "unedited", 0.37, 9.75, 388.0, 2.6, 1.0),
    ("zero/replace", "the 16 latents set to zero, the reconstruction written", False, "reconstruction", 0.27, 2.0, 290.0, 31.5, 1.0),
]  # fmt: skip
START = "Okay, so Ann has 12 apples and gives 5 away. First, 12 - 5 = 7."
# problem -> gold and, by condition, response and grade
ANSWERS = {
    "p0": ("7", {"unedited": (f"{START} So it is 7.", True), "zero/delta": (f"{START} So it is 7.", True)}),
    "p1": (
        "8",
        {
            "unedited": (f"{START}\nWait, she buys one more: 8.\n\nThe answer is \\(8\\).", True),
            "zero/delta": (f"{START} But she is done.\n\nThe answer is \\(7\\).", False),
        },
    ),
    "p2": ("3", {"unedited": ("It is 4.", False), "zero/delta": (f"It is 3. {HOSTILE}", True)}),
    "p3": ("9", {"unedited": ("nothing at all", False), "zero/delta": ("nothing else", False)}),
}


def conditions(task):
    rows = [
        {
            "task": task, "condition": key, "title": title, "role": "tuned", "control": control, "reference": reference,
            "problems": 200, "correct": round(200 * accuracy), "accuracy": accuracy, "accuracy_low": accuracy - 0.06, "accuracy_high": accuracy + 0.06,
            "difference": None if reference is None else accuracy - 0.42, "difference_low": None if reference is None else accuracy - 0.47,
            "difference_high": None if reference is None else accuracy - 0.37, "p": None if reference is None else 0.00042,
            "tokens": tokens, "tokens_low": tokens - 22, "tokens_high": tokens + 22, "hesitations": hesitations, "hesitations_low": 0.9 * hesitations,
            "hesitations_high": 1.1 * hesitations, "finished": 0.98, "closed": 0.97, "repetition": 0.013, "perplexity": perplexity,
            "perplexity_low": 0.97 * perplexity, "perplexity_high": 1.03 * perplexity, "touched": touched,
        }
        for key, title, control, reference, accuracy, hesitations, tokens, perplexity, touched in CONDITIONS
    ]  # fmt: skip
    return {column: [row[column] for row in rows] for column in rows[0]}


def outputs(task, answers=ANSWERS):
    rows = [
        {
            "task": task, "problem": problem, "question": f"How many apples has Ann in {problem}? {HOSTILE}", "gold": gold, "condition": key,
            "response": response, "answer": response.split()[-1], "rule": "last number", "correct": correct, "finished": True,
            "tokens": len(response), "hesitations": response.count("Wait"), "repetition": 0.0, "nll": 0.5, "touched": 0 if key == "unedited" else 31,
        }
        for problem, (gold, responses) in answers.items() for key, (response, correct) in responses.items()
    ]  # fmt: skip
    return {column: [row[column] for row in rows] for column in rows[0]}


def tables():
    budgets = [(role, 256 * 2**n) for role in ("base", "tuned") for n in range(7)]
    accuracy = [0.3 + 0.02 * math.log2(t) if role == "base" else 0.06 * math.log2(t) - 0.25 for role, t in budgets]
    sweep = [
        (gate, kind, s)
        for gate in ("at a hesitation", "everywhere")
        for kind in ("latents", "random_direction")
        for s in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    ]
    hesitations = [
        11.5 + (0 if kind != "latents" else 3 * s * math.exp(-s / 3) if gate == "everywhere" else 0.9 * s)
        for gate, kind, s in sweep
    ]
    perplexity = [1.8 * math.exp(s * (0.5 if gate == "everywhere" else 0.2)) for gate, _, s in sweep]
    heads = [
        (m, la, h, g) for m in ("base", "tuned") for la in range(12) for h in range(8) for g in ("first", "prefix")
    ]
    mass = [
        ((la * 7 + h * 3) % 11) / 20 * (1 if g == "prefix" else 0.5) * (0.5 if m == "base" else 1)
        for m, la, h, g in heads
    ]
    patched = [(c, p) for p in ("all", "hesitation") for c in ("base", "all", "tuned", "best", "random_0", "random_1")]
    kl = [0.5, 0.11, 0.0, 0.21, 0.46, 0.44, 0.9, 0.2, 0.0, 0.3, 0.85, 0.97]

    cut = [("full", "whole", False, None, 0), ("base", "whole", False, None, 28)]  # group, by, only, draw, adapters
    cut += [
        one
        for only in (False, True)
        for one in (
            *(("0", "layer", only, None, 7), ("1", "layer", only, None, 7), ("up_proj", "module", only, None, 4)),
            *((str(size), "random", only, draw, size) for size in (4, 7) for draw in (0, 1)),
        )
    ]
    lost = [0.0, 0.9, *(0.011 * n for n in range(1, 15))]

    def around(name, values, by):
        return {name: values, f"{name}_low": [v - by for v in values], f"{name}_high": [v + by for v in values]}

    return {
        "patching_conditions": conditions("gsm8k"),
        "patching_outputs": outputs("gsm8k"),
        "benchmark_scaling": {
            "task": ["gsm8k"] * 14, "role": [role for role, _ in budgets], "tokens": [t for _, t in budgets],
            **around("accuracy", accuracy, 0.04), "problems": [200] * 14,
        },
        "steering_sweep": {
            "gate": [g for g, _, _ in sweep], "kind": [k for _, k, _ in sweep], "strength": [s for _, _, s in sweep],
            **around("behaviour", hesitations, 0.8), **around("perplexity", perplexity, 0.1), "repetition": [0.01] * len(sweep),
            "distinct": [0.7] * len(sweep), "accuracy": [0.4] * len(sweep), "touched": [0.9] * len(sweep),
        },
        "attention_sinks": {
            "model": [m for m, _, _, _ in heads], "layer": [la for _, la, _, _ in heads], "head": [h for _, _, h, _ in heads],
            "group": [g for _, _, _, g in heads], **around("mass", mass, 0.01), "relative": [10 * m for m in mass],
        },
        "recovery": {
            "task": ["gsm8k"] * 2, "measure": ["accuracy", "hesitations a response"], "base": [0.2, 1.0], "lora": [0.56, 1.5],
            "full": [0.8, 1.1], "recovered": [0.6, None], "recovered_low": [0.5, None], "recovered_high": [0.71, None],
            "gone": [0, 700], "resamples": [2000, 2000], "base_asked": [f"{{question}} {HOSTILE}"] * 2,
        },
        "kl_patching": {
            "condition": [c for c, _ in patched], "place": [p for _, p in patched], "latents": [{"base": 0}.get(c, 32) for c, _ in patched],
            "tokens": [5000] * 12, "documents": [40] * 12,
            **around("kl", kl, 0.03), **around("closed", [1 - v / (0.5 if n < 6 else 0.9) for n, v in enumerate(kl)], 0.03),
        },
        "lora_ablation": {
            "group": [g for g, *_ in cut], "by": [b for _, b, *_ in cut], "only": [o for _, _, o, _, _ in cut], "draw": [d for *_, d, _ in cut], "adapters": [n for *_, n in cut],
            **around("kl_full_ablated", lost, 0.004), **around("kl_ablated_full", [2 * v for v in lost], 0.004), **around("excess", [v - 0.05 for v in lost], 0.01),
            "share": [None] * len(cut),
        },
    }  # fmt: skip


FOUND = {"benchmark/gsm8k/base/slope_per_doubling": 2.13, "benchmark/gsm8k/tuned/slope_per_doubling": 6.13,
         "benchmark/gsm8k/tuned_less_base/slope_per_doubling": 4.0, "benchmark/gsm8k/base/slope_per_1000_tokens": 0.71,
         "benchmark/gsm8k/tuned/slope_per_1000_tokens": 1.86, "steering_sweep/everywhere/dip": 0.0}  # fmt: skip
VERDICT = "oversteering dip absent; more than half of the rise stays"


def make_run(folder, content):
    (folder / "tables").mkdir(parents=True)
    for name, columns in content.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "tables" / f"{name}.parquet")
    findings = [
        {"name": name, "value": value, "low": value - 0.01, "high": value + 0.01, "meaning": f"what {name} is"}
        for name, value in FOUND.items()
    ]
    found = {"identity": "abc", "study": {"model_pair": "tuned vs base"}, "findings": findings if content else []}
    (folder / "findings.json").write_text(json.dumps({**found, "notes": []}))
    write_findings(folder, drawn(content) if content else [], {"identity": "abc", "study": found["study"]})
    return write_report(folder)


def drawn(content):
    """The figures, and the note, that the evaluations would yield with these tables."""
    slopes = [Finding(name, v, v - 0.01, v + 0.01, name) for name, v in FOUND.items() if name.startswith("benchmark")]
    note = Note(f"steering_sweep, everywhere: {VERDICT}")
    verdicts = {"gate": ["at a hesitation", "everywhere"], "peak": [None] * 2, "peak_low": [None] * 2}
    verdicts |= {"peak_high": [None] * 2, "peak_strength": [None] * 2, "dip": [None, 0.0], "verdict": ["", VERDICT]}
    yield note
    yield recovery.figure(content["recovery"])
    yield from benchmark.figures(content["benchmark_scaling"], slopes)
    yield from steering_sweep.figures(content["steering_sweep"], verdicts, "latent_maximum")
    yield kl_patching.figure(content["kl_patching"])
    yield from lora_ablation.figure(content["lora_ablation"])
    yield attention_sinks.figure(content["attention_sinks"])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("behaviour") / "run", tables())


@pytest.fixture(scope="module")
def page(browser, report):
    return browser.open(report)


# -- from tables to what is drawn ------------------------------------------------------------------------------------


def arrow(**content):
    return {name: pyarrow.table(columns) for name, columns in content.items()}


def test_controls_follow_what_they_control_and_lose_no_number():
    given = conditions("gsm8k")
    shown, packed = behaviour(arrow(patching_conditions=given))
    (figure,), columns = shown["conditions"], shown["conditions"][0]["columns"]
    Figure(**figure).check()
    assert (figure["title"], figure["kind"], packed) == ("Patching on gsm8k: 200 problems", "intervals", {})
    titles = dict(zip(given["condition"], given["title"], strict=True))
    brief = titles["random_latents/zero/delta/0"].removeprefix("zero, delta: ")
    order = [
        "unedited", "zero/delta", "random_latents/zero/delta/0", "random_latents/zero/delta/1",
        "random_direction/zero/delta/0", "reconstruction", "zero/replace",
    ]  # fmt: skip
    titles |= {f"random_latents/zero/delta/{draw}": f"{brief}, draw {draw + 1}" for draw in (0, 1)}
    assert columns["condition"] == [titles[key] for key in order]
    assert columns["control"] == [False, False, True, True, True, False, False]
    assert columns["ruled"] == [True, *[False] * 6]  # a reference that is compared itself is no level
    for name, values in given.items():
        if name in columns and name != "condition":
            assert columns[name] == [values[given["condition"].index(key)] for key in order], name
    assert {"accuracy_low", "difference_high", "p", "perplexity_low", "touched", "finished"} <= columns.keys()


def test_both_models_may_stand_under_one_name_if_the_outputs_say_which_wrote():
    one, other = (conditions("gsm8k") for _ in range(2))
    other["role"] = ["base"] * len(other["role"])
    both = {name: one[name] + other[name] for name in one}
    (figure,) = behaviour(arrow(benchmark_conditions=both))[0]["conditions"]
    named = figure["columns"]["condition"]
    assert len(set(named)) == 14 and sum(label.endswith(" · base") for label in named) == 7
    ruled = zip(named, figure["columns"]["ruled"], strict=True)
    assert [label for label, here in ruled if here] == ["without edits · tuned", "without edits · base"]
    with pytest.raises(Refused, match="role"):
        behaviour(arrow(benchmark_conditions=both, benchmark_outputs=outputs("gsm8k")))
    said = outputs("gsm8k")
    said["role"] = ["base"] * len(said["task"])
    (kept,) = behaviour(arrow(benchmark_conditions=both, benchmark_outputs=said))[0]["outputs"]
    assert list(kept["correct"]) == ["base/unedited", "base/zero/delta"]


def test_problems_that_change_are_kept_before_those_that_do_not():
    same = {f"s{n}": ("1", {"unedited": ("It is 1.", True), "zero/delta": ("It is 1.", True)}) for n in range(50)}
    texts = {f"t{n}": ("1", {"unedited": ("It is 1.", True), "zero/delta": ("1 it is.", True)}) for n in range(20)}
    graded = {f"g{n}": ("1", {"unedited": ("It is 1.", True), "zero/delta": ("2", False)}) for n in range(15)}
    shown, packed = behaviour(arrow(patching_outputs=outputs("gsm8k", {**same, **texts, **graded})))
    (kept,) = shown["outputs"]
    assert kept["problems"] == [*graded, *texts, *list(same)[: PROBLEMS - 35]]
    assert kept["left_out"] == 85 - PROBLEMS and len(packed) == PROBLEMS
    # equal texts stand once
    assert [len(packed[f"outputs-0-{n}"]["texts"]) for n in (0, 15, 35)] == [2, 2, 1]


def test_a_very_long_response_keeps_its_ends_and_says_what_is_missing():
    assert shortened("x" * CHARACTERS) == "x" * CHARACTERS
    cut = shortened("a" * CHARACTERS + "z" * 1234)
    assert "[… 1,234 characters are left out on this page …]" in cut and cut.startswith("aaa") and cut.endswith("zzz")
    assert cut.count("a" * 100) + cut.count("z" * 100) == (CHARACTERS - 34) // 100 or len(cut) < CHARACTERS + 100


def test_a_run_without_these_tables_has_nothing_of_them(tmp_path):
    text = make_run(tmp_path / "run", {}).read_text()
    payload = json.loads(re.search(r'id="payload">(.*?)</script>', text).group(1))
    assert "behaviour" not in payload and "packed-outputs" not in text


# -- in a browser ----------------------------------------------------------------------------------------------------


@in_browser
def test_a_run_without_these_tables_has_no_section_and_no_contents(tmp_path, browser):
    script = "return [document.querySelectorAll('h2').length, document.querySelector('nav.contents')]"
    assert browser.open(make_run(tmp_path / "run", {})).run(script) == [2, None]


@in_browser
def test_each_table_has_its_section_and_the_contents_lead_there(page):
    script = """
      const links = [...document.querySelectorAll('nav.contents a')];
      return links.map((link) => [link.textContent, document.querySelector(`${link.getAttribute('href')} h2`).textContent]);"""
    links = page.run(script)
    assert all(link == title for link, title in links)
    for title in (
        "Behaviour",
        "Example outputs",
        "Accuracy against",
        "Steering",
        "Attention sinks",
        "patched models",
        "each adapter carries",
    ):
        assert sum(title in link for link, _ in links) == 1, title


@in_browser
def test_every_conditions_numbers_stand_on_the_page_and_in_its_csv(page):
    script = """
      const saved = [];
      const keep = save;
      save = (name, type, content) => saved.push(content);
      const part = document.querySelector('#to-behaviour-condition-by-condition'), drawing = part.querySelector('figure');
      for (const word of ['CSV', 'SVG']) [...drawing.querySelectorAll('.tools button')].find((b) => b.textContent === word).click();
      save = keep;
      return { saved, heads: [...part.querySelectorAll('th')].map((head) => head.textContent),
        rows: [...part.querySelectorAll('tbody tr')].map((row) => [row.className, ...[...row.cells].map((cell) => cell.firstChild?.textContent ?? '')]),
        dots: [...drawing.querySelectorAll('circle')].map((dot) => dot.parentNode.textContent) };"""
    found, given = page.run(script), conditions("gsm8k")
    table, svg = found["saved"]
    assert svg.count("<circle") == 28 and "var(" not in svg and "xmlns" in svg
    read = list(csv.DictReader(io.StringIO(table)))
    titles = [title.removeprefix("zero, delta: ") for title in given["title"]]
    for n, key in enumerate(given["condition"]):
        title = titles[n] + (f", draw {int(key[-1]) + 1}" if "random_latents" in key else "")
        (row,) = (row for row in read if row["condition"] == title)
        for name, values in given.items():
            if isinstance(values[n], float):
                assert float(row[name]) == pytest.approx(values[n], rel=1e-4), (key, name)
        (shown,) = (shown for shown in found["rows"] if shown[1] == title)
        assert shown[0] == ("control" if given["control"][n] else "")
        cells = dict(zip(found["heads"], shown[1:], strict=True))
        for head, name in (("accuracy",) * 2, ("hesitations per 1,000 tokens", "hesitations"), ("perplexity",) * 2):
            assert float(cells[head]) == pytest.approx(given[name][n]), head
        assert cells["against"] == {None: "–", "unedited": "without edits"}.get(given["reference"][n], titles[5])
        dots = [dot for dot in found["dots"] if dot.startswith(title + ":")]
        assert len(dots) == 4 and any(f"tokens a response {given['tokens'][n]:.0f} (" in dot for dot in dots)


@in_browser
def test_a_share_stands_with_its_interval_and_how_the_base_was_asked_and_a_dash_where_nothing_was_to_recover(page):
    script = """
      const part = document.querySelector('#to-what-the-low-rank-adapter-recovers');
      return [...part.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent)).concat([[part.querySelectorAll('circle').length]]);"""
    told, untold, (dots,) = page.run(script)
    asked = f"{{question}} {HOSTILE}"
    assert told == ["accuracy, gsm8k", "0.200", "0.560", "0.800", "0.6000.500 to 0.710", "0", "2,000", asked]
    assert untold == ["hesitations a response, gsm8k", "1", "1.500", "1.100", "–", "700", "2,000", asked] and dots == 1


MARKED = "const marked = (tag) => [...document.querySelectorAll(`#outputs ${tag}`)].map((node) => node.textContent);"


@in_browser
def test_the_words_that_were_planted_are_marked_and_no_others(page):
    found = page.run(
        MARKED
        + """set('first condition', 'unedited'); set('changed', 'lost');
      await wait(() => document.querySelector('#outputs dd')?.textContent.includes('p1'));
      const sides = [...document.querySelectorAll('#outputs .response')].map((side) => side.textContent);
      return [marked('del'), marked('ins'), sides, [...document.querySelectorAll('#outputs .grade')].map((g) => g.textContent), document.querySelector('#outputs').textContent];"""
    )
    removed, added, sides, grades, text = found
    assert removed == ["Wait,", "buys one more: 8.", "\\(8\\)."] and added == ["But", "is done.", "\\(7\\)."]
    assert sides == [ANSWERS["p1"][1][key][0] for key in ("unedited", "zero/delta")]
    assert grades == ["right", "wrong"] and "read by: last number" in text and "edited on 31 tokens" in text


@in_browser
def test_a_difference_is_the_smallest_by_words_and_reads_as_its_texts(page):
    texts = [
        ("a b c d e", "a x c d y e"), ("", "new"), ("old words", ""), ("same \n text ", "same text"), ("a b a b a b", "b a b a"),
        ("one two three", "three two one"),
    ]  # fmt: skip
    script = """
      const least = (a, b) => { const t = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
        for (let i = 1; i <= a.length; i += 1) for (let j = 1; j <= b.length; j += 1) t[i][j] = a[i - 1] === b[j - 1] ? t[i - 1][j - 1] + 1 : Math.max(t[i - 1][j], t[i][j - 1]); return t[a.length][b.length]; };
      const words = (text) => text.split(/\\s+/).filter(Boolean), kept = (runs) => words(runs.filter(([differs]) => !differs).map(([, text]) => text).join(' '));
      return TEXTS.map(([a, b]) => { const { left, right, first } = compared(a, b); return { read: [left, right].map((runs) => runs.map(([, text]) => text).join('')), kept: [kept(left), kept(right)], least: least(words(a), words(b)), first }; });"""
    for (a, b), found in zip(texts, page.run(f"const TEXTS = {json.dumps(texts)};{script}"), strict=True):
        assert found["read"] == [a, b]
        assert found["kept"][0] == found["kept"][1] and len(found["kept"][0]) == found["least"], (a, b)
        assert (found["first"] is None) == (a.split() == b.split())


@in_browser
def test_the_middle_of_texts_too_long_to_compare_is_marked_as_a_whole(page):
    script = """
      const many = (word) => Array.from({ length: 5000 }, (_, n) => word + n).join(' ');
      const { left, right, whole, first } = compared(`start ${many('a')} end`, `start ${many('b')} end`);
      return [whole, first, left.map(([differs, text]) => [differs, text.trim().split(' ').length]), right.length];"""
    assert page.run(script) == [False, 2, [[False, 1], [True, 5000], [False, 1]], 3]


@in_browser
def test_the_filter_keeps_exactly_the_problems_whose_grade_changed_that_way(page):
    script = """
      const offered = () => [...pick('problem').options].map((option) => option.textContent.split(':')[0]).sort().join(' ');
      const said = {};
      for (const [a, b] of [['unedited', 'zero/delta'], ['zero/delta', 'unedited'], ['unedited', 'unedited']])
        for (const way of ['all', 'lost', 'won']) { set('first condition', a); set('second condition', b); set('changed', way); said[`${a} ${b} ${way}`] = [offered(), pick('changed').selectedOptions[0].textContent]; }
      await wait(() => document.querySelector('#outputs').textContent.includes('No problem changed this way'));
      set('changed', 'all'); set('second condition', 'zero/delta');
      return said;"""
    said = page.run(script)
    assert said == {
        "unedited zero/delta all": ["p0 p1 p2 p3", "all problems (4)"],
        "unedited zero/delta lost": ["p1", "right to wrong (1)"],
        "unedited zero/delta won": ["p2", "wrong to right (1)"],
        "zero/delta unedited all": ["p0 p1 p2 p3", "all problems (4)"],
        "zero/delta unedited lost": ["p2", "right to wrong (1)"],
        "zero/delta unedited won": ["p1", "wrong to right (1)"],
        "unedited unedited all": ["p0 p1 p2 p3", "all problems (4)"],
        "unedited unedited lost": ["", "right to wrong (0)"],
        "unedited unedited won": ["", "wrong to right (0)"],
    }


@in_browser
def test_a_response_says_its_perplexity_and_a_problem_its_place_among_those_that_are_shown(page):
    script = """
      const count = () => document.querySelector('#to-example-outputs .filters .count').textContent, found = [];
      set('first condition', 'unedited'); set('second condition', 'zero/delta');
      for (const [way, place] of [['all', 0], ['all', 2], ['lost', 0]]) { set('changed', way); set('problem', place); found.push(count()); }
      await wait(() => document.querySelector('#outputs dd')?.textContent.includes('in p1?'));
      const facts = [...document.querySelectorAll('#outputs article')].map((side) => side.textContent.match(/perplexity [^ ]+/)[0]);
      set('changed', 'all');
      return [found, facts];"""
    assert page.run(script) == [["1 of 4", "3 of 4", "1 of 1"], ["perplexity 1.649"] * 2]  # exp(0.5)


@in_browser
def test_keys_and_buttons_go_through_the_problems_and_round(page):
    script = """
      const asks = (problem) => wait(() => document.querySelector('#outputs dd')?.textContent.includes(`in ${problem}?`));
      set('first condition', 'unedited'); set('second condition', 'zero/delta'); set('changed', 'all');
      await asks('p1'); key('n'); await asks('p2'); key('n'); await asks('p3'); key('n'); await asks('p0');
      const same = document.querySelector('#outputs').textContent;
      document.querySelector('[title="next (n)"]').click(); await asks('p1'); key('p'); await asks('p0');
      return [same, pick('problem').selectedOptions[0].textContent];"""
    same, chosen = page.run(script)
    assert "the same, word for word" in same and chosen == "p0: right → right, same text"


@in_browser
def test_hostile_responses_and_questions_do_nothing(report, page):
    text = report.read_text()
    assert text.count("</script>") == 2 + text.count('id="packed-') and "<img" not in text
    script = (
        MARKED
        + """set('second condition', 'zero/delta'); set('changed', 'won');
      await wait(() => document.querySelector('#outputs dd')?.textContent.includes('p2'));
      return [document.querySelector('#outputs').textContent, document.querySelectorAll('img').length, document.title, marked('del')];"""
    )
    shown, images, title, removed = page.run(script)
    assert shown.count(HOSTILE) == 2 and images == 0 and title != "broken" and removed == ["4."]


@in_browser
def test_curves_and_slopes_say_the_numbers_of_their_tables(page):
    budgets, steering = page.run("""
      return [document.querySelector('#to-accuracy-against-thinking-budget').textContent, document.querySelector('#to-steering-from-weak-to-strong').textContent];""")
    given = tables()["benchmark_scaling"]
    for role, tokens, accuracy in zip(given["role"], given["tokens"], given["accuracy"], strict=True):
        assert f"{role}, tokens allowed {tokens:,}: {accuracy:.3f} (" in budgets
    assert "points per doubling" in budgets and "6.130" in budgets and "6.120 to 6.140" in budgets
    given = tables()["steering_sweep"]
    for n, strength in enumerate(given["strength"]):
        control = ", random direction" if given["kind"][n] == "random_direction" else ""
        unit = "strength, in maxima of the latent"
        said = f"{given['gate'][n]}{control}, {unit} {strength:.3f}".removesuffix(".000") + ": "
        assert said in steering, said
    assert steering.endswith(f"everywhere0{VERDICT}")


@in_browser
def test_a_head_says_its_number_to_keys_and_to_the_pointer(page):
    script = """
      const part = document.querySelector('#to-attention-sinks'), said = () => part.querySelector('.readout').textContent, found = [];
      const [base, tuned] = part.querySelectorAll('svg');
      tuned.dispatchEvent(new Event('focus')); found.push(said());
      for (const way of ['ArrowUp', 'ArrowRight']) tuned.dispatchEvent(new KeyboardEvent('keydown', { key: way }));
      found.push(said());
      base.querySelectorAll('.cell')[9].dispatchEvent(new Event('pointerenter')); found.push(said());
      set('attention on', 'first'); found.push(part.querySelectorAll('.cell').length);
      set('attention on', 'prefix');
      return found;"""
    found, given = page.run(script), tables()["attention_sinks"]
    mass = {key: m for *key, m in zip(*(given[c] for c in ("model", "layer", "head", "group", "mass")), strict=True)
            for key in [tuple(key)]}  # fmt: skip
    places = [("tuned", 0, 0), ("tuned", 1, 1), ("base", 1, 1)]
    for said, (model, layer, head) in zip(found, places, strict=False):
        value = mass[model, layer, head, "prefix"]
        assert said.startswith(f"{model}, layer {layer}, head {head}: {value:.3f} (".replace("0.000 (", "0 (")), said
    assert found[3] == 2 * 12 * 8


@in_browser
def test_bars_of_kl_patching_are_those_of_the_chosen_tokens(page):
    script = """
      const bars = () => [...document.querySelectorAll('#to-how-near-patched-models-come g title')].map((title) => title.textContent);
      const before = bars(); set('tokens of', 'hesitation'); const after = bars(); set('tokens of', 'all'); return [before, after];"""
    given = tables()["kl_patching"]
    for place, bars in zip(("all", "hesitation"), page.run(script), strict=True):
        here = [n for n, value in enumerate(given["place"]) if value == place]
        assert len(bars) == 2 * len(here)
        for n in here:
            named = re.compile(
                rf"{given['condition'][n].replace('_', ' ')}(, 32 latents)?: KL, nats a token ([\d.]+) \("
            )
            (value,) = (float(found.group(2)) for found in map(named.match, bars) if found)
            assert value == pytest.approx(given["kl"][n], abs=6e-4)


@in_browser
def test_dots_of_adapters_are_those_of_the_chosen_groups_beside_random_ones_of_their_size(page):
    script = """
      const dots = () => [...document.querySelectorAll('#to-what-each-adapter-carries g title')].map((title) => title.textContent);
      const before = dots(); set('adapters by', 'module'); set('that are', 'alone'); return [before, dots()];"""
    left_out, alone = page.run(script)
    given = tables()["lora_ablation"]
    names = ["layer 0, 7 adapters", "layer 1, 7 adapters", "7 random adapters, draw 1", "7 random adapters, draw 2"]
    expected = {
        "left_out": [*zip(names, (2, 3, 7, 8), strict=True), ("all, which leaves the base", 1)],
        "alone": [("up_proj, 4 adapters", 11), ("4 random adapters, draw 1", 12), ("4 random adapters, draw 2", 13)],
    }
    expected["alone"].append(("all, which leaves the base", 1))
    for dots, which in ((left_out, "left_out"), (alone, "alone")):
        assert len(dots) == 3 * len(expected[which])  # no panel for a share that nobody could give
        for dot, (name, n) in zip(dots, expected[which], strict=False):
            assert dot.startswith(f"{name}: KL(full || ablated), nats ")
            value = float(re.search(r"nats ([\d.]+) \(", dot).group(1))
            assert value == pytest.approx(given["kl_full_ablated"][n], abs=6e-4)


@in_browser
@pytest.mark.parametrize("wide", [390, 800, 1280])
def test_the_page_is_never_wider_than_the_window(browser, page, wide):
    browser(
        "Emulation.setDeviceMetricsOverride", page.session, width=wide, height=900, deviceScaleFactor=1, mobile=False
    )
    script = """
      await wait(() => Math.abs(document.querySelector('figure svg').clientWidth - document.querySelector('figure svg').viewBox.baseVal.width) < 2);
      const [one, other] = [...document.querySelectorAll('#outputs article')].map((side) => side.getBoundingClientRect());
      return [document.documentElement.scrollWidth <= innerWidth, other.top >= one.bottom];"""
    assert page.run(script) == [True, wide <= 800]
