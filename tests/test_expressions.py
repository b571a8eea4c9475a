"""Which latents an expression chooses: on made-up columns, on a dictionary whose columns were planted, on a command line."""

import functools
import re
import types

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf

from test_settings import CONF, STREAMS, composed
from tunediff.dictionary import L1, Crosscoder, Normalisation, TopK, TranscoderAdapter
from tunediff.evaluations import Autointerp, Examples, LatentCache, LatentClasses, Telling, Trained
from tunediff.evaluations.latents.columns import chosen_by_expression
from tunediff.evaluations.latents.expressions import Expression
from tunediff.evaluations.latents.selection import choose, chosen_latents
from tunediff.settings import check, check_command_line
from tunediff.shapes import Refused, Stream
from tunediff.study.parts import STUDY, evaluations_of
from tunediff.text import Text
from tunediff.toy import language

NAN = float("nan")
COLUMNS = {
    ("x",): [0.05, 0.2, 0.3, 0.05, 0.5, NAN],
    ("y",): [1, 2, 2, 9, 3, 8],
    ("number",): [0, 1, 2, 3, 4, 5],
    ("table", "x"): [1, 0, 0, 1, 1, 0],
    ("table", "a b"): [0, 0, 1, 0, 0, 0],
}
ALIVE = torch.tensor([True, True, True, False, True, True])


def chosen(text):
    return Expression(text, ("x", "y", "number")).chosen(
        lambda path: torch.tensor(COLUMNS[path], dtype=torch.float64), ALIVE
    )


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("x < .1", [0]),
        (".1 < x <= .3", [1, 2]),
        ("x < .1 or y >= 3", [0, 4, 5]),
        ("not (x < .1)", [1, 2, 4, 5]),  # what is missing meets no comparison
        ("not x < .1 and x != .2 and y == 2", [2]),
        ("top(2, y)", [5, 4]),
        ("top(3, y)", [5, 4, 1]),  # a tie goes to the lower number
        ("bottom(2, y)", [0, 1]),
        ("top(9, x)", [4, 2, 1, 0]),
        ("top(3, y) and x < .4", [1]),  # among all, not among what the rest leaves
        ("x < .4 and top(3, x)", [2, 1]),
        ("top(2, x) or top(2, y)", [4, 2, 5]),  # in the order of the first, then by number
        ("10 * x - y > 0", [2, 4]),
        ("abs(y - 2) < .5", [1, 2]),
        ("-x < -.2", [2, 4]),
        ("y / x > 9", [0, 1]),
        ("y / (x - x) > 1", [0, 1, 2, 4]),
        ("table.x == 1 or table['a b'] == 1", [0, 2, 4]),
        (" number > 3 ", [4, 5]),
    ],
)
def test_an_expression_chooses_the_living_latents_that_it_says_in_its_order(text, numbers):
    assert chosen(text) == numbers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x < ", "cannot be read: invalid syntax"),
        ("xx < 1", "no column 'xx'. Did you mean x"),
        ("humidity < 1", "There are number, x, y"),
        ("x", "compare it, or take top\\(20, x\\)"),
        ("7", "chooses nothing"),
        ("[3, 17]", "without quotes"),
        ("(x < 1) + 1 > 0", "has no value to compare"),
        ("top(x < 1, y)", "takes a number above 0 and a column"),
        ("top(0, y)", "takes a number above 0"),
        ("top(3, x > 1)", "at 'x > 1': that chooses latents"),
        ("x < 1 & y > 2", "an expression may have comparisons, and, or, not"),
        ("x ** 2 < 1", "an expression may have"),
        ("x in (1, 2)", "an expression may have"),
        ("x < 1 and 'a'", "an expression may have"),
        ("x < True", "an expression may have"),
        ("__import__('os').system('true')", "an expression may have"),
        ("exp(x) > 1", r"no function exp\(\)"),
        ("(x + 1).real > 1", "a column is a name"),
        ("x if y > 1 else y", "an expression may have"),
    ],
)
def test_what_is_no_expression_is_refused_before_any_column_is_read(text, said):
    with pytest.raises(Refused, match=said):
        Expression(text, ("x", "y", "number"))


def test_an_expression_that_chooses_nothing_says_what_each_part_left():
    with pytest.raises(Refused, match=r"none of 5 latents that fire .* they meet x < .1: 1; y > 2: 2\."):
        chosen("x < .1 and y > 2")
    with pytest.raises(Refused, match=r"none of 5 latents that fire on held-out text\.$"):
        chosen("number == 3")  # it is dead


# -- columns ---------------------------------------------------------------------------------------------------------

LATENTS = 6
RELATIVE = [0.9, 0.5, 0.1, 0.2, 0.75, 0.4]


class Planted(Trained):
    """Latent 0 fires at a label, 4 everywhere else; 1 always, by how far the document has come; 2 every other token; 3 is
    dead; 5 fires at another label."""

    def readings(self, title):
        for reading in super().readings(title):
            batch = reading.batch
            here, other = (batch.labels[name] for name in ("hesitation_follows", "step_end"))
            columns = [3.0 * here, 1.0 + batch.position, batch.position % 2, 0 * batch.position, 1 - 1.0 * here, other]
            yield reading._replace(latents=torch.stack([column.float() for column in columns], dim=-1))


@pytest.fixture
def trained(pair, tmp_path):
    made = Crosscoder(
        pair.streams("resid_post", 1),
        latents=LATENTS,
        sparsity=L1(coefficient=0.0),
        normalisation=functools.partial(Normalisation, kind="none"),
    )
    with torch.no_grad():
        base, tuned = made.W_dec.split(made.widths, dim=-1)
        tuned *= (torch.tensor(RELATIVE) / tuned.norm(dim=-1))[:, None]
        base *= ((1 - torch.tensor(RELATIVE)) / base.norm(dim=-1))[:, None]
        base[[0, 3, 4, 5]] = base[[0, 3, 4, 5]].roll(1, dims=-1)
        base[1], base[2] = tuned[1], -9 * tuned[2]
    text = Text(lambda: language.rows(0, "trace"), held_out=0.1, context=256, window=16)
    (tmp_path / "tables").mkdir()
    return Planted(pair, text, 2000, folder=tmp_path, dictionary=made)


def written(trained, name, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), trained.folder / "tables" / f"{name}.parquet")


PLANTED = {
    "relative_norm > .7": [0, 4],
    "bottom(3, relative_norm)": [2, 5, 1],  # 3 is dead
    "cosine > .99": [1],
    "cosine < -.99": [2],
    "auroc.hesitation_follows > .99": [0],
    "auroc.hesitation_follows < .01": [4],
    "auroc.step_end == 1": [5],
    "top(1, auroc.hesitation_follows) and rate < .1": [0],
    "rate == 1": [1],
    ".4 < rate < .6": [2],
    "maximum == 3": [0],
    "top(1, mean)": [1],
    "layer == 1 and number >= 4": [4, 5],
    "norm > .99 and norm < 1.01": [0, 1, 2, 4, 5],
}


def test_a_column_has_the_values_that_were_planted(trained):
    seen = trained.statistics
    assert {text: chosen_by_expression(trained, text, seen) for text in PLANTED} == PLANTED


def test_an_expression_chooses_by_a_label_what_telling_chooses(trained):
    seen = trained.statistics
    assert chosen_by_expression(trained, "top(4, auroc.step_end)") == Telling("step_end", 4, None).choose(trained, seen)


def test_tables_of_the_run_are_columns_too(trained):
    influence = {"latent": [5, 0], "layer": [1, 1], "influence": [0.25, 0.5], "graphs": [1, 1]}
    with pytest.raises(Refused, match="needs the table graph_influence .* evaluation=attribution_graphs writes it"):
        chosen_by_expression(trained, "top(2, influence)")
    written(trained, "graph_influence", **influence)
    written(trained, "latent_scaling", latent=[0, 1, 2], nu_error=[0.1, None, 0.3])
    written(trained, "segments", latent=[0, 1], **{"rate/thinking": [0.2, 0.4], "word": ["a", "b"]})
    written(trained, "examples", latent=[0, 0], rank=[0, 1])
    written(trained, "layers", layer=[0])
    assert chosen_by_expression(trained, "top(3, influence)") == [0, 5, 1]  # the third has none
    assert chosen_by_expression(trained, "influence == 0") == [1, 2, 4]
    assert chosen_by_expression(trained, "graph_influence.influence < .4") == [5]
    assert chosen_by_expression(trained, "latent_scaling.nu_error < .2") == [0]
    assert chosen_by_expression(trained, "segments.rate.thinking > .3") == [1]
    assert chosen_by_expression(trained, "segments['rate/thinking'] > .3") == [1]
    for text, said in (
        ("latent_scalin.rate > 1", "no table 'latent_scalin' with a column `latent`. Did you mean latent_scaling"),
        ("latents.nu_error > 1", r"The column is latent_scaling.nu_error\."),
        ("layers.layer > 1", "no table 'layers' with a column `latent`"),
        ("latent_scaling.nu_eror > 1", "latent_scaling has no such column. Did you mean nu_error"),
        ("examples.rank > 1", "several rows for one latent"),
        ("segments.word > 1", "holds no numbers"),
        ("auroc.hesitatoin > .9", "has no such label, only .* .*hesitation_follows"),
    ):
        with pytest.raises(Refused, match=said):
            chosen_by_expression(trained, text)


def test_a_column_that_a_dictionary_cannot_have_is_refused():
    adapter = TranscoderAdapter([Stream("adapter", "mlp_in", n, 32) for n in range(3)], latents=2, sparsity=TopK(1))
    seen = types.SimpleNamespace(alive=torch.ones(6, dtype=torch.bool))
    alone = types.SimpleNamespace(dictionary=adapter, roles=["adapter"], folder=None, held_out=[])
    assert chosen_by_expression(alone, "layer >= 2", seen) == [4, 5]
    with pytest.raises(Refused, match="relative_norm compares two models, and this dictionary reads adapter only"):
        chosen_by_expression(alone, "relative_norm > .5", seen)
    streams = [stream._replace(layer=layer) for layer in (0, 1) for stream in STREAMS]
    layers = types.SimpleNamespace(dictionary=types.SimpleNamespace(streams=streams))
    with pytest.raises(Refused, match="each latent of this dictionary reads all of its layers, 0, 1"):
        chosen_by_expression(layers, "layer == 0", seen)


# -- wherever latents are taken --------------------------------------------------------------------------------------


def test_looks_and_edits_take_the_same_expression(trained):
    text = "top(2, relative_norm) and rate < .1"
    assert choose(trained, trained.statistics, text, None) == [0]
    assert chosen_latents(trained, text, setting="evaluation.latent_cache.latents") == [0]
    (table,) = Examples(strongest=2, latents=text).run(trained)
    assert set(table.columns["latent"]) == {0} and max(table.columns["activation"]) == 3
    (table,) = Examples(strongest=1, latents=2).run(trained)  # how many
    assert set(table.columns["latent"]) == {0, 2}
    with pytest.raises(Refused, match=r"evaluation.examples.latents names \[6\]"):
        list(Examples(latents=[6]).run(trained))


TAKE_LATENTS = (
    "ablation",
    "scaling",
    "patching",
    "steering_sweep",
    "examples",
    "latent_cache",
    "autointerp",
    "latent_classes",
)


def taken(evaluation, trained):
    """The latents that an evaluation takes, as it says them, shows them or asks about them."""
    if isinstance(evaluation, Autointerp):
        return set(evaluation._subjects(trained))
    if isinstance(evaluation, LatentClasses):
        return set(evaluation._chosen(trained))
    first = next(iter(evaluation.run(trained)))
    if isinstance(evaluation, Examples):
        return set(first.columns["latent"])
    if isinstance(evaluation, LatentCache):
        files = (trained.folder / "latent_cache" / "dictionary").glob("*.safetensors")
        starts = ((int(path.stem.partition("_")[0]), safetensors.torch.load_file(path)) for path in files)
        return {start + latent for start, file in starts for latent in file["locations"][:, 2].tolist()}
    return set(map(int, re.search(r"latents ([\d, ]+)\d*", first.text)[1].strip(", ").split(", ")))


@pytest.mark.parametrize("name", TAKE_LATENTS)
def test_so_many_latents_are_the_same_wherever_latents_are_taken(trained, name):
    """Those furthest from a relative norm of 0.5 that are alive, whichever model they belong to and which is written."""
    given = [f"evaluation={name}", f"evaluation.{name}.latents=3"]
    given += [f"evaluation.{name}.draws=0"] if name in ("ablation", "scaling", "patching") else []
    given += ["evaluation.autointerp.judge.model=m"] if name == "autointerp" else []
    evaluation = evaluations_of(composed(*given).evaluation, learns=True)[name]
    assert taken(evaluation, trained) == {0, 2, 4}


def test_the_latents_most_one_models_own_are_an_expression(trained):
    assert chosen_by_expression(trained, "top(3, relative_norm)") == [0, 4, 1]  # the tuned model's
    assert chosen_by_expression(trained, "bottom(3, relative_norm)") == [2, 5, 1]  # the base's


def test_every_option_with_latents_is_one_of_those_that_are_compared():
    nodes = {name: node for path in CONF.glob("evaluation/*.yaml") for name, node in OmegaConf.load(path).items()}
    having = {name for name, node in nodes.items() if name != "defaults" and node and "latents" in node}
    assert having == {*TAKE_LATENTS, "latent_sets", "positions"}  # of a transcoder adapter, and of one that draws them


def test_a_command_line_takes_an_expression_in_quotes():
    def line(text):
        given = [f"evaluation.{name}.latents='{text}'" for name in TAKE_LATENTS]
        return [f"evaluation=[{','.join(TAKE_LATENTS)}]", *given, "evaluation.autointerp.judge.model=m"]

    text = "top(20, auroc.hesitation) and not (rate > .1 or latents.nu_error >= 1)"
    check_command_line(line(text), CONF, "train")
    cfg = composed(*line(text))
    check(cfg, STUDY)
    built = evaluations_of(cfg.evaluation, learns=True)
    assert {name: built[name].latents for name in TAKE_LATENTS} == dict.fromkeys(TAKE_LATENTS, text)
    for name in TAKE_LATENTS:
        cfg.evaluation[name].latents = "top(20, relativ_norm)"
        with pytest.raises(Refused, match="no column 'relativ_norm'. Did you mean relative_norm"):
            evaluations_of(cfg.evaluation, learns=True)  # before anything is trained
        cfg.evaluation[name].latents = [3, 17]
    check(cfg, STUDY)
