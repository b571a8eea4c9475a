"""What somebody drops in from a folder and a package of their own, without an edit of ours."""

import importlib
import json
import sys
import textwrap

import pyarrow.parquet
import pytest
import torch

from test_models import batch_of
from test_settings import composed
from tunediff.hookpoints import HOOKPOINTS, Point, add_hookpoint, decoder_layers, reading, writing
from tunediff.models import PairError
from tunediff.shapes import Refused, Stream
from tunediff.sweep.launch import study

SMOKE = ("scale=smoke", "trainer=cpu", "evaluation=none", "budget.tokens=20_000")


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
    add_hookpoint("unknown", {**ATTN_Z, "width": "heads"})
    add_hookpoint("nowhere", {"module": "self_attn.sigma"})
    batch = batch_of(pair)
    with pytest.raises(PairError, match="tuned.narrow.1 is 32 wide and not 7: set dictionary.hookpoint.width"):
        pair.read(batch, pair.streams("narrow", 1, reads="tuned"))
    with pytest.raises(Refused, match="width=heads: the configuration of the model does not say"):
        pair.streams("unknown", 1)
    with pytest.raises(Refused, match="has no module under one of the names sigma"):
        pair.read(batch, pair.streams("nowhere", 1))


def test_a_study_reads_a_hookpoint_that_a_file_of_ones_own_names(options, tmp_path, table):
    row = "name: attn_z\nmodule: self_attn.o_proj\nread: input\nequal_widths: true\nlayer: 1\n"
    study(composed(*SMOKE, *options("dictionary/hookpoint", "attn_z", row)), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "dictionary" / "config.json").read_text())
    assert [stream[:3] for stream in saved["streams"]] == [["base", "attn_z", 1], ["tuned", "attn_z", 1]]
    assert curves(tmp_path / "run")["l0"][-1] > 0
