"""What somebody drops in from a folder and a package of their own, without an edit of ours."""

import importlib
import json
import sys
import textwrap
import types

import pyarrow.parquet
import pytest
import safetensors.torch
import torch

import tunediff
from test_models import batch_of
from test_settings import composed
from tunediff.hookpoints import HOOKPOINTS, Point, add_hookpoint, decoder_layers, reading, writing
from tunediff.models import PairError
from tunediff.shapes import Finding, Note, Refused, Stream
from tunediff.study.run import evaluate, found_by
from tunediff.study.train import study

SMALL = ("scale=smoke", "trainer=cpu", "budget.buffer=2048", "budget.fit_tokens=1024", "text.tokens_per_batch=2048")
SMOKE = (*SMALL, "evaluation=none", "budget.tokens=10_240")


def findings(folder):
    return {f["name"]: f["value"] for f in json.loads((folder / "findings.json").read_text())["findings"]}


def curves(folder):
    return pyarrow.parquet.read_table(folder / "tables" / "training.parquet").to_pydict()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a module of a package `mypkg` that Python finds while the test runs."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mypkg").mkdir()

    def write(code):
        (tmp_path / "mypkg" / "__init__.py").write_text(textwrap.dedent(code))
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("mypkg", None)


@pytest.fixture
def options(tmp_path):
    """Writes an option of a group into a folder that Hydra is told of; returns the words that choose it."""

    def write(group, name, text):
        (tmp_path / "options" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "options" / group / f"{name}.yaml").write_text(textwrap.dedent(text))
        return f"hydra.searchpath=[file://{tmp_path / 'options'}]", f"{group}={name}"

    return write


# -- a hookpoint ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    """The table of hookpoints is afterwards as it was."""
    before = dict(HOOKPOINTS)
    yield
    HOOKPOINTS.clear()
    HOOKPOINTS.update(before)


ATTN_Z = {"module": "self_attn.o_proj", "read": "input", "width": "num_attention_heads*8"}


def test_a_hookpoint_of_ones_own_is_read_and_written_where_its_row_says(pair, table):
    add_hookpoint("attn_z", ATTN_Z)
    model, point, batch = pair.models["tuned"], Point("attn_z", 1), batch_of(pair)
    (stream,) = pair.streams("attn_z", 1, reads="tuned")
    assert stream == Stream("tuned", "attn_z", 1, 32)
    seen = []
    handle = decoder_layers(model)[1].self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    (read,) = pair.read(batch, [stream])
    assert torch.equal(read, seen[0].flatten(0, 1)[pair.places("tuned", batch)]) and read.abs().max() > 0
    with (
        torch.no_grad(),
        writing(model, point, torch.zeros_like),
        reading(model, [Point("attn_out", 1)], stop=False) as out,
    ):
        model(**pair.inputs("tuned", batch))
    handle.remove()
    assert (out[Point("attn_out", 1)] == 0).all()  # Qwen's last projection of attention has no bias


def test_a_row_stands_where_its_module_is_computed(table):
    for name, module, before in (
        ("attn_z", "self_attn.o_proj", "attn_out"),
        ("gate", "mlp.gate_proj", "mlp_out"),
        ("norm", "post_attention_layernorm", "resid_post"),
    ):
        add_hookpoint(name, {"module": module, "width": 8})
        order = list(HOOKPOINTS)
        assert order.index(name) == order.index(before) - 1
    add_hookpoint("early", {"module": "input_layernorm", "before": "attn_z"})
    assert list(HOOKPOINTS)[:4] == ["resid_pre", "early", "attn_z", "attn_out"]
    add_hookpoint("early", {"module": "input_layernorm", "before": "attn_z"})  # of another run in the same process


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"modul": "x"}, "hookpoint.modul is not a setting: a row has module, read, width, before"),
        ({"read": "input"}, "hookpoint.module is not set"),
        ({"module": "mlp", "read": "inputs"}, "hookpoint.read='inputs': choose input or output"),
        ({"module": "mlp", "before": "nowhere"}, "hookpoint.before='nowhere': the hookpoints are"),
        ({"module": "mlp"}, "hookpoint.name=resid_post stands for another place already"),
    ],
)
def test_a_row_that_says_nothing_is_refused(row, message, table):
    with pytest.raises(Refused, match=message):
        add_hookpoint("resid_post", row)


def test_a_row_of_the_wrong_width_or_without_a_module_is_refused_as_it_is_read(pair, table):
    add_hookpoint("narrow", {**ATTN_Z, "width": 7})
    add_hookpoint("unknown", {**ATTN_Z, "width": "num_attention_heads*heads"})
    add_hookpoint("nowhere", {"module": "self_attn.sigma"})
    batch = batch_of(pair)
    with pytest.raises(PairError, match="tuned.narrow.1 is 32 wide and not 7: set dictionary.hookpoint.width"):
        pair.read(batch, pair.streams("narrow", 1, reads="tuned"))
    with pytest.raises(Refused, match=r"width=num_attention_heads\*heads: the configuration of the model does not say"):
        pair.streams("unknown", 1)
    with pytest.raises(Refused, match="has no module under one of the names sigma"):
        pair.read(batch, pair.streams("nowhere", 1))


def test_a_study_reads_a_hookpoint_that_a_file_of_ones_own_names(options, tmp_path, table):
    row = "name: attn_z\nmodule: self_attn.o_proj\nread: input\nequal_widths: true\nlayer: 1\n"
    study(composed(*SMOKE, *options("dictionary/hookpoint", "attn_z", row)), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "dictionary" / "config.json").read_text())
    assert [stream[:3] for stream in saved["streams"]] == [["base", "attn_z", 1], ["tuned", "attn_z", 1]]
    assert curves(tmp_path / "run")["l0"][-1] > 0


@pytest.mark.usefixtures("table")
def test_a_dry_run_refuses_a_hookpoint_that_the_model_does_not_have(tmp_path):
    row = ["dictionary.hookpoint.name=gone", "+dictionary.hookpoint.module=self_attn.gone", "dry_run=true"]
    with pytest.raises(Refused, match="has no module under one of the names gone"):
        study(composed(*SMOKE, *row), tmp_path / "run")


# -- a loss term -----------------------------------------------------------------------------------------------------------


OVERLAP = """
    from dataclasses import dataclass

    from tunediff.objectives import Term


    @dataclass(frozen=True)
    class DecoderOverlap(Term):
        '''Squared products of decoder rows, and the mean latent.'''

        latents: float = 0.0

        def __call__(self, given):
            rows = given.dictionary.W_dec
            overlap = (rows @ rows.T).triu(1).square().sum()
            return overlap + self.latents * given.codes.dense().mean()
"""


def test_a_loss_term_of_ones_own_is_trained_with_and_stands_in_the_curves(package, tmp_path):
    package(OVERLAP)

    def overlap(folder):
        weights = safetensors.torch.load_file(folder / "dictionary" / "weights.safetensors")["W_dec"]
        return float((weights @ weights.T).triu(1).square().sum())

    line = [*SMOKE, "trust=[mypkg]"]
    study(composed(*line), tmp_path / "without")
    assert "loss/mine" not in curves(tmp_path / "without")
    schedule = "{_target_: tunediff.schedules.Warmup, warmup: 0.5}"
    term = f"{{_target_: mypkg.DecoderOverlap, weight: 5.0, latents: 2.0, schedule: {schedule}}}"
    for sparse in ("true", "false"):
        words = [f"+dictionary.objective.terms.mine={term}", f"dictionary.sparse_codes={sparse}"]
        study(composed(*line, *words), tmp_path / sparse)
        found = curves(tmp_path / sparse)
        assert found["loss/mine"][-1] > 0 and found["schedule/mine"][-1] == 1.0
        total = [sum(found[f"loss/{name}"][n] for name in ("reconstruction", "auxk", "mine")) for n in range(2)]
        assert found["loss/total"][:2] == pytest.approx(total, rel=1e-5)
        assert overlap(tmp_path / sparse) < 0.8 * overlap(tmp_path / "without")


def test_a_term_that_would_hide_another_or_pushes_the_wrong_way_is_refused(package, tmp_path):
    package(OVERLAP)
    for name, weight, message in (("l1", 1.0, "terms.l1 would stand for two things"), ("m", -1, "a weight is not neg")):
        term = f"+dictionary.objective.terms.{name}={{_target_: mypkg.DecoderOverlap, weight: {weight}}}"
        with pytest.raises(Refused, match=message):
            study(composed(*SMOKE, "trust=[mypkg]", "dry_run=true", term), tmp_path / "run")


# -- a dictionary ---------------------------------------------------------------------------------------------------------


LISTA = """
    import torch
    from torch import nn
    from tunediff.dictionary import DenseCodes, LinearDecoder, Normalisation


    class Lista(nn.Module):
        '''Latents after one step of iterative shrinkage, under an L1 penalty of its own; no class of ours above it.'''

        has_penalty = True

        def __init__(self, streams, *, latents, shrink):
            super().__init__()
            self.streams, self.latents, self.shrink = streams, latents, shrink
            self.widths = [stream.width for stream in streams]
            self.normalisation = Normalisation(self.widths)
            rows = torch.randn(latents, sum(self.widths), generator=torch.Generator().manual_seed(0))
            self.W_dec = nn.Parameter(nn.functional.normalize(rows, dim=-1))
            self.b_dec = nn.Parameter(torch.zeros(sum(self.widths)))
            self.steps = 0

        def fit(self, rows):
            self.normalisation.fit(rows.values)

        def latents_of(self, normalised):
            first = torch.relu((normalised - self.b_dec) @ self.W_dec.T - self.shrink)
            left = normalised - self.reconstruct(first)
            return torch.relu(first + 0.1 * left @ self.W_dec.T)

        def encode(self, rows):
            return self.latents_of(self.normalisation.normalise(*rows))

        def decode(self, latents, moments=None):
            return self.normalisation.restore(self.reconstruct(latents), moments)

        def reconstruct(self, latents):
            return latents @ self.W_dec + self.b_dec

        def written(self, change, numbers, moments=None):
            return self.normalisation.restore_change(change @ self.W_dec[numbers], moments)

        def decoder_norms(self):
            return torch.stack([rows.norm(dim=-1) for rows in self.W_dec.split(self.widths, dim=-1)])

        def code_norms(self):
            return self.W_dec.norm(dim=-1)

        def part(self, values, role):
            pieces = zip(values.split(self.widths, dim=-1), self.streams)
            return torch.cat([piece for piece, stream in pieces if stream.role == role], dim=-1)

        def code(self, normalised, norms, settings):
            return DenseCodes(self.latents_of(normalised))

        def reconstructions(self, codes):
            return [self.reconstruct(codes.latents)]

        def penalties(self, codes, norms, settings):
            return {"shrinkage": 0.01 * settings["l1"] * (codes.latents * norms).sum(-1).mean()}

        def schedules(self):
            return {}

        def scheduled(self, step, length):
            return {}

        def constrain_gradients(self):
            pass

        def settle(self):
            self.steps += 1

        def observed(self):
            return {"steps": torch.tensor(float(self.steps))}
"""
LISTA_OPTION = """
    defaults:
      - hookpoint: resid_post
      - objective: squared
      - _self_
    _target_: mypkg.Lista
    _partial_: true
    reads: both
    latents: 48
    shrink: 0.5
    l1_schedule: {_target_: tunediff.schedules.Warmup, warmup: 0.5}
    objective: {terms: {auxk: {weight: 0}}}
"""


HALVES = (
    LISTA.replace("class Lista", "class Half").replace("def encode", "def encoded").replace("has_penalty", "has")
    + """
    class Heir(LinearDecoder):
        def __init__(self, streams, *, latents, shrink):
            super().__init__()
            self.streams, self.normalisation = streams, Normalisation([stream.width for stream in streams])
            self.W_dec = nn.Parameter(torch.ones(latents, sum(self.widths)))
            self.b_dec = nn.Parameter(torch.zeros(sum(self.widths)))
"""
)


@pytest.mark.parametrize(("name", "members"), [("Half", "encode, has_penalty"), ("Heir", "code, encode")])
def test_a_dictionary_without_what_is_asked_of_one_is_refused_by_a_dry_run(package, options, tmp_path, name, members):
    package(HALVES)
    chosen = options("dictionary", "half", LISTA_OPTION.replace("Lista", name))
    with pytest.raises(Refused, match=f"dictionary=mypkg.{name} lacks {members}: .* tunediff/dictionary/protocol.py"):
        study(composed(*SMOKE, "trust=[mypkg]", "dry_run=true", *chosen), tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{_target_: mypkg.Silent}", "evaluation=q: .* has no method `run`"),
        ("3", "evaluation.q=3 names no class: evaluation.q._target_="),
        ("{least: 3}", "evaluation.q=.* names no class: evaluation.q._target_="),
    ],
)
def test_an_evaluation_that_asks_nothing_is_refused_by_a_dry_run(package, tmp_path, given, said):
    package("class Silent: pass")
    with pytest.raises(Refused, match=said):
        study(composed(*SMALL, "trust=[mypkg]", "dry_run=true", f"+evaluation.q={given}"), tmp_path / "run")


def test_a_dictionary_that_is_no_subclass_of_ours_is_trained_and_measured(package, options, tmp_path):
    package(LISTA)
    chosen = options("dictionary", "lista", LISTA_OPTION)
    evaluations = "evaluation=[fidelity,geometry,latent_scaling,segments,logit_effect,kl_patching]"
    line = [*SMALL, "trust=[mypkg]", *chosen]
    study(composed(*line, evaluations, "budget.tokens=20_480", "budget.evaluation_tokens=1000"), tmp_path / "run")
    learned, found = curves(tmp_path / "run"), findings(tmp_path / "run")
    assert learned["loss/reconstruction"][-1] < learned["loss/reconstruction"][0] and learned["steps"][-1] == 20
    assert learned["loss/shrinkage"][-1] > 0 and learned["schedule/l1"][-1] == 1.0
    assert {name.split("/")[0] for name in found} >= {"fidelity", "geometry", "latent_scaling", "kl_patching"}
    loaded = tunediff.load(tmp_path / "run", trust=["mypkg"])
    assert type(loaded.dictionary).__mro__[1] is torch.nn.Module and loaded.dictionary.latents == 48


def test_what_a_dictionary_of_ones_own_cannot_do_is_refused_before_it_is_trained(package, options, tmp_path):
    package(LISTA)
    line = [*SMOKE, "trust=[mypkg]", "dry_run=true", *options("dictionary", "lista", LISTA_OPTION)]
    with pytest.raises(Refused, match="Lista has no code_of to ask for them: set .*auxk.weight=0"):
        study(composed(*line, "dictionary.objective.terms.auxk.weight=1"), tmp_path / "run")
    resampling = "optimizer.resampling={_target_: tunediff.training.Resampling, every: 0.5}"
    with pytest.raises(
        Refused, match="optimizer.resampling writes into the weights of a Crosscoder, and Lista is none"
    ):
        study(composed(*line, resampling), tmp_path / "run")
    study(composed(*line), tmp_path / "run")  # and nothing else


@pytest.mark.parametrize("gives", ["[3]", "'abc'", "[None]", "None", "Finding('a', 1.0)", "[{'a': 1}]"])
def test_what_is_no_finding_is_refused_with_the_name_of_the_evaluation(gives):
    class Rubbish:
        def run(self, given):
            return eval(gives, {"Finding": Finding})

    with pytest.raises(Refused, match="evaluation=mine gave .*: its run yields Findings, Tables, Figures and Notes"):
        found_by("mine", Rubbish(), None)


@pytest.mark.parametrize("text", [["a"], None, 5])
def test_a_note_that_is_no_string_is_refused_before_anything_is_said_of_it(text, tmp_path):
    class Noting:
        def run(self, given):
            yield Note(text)

    with pytest.raises(Refused, match="Note .*: it has to be a string"):
        evaluate({"mine": Noting()}, None, tmp_path, {"study": {}})


def test_held_out_text_that_is_shorter_than_was_asked_for_is_told(tmp_path):
    class Nothing:
        def run(self, given):
            return []

    for asked, told in ((9, ["The held-out text has 5 tokens of the 9 asked for, and was read once."]), (5, [])):
        given = types.SimpleNamespace(held_out=[types.SimpleNamespace(token=range(5))], tokens=asked)
        (tmp_path / str(asked)).mkdir()
        evaluate({"mine": Nothing()}, given, tmp_path / str(asked), {"study": {}})
        assert json.loads((tmp_path / str(asked) / "findings.json").read_text())["notes"] == told


def test_an_evaluation_that_ends_the_program_is_not_taken_for_one_that_found_nothing():
    class Leaves:
        def run(self, given):
            raise SystemExit(0)

    with pytest.raises(Refused, match=r"evaluation=mine ended the program \(exit status 0\)"):
        found_by("mine", Leaves(), None)
