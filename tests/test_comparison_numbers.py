"""What is said of layers, heads, tokenizers, units, replaced MLPs, graphs and passages, against truths that are planted in
the sums, the scores and the rows that they are made of."""

import copy
import types
from collections import Counter

import pytest
import torch

from test_evaluations import toy_text
from test_pair_evaluations import measured as measured_pair
from test_replacement import measured as replaced
from test_replacement import random
from test_sinks_and_patching import evaluated, rows_of, text_of
from tunediff.dictionary import L1, TranscoderAdapter
from tunediff.evaluations import (
    AttentionSinks,
    AttributionGraphs,
    Examples,
    Given,
    Judge,
    LayerDivergence,
    Tokenizers,
    Trained,
    UnitComparison,
)
from tunediff.evaluations.judging.autointerp import windows_of
from tunediff.evaluations.judging.examination import RANDOM, STRONGEST, Window, firing_places, passages, silent_places
from tunediff.evaluations.lora.units import HeldOut, Kind, Unit
from tunediff.evaluations.pair import layer_divergence
from tunediff.evaluations.pair.attention_sinks import GROUPS, PREFIX, Sums
from tunediff.evaluations.pair.attention_sinks import measured as measures_of
from tunediff.evaluations.pair.tokenizers import _pieces, losses
from tunediff.evaluations.reading.label_alignment import later
from tunediff.evaluations.transcoders.latent_sets import _around
from tunediff.measures.clustered import Estimate
from tunediff.measures.separation import DenseScores
from tunediff.shapes import ADAPTER, BASE, HYBRID, ROLES, TUNED, Finding, Note, Table
from tunediff.text import encode

# -- layers ----------------------------------------------------------------------------------------------------------


def test_the_layer_that_is_named_is_the_one_of_the_largest_distance_and_has_its_own_ends(pair):
    pair.models[TUNED] = copy.deepcopy(pair.models[BASE])
    with torch.no_grad():
        pair.models[TUNED].model.layers[1].mlp.down_proj.weight.mul_(3.0)
    findings, tables, _ = measured_pair(LayerDivergence(), pair)
    table = tables["layers"]
    for name, word, choose in (("l2", "largest", max), ("cosine", "smallest", min)):
        at = table[name].index(choose(table[name]))
        assert at > 0
        found = findings[f"layer_divergence/{name}/{word}"]
        assert found[1:4] == pytest.approx((table[name][at], table[f"{name}_low"][at], table[f"{name}_high"][at]))
        assert table[f"{name}_low"][at] != pytest.approx(table[f"{name}_low"][0])
        assert findings[f"layer_divergence/{name}/{word}_layer"].value == table["layer"][at]
    assert [findings[f"layer_divergence/l2/{n}"].column for n in ("largest", "largest_layer")] == [
        "largest distance", "at layer",
    ]  # fmt: skip
    (norms,) = [figure for figure in layer_divergence.figures(table) if figure.name.endswith("norms")]
    drawn = norms.columns
    for n, (model, layer, norm) in enumerate(zip(drawn["model"], drawn["layer"], drawn["norm"], strict=True)):
        row = table["layer"].index(layer)
        assert norm == table[f"norm_{model}"][row] and drawn["norm_high"][n] == table[f"norm_{model}_high"][row]


# -- heads -----------------------------------------------------------------------------------------------------------


def test_the_head_is_chosen_on_documents_of_even_index_and_measured_on_the_others():
    documents, layers, heads = 8, 2, 3
    attention = torch.zeros(documents, layers, heads, len(GROUPS) + 2, dtype=torch.float64)
    even = torch.arange(documents) % 2 == 0
    attention[even, 0, 2, PREFIX], attention[~even, 0, 2, PREFIX] = 8.0, 3.0  # of ten queries each
    attention[~even, 1, 0, PREFIX] = 9.0
    attention[..., 1] = 9.5  # another group
    queries = torch.full((documents,), 10.0).double()
    sums = Sums(attention, torch.ones(documents, len(GROUPS)), queries, queries, torch.arange(documents))
    found = {f.name.rpartition("/")[2]: f.value for f in AttentionSinks()._largest_head(BASE, sums)}
    assert found == pytest.approx({"layer": 0, "head": 2, "mass": 0.3})


def test_what_is_said_of_the_prefix_is_the_mean_of_its_heads_and_its_difference_the_tuned_models_less_the_bases(pair):
    findings, tables, _ = evaluated(AttentionSinks(), pair, text=text_of(rows=90))
    mass = {}
    for role in ROLES:
        for layer in range(3):
            heads = [row["mass"] for row in rows_of(tables["attention_sinks"], model=role, layer=layer, group="prefix")]
            found = findings[f"attention_sinks/mass/{role}/prefix/{layer}"]
            assert found.value == pytest.approx(sum(heads) / 4) and found.low < found.value < found.high
            mass[role, layer] = found.value
        whole = findings[f"attention_sinks/mass/{role}/prefix"].value
        assert whole == pytest.approx(sum(mass[role, layer] for layer in range(3)) / 3)
        assert len({mass[role, layer] for layer in range(3)}) == 3
    apart = findings["attention_sinks/difference/prefix"].value
    wholes = [findings[f"attention_sinks/mass/{role}/prefix"].value for role in (TUNED, BASE)]
    assert apart == pytest.approx(wholes[0] - wholes[1]) and apart != 0


def test_an_excess_is_over_the_queries_that_have_a_window_at_their_distance():
    attention = torch.zeros(3, 1, 1, len(GROUPS) + 2, dtype=torch.float64)
    attention[..., -2], attention[..., -1] = (
        2.0,
        0.5,
    )  # shares of the prefix and of windows, summed over matched queries
    counts = (torch.full((3,), n).double() for n in (20.0, 5.0))
    found = measures_of(Sums(attention, torch.ones(3, len(GROUPS)), *counts, torch.arange(3)))
    assert found["excess"].value[0, 0, PREFIX] == pytest.approx(1.5 / 5) and found["times"].value[0, 0, PREFIX] == 4


def test_relative_attention_is_over_what_uniform_attention_would_give():
    attention = torch.zeros(3, 1, 2, len(GROUPS) + 2, dtype=torch.float64)
    attention[:, 0, :, PREFIX] = torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 9.0]])
    uniform = torch.full((3, len(GROUPS)), 2.0, dtype=torch.float64)
    counts = torch.full((3,), 10.0, dtype=torch.float64)
    found = measures_of(Sums(attention, uniform, counts, counts, torch.arange(3)))
    assert found["relative"].value[0, :, PREFIX].tolist() == [6 / 6, 18 / 6]
    assert found["mass"].value[0, :, PREFIX].tolist() == [6 / 30, 18 / 30]


# -- tokenizers ------------------------------------------------------------------------------------------------------


def estimates(base, tuned, noise=0.001):
    """Bits per byte of either model under either tokenizer, which differ by so much, of ten documents."""
    spread = torch.linspace(-noise, noise, 10).double()
    of = {(role, BASE): Estimate(torch.tensor(1.0).double(), 0 * spread) for role in ROLES}
    return of | {
        (role, TUNED): Estimate(torch.tensor(1.0 + by).double(), spread) for role, by in ((BASE, base), (TUNED, tuned))
    }


@pytest.mark.parametrize(
    ("base", "tuned", "noise", "said"),
    [
        (0.3, 0.1, 0.001, "The base tokenizer serves the pair better, by 0.2 bits per byte"),
        (0.1, -0.5, 0.001, "The tuned tokenizer serves the pair better, by 0.2 bits per byte"),
        (0.3, 0.1, 0.5, "these documents cannot tell which"),
        (-0.3, -0.1, 0.5, "these documents cannot tell which"),
    ],
)
def test_a_tokenizer_is_recommended_only_where_the_interval_of_the_pair_leaves_out_zero(base, tuned, noise, said):
    found = list(Tokenizers()._differences(estimates(base, tuned, noise)))
    values = {item.name.rpartition("/")[2]: item.value for item in found if isinstance(item, Finding)}
    assert values == pytest.approx({"base": base, "tuned": tuned, "pair": (base + tuned) / 2})
    (note,) = [item.text for item in found if isinstance(item, Note)]
    assert said in note


def test_each_models_loss_under_the_shared_tokenizer_is_its_own(pair):
    findings, _, _ = measured_pair(Tokenizers(), pair)
    given = Given(pair, toy_text(), 1500)
    (pieces,) = _pieces(given, [pair.tokenizer_of(BASE)])
    tokens = sum(len(piece.ids) - piece.first for piece in pieces)
    values = [findings[f"tokenizers/nats_per_token/{role}/shared"].value for role in ROLES]
    assert values == pytest.approx([float(losses(given, role, pieces, "").sum()) / tokens for role in ROLES])
    assert values[0] != pytest.approx(values[1], rel=1e-4)


# -- units -----------------------------------------------------------------------------------------------------------


def compare(**settings):
    return UnitComparison(judge=Judge(endpoint=None, model=None, examples=10, most_calls=500), shuffles=3, **settings)


def units(count):
    return [Unit("0.q_proj", n, "+") for n in range(count)]


def test_the_best_unit_of_a_label_is_chosen_on_one_half_by_what_counts_there(pair):
    """Unit 0 tells the label on the choosing half, unit 1 on the testing half; both are wrong where nothing counts."""
    batches = [b for b in Given(pair, toy_text(), 6000).held_out if "opening" in b.labels]
    truth, question, goes_on = (
        torch.cat([of(b) for b in batches])
        for of in (lambda b: b.labels["opening"], lambda b: b.question, lambda b: later(b, "opening"))
    )
    generator = torch.Generator().manual_seed(0)
    admitted = torch.rand(len(truth), generator=generator) < 0.7
    counts, half = admitted & ~goes_on, question % 2
    right = torch.where(counts, truth, ~truth).float()
    noise = torch.rand(3, len(truth), generator=generator)
    noise[0] = torch.where(half == 0, right, noise[0])
    noise[1] = torch.where(half == 1, right, noise[1])
    only = [b._replace(labels={"opening": b.labels["opening"]}) for b in batches]
    kind = Kind(
        "adapters", "made-up units", None, range(3), units(3), DenseScores(noise), torch.ones(3, dtype=torch.bool)
    )
    found = list(compare(draws=2)._labels([kind], HeldOut(only, admitted)))
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    (row,) = rows_of(tables["unit_labels"])
    assert row["number"] == 0 and row["auroc"] < 0.8
    here = counts & (half == 1)
    assert row["share"] == pytest.approx(float(truth[here].double().mean()))
    assert row["share"] != pytest.approx(float(truth.double().mean()), rel=0.05)
    own = tables["unit_comparison"]
    assert own["auroc_select"][0] == 1.0 and own["auroc"][1] > 0.99 and own["auroc"][0] == pytest.approx(row["auroc"])


def test_units_are_tested_on_the_label_that_they_told_best_before_and_the_dead_are_in_no_mean():
    chosen = torch.tensor([[0.9, 0.6, 0.5, 0.7], [0.5, 0.8, 0.5, 0.6]])
    tested = torch.tensor([[0.2, 0.95, 0.5, 0.75], [0.97, 0.4, 0.5, 0.96]])
    alive = torch.tensor([True, True, False, True])
    kind = Kind("few", "units", None, range(4), units(4), None, alive)
    found = list(compare(draws=50)._own_labels([(kind, chosen, tested)], ["a", "b"]))
    (table,) = [item for item in found if isinstance(item, Table)]
    assert table.columns["label"] == ["a", "b", "a", "a"]
    assert table.columns["auroc"] == pytest.approx([0.2, 0.4, 0.5, 0.75])
    values = {item.name.rpartition("/")[2]: item.value for item in found if isinstance(item, Finding)}
    assert values["auroc"] == pytest.approx((0.2 + 0.4 + 0.75) / 3) and values["telling"] == 0
    (equal,) = compare(draws=50)._equal_numbers([(kind, chosen, tested)])
    assert equal.value == pytest.approx((0.2 + 0.4) / 2)  # the best of all three that live, label by label


def test_ends_of_equal_numbers_hold_95_of_100_draws():
    def kind(name, count):
        return Kind(name, name, None, range(count), [], None, torch.ones(count, dtype=torch.bool))

    many = torch.where(torch.arange(100) < 1, 1.0, 0.5)[None]
    by_kind = [(kind("few", 10), many[:, :10], many[:, :10]), (kind("many", 100), many, many)]
    found = {f.name: f for f in compare(draws=2000)._equal_numbers(by_kind)}
    # the one that tells is among ten that are drawn in one draw of ten: more often than in 2.5 %, less than in 25 %
    assert found["unit_comparison/many/equal_numbers"][2:4] == (0.5, 1.0)
    assert found["unit_comparison/few/equal_numbers"][2:4] == (None, None)  # every draw is all ten


# -- replaced MLPs and sets ------------------------------------------------------------------------------------------


def test_the_error_of_the_residual_stream_is_the_mean_of_its_points_and_norms_are_of_latents_that_fire(pair):
    adapter = random(pair)
    for one in adapter.layers:
        one.W_dec[:3] *= 100  # of latents that never fire
    trained, findings, tables, _ = replaced(pair, adapter)
    for who in (ADAPTER, HYBRID):
        points = tables["residual_nmse"][who]
        found = findings[f"replacement/nmse/{who}"]
        assert found.value == pytest.approx(sum(points) / len(points)) and points[-1] != pytest.approx(found.value)
    alive, norms = (t.view(3, -1) for t in (trained.statistics.alive, adapter.code_norms()))
    assert not alive[:, :3].any()
    assert tables["adapter_layers"]["decoder_norm"] == pytest.approx(
        [float(of[fires].median()) for of, fires in zip(norms, alive, strict=True)]
    )
    dead = [1 - float(fires.double().mean()) for fires in alive]
    assert tables["adapter_layers"]["dead_fraction"] == pytest.approx(dead) and max(dead) < 0.5
    assert findings["replacement/dead_fraction"].value == pytest.approx(sum(dead) / 3)
    active = trained.statistics.active["all"].view(3, -1).sum(1) / trained.statistics.tokens["all"]
    assert tables["adapter_layers"]["l0"] == pytest.approx(active.tolist())


def test_a_bar_of_a_set_has_the_interval_of_its_change_around_its_own_value():
    row = {f"{name}{end}": None for name in ("hesitating", "length", "accuracy") for end in ("", "_change")}
    row |= {"hesitation_rate": 5.0, "hesitation_rate_change": -3.0}
    row |= {"hesitation_rate_change_low": -4.0, "hesitation_rate_change_high": -1.5}
    found = _around(row)
    assert [found[f"hesitation_rate{end}"] for end in ("", "_low", "_high")] == [5.0, 4.0, 6.5]
    assert found["accuracy_low"] is None


# -- graphs ----------------------------------------------------------------------------------------------------------


def test_latents_that_carry_are_the_fewest_with_four_fifths_of_the_influence_and_their_share_is_of_the_living():
    rows = [{"completeness_error": 0.01, "probability": 0.5}, {"completeness_error": 0.03, "probability": 0.7}]
    alive = torch.arange(20) < 6
    trained = types.SimpleNamespace(
        statistics=types.SimpleNamespace(alive=alive), dictionary=types.SimpleNamespace(latents=20)
    )
    influence = torch.zeros(20)
    influence[[3, 1, 5, 2]] = torch.tensor([0.5, 0.25, 0.15, 0.1])
    found = {f.name.partition("/")[2]: f.value for f in AttributionGraphs()._findings(trained, rows, influence)}
    assert found == pytest.approx(
        {"completeness_error": 0.02, "target_probability": 0.6, "carrying": 3, "carrying_share": 3 / 6}
    )


def with_writing_latents(pair):
    adapter = TranscoderAdapter(pair.streams("mlp_in", "all", reads=ADAPTER), latents=16, sparsity=L1(0.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in adapter.layers:
            one.W_dec.copy_(torch.randn(one.W_dec.shape, generator=generator) / 4)
    pair.stand_beside(adapter.eval())
    return Trained(pair, text_of(rows=150), 4000, 1024, dictionary=adapter)


def test_a_graph_says_how_probable_its_token_is_and_how_many_latents_are_active_also_beyond_its_nodes(pair):
    text, trained = "Anna has 12 eggs. Wait", with_writing_latents(pair)
    few, whole = (
        next(t.columns for t in AttributionGraphs(prompts=[text], drawn=0, most_latents=most).run(trained))
        for most in (5, 10_000)
    )
    ids = torch.tensor([encode(pair.tokenizers[0], text)["input_ids"]])
    with torch.no_grad():
        said = pair.models[ADAPTER](ids[:, :-1]).logits[0, -1].softmax(-1)
    assert few["probability"][0] == pytest.approx(float(said[ids[0, -1]]), rel=1e-3)
    assert float(said.max()) > 1.02 * float(said[ids[0, -1]])
    assert few["active"] == whole["active"] and few["active"][0] > 20 and few["nodes"][0] < whole["nodes"][0]


def test_prompts_end_at_the_first_place_of_every_document_before_any_ends_at_a_second(pair):
    trained = with_writing_latents(pair)
    met, written = Counter(), {}
    for batch in (some for some in trained.held_out if "hesitation" in some.labels):
        first = batch.labels["hesitation"] & ~later(batch, "hesitation") & (batch.position > 0)
        met.update(batch.document[first].tolist())
        for document, sequence in zip(batch.document.tolist(), batch.sequence.tolist(), strict=True):
            written[document] = batch.ids[0][sequence].tolist()
    assert max(met.values()) > 1  # some documents have several

    def document_of(prompt):
        ids = prompt.ids.tolist()
        (found,) = [document for document, whole in written.items() if whole[: len(ids)] == ids]
        return found

    ended = [document_of(prompt) for prompt in AttributionGraphs(count=10_000, context=10_000)._found(trained)]
    assert Counter(ended) == met and len(set(ended[: len(met)])) == len(met)
    fewer = AttributionGraphs(count=len(met), context=10_000)._found(trained)
    assert [document_of(prompt) for prompt in fewer] == ended[: len(met)]


# -- passages --------------------------------------------------------------------------------------------------------


def test_tokens_are_marked_from_three_tenths_of_their_window_and_strengths_are_of_the_strongest_of_all():
    strong = Window(STRONGEST, 0, [" a", " b", " c", " d"], [10.0, 3.5, 2.5, 0.0])
    weak = Window(STRONGEST, 1, [" e", " f"], [0.0, 4.0])
    assert firing_places(strong) == {0, 1} and firing_places(weak) == {1}
    said = passages([strong, weak])
    assert '" a" 10, " b" 4' in said and '" f" 4' in said and '" c"' not in said
    silent = Window(STRONGEST, 0, ["x"] * 9, [1.0, 1.0, *[0.0] * 7])
    chance = types.SimpleNamespace(sample=lambda some, count: some[:count])
    assert silent_places(silent, chance) == {2, 3}


def test_a_random_window_counts_as_silent_only_where_the_latent_is_silent_throughout(pair, monkeypatch):
    def examples(self, trained):
        kinds = [STRONGEST, RANDOM, RANDOM, RANDOM, RANDOM]
        fires = [[2.0, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
        return iter([Table("examples", {
            "latent": [3] * 5, "kind": kinds, "document": [0, 1, 2, 3, 4], "tokens": [["a", "b"]] * 5, "activations": fires,
        })])  # fmt: skip

    monkeypatch.setattr(Examples, "run", examples)
    found = windows_of(None, [3], strongest=4, silent=2)[3]
    assert [(window.kind, window.document) for window in found] == [(STRONGEST, 0), (RANDOM, 2), (RANDOM, 3)]
