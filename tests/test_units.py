"""Directions of adapters as units: their examples, and how well they tell, beside latents and neurons."""

import pytest
import torch

from test_adapters import pair_of, save_adapter
from test_evaluations import toy_text
from tunediff.dictionary import Polarities
from tunediff.evaluations import PolarityExamples, Trained
from tunediff.hookpoints import adapters_of
from tunediff.shapes import Finding, Note, Refused, Rows, Stream, Table

WORD = " gives"  # what the planted adapters read


@pytest.fixture(scope="module")
def planted(folders, tmp_path_factory):
    """A pair whose adapters are silent, but for 0.q_proj, which is large on a word, and 0.k_proj, which is minus that: both
    read the normalised embedding, which is the token's alone."""
    pair = pair_of(folders, save_adapter(tmp_path_factory.mktemp("adapter"), folders["base"])).load()
    every = {str(parts.adapter): parts for parts in adapters_of(pair.models["tuned"])}
    model = pair.models["tuned"].base_model
    embedded = model.embed_tokens.weight.detach()
    reads = torch.nn.functional.normalize(embedded[word_of(pair)] - embedded.mean(0), dim=0)
    for parts in every.values():
        parts.down.weight.data.zero_()
    every["0.q_proj"].down.weight.data.copy_(reads)
    every["0.k_proj"].down.weight.data.copy_(-reads)
    return pair


def word_of(pair):
    (word,) = pair.tokenizers[0].encode(WORD, add_special_tokens=False)
    return word


def measured(evaluation, pair, dictionary=None, tokens=2000):
    found = list(evaluation.run(Trained(pair, toy_text(), dictionary, tokens)))
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    return {f.name: f for f in found if isinstance(f, Finding)}, tables, [n.text for n in found if isinstance(n, Note)]


def rows_of(columns, **wanted):
    """Rows of a table as dictionaries, those in which all of `wanted` is so."""
    every = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row for row in every if all(row[name] == value for name, value in wanted.items())]


# -- polarities ------------------------------------------------------------------------------------------------------


def test_polarities_are_the_positive_parts_of_coordinates_and_of_their_opposites_and_restore_them():
    streams = [Stream("tuned", "mlp_neurons", 0, 3), Stream("tuned", "mlp_neurons", 1, 2)]
    rows = Rows(torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0], [0.0, 2.0, -3.0, 0.0, 1.0]]))
    every = Polarities(streams)
    assert every.latents == 10 and (every.encode(rows) >= 0).all()
    assert torch.equal(every.decode(every.encode(rows)), rows.values)
    some = Polarities(streams, columns=torch.tensor([3, 1]), norms=torch.tensor([2.0, 0.5]))
    assert some.encode(rows).tolist() == [[0, 4, 0, 2], [0, 0, 2, 0]]
    assert some.decode(some.encode(rows)).tolist() == [[0, -2, 0, -4, 0], [0, 2, 0, 0, 0]]
    assert some.code_norms().tolist() == [2, 2, 0.5, 0.5]
    assert some.normalisation.admits(1e6 * rows.values).all()


# -- examples of adapters ----------------------------------------------------------------------------------------------


def test_a_direction_that_reads_a_word_has_it_as_its_strongest_examples_under_its_own_sign(planted):
    _, tables, _ = measured(PolarityExamples(strongest=6, quantiles=0, random=0), planted)
    (reads,) = rows_of(tables["adapter_units"], adapter="0.q_proj", polarity="+")
    (opposite,) = rows_of(tables["adapter_units"], adapter="0.k_proj", polarity="-")
    assert (reads["direction"], opposite["direction"]) == (0, 0)
    for unit in (reads, opposite):
        examples = rows_of(tables["adapter_examples"], unit=unit["unit"])
        assert len(examples) == 6 and [e["rank"] for e in examples] == list(range(6))
        assert {e["tokens"][e["position"]] for e in examples} == {WORD}
        assert examples[0]["activation"] == pytest.approx(unit["max_activation"])
    for adapter, polarity in (("0.q_proj", "-"), ("0.k_proj", "+")):
        (other,) = rows_of(tables["adapter_units"], adapter=adapter, polarity=polarity)
        examples = rows_of(tables["adapter_examples"], unit=other["unit"])
        assert examples and WORD not in {e["tokens"][e["position"]] for e in examples}
        assert other["firing_rate"] == pytest.approx(1 - reads["firing_rate"])


def test_units_of_a_silent_adapter_are_there_with_zeros_and_without_examples(planted):
    findings, tables, _ = measured(PolarityExamples(strongest=2, quantiles=0, random=0), planted)
    units = tables["adapter_units"]
    silent = rows_of(units, firing_rate=0.0)
    assert {row["adapter"] for row in silent} == set(units["adapter"]) - {"0.q_proj", "0.k_proj"}
    assert all(row["max_activation"] == row["mean_activation"] == 0 for row in silent)
    assert not {row["unit"] for row in silent} & set(tables["adapter_examples"]["unit"])
    assert findings["polarity_examples/units"].value == 2 * 21 and findings["polarity_examples/silent"].value == 2 * 19


def test_a_units_scaled_activation_is_what_its_direction_adds_to_its_module(folders, tmp_path):
    pair = pair_of(folders, save_adapter(tmp_path, folders["base"], rank=3, modules=("down_proj",), layers=[1])).load()
    _, tables, _ = measured(PolarityExamples(strongest=1, quantiles=0, random=0), pair, tokens=500)
    units, (parts,) = tables["adapter_units"], adapters_of(pair.models["tuned"])
    assert units["adapter"] == ["1.down_proj"] * 6 and units["polarity"] == ["+", "-"] * 3
    assert units["direction"] == [0, 0, 1, 1, 2, 2]
    for row in rows_of(tables["adapter_examples"]):
        alone = torch.zeros(3)
        alone[units["direction"][row["unit"]]] = row["activation"]
        assert row["scaled_activation"] == pytest.approx(float(parts.contribution(alone).norm()), rel=1e-4)


def test_a_pair_without_adapters_is_refused_with_the_way_out(pair):
    with pytest.raises(Refused, match="has no adapters to read; choose model_pair=toy_lora"):
        measured(PolarityExamples(), pair)
