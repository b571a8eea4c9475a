"""The page: self-contained, safe with hostile text, honest about what is missing, and working in a real browser."""

import json
import re
import shutil
import subprocess

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from tunediff import folders
from tunediff.evaluations.stability import partners
from tunediff.report import in_words, members_under, write_comparison, write_report
from tunediff.shapes import Table

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=5000").split()  # fmt: skip


def make_run(folder, *, tables=("training", "latents", "examples")):
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
        finding("label_alignment/hesitation_follows/token_rule", 0.53),
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
            "latent": list(range(40)), "firing_rate": [0.0] + [0.01] * 39, "firing_rate/thinking": [0.02] * 40,
            "relative_decoder_norm": [n / 39 for n in range(40)], "decoder_cosine": [0.5] * 40, "kind": ["shared"] * 40,
            "max_activation": [1.0] * 40, "auroc/hesitation_follows": [0.84 if n == 7 else 0.5 for n in range(40)],
        },
        "examples": {
            "latent": [7, 8], "rank": [0, 0], "document": [1, 2], "position": [1, 0], "activation": [2.0, 1.0],
            "tokens": [[" Wait", HOSTILE, "\n"], [" zebra"]], "activations": [[0.0, 2.0, 0.5], [1.0]], "segments": [["thinking"] * 3, ["answer"]],
        },
    }  # fmt: skip
    for name in tables:
        pyarrow.parquet.write_table(pyarrow.table(content[name]), folder / "tables" / f"{name}.parquet")
    return write_report(folder)


def opened(page, tmp_path, fragment="", *more):
    command = [
        CHROMIUM,
        *QUIET,
        f"--user-data-dir={tmp_path / 'profile'}",
        *more,
        "--dump-dom",
        f"file://{page}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not errors, errors
    return done.stdout


in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def test_the_page_refers_to_nothing_outside(tmp_path):
    text = make_run(tmp_path / "run").read_text()
    assert not re.search(
        r"""(?:src|href|url\()\s*=?\s*["']?(?:https?:)?//""", text.replace("http://www.w3.org/2000/svg", "")
    )
    assert not list((tmp_path / "run").glob("*.partial"))


def test_hostile_text_cannot_leave_the_payload(tmp_path):
    text = make_run(tmp_path / "run").read_text()
    assert text.count("</script>") == 2 and "<img" not in text


@in_browser
def test_headline_latents_and_label_are_drawn(tmp_path):
    dom = opened(make_run(tmp_path / "run"), tmp_path)
    for shown in (
        "0.988",
        "0.877",
        "0.980 to 0.990",
        "0.842",
        "latent 7",
        "One note.",
        "All 12 findings",
        "what fidelity/dead_fraction means",
        "Factor of the sparsity coefficient: 1",
        "Learning rate: ",
    ):
        assert shown in dom, shown
    rows = re.findall(r'id="latent-(\d+)"', dom)
    assert rows[0] == "39" and rows[-1] == "1" and "0" not in rows  # sorted by norm, dead ones left out
    assert "<title>broken" not in dom and "<img" not in dom
    assert "–" in dom  # the value that is not defined


@in_browser
def test_a_label_without_geometry_still_gives_a_page(tmp_path):
    make_run(tmp_path / "run", tables=("training",))
    only = pyarrow.table({"auroc/hesitation_follows": [0.5, 0.9, 0.6]})
    pyarrow.parquet.write_table(only, tmp_path / "run" / "tables" / "latents.parquet")
    dom = opened(write_report(tmp_path / "run"), tmp_path)
    assert re.findall(r'id="latent-(\d+)"', dom) == ["1", "2", "0"]


@in_browser
def test_a_deep_link_opens_a_latent_with_its_tokens(tmp_path):
    dom = opened(make_run(tmp_path / "run"), tmp_path, "#latent-7")
    assert 'class="examples"' in dom and "onerror" in dom and "<img" not in dom and "↵" in dom


@in_browser
def test_missing_tables_are_said(tmp_path):
    dom = opened(make_run(tmp_path / "run", tables=()), tmp_path)
    assert "“geometry” was not run" in dom and "no record of the training" in dom


# -- runs side by side -----------------------------------------------------------------------------------------------


def make_sweep(folder):
    """Two layers x two dictionaries; one failed, one is still training, one has a hostile reason."""
    members = []
    for n, (layer, kind) in enumerate([(1, "l1"), (1, "topk"), (2, "l1"), (2, "topk")]):
        run = folder / f"id{n}"
        make_run(run, tables=("training",))
        found = json.loads((run / "findings.json").read_text())
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


def test_members_that_would_look_alike_are_told_apart_by_their_settings(tmp_path):
    make_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"members": [{"identity": "id0", "words": ["layer=1"]}]}))
    keys = [member["keys"] for member in members_under([tmp_path])]
    assert keys[0] == {"layer": 1, "dictionary.sparsity.k": 0, "dictionary.sparsity._target_": "l1"}
    assert len({json.dumps(one) for one in keys}) == 4


@in_browser
def test_the_comparison_draws_filters_sorts_and_cannot_be_broken_into(tmp_path):
    page = write_comparison(members_under([make_sweep(tmp_path / "sweep")]), tmp_path / "sweep")
    text = page.read_text()
    assert text.count("</script>") == 2 and "<img" not in text
    probe = """<script>addEventListener('load', () => {
      const rows = () => [...document.querySelectorAll('#members tbody tr')].map((r) => r.cells[0].textContent + r.cells[1].textContent).join(' ');
      const said = [rows()];
      document.querySelector('#members th:nth-child(2) button').click(); said.push(rows());
      const search = document.querySelector('input[type=search]'); search.value = 'layer=1 topk'; search.dispatchEvent(new Event('input')); said.push(rows());
      search.value = ''; search.dispatchEvent(new Event('input'));
      const axis = [...document.querySelectorAll('select')].find((s) => s.getAttribute('aria-label') === 'x');
      axis.value = 'layer'; axis.dispatchEvent(new Event('change')); said.push(document.querySelectorAll('circle').length);
      document.title = said.join(' | ');
    });</script></body>"""
    page.write_text(text.replace("</body>", probe))
    dom = opened(page, tmp_path)
    title = re.search("<title>(.*?)</title>", dom)[1]
    assert title == "1l1 1topk 2l1 2topk | 1l1 2l1 1topk 2topk | 1topk | 6", title
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
