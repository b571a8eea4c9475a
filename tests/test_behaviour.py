"""What latents do to what a model writes: on the embedded pair, with a latent whose meaning was planted."""

import copy
import dataclasses
import functools
import json
import math

import hydra
import pytest
import torch

from conftest import ROOT
from planted_hesitation import LATENTS, planted
from tunediff.benchmarks import Task
from tunediff.edits import AfterMatch, Everywhere, Keep, MeanAblate, Patch, Scale, Zero
from tunediff.evaluations import Benchmark, Intervention, SteeringSweep, Telling
from tunediff.evaluations.behaviour.benchmark import cut
from tunediff.evaluations.behaviour.conditions import rate
from tunediff.evaluations.behaviour.oversteering import dip
from tunediff.evaluations.behaviour.solving import KeptResponses
from tunediff.evaluations.given import ALL, TWIN, LatentStatistics
from tunediff.evaluations.latents.edits import latent_edits
from tunediff.evaluations.latents.selection import alike, choose, decoder_rows
from tunediff.evaluations.reading.label_alignment import at_label
from tunediff.folders import write_table
from tunediff.generation import Asked, Batched, Decoding, Response
from tunediff.models import ModelPair, ModelSource
from tunediff.randomness import generator
from tunediff.settings import build
from tunediff.shapes import BASE, TUNED, Figure, Finding, Note, Refused, Table
from tunediff.text import Text
from tunediff.toy import language

ASKED_ALIKE = {"base": "{question}", "tuned": "{question}"}


@pytest.fixture(scope="module")
def trained():
    sources = (ModelSource(f"pkg://tunediff.toy/weights/{role}", dtype="float32") for role in (BASE, TUNED))
    rows = functools.partial(language.mixture, 1, {"trace": 0.6, "steps": 0.2, "fact": 0.2})
    return planted(ModelPair(*sources).load(), Text(rows, held_out=language.is_held_out, context=256))


def task(problems=500, *, prompts=ASKED_ALIKE, rows=None):
    rows = rows or functools.partial(language.benchmark, 0, problems)
    return {"toy": Task(rows, question="question", answer="answer", prompts=prompts)}


def settings(**given):
    return {
        "tasks": task(),
        "decoding": Decoding(tokens=160),
        "engine": Batched(64),
        "problems": 24,
        "latents": [0],
        "chosen_by": None,
        **given,
    }


def steering(**given):
    return SteeringSweep(**settings(**{"role": TUNED, "gates": {"everywhere": Everywhere()}, "behind": None, **given}))


def intervention(operations, **given):
    given = {"name": "ablation", "role": TUNED, "draws": 3, "modes": ["delta"], **given}
    return Intervention(operations=operations, **settings(**given))


def parted(found):
    found = list(found)
    for figure in (item for item in found if isinstance(item, Figure)):
        figure.check()
    tables = {item.name: item.columns for item in found if isinstance(item, Table)}
    findings = {item.name: item for item in found if isinstance(item, Finding)}
    return findings, tables, [item.text for item in found if isinstance(item, Note)]


def by_condition(columns):
    return {name: {key: values[n] for key, values in columns.items()} for n, name in enumerate(columns["condition"])}


# -- the claim -------------------------------------------------------------------------------------------------------


def test_without_the_planted_latent_the_tuned_model_stops_hesitating_and_without_others_it_does_not(trained):
    ablation = intervention({"zero": Zero()}, problems=60, draws=4)
    findings, tables, _ = parted(ablation.run(trained))
    rows = by_condition(tables["ablation_conditions"])
    plain, without = rows["unedited"], rows["zero/delta"]
    assert without["hesitations_high"] < plain["hesitations_low"] / 3
    for control in ("random_latents/zero/delta", "random_direction/zero/delta"):
        assert rows[control]["control"] and rows[control]["hesitations_low"] > without["hesitations_high"]
        assert rows[control]["touched"] > 0.2
    assert without["accuracy_high"] < plain["accuracy_low"] and without["p"] < 1e-3  # mistakes stay uncorrected
    for kind in ("random_latents", "random_direction"):
        assert rows[f"{kind}/zero/delta"]["draws"] == 4 and rows[f"{kind}/zero/delta"]["problems"] == 60
        beyond = findings[f"ablation/toy/zero/delta/hesitation_rate_over_{kind}"]
        assert beyond.high < 0 and beyond.over == "draws and problems"
    assert findings["ablation/toy/zero/delta/hesitations"].value == without["hesitations"]
    outputs = tables["ablation_outputs"]
    assert len(outputs["response"]) == 60 * len(rows) and set(outputs["condition"]) == set(rows)
    graded = [c for c, n in zip(outputs["correct"], outputs["condition"], strict=True) if n == "zero/delta"]
    assert sum(graded) == without["correct"]
    assert without["edit"] == "Zero() of latents 0 at tuned.resid_post.3, delta, Everywhere()"
    assert without["change"] == pytest.approx(rows["random_direction/zero/delta"]["change"], rel=0.2)


def test_a_splice_of_latents_that_explain_nothing_breaks_the_model_and_an_edit_is_compared_with_it(trained):
    splice = intervention({"zero": Zero()}, modes=["replace"], problems=24, draws=0)
    rows = by_condition(parted(splice.run(trained))[1]["ablation_conditions"])
    spliced = rows["reconstruction"]  # of 24 latents, of which one means anything
    assert spliced["control"] and spliced["accuracy"] < 0.1
    assert spliced["perplexity"] > 2 * rows["unedited"]["perplexity"]
    assert rows["zero/replace"]["accuracy"] < 0.1
    assert rows["zero/replace"]["reference"] == "reconstruction" and rows["zero/replace"]["p"] > 0.05


def test_a_twin_is_asked_the_same_of_the_latents_that_the_rule_chooses_of_it(trained):
    twin = copy.deepcopy(trained.dictionary)
    turned = torch.arange(LATENTS).roll(7)  # the planted latent is the seventh of the twin
    with torch.no_grad():
        for name, part in (("W_dec", 0), ("b_enc", 0), ("W_enc", 1)):
            getattr(twin, name).copy_(getattr(trained.dictionary, name).index_select(part, turned))
    both = dataclasses.replace(trained, companions={TWIN: twin})
    telling = Telling("hesitation_follows", count=1, at="step_end")
    few = {"problems": 12, "draws": 2, "decoding": Decoding(tokens=64)}
    _, tables, _ = parted(intervention({"zero": Zero()}, latents=None, chosen_by=telling, **few).run(both))
    rows = by_condition(tables["ablation_conditions"])
    own, other = rows["zero/delta"], rows["twin/zero/delta"]
    assert "latents 0 at" in own["edit"] and "latents 7 at" in other["edit"] and other["reference"] == "unedited"
    assert [own[key] for key in ("correct", "hesitations", "tokens")] == [
        other[key] for key in ("correct", "hesitations", "tokens")
    ]
    assert rows["random_latents/twin/zero/delta"]["control"] and rows["random_latents/twin/zero/delta"]["draws"] == 2
    assert sum(name.startswith("twin/") for name in rows) == 1 and "other" in rows
    _, tables, _ = parted(intervention({"zero": Zero()}, **{**few, "problems": 2, "draws": 0}).run(both))
    assert not any("twin" in name for name in tables["ablation_conditions"]["condition"]), (
        "numbers are one dictionary's"
    )


def test_steering_along_it_makes_the_model_hesitate_and_as_much_elsewhere_does_not(trained):
    gates = {"everywhere": Everywhere(), "never": AfterMatch("Perhaps")}
    sweep = steering(strengths=[0.2], gates=gates, draws=4)
    findings, tables, notes = parted(sweep.run(trained))
    rows = [
        dict(zip(tables["steering_sweep"], row, strict=True))
        for row in zip(*tables["steering_sweep"].values(), strict=True)
    ]
    at = {(row["gate"], row["kind"], row["strength"]): row for row in rows}
    plain = at["everywhere", "latents", 0.0]
    steered, elsewhere = (at["everywhere", kind, 0.2] for kind in ("latents", "random_direction"))
    assert steered["behaviour_low"] > plain["behaviour_high"]
    assert steered["behaviour_low"] > elsewhere["behaviour_high"]
    assert at["never", "latents", 0.2]["behaviour"] == plain["behaviour"]
    assert any("touched no position" in note and "Perhaps" in note for note in notes)
    assert findings["steering_sweep/everywhere/peak"].value >= steered["behaviour"]
    assert sum("oversteering dip" in note for note in notes) == 2
    rise, apart = (findings[f"steering_sweep/{name}/rise"] for name in ("everywhere", "never_less_everywhere"))
    assert rise.low > 0 and rise.value == pytest.approx(steered["behaviour"] - plain["behaviour"])
    assert apart.value == pytest.approx(-rise.value) and apart.high < 0 and apart.over == "problems"
    beyond = findings["steering_sweep/everywhere/rise_over_random"]
    assert beyond.value == pytest.approx(steered["behaviour"] - elsewhere["behaviour"])
    longer = findings["steering_sweep/everywhere/length"], findings["steering_sweep/everywhere/length_over_random"]
    assert longer[0].value == pytest.approx(steered["tokens"] - plain["tokens"]) and longer[0].over == "problems"
    assert longer[1].value == pytest.approx(steered["tokens"] - elsewhere["tokens"])
    idle = findings["steering_sweep/never/rise"], findings["steering_sweep/never/strongest_nats"]
    assert all((one.value, one.low) == (0.0, None) for one in idle), "nothing was edited, and nothing varies"


def test_latents_are_chosen_by_a_label_and_controls_contribute_as_much(trained):
    seen = trained.statistics
    telling = Telling("hesitation_follows", count=2, at="step_end").choose(trained, seen)
    assert telling[0] == 0
    written = torch.ones(LATENTS)
    others = alike(seen, written, [0, 5], generator(0, "a test"))
    assert (
        len(set(others)) == 2
        and not {0, 5} & set(others)
        and others != alike(seen, written, [0, 5], generator(1, "a test"))
    )
    with pytest.raises(Refused, match="too few tokens with and without the label 'joy'"):
        Telling("joy", count=1, at=None).choose(trained, seen)
    with pytest.raises(Refused, match=f"latents 0 to {LATENTS - 1}"):
        choose(trained, seen, [99], None)
    with pytest.raises(Refused, match="Name the latents"):
        choose(trained, seen, None, None)
    with pytest.raises(Refused, match="latents=3 takes the latents that belong most to one of two models"):
        choose(trained, seen, 3, None)
    assert (seen.maximum > 0).any() and seen.norms[TUNED] > 1


def test_a_patch_stands_between_doing_nothing_and_the_whole_hidden_vector(trained):
    asked = {"base": "{question}", "tuned": "{question} Let's think step by step."}
    patching = intervention(
        {"patch": Patch()},
        name="patching",
        role=BASE,
        tasks=task(prompts=asked),
        problems=12,
        decoding=Decoding(tokens=64),
    )
    rows = by_condition(parted(patching.run(trained))[1]["patching_conditions"])
    assert {"all_latents/patch/delta", "whole/patch", "other", "same_prompt", "other_same_prompt"} <= set(rows)
    assert rows["unedited"]["role"] == BASE and rows["other"]["role"] == TUNED
    assert rows["whole/patch"]["tokens"] > 3 * rows["unedited"]["tokens"]
    assert rows["same_prompt"]["tokens"] > rows["unedited"]["tokens"]  # it works its steps


def test_a_patch_may_take_the_other_models_own_response(trained):
    given = {"name": "patching", "role": BASE, "problems": 6, "draws": 0, "decoding": Decoding(tokens=100)}
    same, own = (
        by_condition(
            parted(intervention({"patch": Patch()}, own_response=own, **given).run(trained))[1]["patching_outputs"]
        )
        for own in (False, True)
    )
    assert same["whole/patch"]["response"] != own["whole/patch"]["response"]
    assert same["unedited"] == own["unedited"]


@pytest.mark.parametrize("operation", [Scale(1.0), Keep()], ids=str)
def test_an_operation_that_changes_nothing_leaves_every_grade(trained, operation):
    findings, tables, notes = parted(
        intervention({"same": operation}, problems=8, draws=0, decoding=Decoding(tokens=64)).run(trained)
    )
    rows = by_condition(tables["ablation_conditions"])
    assert rows["same/delta"]["p"] == 1.0 and rows["same/delta"]["difference"] == 0.0
    assert rows["same/delta"]["tokens"] == rows["unedited"]["tokens"]
    assert rows["same/delta"]["touched"] == 0.0 and rows["same/delta"]["change"] is None
    assert any("touched no position of any response" in note for note in notes)


def test_the_mean_of_an_ablation_is_that_of_the_held_out_text(trained):
    part = latent_edits(trained, TUNED, [0, 3], MeanAblate(), seen=trained.statistics)[0].part
    values = torch.cat([reading.latents[reading.admitted][:, [0, 3]] for reading in trained.readings("means")])
    assert torch.allclose(part.mean, values.mean(0), atol=1e-5)
    assert torch.allclose(part.scale, values.amax(0))


# -- benchmarks ------------------------------------------------------------------------------------------------------


def benchmark(**given):
    given = {"decoding": Decoding(tokens=128), "budgets": [], "force": False, "answer_tokens": 32, **given}
    return Benchmark(**{k: v for k, v in settings(**given).items() if k not in ("latents", "chosen_by")})


def test_a_smaller_budget_is_the_same_response_cut(trained):
    whole = benchmark(budgets=[16, 64])
    small = benchmark(decoding=Decoding(tokens=64))
    curve = parted(whole.run(trained))[1]["benchmark_scaling"]
    at = {(r, t): a for r, t, a in zip(curve["role"], curve["tokens"], curve["accuracy"], strict=True)}
    findings, tables, _ = parted(small.run(trained))
    direct = tables["benchmark_scaling"]
    unread, right, whole = (
        findings[f"benchmark/toy/tuned/{name}"].value for name in ("unread", "right_of_read", "accuracy")
    )
    whole_of, one_of = (findings[f"benchmark/{task}/tuned_less_base/best_accuracy"] for task in ("all", "toy"))
    assert whole_of.value == one_of.value, "all problems are those of the only task"
    assert 0 < unread < 1 and (1 - unread) * right == pytest.approx(whole), "an answer that is not found is wrong"
    for role, accuracy in zip(direct["role"], direct["accuracy"], strict=True):
        assert at[role, 64] == accuracy
    assert at[TUNED, 16] == 0.0 < at[TUNED, 64] < at[TUNED, 128]
    assert at[BASE, 16] == at[BASE, 64] == at[BASE, 128] > 0


def test_a_budget_may_end_the_thinking_instead(trained):
    def tuned_at_64(**given):
        table = parted(benchmark(budgets=[64], problems=30, **given).run(trained))[1]["benchmark_scaling"]
        rows = zip(table["role"], table["tokens"], table["accuracy"], strict=True)
        return next(accuracy for role, tokens, accuracy in rows if (role, tokens) == (TUNED, 64))

    decoding = Decoding(tokens=128, conclusion="The answer is \\boxed{")
    assert tuned_at_64(decoding=decoding, force=True, answer_tokens=16) > tuned_at_64()
    with pytest.raises(Refused, match="say with what"):
        benchmark(force=True)


def test_tasks_bring_budgets_of_their_own_side_by_side(trained):
    def of(**given):
        rows = functools.partial(language.benchmark, 0, 40)
        return Task(rows, question="question", answer="answer", prompts=ASKED_ALIKE, **given)

    tasks = {"short": of(tokens=16, few=3), "long": of(tokens=64, few=5), "endless": of(tokens=9000, problems=2)}
    asks = benchmark(tasks=tasks, decoding=Decoding(tokens=None), budgets=[0.25, 8], problems=4)
    asks.check(trained.pair, trained.text)
    _, tables, notes = parted(asks.run(trained))
    curve = tables["benchmark_scaling"]
    allowed = {
        name: sorted({t for of, t in zip(curve["task"], curve["tokens"], strict=True) if of == name}) for name in tasks
    }
    room = asks.allowed["endless"]
    assert allowed == {"short": [4, 8, 16], "long": [8, 16, 64], "endless": [8, round(room / 4), room]} and room < 512
    written = tables["benchmark_outputs"]
    assert max(n for n, of in zip(written["tokens"], written["task"], strict=True) if of == "short") <= 16
    assert f"benchmark, endless: responses have at most {room} tokens in place of the task's 9,000" in " ".join(notes)
    assert [len(asks._problems(name)) for name in tasks] == [4, 4, 2]
    changed = intervention({"zero": Zero()}, tasks=tasks, problems=None)
    assert [len(changed._problems(name)) for name in tasks] == [3, 5, 2]
    for given, message in (
        ({"tasks": {"toy": of()}, "decoding": Decoding(tokens=None)}, "task toy names no budget .* or task.toy.tokens"),
        (
            {"decoding": Decoding(tokens=600)},
            "evaluation.benchmark.decoding.tokens=600 are more than the 512 positions of pkg",
        ),
        (
            {"tasks": tasks, "decoding": Decoding(tokens=None), "budgets": [32]},
            r"benchmark.budgets has \[32\].* up to the 16",
        ),
    ):
        with pytest.raises(Refused, match=message):
            benchmark(**given).check(trained.pair, trained.text)


def test_a_cut_response_is_finished_only_where_it_had_ended():
    class Words:
        def decode(self, ids, **_):
            return " ".join(map(str, ids))

    response = Response([1, 2, 3], "1 2 3", True, False)
    assert cut(response, 4, Words()) == response
    assert cut(response, 3, Words()) == response._replace(finished=False)  # no token was left for its end
    assert cut(response, 2, Words()) == Response([1, 2], "1 2", False, False)
    assert cut(response._replace(finished=False), 3, Words()) == response._replace(finished=False)


def test_an_evaluation_that_was_interrupted_asks_only_what_is_missing(trained, tmp_path, monkeypatch):
    kept = dataclasses.replace(trained, folder=tmp_path)
    whole = parted(benchmark(problems=20).run(kept))[1]
    file = next((tmp_path / "outputs").glob("*.jsonl"))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:12]) + lines[12][:30])  # killed in the middle of a line
    asked: list[int] = []
    from tunediff.evaluations.behaviour import runner

    original = runner.generate
    monkeypatch.setattr(
        runner,
        "generate",
        lambda pair, role, some, *a, **k: asked.append(len(some)) or original(pair, role, some, *a, **k),
    )
    again = parted(benchmark(problems=20).run(kept))[1]
    assert asked == [8] and again == whole
    asked.clear()
    parted(benchmark(problems=20, decoding=Decoding(tokens=127)).run(kept))
    assert asked == [20, 20]  # another budget is another question
    assert all(json.loads(line)["key"] for line in file.read_text().splitlines())


def test_kept_responses_come_back_as_they_were(tmp_path):
    response = Response([5, 6], "Wait – \n", False, True, (3, 0), (0.5, 0.0))
    KeptResponses(tmp_path, "a", "b", "c").write(Asked("1", [2]), response)
    assert KeptResponses(tmp_path, "a", "b", "c").read(Asked("1", [2])) == response
    assert KeptResponses(tmp_path, "a", "b", "c").read(Asked("1", [3])) is None
    assert KeptResponses(None, "a", "b", "c").read(Asked("1", [2])) is None


def test_bad_settings_are_refused_before_anything_is_written(trained):
    with pytest.raises(Refused, match=r"benchmark.budgets has \[512\]"):
        benchmark(budgets=[512])
    with pytest.raises(Refused, match="set evaluation.benchmark.decoding.tokens to at most 474"):
        parted(benchmark(decoding=Decoding(tokens=511)).run(trained))
    without = task(rows=lambda: iter([{"question": "1+1?"}]))
    with pytest.raises(Refused, match="has no column 'answer'"):
        parted(benchmark(tasks=without).run(trained))
    with pytest.raises(Refused, match="choose base or tuned"):
        intervention({}, role="both")
    with pytest.raises(Refused, match="strengths above 0"):
        steering(strengths=[0.0])
    with pytest.raises(Refused, match=r"behind names \['late'\]; the gates are early"):
        steering(strengths=[1.0], gates={"early": Everywhere()}, behind=["late"])
    with pytest.raises(Refused, match="latent_maximum or residual_norm"):
        steering(strengths=[1.0], unit="metres")


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_a_budget_that_cuts_most_responses_is_said(trained):
    notes = parted(benchmark(decoding=Decoding(tokens=20), problems=8).run(trained))[2]
    assert notes == [
        "benchmark, toy: under tuned 100% of the responses were cut by the budget, and count as wrong or as what they had said by then: raise evaluation.benchmark.decoding.tokens."
    ]


def test_controls_write_as_much_where_the_edit_is(trained):
    rows = decoder_rows(trained, trained.dictionary.streams[0])
    assert torch.allclose(rows, trained.dictionary.W_dec)
    alive = torch.ones(100)
    written = torch.where(torch.arange(100) < 50, 100.0, 1.0)
    *loud, quiet = alike(
        LatentStatistics({ALL: 1}, {ALL: alive}, alive, alive, {}), written, [0, 1, 2, 60], generator(0, "a test")
    )
    assert all(2 < latent < 50 for latent in loud) and quiet > 49 and quiet != 60


def test_no_hesitation_at_all_still_has_an_upper_end(trained):
    rows = by_condition(parted(benchmark().run(trained))[1]["benchmark_conditions"])
    base = rows[BASE]
    assert base["hesitations"] == base["hesitations_low"] == 0.0
    assert base["hesitations_high"] == pytest.approx(1000 * -math.log(0.025) / (base["tokens"] * base["problems"]))
    assert rows[TUNED]["difference_low"] > 0.5 and rows[TUNED]["reference"] == BASE


def curve(*levels, problems=200, noise=0.3):
    """Rates around these levels, on the same problems."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(levels), problems, generator=generator) * noise
    return [rate((level + row).tolist(), [1.0] * problems) for level, row in zip(levels, drawn, strict=True)]


@pytest.mark.parametrize(
    ("levels", "coherent", "word"),
    [
        ((1, 2, 3, 4, 2, 1), (1, 1, 1, 1, 1), "present"),
        ((1, 2, 3, 4, 4, 4), (1, 1, 1, 1, 1), "absent"),
        ((1, 2, 3, 4, 3.9, 1), (1, 1, 1, 1, 1), "present"),  # one strength at which it has fallen is enough
        ((1, 2, 3, 4, 2, 1), (1, 1, 1, 0, 0), "underpowered"),  # it falls only where the text is broken
        ((1, 2, 3, 4, 3.9, 0), (1, 1, 1, 1, 0), "absent"),
        ((1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1), "underpowered"),
        ((1, 2, 3, 4, 2.5, 2.5), (1, 1, 1, 1, 1), "underpowered"),  # half of the rise, give or take
        ((1, 2, 3, 4, 4, 4), (0, 0, 0, 0, 0), "underpowered"),
    ],
)
def test_the_verdict_on_the_dip_follows_its_definition(levels, coherent, word):
    plain, *rates = curve(*levels)
    assert dip(plain, rates, list(map(bool, coherent))).word == word


def test_a_noisy_curve_is_underpowered_where_the_same_curve_measured_well_is_present():
    levels = (1, 2, 3, 4, 2, 1)
    plain, *rates = curve(*levels, problems=8, noise=6.0)
    assert dip(plain, rates, [True] * 5).word == "underpowered"


def test_what_either_model_answered_is_a_text_that_both_read(trained, tmp_path):
    table = next(
        item
        for item in benchmark(problems=6).run(trained)
        if isinstance(item, Table) and item.name == "benchmark_outputs"
    )
    (tmp_path / "tables").mkdir()
    write_table(tmp_path, table)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        file = tmp_path / "tables" / "benchmark_outputs.parquet"
        text = build(hydra.compose("train", ["text=contrastive", f"text.rows.path={file}", "text.held_out=0"]).text)
    text.check(evaluated=False)
    read = [text.rendered(row, trained.pair.tokenizers[0]).text for row in text.named_rows(held_out=False)]
    said = list(zip(table.columns["question"], table.columns["response"], strict=True))
    assert len(read) == len(said) == 12 and len(set(said)) > 6
    assert all(
        question in one and response.strip() in one for one, (question, response) in zip(read, said, strict=True)
    )


def test_a_document_without_a_label_counts_whichever_share_its_batch(trained):
    """Its tokens are those without the label."""
    apart = dataclasses.replace(trained, tokens_per_batch=256, batches_given=None)
    there = [batch for batch in apart.held_out if "step_end" in batch.labels]
    assert any("hesitation_follows" not in batch.labels for batch in there)
    looked_at = [int(here.sum()) for _, here in at_label(apart, "hesitation_follows", "step_end", "a test")]
    assert sum(looked_at) == sum(int(batch.labels["step_end"].sum()) for batch in there)
