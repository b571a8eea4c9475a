"""The page: self-contained, safe with hostile text, honest about what is missing, and working in a real browser."""

import csv
import io
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from browser import in_browser
from tunediff import folders
from tunediff.evaluations.pair import layer_divergence
from tunediff.measures.matching import partners
from tunediff.report import in_words, line_of, members_under, write_comparison, write_report
from tunediff.report.headline import columns_of
from tunediff.shapes import Refused, Table

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
ALL = ("training", "latents", "examples", "segments", "neighbours", "logit_effect", "layers")


def make_run(folder, *, tables=ALL):
    (folder / "tables").mkdir(parents=True)

    def finding(name, value, low=None, high=None):
        return {"name": name, "value": value, "low": low, "high": high, "meaning": f"what {name} means"}

    findings = [
        finding("fidelity/explained_variance/base", 0.9876, 0.98, 0.99),
        finding("fidelity/explained_variance/base/thinking", 0.9123),
        finding("fidelity/explained_variance/tuned", 0.8771),
        finding("fidelity/ce_recovered/base", None),
        finding("fidelity/dead_fraction", 0.0417),
        finding("geometry/count/tuned_only", 3),
        finding("geometry/decoder_cosine/random_pairs_mean", 0.002),
        finding("label_alignment/hesitation_follows/auroc", 0.8421, 0.8, 0.9),
        finding("label_alignment/hesitation_follows/latent", 7),
        finding("label_alignment/hesitation_follows/null_mean", 0.501),
        finding("label_alignment/hesitation_follows/null_p95", 0.55),
        finding("label_alignment/hesitation_follows/bag_of_words", 0.53),
        finding("label_alignment/hesitation_follows/average_precision", 0.61),
        finding("label_alignment/hesitation_follows/share", 0.17),
        finding("probing/hesitation_follows/random_directions", 0.777),
        finding("latent_scaling/count/tuned_only", 2),
    ]
    study = {
        "model_pair": f"a {HOSTILE}",
        "dictionary": "BatchTopK crosscoder",
        "layer": 3,
        "hookpoint": "resid_post",
        "latents": 40,
        "tokens": 1000,
    }
    (folder / "findings.json").write_text(
        json.dumps({"identity": "abc", "study": study, "findings": findings, "notes": ["One note."]})
    )
    content = {
        "training": {"step": [0, 20], "tokens": [10, 200], "loss/reconstruction": [5.0, 1.0], "explained_variance/base": [0.1, 0.9], "explained_variance/tuned": [float("nan"), 0.8], "schedule/l1": [0.05, 1.0], "schedule/learning_rate": [1e-4, 1e-3]},
        "latents": {
            "latent": list(range(40)), "firing_rate": [0.0] + [0.01] * 39, "firing_rate/thinking": [0.02] * 20 + [0.0] * 20,
            "firing_rate/answer": [0.01] * 40, "relative_decoder_norm": [n / 39 for n in range(40)], "decoder_cosine": [0.5] * 40,
            "kind": ["base_only"] * 4 + ["shared"] * 32 + ["tuned_only"] * 4, "confirmed": [True] * 2 + [False] * 2 + [None] * 32 + [True, False, False, True],
            "nu_error": [0.1] * 40, "nu_reconstruction": [0.7] * 40, "norm_base": [1.0] * 40,
            "max_activation": [1.0] * 40, "auroc/hesitation_follows": [0.84 if n == 7 else 0.5 for n in range(40)],
        },
        "segments": {"latent": list(range(40)), **{f"{kind}/{place}": [0.125] * 40 for kind in ("rate", "mean") for place in ("prompt", "thinking/0", "thinking/9")}},
        "neighbours": {"latent": [7], "rank": [0], "neighbour": [8], "cosine": [0.71]},
        "logit_effect": {"latent": [7, 7], "role": ["tuned", "tuned"], "sign": [1, -1], "rank": [0, 0], "token": [" Hmm", HOSTILE], "effect": [3.5, -2.5]},
        "layers": {"layer": [0, 1], **{f"{name}{end}": [0.5, 0.7] for name in ("l2", "cosine", "norm_base", "norm_tuned") for end in ("", "_low", "_high")}},
        "examples": {
            "latent": [7, 7, 8], "kind": ["strongest", "quantile", "strongest"], "rank": [0, 0, 0], "quantile": [None, 0.5, None], "document": [1, 3, 2],
            "place": [11, 5, 0], "position": [1, 0, 0], "activation": [2.0, 1.0, 1.0], "scaled_activation": [4.0, 2.0, 2.0],
            "tokens": [[" Wait", HOSTILE, "\n"], [" plain"], [" zebra"]], "activations": [[0.0, 2.0, 0.5], [1.0], [1.0]], "segments": [["thinking"] * 3, ["prompt"], ["answer"]],
        },
    }  # fmt: skip
    for name in tables:
        pyarrow.parquet.write_table(pyarrow.table(content[name]), folder / "tables" / f"{name}.parquet")
    if "layers" in tables:
        folders.write_findings(folder, layer_divergence.figures(content["layers"]), {"identity": "abc", "study": study})
    return write_report(folder)


def test_the_page_refers_to_nothing_outside(tmp_path):
    text = make_run(tmp_path / "run").read_text()
    assert not re.search(
        r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//""", text.replace("http://www.w3.org/2000/svg", "")
    )
    assert not list((tmp_path / "run").glob("*.partial"))


def test_hostile_text_cannot_leave_the_payload(tmp_path):
    text = make_run(tmp_path / "run").read_text()
    assert text.count("</script>") == 2 + text.count('id="packed-') and "<img" not in text


@in_browser
def test_headline_latents_and_label_are_drawn(tmp_path, browser):
    dom = browser.open(make_run(tmp_path / "run")).dom()
    for shown in (
        "0.988",
        "0.877",
        "0.980 to 0.990",
        "0.842",
        "#latent-7",
        "One note.",
        "All 16 findings",
        "0.777",
        "best random direction",
        "Mean L2 distance",
        "what fidelity/dead_fraction means",
        "Factor of the sparsity coefficient: 1",
        "Learning rate: ",
    ):
        assert shown in dom, shown
    rows = re.findall(r'id="latent-(\d+)"', dom)
    assert rows[:3] == ["39", "38", "37"] and "0" not in rows  # sorted by norm, dead ones left out
    assert "39 of 39 alive latents" in dom
    assert "<title>broken" not in dom and "<img" not in dom
    assert "–" in dom  # the value that is not defined


@in_browser
def test_the_header_says_on_how_many_tokens_was_trained_and_on_how_many_measured(tmp_path, browser):
    make_run(tmp_path / "run", tables=("training",))
    found = json.loads((tmp_path / "run" / "findings.json").read_text())
    found["study"]["evaluation_tokens"] = 30_000
    (tmp_path / "run" / "findings.json").write_text(json.dumps(found))
    said = browser.open(write_report(tmp_path / "run")).run("return document.querySelector('header').textContent")
    assert "layer 3, trained on 1,000 tokens · measured on a budget of 30,000 held-out tokens · study abc" in said


@in_browser
def test_a_label_without_geometry_still_gives_a_page(tmp_path, browser):
    make_run(tmp_path / "run", tables=("training",))
    only = pyarrow.table({"auroc/hesitation_follows": [0.5, 0.9, 0.6]})
    pyarrow.parquet.write_table(only, tmp_path / "run" / "tables" / "latents.parquet")
    dom = browser.open(write_report(tmp_path / "run")).dom()
    assert re.findall(r'id="latent-(\d+)"', dom) == ["1", "2", "0"]  # by the label


@in_browser
def test_a_deep_link_opens_a_latent_with_its_tokens(tmp_path, browser):
    page = browser.open(make_run(tmp_path / "run"), "#latent-7")
    page.run("await wait(() => !panel().hidden);")
    dom = page.dom()
    panel = dom[dom.index('<aside id="panel"') :]
    for shown in (
        "Latent 7",
        "onerror",
        "↵",
        "Strongest",
        "Over its range",
        "document 3, token 5",
        "␣Hmm",
        "#latent-8",
        "shared",
    ):
        assert shown in panel, shown
    assert (
        "<img" not in dom
        and panel.count('peak"') == 2
        and "other latents write it into tuned (ν reconstruction 0.7" in panel
    )


@in_browser
def test_search_filters_sorting_keys_and_the_address_work_together(tmp_path, browser):
    page = make_run(tmp_path / "run")
    script = """
      const said = [];
      set('search latents', 'zebra'); await wait(() => rows() === '8'); said.push(rows());
      set('search latents', 'wait onerror'); await wait(() => rows() === '7'); said.push(rows());
      set('search latents', 'hmm'); said.push(rows());
      set('search latents', '23'); said.push(rows());
      set('search latents', '"23"'); said.push(rows());
      set('search latents', ''); set('kind', 'tuned_only!'); said.push(rows());
      set('kind', 'tuned_only'); said.push(rows());
      set('kind', ''); set('label', 'hesitation_follows'); said.push(rows());
      set('label', ''); set('segment', 'answer'); set('firing rate from', '0.005'); said.push(rows().split(' ').length);
      said.push(location.hash);
      set('segment', ''); set('firing rate from', '');
      document.querySelector('#latents th button').click(); said.push(rows().split(' ').slice(0, 2).join(' '));
      document.querySelector('#latents th button').click(); said.push(rows().split(' ').slice(0, 2).join(' '));
      key('j'); await wait(() => !panel().hidden); said.push(panel().querySelector('h2').textContent);
      key('j'); await wait(() => panel().querySelector('h2').textContent === 'Latent 2');
      key('k'); await wait(() => panel().querySelector('h2').textContent === 'Latent 1'); said.push(location.hash);
      key('Escape'); said.push(panel().hidden);
      return said;"""
    assert browser.open(page).run(script) == [
        "8", "7", "7", "23", "", "39 36", "39 38 37 36", "7", 20, "#segment=answer&above=0.8&rate=0.005",
        "39 38", "1 2", "Latent 1", "#latent-1&above=0.8&sort=latent&up=1", True,
    ]  # fmt: skip
    kept = "return [rows(), panel().hidden, pick('kind').value]"
    assert browser.open(page, "#kind=tuned_only!&sort=latent&up=1").run(kept) == ["36 39", True, "tuned_only!"]
    for nonsense in ("#%", "#constructor=x&sort=__proto__", "#latent-9999", "#sort=nothing"):
        assert browser.open(page, nonsense).run("return rows().split(' ')[0]") == "39"


@in_browser
def test_what_is_taken_away_holds_what_is_shown(tmp_path, browser):
    script = """
      const saved = [];
      save = (name, type, content) => saved.push([name, content]);
      set('kind', 'tuned_only!');
      [...document.querySelectorAll('.filters button')].find((b) => b.textContent === 'CSV').click();
      for (const title of ['Relative decoder norm', 'alive latents'])
        [...document.querySelectorAll('figure')].filter((f) => f.textContent.includes(title)).at(-1).querySelector('.tools button').click();
      location.hash = '#latent-7';
      await wait(() => !panel().hidden);
      [...panel().querySelectorAll('nav button')].find((b) => b.textContent === 'CSV').click();
      return saved;"""
    saved = dict(browser.open(make_run(tmp_path / "run")).run(script))
    table = list(csv.DictReader(io.StringIO(saved["latents.csv"])))
    assert [row["latent"] for row in table] == ["39", "36"] and table[0]["confirmed"] == "true"
    examples = list(csv.DictReader(io.StringIO(saved["latent-7.csv"])))
    assert examples[0]["text"] == " Wait" + HOSTILE + "\n" and examples[0]["peak"] == HOSTILE and len(examples) == 2
    drawings = [content for name, content in saved.items() if name.endswith(".svg")]
    assert len(drawings) == 2 and all("var(" not in drawing and "xmlns" in drawing for drawing in drawings)
    assert max(drawing.count("<circle") for drawing in drawings) == 39


@in_browser
def test_ten_thousand_latents_draw_a_screenful_of_rows(tmp_path, browser):
    make_run(tmp_path / "run", tables=("training",))
    many = 10_000
    columns = {
        "latent": list(range(many)),
        "firing_rate": [0.01] * many,
        "relative_decoder_norm": [n / many for n in range(many)],
        "kind": ["shared"] * many,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "run" / "tables" / "latents.parquet")
    script = """
      const first = document.querySelectorAll('#latents tr.latent').length, scroll = document.querySelector('.rows');
      scroll.scrollTop = scroll.scrollHeight;
      await wait(() => rows().endsWith(' 0'));
      return [first, document.querySelectorAll('#latents tr.latent').length, document.querySelector('.count').textContent];"""
    first, last, said = browser.open(write_report(tmp_path / "run")).run(script)
    assert 10 < first < 60 and 10 < last < 60 and said == "10,000 of 10,000 alive latents"


@in_browser
def test_missing_tables_are_said(tmp_path, browser):
    dom = browser.open(make_run(tmp_path / "run", tables=())).dom()
    assert "“geometry” was not run" in dom and "no record of the training" in dom


@in_browser
def test_a_study_of_the_pair_alone_has_its_layers_and_nothing_of_a_dictionary(tmp_path, browser):
    make_run(tmp_path / "run", tables=("layers",))
    path = tmp_path / "run" / "findings.json"
    found = json.loads(path.read_text())
    found["study"], found["findings"] = {"model_pair": "tuned vs base"}, found["findings"][:1]
    path.write_text(json.dumps(found))
    dom = browser.open(write_report(tmp_path / "run")).dom()
    shown = dom[dom.index("<main") : dom.index("</main>")]
    assert (
        "Mean cosine" in shown and "was not run" not in shown and "Training" not in shown and "undefined" not in shown
    )


# -- runs side by side -----------------------------------------------------------------------------------------------


def make_sweep(folder):
    """Two layers x two dictionaries; one failed, one is still training, one has a hostile reason."""
    members = []
    for n, (layer, kind) in enumerate([(1, "l1"), (1, "topk"), (2, "l1"), (2, "topk")]):
        run = folder / f"id{n}"
        make_run(run, tables=("training",))
        found = json.loads((run / "findings.json").read_text())
        found["study"]["layer"] = str(layer)
        found["study"]["streams"] = f"base.resid_post.{layer}, tuned.resid_post.{layer}"
        for name, value in (("fidelity/l0/mean", 10.0 + n), ("fidelity/explained_variance/pooled", 0.5 + 0.1 * n)):
            found["findings"].append(
                {"name": name, "value": value, "low": value - 0.01, "high": value + 0.01, "meaning": ""}
            )
        (run / "findings.json").write_text(json.dumps(found))
        settings = {"layer": layer, "seed": 0, "dictionary": {"sparsity": {"_target_": kind, "k": n}}}
        (run / "identity.json").write_text(json.dumps({"identity": f"id{n}", "settings": settings}))
        state = [
            {"state": "finished"},
            {"state": "finished"},
            {"state": "failed", "error": HOSTILE},
            {"state": "waiting", "job": "7_1"},
        ][n]
        if n > 1:
            (run / "findings.json").unlink()
        (run / "state.json").write_text(json.dumps({"identity": f"id{n}", "step": 5 * n, "steps": 100, **state}))
        members.append({"identity": f"id{n}", "words": [f"layer={layer}", f"dictionary={kind}"]})
    (folder / "sweep.json").write_text(json.dumps({"members": members}))
    return folder


def test_a_comparison_has_the_swept_keys_first_the_state_of_each_and_why_it_failed(tmp_path):
    members = members_under([make_sweep(tmp_path)])
    said = in_words(members)
    lines = [re.split("  +", line) for line in said.splitlines()]
    assert lines[0][:3] == ["layer", "dictionary", "state"] and lines[0][-1] == "run"
    assert [line[:3] for line in lines[1:5]] == [
        ["1", "l1", "finished"], ["1", "topk", "finished"], ["2", "l1", "failed"], ["2", "topk", "waiting 15/100, job 7_1"]
    ]  # fmt: skip
    assert f"id2: {HOSTILE}" in said
    write_comparison(members, tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "compare.parquet").to_pydict()
    assert table["layer"] == [1.0, 1.0, 2.0, 2.0] and table["dictionary"] == ["l1", "topk", "l1", "topk"]
    assert table["fidelity/l0/mean"] == [10.0, 11.0, None, None]


def test_members_are_sorted_by_numbers_before_words_and_a_truth_value_is_a_word(tmp_path):
    for n, value in enumerate(["b", True, 10, 2.5]):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "identity.json").write_text(json.dumps({"identity": f"id{n}", "settings": {"x": value}}))
    assert [member["keys"]["x"] for member in members_under([tmp_path])] == [2.5, 10, "b", True]


def test_members_that_would_look_alike_are_told_apart_by_their_settings(tmp_path):
    make_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"members": [{"identity": "id0", "words": ["layer=1"]}]}))
    keys = [member["keys"] for member in members_under([tmp_path])]
    assert keys[0] == {"layer": 1, "dictionary.sparsity.k": 0, "dictionary.sparsity._target_": "l1"}
    assert len({json.dumps(one) for one in keys}) == 4


@in_browser
def test_the_comparison_draws_filters_sorts_and_cannot_be_broken_into(tmp_path, browser):
    page = write_comparison(members_under([make_sweep(tmp_path / "sweep")]), tmp_path / "sweep")
    with pytest.raises(Refused, match="No run under .*nowhere: there is no such folder"):  # beside one that is there
        members_under([tmp_path / "sweep", tmp_path / "nowhere"])
    text = page.read_text()
    assert text.count("</script>") == 2 and "<img" not in text
    script = """
      const members = () => [...document.querySelectorAll('#members tbody tr')].map((r) => r.cells[0].textContent + r.cells[1].textContent).join(' ');
      const said = [members()];
      document.querySelector('#members th:nth-child(2) button').click(); said.push(members());
      const search = document.querySelector('input[type=search]'); search.value = 'layer=1 topk'; search.dispatchEvent(new Event('input')); said.push(members());
      search.value = ''; search.dispatchEvent(new Event('input'));
      set('x', 'layer'); said.push(document.querySelectorAll('circle').length);
      return said;"""
    shown = browser.open(page)
    said, dom = shown.run(script), shown.dom()
    assert said == ["1l1 1topk 2l1 2topk", "1l1 2l1 1topk 2topk", "1topk", 6]
    for shown in (
        "What failed, and why",
        "onerror",
        "waiting 15/100",
        "id0/report.html",
        "2 finished, 1 failed, 1 waiting",
        "<polyline",
    ):
        assert shown in dom, shown


# -- stability over seeds ----------------------------------------------------------------------------------------------


def test_partners_are_one_to_one_and_together_the_nearest():
    rows = torch.nn.functional.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(partners(3 * rows, rows[order]), torch.ones(40))
    assert (partners(rows, rows[:30]) > 0).tolist() == [n < 30 for n in range(40)]
    assert partners(rows, -rows).max() == 0
    twice = torch.cat([rows[:1], rows[:1]])  # two of one: only one can have the partner
    assert (partners(twice, rows) > 0).sum() == 1
    # greedy choice would pair the first with the nearer one and leave the second alone
    corner = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    other = torch.tensor([[0.9, 0.43589], [0.95, -0.31225]])
    assert (partners(corner, other) > 0).all()


def test_stability_is_a_metric_of_runs_that_differ_by_seed_alone(tmp_path):
    def run(name, seed, rows, kinds, **settings):
        folder = tmp_path / name
        (folder / "dictionary").mkdir(parents=True)
        safetensors.torch.save_file({"W_dec": rows}, folder / "dictionary" / "weights.safetensors")
        stands = {"identity": name, "settings": {"seed": seed, "dictionary": {"seed": seed}, "layer": 1, **settings}}
        (folder / "identity.json").write_text(json.dumps(stands))
        folders.say(folder, state="finished", identity=name)
        firing = [0.0 if kind == "dead" else 0.1 for kind in kinds]
        folders.write_findings(folder, [Table("latents", {"firing_rate": firing, "kind": kinds})], {"study": {}})

    eye = torch.eye(8)
    kinds = ["shared", "shared", "tuned_only", "tuned_only", "dead", "base_only"]
    run("a", 0, eye[:6], kinds)
    run("b", 1, eye[[0, 1, 2, 6, 4, 7]], kinds)  # finds three of the five living ones
    run("c", 0, eye[:6], kinds, k=3)  # no twin
    members = {member["identity"]: member for member in members_under([tmp_path])}
    found = {name: value[0] for name, value in members["a"]["metrics"].items()}
    assert found == pytest.approx(
        {"stability/all": 0.6, "stability/shared": 1.0, "stability/tuned_only": 0.5, "stability/base_only": 0.0}
    )
    assert "stability/all" not in members["c"]["metrics"]
    said = in_words(list(members.values()))
    assert "stable tuned-only" in said.splitlines()[0] and "0.6" in said


# -- directions of adapters --------------------------------------------------------------------------------------------


UNITS = {
    "adapter_units": {
        "unit": [0, 1, 2, 3], "adapter": ["0.q_proj"] * 2 + ["1.up_proj"] * 2, "direction": [0] * 4, "polarity": ["+", "-"] * 2,
        "firing_rate": [0.5, 0.4, 0.6, 0.0], "max_activation": [2.0, 1.0, 3.0, 0.0], "max_written": [1.0, 4.0, 2.0, 0.0],
    },
    "adapter_examples": {
        "unit": [1], "kind": ["strongest"], "rank": [0], "quantile": [None], "document": [1], "place": [3], "position": [1], "activation": [1.0],
        "scaled_activation": [4.0], "tokens": [[" yes", HOSTILE]], "activations": [[0.0, 1.0]], "segments": [["answer"] * 2],
    },
}  # fmt: skip


def with_units(folder, *, tables=ALL):
    make_run(folder, tables=tables)
    for name, columns in UNITS.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "tables" / f"{name}.parquet")
    return write_report(folder)


@in_browser
def test_directions_of_adapters_are_read_as_latents_are_and_a_button_or_an_address_leads_to_either(tmp_path, browser):
    page = browser.open(with_units(tmp_path / "run"))
    units = "[...document.querySelectorAll('tr.latent')].map((row) => [...row.cells].slice(0, 3).map((cell) => cell.textContent).join(' '))"
    press = "[...document.querySelectorAll('.filters button')].find((one) => one.textContent === '{}').click();"
    assert page.run("return rows();").startswith("39 38 37")
    assert page.run(f"{press.format('Adapter directions')} return {units};") == [
        "1 0.q_proj -",
        "2 1.up_proj +",
        "0 0.q_proj +",
    ]
    said = page.run(
        "key('j'); await wait(() => panel() && !panel().hidden); return [panel().innerText, location.hash];"
    )
    assert "0.q_proj -" in said[0] and " yes" in said[0] and HOSTILE in said[0] and said[1] == "#unit-1"
    assert page.run("return document.querySelectorAll('#panel').length;") == 1
    assert page.run(f"{press.format('Latents')} return [rows().split(' ')[0], panel().hidden];") == ["39", True]
    page.run("location.hash = '#unit-2'; await wait(() => panel() && panel().innerText.includes('1.up_proj +'));")
    page.run("location.hash = '#latent-8'; await wait(() => panel().innerText.includes('Latent 8'));")
    page = browser.open(tmp_path / "run" / "report.html", "#unit&sort=max_activation")
    assert page.run(f"await wait(() => {units}[0][0] === '2'); return {units};")[0] == "2 1.up_proj +"
    assert page.run("return document.querySelector('.count').textContent;") == "3 of 3 units that fire"


@in_browser
def test_the_classes_of_latents_stand_beside_them_where_some_were_sorted(tmp_path, browser):
    make_run(tmp_path / "run")
    sorted_ones = {
        "latent": [8, 7, 5],
        "layer": [1, 1, 1],
        "class": ["domain", "reasoning", None],
        "domain": ["code", None, None],
        "mechanism": ["input_simple", "output", None],
        "reason": [HOSTILE, "a doubt", None],
    }
    pyarrow.parquet.write_table(pyarrow.table(sorted_ones), tmp_path / "run" / "tables" / "latent_classes.parquet")
    page = browser.open(write_report(tmp_path / "run"), "#latent-8&sort=class")
    page.run("await wait(() => panel() && !panel().hidden);")
    assert page.run("return rows();").startswith("7 8")  # the last in the alphabet first, those without a class last
    said = page.run("return [panel().innerText, document.querySelector('#latent-7').innerText];")
    assert "sorts it under domain, code, acting by input, simple: " + HOSTILE in said[0]
    assert "reasoning" in said[1] and "output" in said[1]


@in_browser
def test_directions_of_adapters_are_shown_where_there_is_no_table_of_latents(tmp_path, browser):
    page = browser.open(with_units(tmp_path / "run", tables=()), "#unit-1")
    assert (
        page.run("await wait(() => !panel().hidden); return panel().querySelector('h2').textContent;") == "0.q_proj -"
    )


def test_the_line_of_a_run_names_a_measure_once_and_never_leaves_it_out():
    def line(*words):
        return line_of({f"any/{n}": {"value": 0.5, "line": word} for n, word in enumerate(words)})

    variance, recovered = "explained variance", "CE recovered"
    assert line(f"{variance} base", "L0", f"{variance} tuned") == "explained variance base 0.5, tuned 0.5, L0 0.5"
    assert line(f"{variance} tuned", f"{recovered} tuned") == "explained variance tuned 0.5, CE recovered tuned 0.5"
    assert (
        line("largest", "at layer", "", "smallest", "at layer")
        == "largest 0.5, at layer 0.5, smallest 0.5, at layer 0.5"
    )
    assert line_of({"any/a": {"value": None, "line": "a"}, "any/b": {"value": 1}}) == ""


def test_one_of_both_models_is_a_column_only_where_somebody_has_none_of_each():
    heads = {"ev/pooled": "EV", "l0": "L0", "ev/base": "EV base", "ev/tuned": "EV tuned", "ce/base": "CE base"}

    def member(*names):
        return {"columns": {name: heads[name] for name in names}, "metrics": {name: [0.5] for name in names}}

    whole = member(*heads)
    assert list(columns_of([whole]).values()) == ["L0", "EV base", "EV tuned", "CE base"]
    assert list(columns_of([whole, member("ev/pooled", "l0")]).values()) == [
        "EV",
        "L0",
        "EV base",
        "EV tuned",
        "CE base",
    ]
    assert columns_of([member("ev/pooled")]) == {"ev/pooled": "EV"} and columns_of([member()]) == {}
