"""The numbers of the pages: what is packed, thinned and averaged before they are drawn, and where a drawing puts them."""

import json

import numpy
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from browser import in_browser
from test_report import make_run, make_sweep
from tunediff import folders
from tunediff.measures.matching import partners
from tunediff.report import members_under, write_comparison, write_report
from tunediff.report.page import EXPLORED, SHARES, Details, thinned
from tunediff.shapes import Table

# -- before they are drawn -------------------------------------------------------------------------------------------


def test_thinned_curves_keep_their_ends_and_every_loss_that_was_held_out():
    steps = list(range(1000))
    held_out = [0.5 if n == 701 else None for n in steps]
    found = thinned({"step": steps, "loss": [2 * n for n in steps], "held_out_loss": held_out}, 100)
    assert found["step"][0] == 0 and found["step"][-1] == 999 and 701 in found["step"]
    assert found["loss"] == [2 * n for n in found["step"]] and len(found["step"]) <= 103
    short = {"step": [1, 2], "loss": [3.0, 4.0]}
    assert thinned(short, 100) == short and thinned(None) is None


def details(folder):
    latents = pyarrow.parquet.read_table(folder / "tables" / "latents.parquet")["latent"].to_pylist()
    return Details(folder, latents, EXPLORED["latent"].details, "latent"), latents


def test_a_search_finds_a_latent_by_its_strongest_examples_and_by_what_it_raises_alone(tmp_path):
    make_run(tmp_path / "run")
    effects = {
        "latent": [7, 7], "role": ["tuned"] * 2, "sign": [1, -1], "rank": [0, 0], "token": [" raised", " lowered"], "effect": [3.5, -2.5],
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(effects), tmp_path / "run" / "tables" / "logit_effect.parquet")
    path = tmp_path / "run" / "tables" / "examples.parquet"
    examples = pyarrow.parquet.read_table(path).to_pydict()
    examples["tokens"][0] = [" Wait", " then", "\n"]
    pyarrow.parquet.write_table(pyarrow.table(examples), path)
    found, latents = details(tmp_path / "run")
    index = found.words()
    mine = {index["words"][n] for n in index["of"][latents.index(7)]}
    # "plain" stands in an example over its range; with its space or line break a token counts where it fires
    assert {"wait", "then", "raised", " then", "\n", " raised"} == mine


def test_what_is_active_is_never_packed_as_silent(tmp_path):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "tables" / "examples.parquet"
    examples = pyarrow.parquet.read_table(path).to_pydict()
    examples["activations"][0] = [-1e-7, 2.0, 0.0]
    pyarrow.parquet.write_table(pyarrow.table(examples), path)
    found, _ = details(tmp_path / "run")
    (window,) = [n for n, largest in enumerate(found.windows["largest"]) if largest == 2.0]
    assert found.windows["a"][window] == [-1, SHARES, 0]


def test_stability_is_the_mean_over_all_other_seeds(tmp_path):
    eye = torch.eye(8)
    for name, seed, rows in (("a", 0, eye[:4]), ("b", 1, eye[[0, 1, 2, 6]]), ("c", 2, eye[[0, 5, 6, 7]])):
        folder = tmp_path / name
        (folder / "dictionary").mkdir(parents=True)
        safetensors.torch.save_file({"W_dec": rows.contiguous()}, folder / "dictionary" / "weights.safetensors")
        (folder / "identity.json").write_text(json.dumps({"identity": name, "settings": {"seed": seed}}))
        folders.say(folder, state="finished", identity=name)
        table = Table("latents", {"firing_rate": [0.1] * 4, "kind": ["shared"] * 4})
        folders.write_findings(folder, [table], {"study": {}})
    found = {m["identity"]: m["metrics"]["stability/all"][0] for m in members_under([tmp_path])}
    # a has three of b's and one of c's, b two of c's
    assert found == pytest.approx({"a": (0.75 + 0.25) / 2, "b": (0.75 + 0.5) / 2, "c": (0.25 + 0.5) / 2})


def test_a_partner_is_no_further_than_a_cosine_of_seven_tenths():
    angles = numpy.arccos([0.65, 0.69, 0.71, 0.9])
    rows = torch.eye(8)[:4]
    other = torch.zeros(4, 8)
    for n, angle in enumerate(angles):
        other[n, n], other[n, 4 + n] = numpy.cos(angle), numpy.sin(angle)
    assert partners(rows, other).tolist() == pytest.approx([0, 0, 0.71, 0.9], abs=1e-5)


def test_a_member_has_its_intervals_from_low_to_high(tmp_path):
    members = {m["identity"]: m for m in members_under([make_sweep(tmp_path)])}
    assert members["id0"]["metrics"]["fidelity/l0/mean"] == pytest.approx([10.0, 9.99, 10.01])


# -- where a drawing puts them ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers") / "run"
    make_run(folder)
    path = folder / "findings.json"
    found = json.loads(path.read_text())
    for metric, value in (("ce_clean", 1.25), ("ce_spliced", 1.5), ("kl_spliced", 0.125)):
        found["findings"].append({**found["findings"][0], "name": f"fidelity/{metric}/base", "value": value})
    for metric, value in (("mean", 8.5), ("p10", 3), ("p50", 7), ("p90", 21)):
        found["findings"].append({**found["findings"][0], "name": f"fidelity/l0/{metric}", "value": value})
    path.write_text(json.dumps(found))
    return browser.open(write_report(folder))


def straight(places, values):
    """The slope of places over values, which lie on one line."""
    slope, start = numpy.polyfit(values, places, 1)
    assert places == pytest.approx([start + slope * value for value in values], abs=0.11)
    return slope


VALUES, LOWS, HIGHS = [3.0, 5.0, 9.0, 4.0], [2.5, 4.0, 8.5, 1.0], [3.5, 5.25, 12.0, 7.0]


@in_browser
def test_a_dot_lies_where_its_axis_says_and_its_whisker_from_its_low_to_its_high(page):
    marks, dots, whiskers, bars = page.run(f"""
      const values = {VALUES}, lows = {LOWS}, highs = {HIGHS};
      const drawn_rows = values.map((size, n) => ({{ label: `row ${{n}}`, colour: "red", of: {{ size, size_low: lows[n], size_high: highs[n] }} }}));
      const made = (bar) => whiskers("mine", drawn_rows, [{{ name: "size", word: "size", log: false }}], {{ bar, table: null }}).querySelector("svg");
      const svg = made(false), number = (one, name) => Number(one.getAttribute(name));
      const marks = [...svg.querySelectorAll("text")].filter((one) => one.getAttribute("text-anchor") === "middle").map((one) => [Number(one.textContent), number(one, "x")]);
      return [marks, [...svg.querySelectorAll("circle")].map((one) => number(one, "cx")),
        [...svg.querySelectorAll("g line")].map((one) => [number(one, "x1"), number(one, "x2")]),
        [...made(true).querySelectorAll("g rect")].map((one) => number(one, "width"))];""")
    slope = straight([x for _, x in marks], [value for value, _ in marks])
    assert slope > 0 and len(marks) > 1
    start = marks[0][1] - slope * marks[0][0]
    assert dots == pytest.approx([start + slope * value for value in VALUES])
    for ends, low, high in zip(whiskers, LOWS, HIGHS, strict=True):
        assert ends == pytest.approx([start + slope * low, start + slope * high])
    assert straight(bars, VALUES) > 0 and bars[2] / bars[0] == pytest.approx(3.0)


@in_browser
def test_a_curve_lies_where_its_axes_say_and_larger_is_higher(page):
    up, across, dots, line, band = page.run(f"""
      const values = {VALUES}, at = [1, 2, 4, 7], lows = {LOWS}, highs = {HIGHS};
      const points = values.map((value, n) => ({{ at: at[n], value, low: lows[n], high: highs[n], said: "" }}));
      const svg = plot("mine", [{{ word: "", colour: "red", points }}], {{ xWord: "x", xLog: false, yLog: false, rows: null }}).querySelector("svg");
      const number = (one, name) => Number(one.getAttribute(name)), texts = [...svg.querySelectorAll("text")].filter((one) => one.textContent !== "x");
      const of = (what) => svg.querySelector(what).getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number));
      const low = Math.max(...texts.map((one) => number(one, "y")));
      return [texts.filter((one) => number(one, "y") !== low).map((one) => [Number(one.textContent), number(one, "y") - 4]),
        texts.filter((one) => number(one, "y") === low).map((one) => [Number(one.textContent), number(one, "x")]),
        [...svg.querySelectorAll("circle")].map((one) => [number(one, "cx"), number(one, "cy")]), of("polyline"), of("polygon")];""")
    rise, run = (straight([place for _, place in marks], [value for value, _ in marks]) for marks in (up, across))
    assert rise < 0 < run and len(up) > 1 and len(across) > 1

    def places(of, values, marks, slope):
        return pytest.approx([marks[0][1] + slope * (value - marks[0][0]) for value in values], abs=0.11) == of

    for points in (dots, line):
        assert places([x for x, _ in points], [1, 2, 4, 7], across, run)
        assert places([y for _, y in points], VALUES, up, rise)
    assert places([y for _, y in band], [*HIGHS, *LOWS[::-1]], up, rise)


@in_browser
def test_a_cell_stands_in_its_column_and_row_and_is_darker_for_more(page):
    cells, marks = page.run("""
      const columns = { head: [0, 1, 2, 0, 1, 2], layer: [0, 0, 0, 1, 1, 1], share: [0.1, 0.2, 0.3, 0.4, 0.05, 0.6] };
      const spec = { columns, x: "head", y: ["share"], group: "layer", facet: "", choices: [], words: {}, title: "mine", kind: "heat", section: "", caption: "" };
      const svg = heatsIn(spec, rowsOf(columns), [null], new Map()).map((one) => one.querySelector("svg")).find(Boolean);
      const number = (one, name) => Number(one.getAttribute(name));
      return [[...svg.querySelectorAll("rect.cell")].map((one) => [one.querySelector("title").textContent, number(one, "x") + number(one, "width") / 2, number(one, "y") + number(one, "height") / 2, number(one, "fill-opacity")]),
        [...svg.querySelectorAll("text")].map((one) => [one.textContent, one.getAttribute("text-anchor"), number(one, "x"), number(one, "y")])];""")
    value = [0.1, 0.2, 0.3, 0.4, 0.05, 0.6]
    assert straight([shade for *_, shade in cells], value) > 0
    for n, (said, x, y, _) in enumerate(cells):
        assert said.startswith(f"layer {n // 3}, head {n % 3}: ")
        below = [at for text, anchor, at, _ in marks if (text, anchor) == (str(n % 3), "middle")]
        beside = [at - 4 for text, anchor, _, at in marks if (text, anchor) == (str(n // 3), "end")]
        assert below == pytest.approx([x]) and beside == pytest.approx([y])


@in_browser
@pytest.mark.parametrize("at", (-0.95, 0.002, 0.95))
def test_no_bar_stands_over_the_word_of_a_mark(page, at):
    over, inside = page.run(f"""
      const values = Array.from({{ length: 400 }}, (_, n) => (n % 40) / 20 - 0.99);
      const made = histogram("mine", [["latents", "red", values]], [-1, 1], [[{at}, "random pairs"]]);
      document.body.append(made);
      const word = [...made.querySelectorAll("text")].find((one) => one.textContent === "random pairs").getBBox();
      const over = [...made.querySelectorAll("rect")].map((one) => one.getBBox())
        .filter((bar) => bar.x < word.x + word.width && word.x < bar.x + bar.width && bar.y < word.y + word.height && word.y < bar.y + bar.height);
      const [, , wide] = made.querySelector("svg").getAttribute("viewBox").split(" ").map(Number);
      made.remove();
      return [over.length, word.x >= 0 && word.x + word.width <= wide && word.y >= 0];""")
    assert over == 0 and inside


@in_browser
def test_words_about_a_latent_follow_its_numbers(page):
    said = page.run("""
      const kinds = { kind: ["other", "other", "tuned_only", "tuned_only", "shared"], relative_decoder_norm: [0.4, 0.6, 0.95, 0.97, 0.5], confirmed: [null, null, true, false, null] };
      const natures = kinds.kind.map((_, i) => natureOf(kinds, i));
      const scaled = { relative_decoder_norm: [0.95, 0.05], nu_error: [0.15, 0.25], nu_reconstruction: [0.55, 0.45] };
      const some = [{ document: 3, place: 4, quantile: null, activation: 2, position: 1, largest: 2, t: [0, 1], a: [2500, 9999], s: "00" }];
      const tokens = [...windows(some, [" a", " b"], ["thinking"], 4)[0].querySelectorAll("div span")].map((one) => [one.title, one.style.background]);
      return [natures, [0, 1].map((i) => scalingWords(scaled, i).textContent), tokens, [0.1, 0.5, 0.9].map((relative) => colourOf({ kind: [relative < 0.2 ? "base_only" : relative > 0.8 ? "tuned_only" : "shared"] }, 0))];""")
    natures, scaled, tokens, colours = said
    assert natures == [
        "leans to base",
        "leans to tuned",
        "tuned-only, confirmed",
        "tuned-only, not confirmed",
        "shared",
    ]
    assert scaled[0].startswith("Latent scaling, taken as a latent of tuned: nothing of it is left in base's error")
    assert "other latents write it into base" in scaled[0]
    assert scaled[1].startswith(
        "Latent scaling, taken as a latent of base: what the dictionary leaves of tuned still holds"
    )
    assert "no other latent writes it into tuned" in scaled[1]
    assert [title for title, _ in tokens] == ["0.500", "2"] and tokens[0][1] != tokens[1][1]
    assert colours == ["var(--base)", "var(--shared)", "var(--tuned)"]


@in_browser
def test_the_strip_of_a_label_and_the_table_of_fidelity_have_each_number_under_its_own_head(page):
    found = page.run("""
      const number = (one, name) => Number(one.getAttribute(name)), strip = document.querySelector("svg.strip");
      const beside = [...strip.querySelectorAll(".beside")].map((one) => [one.querySelector("title").textContent, number(one, "x1")]);
      const axis = strip.querySelector(".axis"), range = strip.querySelector(".range");
      const table = (node) => { const heads = [...node.querySelectorAll("th")].map((one) => one.textContent);
        return [...node.querySelectorAll("tbody tr")].map((row) => Object.fromEntries(heads.map((head, n) => [head, row.cells[n].textContent]))); };
      const fidelity = [...document.querySelectorAll("section")].find((one) => one.querySelector("h2").textContent === "Fidelity by model and segment");
      return { ends: [number(axis, "x1"), number(axis, "x2")], best: number(strip.querySelector(".best"), "cx"), range: [number(range, "x1"), number(range, "x2")], beside,
        labels: table(document.querySelector("#labels")), fidelity: table(fidelity.querySelector("table")) };""")
    low, high = found["ends"]

    def place(value):
        return pytest.approx(low + (value - 0.5) / 0.5 * (high - low))

    assert high > low and found["best"] == place(0.8421) and found["range"] == [place(0.8), place(0.9)]
    assert found["beside"] == [
        ["95 % by chance: 0.550", place(0.55)], ["words: 0.530", place(0.53)],
        ["best random direction: 0.777", place(0.777)],
    ]  # fmt: skip
    (label,) = found["labels"]
    assert [label[head] for head in ("95 % by chance", "words", "average precision", "share")] == [
        "0.550", "0.530", "0.610", "0.170",
    ]  # fmt: skip
    assert label["AUROC"].startswith("0.842") and label["relative norm"] == "0.179"
    base = next(row for row in found["fidelity"] if (row["model"], row["segment"]) == ("base", "all"))
    assert [base[head] for head in ("explained variance", "CE clean", "CE spliced", "KL spliced")] == [
        "0.988", "1.250", "1.500", "0.125",
    ]  # fmt: skip


@in_browser
def test_a_card_has_each_number_above_its_own_word(page):
    found = page.run("""
      const cards = [...document.querySelectorAll('.card')].map((card) => [card.querySelector('h3').textContent, [...card.querySelectorAll('.pair > div')].map((one) => [one.querySelector('.number').textContent, one.querySelector('small').textContent.split(' · ')[0]])]);
      return Object.fromEntries(cards);""")
    assert found["L0, active latents a token"] == [["8.500", "mean"], ["3", "10 %"], ["21", "90 %"]]
    assert found["Explained variance"] == [["0.988", "base"], ["0.877", "tuned"]]


@in_browser
def test_confirmed_latents_of_the_base_and_of_the_tuned_model_have_their_colours_in_the_histogram(page):
    bars = page.run("""
      const drawing = [...document.querySelectorAll("figure")].find((one) => one.textContent.includes("Relative decoder norm of"));
      return [...drawing.querySelectorAll("rect")].map((one) => [one.getAttribute("fill"), one.querySelector("title")?.textContent]);""")
    confirmed = {said.split(" from ")[1]: fill for fill, said in bars if said and "and are confirmed" in said}
    assert confirmed and all(
        fill == ("var(--base)" if float(where.split(" ")[0]) < 0.3 else "var(--tuned)")
        for where, fill in confirmed.items()
    )
    assert {"var(--base)", "var(--tuned)"} <= set(confirmed.values())


@in_browser
def test_a_frontier_keeps_the_best_of_what_costs_no_more_and_means_are_means(tmp_path, browser):
    shown = browser.open(write_comparison(members_under([make_sweep(tmp_path / "sweep")]), tmp_path / "sweep"))
    front, mean = shown.run("""
      const points = [[1, 0.2], [2, 0.5], [3, 0.4], [4, 0.7], [5, 0.6]].map(([at, value]) => ({ at, value }));
      return [frontier(points).map(({ at }) => at), means([[1, 0.2], [1, 0.4], [2, 0.5]].map(([at, value]) => ({ at, value })))];""")
    assert front == [1, 2, 4] and [(one["at"], one["value"]) for one in mean] == [(1, pytest.approx(0.3)), (2, 0.5)]
