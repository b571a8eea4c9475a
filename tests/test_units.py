"""Directions of adapters as units: their examples, and how well they tell, beside latents and neurons."""

import re

import pytest
import torch

from test_evaluations import identity_dictionary, toy_text
from test_lora import pair_of, save_adapter
from tunediff.dictionary import Polarities
from tunediff.evaluations import Given, Judge, PolarityExamples, Trained, UnitComparison
from tunediff.evaluations.judging.unit_classes import verdict_in
from tunediff.evaluations.lora.units import Kind, Unit, kinds_of, matched_neurons
from tunediff.hookpoints import lora_adapters
from tunediff.measures.separation import ActiveScores, DenseScores
from tunediff.shapes import Finding, Note, Refused, Rows, Stream, Table

READ = {"0.q_proj": " user", "0.k_proj": " wants", "neuron": " answer"}  # by whom a word is read


@pytest.fixture(scope="module")
def planted(folders, tmp_path_factory):
    """A pair whose adapters are silent, but for 0.q_proj, which is positive on a word, and 0.k_proj, which is negative on
    another: both read the normalised embedding, which is the token's alone. Neuron 5 of layer 0 is positive on a third,
    and what its MLP reads is the embedding too, since the attention before it writes nothing."""
    pair = pair_of(folders, save_adapter(tmp_path_factory.mktemp("adapter"), folders["base"])).load()
    every = {str(parts.adapter): parts for parts in lora_adapters(pair.models["tuned"])}
    model = pair.models["tuned"].base_model
    embedded = model.embed_tokens.weight.detach()

    def reads(word):
        return torch.nn.functional.normalize(embedded[ids_of(pair, word)[0]] - embedded.mean(0), dim=0)

    for parts in every.values():
        parts.down.weight.data.zero_()
    every["0.q_proj"].down.weight.data.copy_(reads(READ["0.q_proj"]))
    every["0.k_proj"].down.weight.data.copy_(-reads(READ["0.k_proj"]))
    every["0.o_proj"].up.weight.data.zero_()
    every["0.o_proj"].module.base_layer.weight.data.zero_()
    for name in ("gate_proj", "up_proj"):
        every[f"0.{name}"].module.base_layer.weight.data[5] = reads(READ["neuron"])
    return pair


def ids_of(pair, word):
    ids = pair.tokenizers[0].encode(word, add_special_tokens=False)
    assert len(ids) == 1
    return ids


def measured(evaluation, pair, dictionary=None, tokens=2000):
    given = Given(pair, toy_text(), tokens)
    found = list(evaluation.run(given if dictionary is None else given.reading(dictionary)))
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

    def unit(adapter, polarity):
        (row,) = rows_of(tables["adapter_units"], adapter=adapter, polarity=polarity)
        return row, rows_of(tables["adapter_examples"], unit=row["unit"])

    for adapter, sign, other in (("0.q_proj", "+", "-"), ("0.k_proj", "-", "+")):
        row, examples = unit(adapter, sign)
        assert row["direction"] == 0 and [e["rank"] for e in examples] == list(range(6))
        assert {e["tokens"][e["position"]] for e in examples} == {READ[adapter]}
        assert examples[0]["activation"] == pytest.approx(row["max_activation"])
        opposite, others = unit(adapter, other)
        assert others and READ[adapter] not in {e["tokens"][e["position"]] for e in others}
        assert opposite["firing_rate"] == pytest.approx(1 - row["firing_rate"])


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
    units, (parts,) = tables["adapter_units"], lora_adapters(pair.models["tuned"])
    assert units["adapter"] == ["1.down_proj"] * 6 and units["polarity"] == ["+", "-"] * 3
    assert units["direction"] == [0, 0, 1, 1, 2, 2]
    for row in rows_of(tables["adapter_examples"]):
        alone = torch.zeros(3)
        alone[units["direction"][row["unit"]]] = row["activation"]
        added = pytest.approx(float(torch.nn.functional.linear(alone, parts.up.weight * parts.scale).norm()), rel=1e-4)
        assert row["scaled_activation"] == added == units["max_written"][row["unit"]]


def test_a_pair_without_adapters_is_refused_with_the_way_out(pair):
    with pytest.raises(Refused, match="has no adapters to read; choose model_pair=toy_lora"):
        measured(PolarityExamples(), pair)


# -- how well units tell labels ------------------------------------------------------------------------------------------


@pytest.fixture
def worded(monkeypatch):
    """Held-out text whose labels are the planted words."""
    original = Given.held_out.func

    def held_out(self):
        found = []
        for batch in original(self):
            labels = {word.strip(): batch.token == ids_of(self.pair, word)[0] for word in READ.values()}
            found.append(batch._replace(labels=labels, begins=labels))
        return found

    monkeypatch.setattr(Given, "held_out", property(held_out))


def compared(pair, dictionary=None, tokens=12_000, judge=None, **settings):
    settings = {"shuffles": 5, "draws": 5, "judged": 4, **settings}
    return measured(
        UnitComparison(judge=judge or Judge(endpoint=None, model=None, examples=10, most_calls=500), **settings),
        pair,
        dictionary,
        tokens,
    )


def seed_that_draws(pair, unit):
    return next(seed for seed in range(99) if unit in matched_neurons(pair, seed=seed)[2])


def test_what_encodes_a_label_is_found_with_its_module_and_its_sign(planted, worded):
    neuron = Unit("0.mlp_neurons", 5, "+")
    findings, tables, notes = compared(planted, seed=seed_that_draws(planted, neuron))

    def best(kind, word):
        (row,) = rows_of(tables["unit_labels"], kind=kind, label=word)
        finding = findings[f"unit_comparison/{kind}/{word}/auroc"]
        assert (finding.value, finding.low, finding.high) == (row["auroc"], row["low"], row["high"])
        assert str(Unit(row["place"], row["number"], row["polarity"])) in finding.meaning
        return (row["place"], row["number"], row["polarity"]), row

    for found, expected in (
        (best("adapters", "user"), ("0.q_proj", 0, "+")),
        (best("adapters", "wants"), ("0.k_proj", 0, "-")),
        (best("neurons", "answer"), neuron),
    ):
        assert found[0] == expected
        assert found[1]["auroc"] > 0.99 and found[1]["average_precision"] > 0.9
        assert found[1]["null_p95"] > 0.99, "each of these words has its place, which tells it as surely"
    assert best("adapters", "answer")[1]["auroc"] < best("neurons", "answer")[1]["auroc"]
    (row,) = rows_of(tables["unit_comparison"], kind="adapters", place="0.q_proj", polarity="+")
    assert (row["label"], row["alive"]) == ("user", True) and row["auroc"] > 0.99
    assert "trains no dictionary" in notes[0] and not any(
        name.startswith("unit_comparison/latents") for name in findings
    )


def test_units_of_a_silent_adapter_are_counted_at_chance_and_left_out_of_shares(planted, worded):
    findings, tables, _ = compared(planted, above=0.999)
    assert findings["unit_comparison/adapters/units"].value == 42
    assert findings["unit_comparison/adapters/silent"].value == 42 - 4
    silent = rows_of(tables["unit_comparison"], kind="adapters", alive=False)
    assert len(silent) == 38 and {row["auroc"] for row in silent} == {0.5}
    assert findings["unit_comparison/adapters/telling"].value == 2 / 4  # q + and k - of the four that live
    assert "over 4 living units" in findings["unit_comparison/adapters/auroc"].meaning
    assert tables["adapter_units"]["auroc/user"].count(0.5) >= 38


def test_a_pair_whose_adapters_are_all_silent_has_no_numbers_rather_than_wrong_ones(planted, worded):
    kept = {str(p.adapter): p.down.weight.detach().clone() for p in lora_adapters(planted.models["tuned"])}
    for parts in lora_adapters(planted.models["tuned"]):
        parts.down.weight.data.zero_()
    findings, _, notes = compared(planted)
    for parts in lora_adapters(planted.models["tuned"]):
        parts.down.weight.data.copy_(kept[str(parts.adapter)])
    for name in ("telling", "auroc"):
        assert findings[f"unit_comparison/adapters/{name}"].value is None
    assert findings["unit_comparison/adapters/user/auroc"].value == 0.5
    assert "all adapters are silent" in notes[-1]
    assert all(f.value is None or f.value == f.value for f in findings.values())


def test_latents_of_the_studys_dictionary_stand_beside_and_are_found(planted, worded):
    dictionary = identity_dictionary(planted.streams("lora", "all", reads="tuned"))
    findings, tables, notes = compared(planted, dictionary)
    (row,) = rows_of(tables["unit_labels"], kind="latents", label="user")
    assert row["place"] == "tuned.lora" and row["polarity"] == "" and not notes
    # its latents are the coordinates and then their opposites; q_proj is the fourth adapter
    assert row["number"] == 3
    (other,) = rows_of(tables["unit_labels"], kind="adapters", label="user")
    assert row["auroc"] == pytest.approx(other["auroc"], abs=1e-6)
    assert findings["unit_comparison/latents/silent"].value == 38


def test_neurons_are_as_many_as_directions_in_the_same_layers_and_a_seed_draws_them(folders, tmp_path):
    pair = pair_of(
        folders, save_adapter(tmp_path, folders["base"], rank=4, modules=("v_proj", "up_proj"), layers=[0, 2])
    )
    streams, columns, units = matched_neurons(pair, seed=0)
    assert [stream.layer for stream in streams] == [0, 2] and len(columns) == 16 and len(units) == 32
    assert len(set(columns.tolist())) == 16 and (columns < 128).all()
    assert [u.place for u in units] == ["0.mlp_neurons"] * 16 + ["2.mlp_neurons"] * 16
    assert [u.number for u in units[::2]] == (columns % 64).tolist()
    assert matched_neurons(pair, seed=0)[2] == units != matched_neurons(pair, seed=1)[2]


def test_attention_sinks_make_no_unit_alive_and_are_shown_to_no_judge_whatever_kind_it_is_of(planted):
    given = Trained(planted, toy_text(), 400, dictionary=identity_dictionary(planted.streams("resid_post", 1)))
    longest = torch.cat([r.rows.values.unflatten(1, (2, -1)).norm(dim=-1).amax(1) for r in given.readings("")])
    given.dictionary.normalisation.largest_norm.fill_(float(longest.sort().values[1]))
    admitted = [read.admitted for read in given.readings("")]
    assert torch.cat(admitted).sum() == 2
    (*_, neurons, _), held_out = kinds_of(given, seed=0)
    assert torch.equal(held_out.admitted, torch.cat(admitted))
    reads = neurons.reads
    assert reads.statistics.tokens["all"] == 2
    for read, counts in zip(reads.readings(""), admitted, strict=True):
        assert torch.equal(read.admitted, counts) and torch.equal(read.latents.any(1), counts)
    values = torch.cat([read.latents for read in reads.readings("")])[:, list(neurons.numbers)]
    assert neurons.alive.tolist() == (values > 0).any(0).tolist() and 0 < neurons.alive.sum() < len(neurons.units)


def test_at_equal_numbers_the_smallest_kind_is_its_best_and_a_larger_one_is_as_good_as_a_draw_of_it():
    def kind(name, count):
        return Kind(name, name, None, range(count), [], None, torch.ones(count, dtype=torch.bool))

    def reached(count, telling):  # [label, unit]: the first tell, the others are at chance
        return torch.where(torch.arange(count) < telling, 1.0, 0.5)[None]

    few, many = (kind("few", 10), reached(10, 1)), (kind("many", 100), reached(100, 1))
    by_kind = [(one, values, values) for one, values in (few, many)]
    found = {
        f.name: f
        for f in UnitComparison(
            judge=Judge(endpoint=None, model=None, examples=10, most_calls=500), draws=2000
        )._equal_numbers(by_kind)
    }
    assert found["unit_comparison/few/equal_numbers"].value == 1
    # one of a hundred is among ten that are drawn in one draw of ten
    assert found["unit_comparison/many/equal_numbers"].value == pytest.approx(0.1 * 1 + 0.9 * 0.5, abs=0.02)


def test_dense_scores_are_those_that_active_ones_are():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 70, generator=generator).round(decimals=1).relu()
    truth, some = (torch.rand(300, generator=generator) < share for share in (0.2, 0.5))
    dense, active = DenseScores(values.T).of_tokens(some), ActiveScores.of([values], 70).of_tokens(some)
    assert torch.allclose(dense.auroc(truth[some]), active.auroc(truth[some]), atol=1e-6)
    assert torch.equal(dense.column(3), active.column(3))


# -- the judge -------------------------------------------------------------------------------------------------------------


def judging(server, **settings):
    return Judge(**{"endpoint": server.endpoint, "model": "rule", "examples": 6, "most_calls": 500, **settings})


def by_marks(asked):
    """0 for a unit that is strongest at one planted word, no answer that can be read for another, 2 for all else."""
    strongest = set(re.findall(r'"([^"]*)" 10', asked["messages"][1]["content"]))
    if strongest == {READ["0.k_proj"]}:
        return "I cannot say. Class: 3"
    return f"Reason: {sorted(strongest)[0].strip()}\nClass: {0 if strongest == {READ['0.q_proj']} else 2}"


def test_classes_come_from_the_judge_and_a_garbled_answer_is_no_class(server, planted, worded):
    server.rule = by_marks
    findings, tables, _ = compared(planted, tokens=1500, judge=judging(server))
    where = "unit_comparison/adapters/judged"
    verdicts = {(row["place"], row["polarity"]): row for row in rows_of(tables["unit_classes"], kind="adapters")}
    assert len(verdicts) == 4 and len(server.asked) == 8
    assert (verdicts["0.q_proj", "+"]["class"], verdicts["0.q_proj", "+"]["reason"]) == (0, "user")
    assert verdicts["0.q_proj", "-"]["class"] == verdicts["0.k_proj", "+"]["class"] == 2
    assert verdicts["0.k_proj", "-"]["class"] is None and verdicts["0.k_proj", "-"]["reason"] is None
    assert findings[f"{where}/unreadable"].value == 1
    shares = [findings[f"{where}/{name}"] for name in ("monosemantic", "broad", "polysemantic")]
    assert [share.value for share in shares] == [1 / 3, 0, 2 / 3]
    assert all(0 <= share.low <= share.value <= share.high <= 1 for share in shares)
    assert findings[f"{where}/mean_class"].value == pytest.approx(4 / 3)
    assert "of 3 adapter directions" in shares[0].meaning and "rule" in shares[0].meaning


def test_the_judge_is_not_told_what_kind_a_unit_is_of(server, planted, worded):
    server.rule = lambda asked: "Reason: none\nClass: 2"
    compared(planted, tokens=1500, judge=judging(server))
    for _, _, asked in server.asked:
        text = " ".join(message["content"] for message in asked["messages"])
        assert not re.search(r"adapter|neuron|latent|proj|lora", text, re.IGNORECASE)


def test_without_an_endpoint_nobody_is_asked(server, planted, worded):
    findings, tables, _ = compared(planted, tokens=1500)
    assert not server.asked and "unit_classes" not in tables and not any("judged" in name for name in findings)


def test_an_endpoint_that_fails_leaves_what_was_measured_before(server, planted, worded):
    answers = ["Reason: a\nClass: 1"]
    server.rule = lambda asked: answers.pop() if answers else (400, {"error": "no more"})
    findings, tables, notes = compared(planted, tokens=1500, judge=judging(server, at_once=1))
    assert len(tables["unit_classes"]["class"]) == 1 and "stopped with 1 of 8 units judged" in notes[-1]
    assert findings["unit_comparison/neurons/judged/broad"].value is None
    with pytest.raises(Refused, match="no more"):
        compared(planted, tokens=1500, judge=judging(server, at_once=1))


def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is_read(server):
    with pytest.raises(Refused, match=r"up to 12 times \(4 units of each of 3 kinds\), more than .*most_calls=11"):
        UnitComparison(judge=judging(server, most_calls=11), judged=4)
    with pytest.raises(Refused, match="unit_comparison.judge.model=<...>"):
        UnitComparison(judge=judging(server, model=None))
    with pytest.raises(Refused, match="examples=4 or more"):
        UnitComparison(judge=judging(server, examples=3))


def test_a_verdict_is_read_as_asked_for_or_not_at_all():
    assert verdict_in("Reason: words\nClass: 1") == (1, "words")
    assert verdict_in("Class: 0\nNo, wait.\n**Reason:** a *dot*\n**Class:** 2.") == (2, "a *dot")
    assert verdict_in("class: <0>") == (0, "")
    for answer in ("", "1", "Class: 3", "Class: 0 or 1", "Class:", "Class: 0\nClass: unsure", "First class 1 seats"):
        assert verdict_in(answer) is None
