"""Directions that steer: on a tiny pair of which the tuned model says " Wait" where a planted vector is, and the base does not."""

import functools
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tunediff.benchmarks import Behaviour, Problem, Task
from tunediff.directions import DifferenceOfMeans, Direction, PairDifference, RandomDirection
from tunediff.directions.direction import Source
from tunediff.edits import Add, Edit, Sequences
from tunediff.evaluations import DirectionNecessity, DirectionSteering, Given, Judge
from tunediff.evaluations.behaviour.changes import Changed
from tunediff.evaluations.behaviour.direction_claim import Step, beyond_random, claim
from tunediff.evaluations.behaviour.direction_necessity import needed, projecting, projections, rounds_of
from tunediff.evaluations.behaviour.solving import Solved
from tunediff.evaluations.behaviour.steered import along, moments
from tunediff.generation import Batched, Decoding
from tunediff.measures.clustered import Estimate
from tunediff.models import ModelPair, ModelSource
from tunediff.shapes import BASE, ROLES, TUNED, Figure, Finding, Note, Refused, Table
from tunediff.text import Text
from tunediff.toy import language

WIDTH, LAYER = 32, 0
BEFORE = {"label": "backtracks", "offset": 1, "window": 0, "shift": 0, "tokens": 4_000}  # the dot before it


class Planted(Source):
    """The vector that was planted, whatever the model; `length` as it is."""

    def __init__(self, length=1.0):
        self.length = length

    def find(self, given, role, layers):
        said = {"source": "planted"}
        return Direction({layer: self.length * planted_vector() for layer in layers}, "resid_post", said)


def planted_vector():
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    return vector / vector.norm()


def few_rows():
    return itertools.islice(language.mixture(1, {"trace": 1.0}), 24)


def text():
    return Text(few_rows, held_out=language.is_held_out, context=128)


@pytest.fixture(scope="module")
def given(folders):
    """The tuned model is the base, but that its last MLP writes the unembedding of " Wait" where the vector is; in both the dot's
    embedding has it, so that it is found before a hesitation."""
    pair = ModelPair(
        ModelSource(str(folders["base"]), dtype="float32"), ModelSource(str(folders["tuned"]), dtype="float32")
    )
    pair.load()
    pair.models[TUNED].load_state_dict(pair.models[BASE].state_dict())
    wait, dot = (pair.tokenizers[0].encode(word, add_special_tokens=False)[0] for word in (" Wait", "."))
    with torch.no_grad():
        for role in ROLES:
            embedding = pair.models[role].get_input_embeddings().weight
            embedding[dot] += 0.3 * planted_vector()
        mlp = pair.models[TUNED].model.layers[2].mlp
        row = pair.models[TUNED].lm_head.weight[wait]
        mlp.gate_proj.weight[0], mlp.up_proj.weight[0] = 20 * planted_vector(), planted_vector()
        mlp.down_proj.weight[:, 0] = 0.002 * row / row.norm()
    return Given(pair, text(), 2_000)


def task():
    rows = functools.partial(language.benchmark, 0, 60)
    return {"toy": Task(rows, question="question", answer="answer", prompts=dict.fromkeys(ROLES, "{question}"))}


def settings(**given):
    common = {"tasks": task(), "decoding": Decoding(tokens=8), "engine": Batched(64), "problems": 12, "layer": LAYER}
    return {**common, "direction": DifferenceOfMeans(**BEFORE), "draws": 4, **given}


def steering(**given):
    loose = {"collapse": 1e9, "repetition": 1.0}  # what such a model says is no text
    return DirectionSteering(**settings(**{"strengths": [1.0, 6.0], "norm_tokens": 1_000, **loose, **given}))


def parted(found):
    found = list(found)
    for figure in (item for item in found if isinstance(item, Figure)):
        figure.check()
    tables = {item.name: item.columns for item in found if isinstance(item, Table)}
    findings = {item.name: item for item in found if isinstance(item, Finding)}
    return findings, tables, [item.text for item in found if isinstance(item, Note)]


def rows_of(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# -- the 2 x 2 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steered(given):
    return parted(steering(others=["step_end"]).run(given))


def test_a_planted_direction_is_found_and_raises_the_rate_in_the_model_that_has_it_alone(given, steered):
    found = DifferenceOfMeans(**BEFORE).find(given, BASE, [LAYER]).units.at(LAYER)
    assert float(found @ planted_vector()) > 0.7
    findings, _, notes = steered
    for source in ROLES:
        into_tuned, into_base = (
            findings[f"direction_steering/{source}_to_{target}/change"] for target in (TUNED, BASE)
        )
        assert into_tuned.low > 300 and into_base.value == 0
        rise, rest = (findings[f"direction_steering/{source}_to_{target}/rise"] for target in (TUNED, BASE))
        assert rise.low > 300 and rest.value == 0
        assert findings[f"direction_steering/{source}_to_tuned/strength"].value == 6
        assert "in units of residual_norm, of which 1 adds a vector of norm" in (
            findings[f"direction_steering/{source}_to_tuned/strength"].meaning
        )
    assert findings["direction_steering/claim"].value in (1.0, None)  # none where four draws leave it open
    assert any("the cosine of the two directions is 1.000" in note for note in notes)


class OfTuned(Planted):
    """The planted vector in the tuned model, its opposite in the base."""

    def find(self, given, role, layers):
        found = super().find(given, role, layers)
        return found if role == TUNED else replace(found, vectors={n: -v for n, v in found.vectors.items()})


def test_each_model_is_steered_by_the_direction_of_its_source(given):
    evaluation = steering(direction=OfTuned(), strengths=[6.0], controls=[], draws=0, problems=4)
    findings, _, notes = parted(evaluation.run(given))
    changes = {key: one.value for key, one in findings.items() if key.endswith("/change")}
    raised = [key for key, value in changes.items() if value > 300]
    assert raised == ["direction_steering/tuned_to_tuned/change"] and len(changes) == 4
    assert any("cosine of the two directions is -1.000" in note for note in notes)


def test_controls_add_as_much_as_the_direction_does(given, steered):
    rows = rows_of(steered[1]["direction_steering"])
    kinds = {"direction", "label/step_end", "overall_mean", "without_logit_effect", "unembedding", "random_direction"}
    assert {row["kind"] for row in rows} == kinds | {"self", "unedited"}
    norms = {
        role: moments(given, given.pair.streams("resid_post", LAYER, reads=role), 1_000)[role].norm for role in ROLES
    }
    for row in rows:
        assert row["unit"] == "residual_norm"
        if row["kind"] in kinds:
            assert row["norm"] == pytest.approx(row["strength"] * norms[row["target"]], rel=1e-3)
        if row["kind"] == "self":
            assert row["norm"] == pytest.approx(row["strength"] * norms[row["target"]], rel=0.5)


def test_without_its_effect_on_the_logit_a_direction_is_none_of_the_keywords(given):
    from tunediff.directions.rows import rows_of as head_rows
    from tunediff.evaluations.behaviour.steered import steered as parts_of

    found = {TUNED: DifferenceOfMeans(**BEFORE).find(given, TUNED, [LAYER])}
    known = moments(given, given.pair.streams("resid_post", LAYER, reads=TUNED), 500)
    words = (" Wait", " Hmm")
    options = {"unit": "own", "controls": ["without_logit_effect"], "keywords": words, "draws": 0, "seed": 0}
    own, less = parts_of(given, found, {}, TUNED, LAYER, known=known, **options)
    rows, mean, gain = head_rows(given.pair, TUNED, words)
    raised = [float(((rows - mean) * gain @ one.parts[0].rows[0]).abs().max()) for one in (own, less)]
    assert raised[1] < 1e-5 < raised[0]
    assert own.parts[0].scale == less.parts[0].scale == pytest.approx(float(found[TUNED].at(LAYER).norm()))


def test_every_condition_is_in_the_estimate(given, steered):
    evaluation = steering(others=["step_end"])
    rows = rows_of(steered[1]["direction_steering"])
    assert evaluation.times_asked(given.pair) == len(rows)
    assert evaluation.work(given.pair, []).written == 12 * 8 * len(rows)
    own = parted(steering(unit="own", targets=[TUNED], controls=["self"], strengths=[1.0]).run(given))
    assert len(own[1]["direction_steering"]["kind"]) == 1 + 2 * 3
    assert steering(unit="own", targets=[TUNED], controls=["self"], strengths=[1.0]).times_asked(given.pair) == 7


def test_strength_nothing_is_the_unedited_model_to_the_last_bit(given):
    known = Sequences.of_prompts(given.pair.tokenizers[0], [[5, 6, 7, 8], [9, 4]])
    at = given.pair.streams("resid_post", LAYER, reads=TUNED)[0]
    with torch.no_grad():
        plain, _ = given.pair.run(TUNED, known)
        steered, _ = given.pair.run(TUNED, known, [Edit(at, along(planted_vector(), 3.0), Add(0.0))])
        more, _ = given.pair.run(TUNED, known, [Edit(at, along(planted_vector(), 3.0), Add(0.1))])
    assert torch.equal(plain, steered) and not torch.equal(plain, more)


def test_of_equal_models_both_sources_give_the_same_numbers(folders):
    source = ModelSource(str(folders["base"]), dtype="float32")
    given = Given(ModelPair(source, source).load(), text(), 2_000)
    _, tables, _ = parted(steering(strengths=[2.0], controls=[], draws=2, problems=4).run(given))
    rows = rows_of(tables["direction_steering"])
    by_cell = {}
    for row in rows:
        by_cell.setdefault((row.pop("source"), row.pop("target")), []).append(row)
    assert by_cell["base", "base"] == by_cell["tuned", "base"] == by_cell["base", "tuned"] == by_cell["tuned", "tuned"]


def test_a_random_direction_does_no_more_than_random_directions(given):
    evaluation = steering(
        direction=RandomDirection(draw=3), sources=[TUNED], targets=[TUNED], strengths=[6.0], draws=12
    )
    findings, _, _ = parted(evaluation.run(given))
    beyond = findings["direction_steering/tuned_to_tuned/over_random"]
    assert beyond.low is None or beyond.low <= 0 <= beyond.high


def solved(rates, draws=None, *, seed=0, tokens=100):
    """Responses to as many problems as there are rates, with hesitations by these chances a token."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.as_tensor(rates, dtype=torch.float64) * tokens, generator=generator).int().tolist()
    problem = Problem("p", "", "1", {})
    return [
        Solved(
            problem, None, None, Behaviour(tokens, count, None, None, None), 0.0, None if draws is None else n % draws
        )
        for n, count in enumerate(counts)
    ]


def test_one_of_the_random_directions_is_seldom_told_from_the_others():
    """Against the mean of the draws most would be: the law of a claim that holds a direction against chance."""
    covered, against_mean, times = 0, 0, 150
    for seed in range(times):
        chances = 0.03 * torch.rand(21, generator=torch.Generator().manual_seed(seed))
        own = solved([float(chances[0])] * 200, seed=3 * seed)
        chance = solved([float(chances[1 + n % 20]) for n in range(200)], 20, seed=3 * seed + 1)
        covered += beyond_random(own, chance).sign() == 0
        against_mean += Changed(own, control=chance).over_random("hesitation_rate").sign() == 0
    assert covered > 0.9 * times and against_mean < 0.7 * times


def test_a_judge_is_asked_about_each_text_once_and_stands_beside_the_words(given, server):
    server.rule = lambda asked: "Yes." if "Wait" in asked["messages"][1]["content"] else "No."
    judge = {"endpoint": server.endpoint, "model": "rule", "examples": 4, "most_calls": 50}
    small = {"strengths": [6.0], "controls": [], "draws": 0, "problems": 3, "sources": [TUNED]}
    findings, tables, _ = parted(steering(judge=Judge(**judge), **small).run(given))
    rows = rows_of(tables["direction_steering"])
    asked = [one["messages"][1]["content"] for _, _, one in server.asked]
    assert len(asked) == len(set(asked)) <= 3 * len(rows) and findings["direction_steering/judge_f1"].value == 1
    steered = [row["judged"] for row in rows if row["kind"] == "direction"]
    assert steered == [0.0, 1.0]  # into the base, into the tuned model
    with pytest.raises(
        Refused, match=r"up to \d+ times .*judge.most_calls=2. Ask about fewer evaluation.direction_steering.pro"
    ):
        list(steering(judge=Judge(**{**judge, "most_calls": 2}), **small).run(given))


# -- the claim ----------------------------------------------------------------------------------------------------------------


def step(change, *, beyond=None, coherent=True, noise=1.0):
    generator = torch.Generator().manual_seed(abs(hash((change, noise))) % 1000)
    spread = torch.randn(50, generator=generator, dtype=torch.float64)
    spread = noise * (spread - spread.mean()) / spread.norm()

    def made(value):
        return Estimate(torch.tensor(float(value), dtype=torch.float64), spread)

    return Step(made(change), made(change if beyond is None else beyond), coherent)


@pytest.mark.parametrize(
    ("tuned", "base", "own", "word", "why"),
    [
        ([step(1), step(9)], [step(0), step(0)], [], "holds", "surely by less"),
        ([step(1), step(9)], [step(0), step(9)], [], "does not hold", "in the base as well"),
        ([step(0), step(1)], [step(0), step(0)], [step(5), step(20)], "does not hold", "less than half"),
        ([step(0), step(-5)], [step(0), step(0)], [step(9)], "does not hold", "lowers it beyond doubt"),
        ([step(0), step(-5, coherent=False)], [step(0)] * 2, [step(1)], "underpowered", "not its own either"),
        ([step(1), step(9, beyond=0)], [step(0), step(0)], [step(9)], "underpowered", "leave open"),
        ([step(1), step(9)], [step(0, coherent=False)] * 2, [], "underpowered", "not told apart"),
        ([step(1), step(9)], [step(2, noise=9), step(2, noise=9)], [], "underpowered", "not told apart"),
        ([step(1), step(9, coherent=False)], [step(0), step(0)], [step(9)], "does not hold", "less than half"),
        ([step(9, coherent=False)] * 2, [step(0), step(0)], [step(9)], "underpowered", "no strength"),
    ],
)
def test_the_verdict_follows_the_intervals_and_the_coherence(tuned, base, own, word, why):
    verdict = claim(tuned, base, own)
    assert verdict.word == word and why in verdict.why


# -- necessity ----------------------------------------------------------------------------------------------------------------


def test_what_is_projected_out_leaves_no_component_and_the_next_direction_is_orthogonal_to_it(given):
    source, pair = DifferenceOfMeans(**BEFORE), given.pair
    first, *more = rounds_of(given, source, TUNED, [0, 1, 2], 3)
    assert len(more) == 2 and [len(more[-1].spans[layer]) for layer in (0, 1, 2)] == [1, 2, 3]
    for one in more:
        assert max(one.overlap.values()) < 1e-3
        for rows in one.spans.values():
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=rows.dtype), atol=1e-5)
    batch = given.held_out[0]
    streams = pair.streams("resid_post", [0, 1, 2], reads=TUNED)
    with projecting(pair.models[TUNED], "resid_post", more[-1].spans):
        values = pair.read(batch, streams)
    for stream, value in zip(streams, values, strict=True):
        inside = value @ more[-1].spans[stream.layer].float().T
        assert float(inside.abs().max()) < 1e-5 * float(value.norm(dim=-1).mean())
    again = source.find(given, TUNED, [0])
    with projecting(pair.models[TUNED], "resid_post", first.spans):
        left = source.find(given, TUNED, [0])
    assert float(left.at(0).norm()) < 1e-5 * float(again.at(0).norm())  # by algebra, of one layer


def test_edits_project_out_what_reading_does(given):
    (first,) = rounds_of(given, Planted(), TUNED, [0, 1], 3)  # what is the same again is not new
    known = Sequences.of_prompts(given.pair.tokenizers[0], [[5, 6, 7, 8]])
    with torch.no_grad():
        edited, _ = given.pair.run(TUNED, known, projections(TUNED, "resid_post", first.spans))
        with projecting(given.pair.models[TUNED], "resid_post", first.spans):
            plain, _ = given.pair.run(TUNED, known)
    assert torch.allclose(edited, plain, atol=1e-5)


def test_without_the_planted_direction_the_tuned_model_hesitates_less(given):
    """Of a model that hesitates at every token, for the vector is in every embedding."""
    pair = given.pair
    embedding = pair.models[TUNED].get_input_embeddings().weight
    before = embedding.detach().clone()
    with torch.no_grad():
        embedding += 0.5 * planted_vector()
    try:
        evaluation = DirectionNecessity(**settings(direction=Planted(), rounds=2, draws=6))
        assert evaluation.times_asked(pair) == 5
        findings, tables, notes = parted(evaluation.run(given))
    finally:
        with torch.no_grad():
            embedding.copy_(before)
    assert findings["direction_necessity/round_1/hesitation_rate_change"].high < -300
    assert findings["direction_necessity/round_1/hesitation_rate_over_random"].high < 0
    rows = rows_of(tables["direction_necessity"])
    assert [row["kind"] for row in rows] == ["unedited", "projected out", "random subspaces"]
    assert rows[0]["behaviour"] > 500 > rows[1]["behaviour"] < rows[2]["behaviour"]
    assert any("it is needed" in note for note in notes) and any("after round 1 nothing" in note for note in notes)


# -- what cannot be asked -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused_in_words(given, folders):
    pair = given.pair
    with pytest.raises(Refused, match=r"No event with tokens .* before 'nothing'"):
        list(steering(direction=DifferenceOfMeans(label="nothing", tokens=500)).run(given))
    for asked in (steering(layer=3), DirectionNecessity(**settings(layer=3))):
        with pytest.raises(Refused, match=r"layers \[3\]: the base|tuned model has layers 0 to 2"):
            asked.check(pair, given.text)
    wide = ModelPair(*(ModelSource(str(folders[name]), dtype="float32") for name in ("base", "wide")))
    with pytest.raises(Refused, match=r"other widths at resid_post \(base 32, tuned 48\).* Set sources and targets"):
        steering().check(wide, given.text)
    with pytest.raises(Refused, match=r"PairDifference looks at both models .*sources=\[tuned\]"):
        list(steering(direction=PairDifference(tokens=500), layer=2).run(given))
    with pytest.raises(Refused, match="more than the model it is projected out of"):
        DirectionNecessity(**settings(direction=PairDifference(tokens=500)))
    with pytest.raises(Refused, match=r"others=\[step_end\].* RandomDirection has no label"):
        steering(direction=RandomDirection(), others=["step_end"])
    for wrong in (
        {"sources": ["bse"]},
        {"targets": []},
        {"unit": "norm"},
        {"strengths": [0.0]},
        {"controls": ["noise"]},
        {"keywords": []},
    ):
        with pytest.raises(Refused, match=f"direction_steering.*{next(iter(wrong))}|strengths above 0"):
            steering(**wrong)


def test_patterns_that_match_nothing_and_the_last_layer_are_said_in_notes(given):
    evaluation = steering(layer=2, hesitations=["qqq"], strengths=[1.0], controls=[], draws=0, problems=3)
    findings, _, notes = parted(evaluation.run(given))
    assert any("has a word that counts as a hesitation" in note for note in notes)
    assert any("resid_post of the last layer, 2, reaches no later token" in note for note in notes)
    assert findings["direction_steering/claim"].value is None


def answers(right, hesitations, draws=0):
    """Answers to 40 problems of which so many are right, each with so many hesitations in 50 tokens."""
    return [
        SimpleNamespace(
            problem=SimpleNamespace(sample=0),
            grade=SimpleNamespace(correct=n < right),
            behaviour=SimpleNamespace(hesitations=hesitations * (n % 3 > 0), tokens=50),
            draw=n % draws if draws else None,
        )
        for n in range(40)
    ]


def test_a_model_that_solves_nothing_any_more_does_not_show_that_hesitation_needs_the_direction():
    whole, control = answers(38, 2), answers(37, 2, draws=20)
    assert "whether that needs it cannot be told" in needed([Changed(answers(3, 0), whole, control)])
    assert needed([Changed(answers(37, 0), whole, control)]).endswith("it is needed")
    assert "not beyond doubt" in needed([Changed(answers(37, 2), whole, control)])
