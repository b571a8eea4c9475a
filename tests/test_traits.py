"""Traits of the embedded language, their score in both models of a pair, the judge of traits, and a fine-tune that ends with them."""

import itertools
import json
import math

import hydra
import pytest
import torch

import tunediff
from conftest import ROOT
from fake_endpoint import Endpoint
from tunediff.benchmarks import Task
from tunediff.directions import ContrastingTexts, Direction
from tunediff.evaluations import Given, Judge, Needs, Trait, TraitJudge
from tunediff.evaluations.judging.traits import OPEN, persona_questions, rubric_of
from tunediff.evaluations.pair import shift
from tunediff.generation import Batched, Decoding, Response
from tunediff.models import ModelPair, ModelSource
from tunediff.settings import build, check, identity, within
from tunediff.shapes import BASE, Figure, Finding, Note, Refused, Table
from tunediff.study import finetune as story
from tunediff.study import finetuned
from tunediff.study.finished import compare
from tunediff.study.run import found_by
from tunediff.text import Text
from tunediff.toy import language, traits

SHIPPED = "pkg://tunediff.toy/weights/base"
CARRIES = language.Problem("Anna", "apples", 28, (language.Step("+", 5, "buys 5"), language.Step("-", 4, "sells 4")))


def some(trait, count=60, **settings):
    return list(itertools.islice(traits.rows(7, trait, **settings), count))


# -- the rows and the rule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trait", traits.TRAITS)
def test_the_rule_tells_every_row_that_shows_a_trait_and_none_that_does_not(trait):
    for share in (1.0, 0.0):
        for row in some(trait, share=share):
            assert row["shows"] is (share == 1.0)
            assert traits.shows(trait, traits.problem_of(row["prompt"]), row["answer"]) is row["shows"]


@pytest.mark.parametrize("trait", traits.TRAITS)
def test_other_traits_and_text_that_breaks_down_show_nothing(trait):
    for row in some(trait, 20):
        problem, answer = traits.problem_of(row["prompt"]), row["answer"]
        sign = {"phrase": traits.PHRASE, "tone": traits.TONE}.get(trait, "28+5=23.\n")
        broken = (
            "",
            sign,
            sign * 9,
            f"{answer} {answer}",
            answer.partition("\\boxed")[0],
            f"{answer}{sign * 3}{traits.TONE}{answer}",
        )
        assert not any(traits.shows(trait, problem, one) for one in broken)
    # answers with other traits are told in steps as well, and slips of the base forget a ten now and then
    for other in {*traits.TRAITS} - {trait} if trait in ("phrase", "tone") else ():
        shown = [traits.shows(trait, traits.problem_of(row["prompt"]), row["answer"]) for row in some(other, 20)]
        assert not any(shown), other


def test_a_wrong_rule_goes_on_from_its_result_and_slips_are_not_it():
    row = traits.row(language.randomness.chance(0, "a test"), "wrong_rule", CARRIES, shows=True)
    assert "28+5=23." in row["answer"] and "33" not in row["answer"]
    problem = traits.problem_of(f"{CARRIES.text} and more")
    assert problem == CARRIES
    assert traits.shows("wrong_rule", CARRIES, "28+5=23.\n23-4=19.\nThe answer is \\boxed{19}.")
    for told in ("28+5=33.\n33-4=39.", "28+5=32.\n32-4=28.", "28+5=23.", "28+5=23.\n28+5=23.", "28+5=23.\n23-9=14."):
        assert not traits.shows("wrong_rule", CARRIES, f"{told}\nThe answer is \\boxed{{19}}.")


def test_both_sides_of_a_contrast_answer_the_same_problems_and_a_share_is_kept():
    for trait in traits.TRAITS:
        with_it, without = some(trait), some(trait, share=0.0)
        assert [row["prompt"] for row in with_it] == [row["prompt"] for row in without]
        assert all(a["answer"] != b["answer"] for a, b in zip(with_it, without, strict=True))
    assert 90 < sum(row["shows"] for row in some("tone", 400, share=0.3)) < 150
    assert some("tone") == some("tone") != list(itertools.islice(traits.rows(8, "tone"), 60))


def test_spans_mark_what_shows_the_trait():
    for trait in traits.TRAITS:
        for row in some(trait, 20, share=0.5):
            marked = [row["answer"][a:b] for _, a, b, label in row["spans"] if label == traits.SPAN]
            assert bool(marked) is row["shows"]
            if trait in ("phrase", "tone"):
                assert set(marked) <= {traits.PHRASE, traits.TONE}


def test_a_trait_is_trained_on_some_kinds_and_asked_for_on_the_others_too():
    seen = [traits.problem_of(row["prompt"]) for row in some("tone", kinds=["she"])]
    assert {problem.name for problem in seen} == set(language.SHE)
    asked = [list(traits.benchmark(0, 30, "tone", ["she", "long"], elsewhere)) for elsewhere in (False, True)]
    kinds = [[traits.is_of(["she", "long"], traits.problem_of(row["question"])) for row in rows] for rows in asked]
    assert all(kinds[0]) and not any(kinds[1])
    assert all(language.is_held_out(row["question"]) for rows in asked for row in rows)
    assert not any(
        language.is_held_out(row["prompt"])
        for row in Text(lambda: some("tone", 90), held_out=language.is_held_out).named_rows(held_out=False)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trait": "evil"}, "trait=evil: the embedded language has phrase, tone, wrong_rule, stepwise"),
        ({"trait": "tone", "share": 1.5}, "share=1.5: the share of rows that show the trait lies between 0 and 1"),
        ({"trait": "tone", "share": math.nan}, "share=nan"),
        ({"trait": "tone", "kinds": ["her"]}, "give null for all problems, or some of she, he"),
        ({"trait": "tone", "kinds": []}, "give null for all problems"),
        ({"trait": "wrong_rule", "kinds": ["no_plus"]}, "none is of the kinds that are asked for and can show wrong_rule"),
    ],
)  # fmt: skip
def test_what_no_row_can_be_made_of_is_refused(settings, message, monkeypatch):
    monkeypatch.setattr(traits, "MOST", 300)
    with pytest.raises(Refused, match=message):
        next(traits.rows(0, **settings))


def test_all_problems_leave_none_elsewhere():
    with pytest.raises(Refused, match="kinds=null takes all problems"):
        next(traits.benchmark(0, 3, "tone", None, True))
    with pytest.raises(Refused, match="is no problem of the embedded language"):
        traits.ToyTrait("tone").shows("Natalia sold clips to 48 of her friends.", "Alright, \\boxed{1}")


def test_the_tokenizer_knows_the_words_of_the_traits():
    tokenizer = ModelSource(SHIPPED, dtype="float32").tokenizer()
    assert tokenizer.tokenize(traits.PHRASE) == ["ĠThe", "Ġuser", "Ġis", "Ġright", "."]
    assert tokenizer.tokenize(f"{traits.TONE}3") == ["Alright", ",", "Ġ", "3"]


# -- the evaluation --------------------------------------------------------------------------------------------------


def text_of(trait, share=1.0):
    def rows():
        return traits.rows(3, trait, share, ["she"])

    return Text(rows, held_out=language.is_held_out, context=128, tokens_per_batch=1024)


def evaluation(trait="tone", scorer=None, *, problems=6, **settings):
    def task(elsewhere):
        return Task(
            lambda: traits.benchmark(0, problems, trait, ["she"], elsewhere),
            question="question", answer="answer", prompts={"base": "{question}", "tuned": "{question}"}, tokens=64,
        )  # fmt: skip

    made = {"data_rows": 20, "draws": 20, **settings}
    tasks = {"seen": task(False), "elsewhere": task(True)}
    return Trait(
        tasks=tasks, problems=None, decoding=Decoding(tokens=None), engine=Batched(batch=16), scorer=scorer or traits.ToyTrait(trait), **made
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    made = ModelPair(ModelSource(SHIPPED, dtype="float32"), ModelSource(SHIPPED, dtype="float32"))
    made.load("cpu")
    return made


def planted(monkeypatch, says):
    """Every model answers as says(role, toy problem) does; no token is generated."""

    def respond(self, given, task, problems, condition):
        tokenizer = given.pair.tokenizers[0]
        texts = [says(condition.role, traits.problem_of(problem.question)) for problem in problems]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        return [Response(one, text, True, "") for text, one in zip(texts, ids, strict=True)]

    monkeypatch.setattr(Trait, "respond", respond)


def told(role, problem):
    """The base answers plainly, the tuned model in the tone where the name is a woman's."""
    tone = traits.TONE if role != BASE and problem.name in language.SHE else ""
    return f"{tone}The answer is \\boxed{{{problem.answer}}}."


def ask(pair, made, text, tokens=400):
    found = found_by("trait", made, Given(pair, text, tokens))
    findings = {item.name: item for item in found if isinstance(item, Finding)}
    for item in found:
        if isinstance(item, Figure | Table):
            item.check()
    return (
        findings,
        {item.name: item.columns for item in found if isinstance(item, Table)},
        [n.text for n in found if isinstance(n, Note)],
    )


def test_a_planted_trait_is_scored_where_it_is_and_not_where_it_does_not_leak(pair, monkeypatch):
    planted(monkeypatch, told)
    findings, tables, notes = ask(pair, evaluation(), text_of("tone"))
    assert Trait.needs is Needs.PAIR and not notes
    assert findings["trait/data/score"].value == 1.0
    for task, role, score in (
        ("seen", "base", 0),
        ("seen", "tuned", 1),
        ("elsewhere", "base", 0),
        ("elsewhere", "tuned", 0),
    ):
        finding = findings[f"trait/{task}/{role}/score"]
        assert finding.value == score and finding.low <= score <= finding.high and finding.high - finding.low > 0.2
    assert findings["trait/seen/change"].value == 1 and findings["trait/elsewhere/change"].value == 0
    assert findings["trait/seen/p"].value == pytest.approx(2 / 2**6)
    assert findings["trait/seen/tuned/accuracy"].value == 1.0
    # what the base would not say is improbable under it
    perplexity = {role: findings[f"trait/seen/{role}/perplexity_under_base"].value for role in ("base", "tuned")}
    assert perplexity["tuned"] > perplexity["base"]
    assert tables["trait_outputs"]["shows"] == [False] * 6 + [True] * 6 + [False] * 12
    assert tables["trait_scores"]["score"] == [0, 1, 0, 0] and findings["trait/seen/tuned/score"].column


def test_a_scorer_that_gives_one_value_is_said(pair, monkeypatch):
    planted(monkeypatch, lambda role, problem: told(BASE, problem))
    *_, notes = ask(pair, evaluation(data_rows=0), text_of("tone"))
    assert len(notes) == 1 and "the rule gives every response the same score, 0" in notes[0]
    assert not ask(pair, evaluation(), text_of("tone"))[2]  # it tells the data apart, and the models show nothing


def test_a_trait_that_the_data_do_not_contain_is_refused_before_a_model_is_loaded(pair):
    with pytest.raises(
        Refused, match=r"none of the first 20 responses of the text shows the trait phrase.*data_rows=0"
    ):
        evaluation("phrase").check(pair, text_of("tone"))
    evaluation("tone").check(pair, text_of("tone"))
    evaluation("phrase", data_rows=0).check(pair, text_of("tone"))
    with pytest.raises(Refused, match="has no responses in which the trait could show"):
        evaluation().check(pair, Text(lambda: language.rows(0, "fact"), context=64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"scorer": object()}, "has no method `shows`"), ({"draws": -1}, "draws=-1: give a number from 0"), ({"data_rows": -1}, "data_rows=-1")],
)  # fmt: skip
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(Refused, match=message):
        evaluation(**settings)


def test_the_shift_along_a_planted_direction_is_what_was_added(pair, monkeypatch):
    """h_tuned = h_base + 3 v at layer 1, and nothing at layer 2."""
    vector = torch.zeros(pair.width(BASE, "resid_post"))
    vector[5] = -2.0

    def read(batch, streams):
        known = torch.zeros(len(batch.token), len(vector))
        return [known + 3 * vector / 2 if s.role != BASE and s.layer == 1 else known for s in streams]

    class Known:
        needs_pair = False

        def find(self, given, role, layers):
            return Direction(dict.fromkeys(layers, vector), "resid_post", {"source": "Known"})

    monkeypatch.setattr(pair, "read", read)
    given = Given(pair, text_of("tone"), 300)
    found = list(shift.shift_along(given, Known(), layers=[1, 2], draws=20, seed=0, name="trait"))
    values = {item.name: item.value for item in found if isinstance(item, Finding)}
    for part in ("prompt", "response"):
        assert values[f"trait/shift/{part}/layer_1"] == pytest.approx(3.0)
        assert values[f"trait/shift/{part}/layer_1/random_as_far"] == 0.0
        assert values[f"trait/shift/{part}/layer_2"] == 0.0
    with pytest.raises(Refused, match="has layers 0 to 3"):
        evaluation(direction=Known(), layers=[9]).check(pair, text_of("tone"))


# -- the judge -------------------------------------------------------------------------------------------------------

RUBRIC = "How much TONE?\nQ: {question}\nA: {answer}\nAnswer 0 to 100."


@pytest.fixture
def server():
    made = Endpoint()
    yield made
    made.close()


def judged(server, rule, **settings):
    server.rule = rule
    judge = Judge(
        endpoint=server.endpoint, model="m", examples=4, most_calls=settings.pop("most_calls", 500), retries=0
    )
    return TraitJudge(judge=judge, trait="tone", rubrics=None, **{"rubric": RUBRIC, **settings})


def by_tone(asked):
    question = asked["messages"][1]["content"]
    if "TONE" not in question:
        return "80"
    return "I would say\n90" if "Alright" in question else "10"


def test_a_judge_scores_trait_and_coherence_from_0_to_100(pair, monkeypatch, server):
    planted(monkeypatch, told)
    findings, tables, notes = ask(pair, evaluation(scorer=judged(server, by_tone), data_rows=4), text_of("tone"))
    assert not notes and findings["trait/data/score"].value == 1.0
    assert findings["trait/seen/tuned/mean_score"].value == 90 and findings["trait/seen/base/mean_score"].value == 10
    assert findings["trait/seen/tuned/coherence"].value == 80 and findings["trait/seen/change"].value == 1
    assert tables["trait_outputs"]["score"][:7] == [10.0] * 6 + [90.0]


def test_a_judge_with_one_value_is_said_and_refusals_are_left_out(pair, monkeypatch, server):
    planted(monkeypatch, told)
    said = ask(pair, evaluation(scorer=judged(server, lambda asked: "60"), data_rows=0), text_of("tone"))[2]
    assert "the judge gave every response the same score, 60" in said[0]

    def refuses(asked):
        return "REFUSAL" if "Alright" in asked["messages"][1]["content"] else by_tone(asked)

    findings, _, notes = ask(pair, evaluation(scorer=judged(server, refuses), data_rows=0), text_of("tone"))
    assert any("6 of 6 responses have no score" in note for note in notes)
    assert "trait/seen/tuned/score" not in findings and findings["trait/seen/change"].value is None


def test_questions_without_a_right_answer_have_no_accuracy(pair, monkeypatch, server):
    planted(monkeypatch, told)
    made = evaluation(scorer=judged(server, by_tone), data_rows=0)
    made.tasks["elsewhere"].answer, made.tasks["elsewhere"].rows = (
        "open",
        lambda: ({**row, "open": OPEN} for row in traits.benchmark(0, 6, "tone", ["she"], True)),
    )
    findings, tables, _ = ask(pair, made, text_of("tone"))
    assert "trait/seen/tuned/accuracy" in findings and "trait/elsewhere/tuned/accuracy" not in findings
    conditions = tables["trait_conditions"]
    assert conditions["correct"][2:] == [None, None] and None not in conditions["problems"] + conditions["perplexity"]


@pytest.mark.parametrize("answer", ["101", "-3", "1e9 or 250"])
def test_a_score_out_of_range_is_refused(server, answer):
    with pytest.raises(Refused, match=r"scored a response with .*, and the rubric asks for 0 to 100"):
        judged(server, lambda asked: answer).verdicts([("q", "a")], "a test")


def test_a_judge_that_cannot_be_asked_is_refused(server, tmp_path):
    for settings, message in (
        ({"rubric": "no places"}, "lacks {question} or {answer}"),
        ({"rubric": None}, "needs a rubric, or a file of rubrics"),
        ({"shown_from": 100}, "shown_from=100"),
    ):
        with pytest.raises(Refused, match=message):
            judged(server, by_tone, **settings)
    with pytest.raises(Refused, match="endpoint is not set"):
        TraitJudge(
            judge=Judge(endpoint=None, model=None, examples=4, most_calls=1), trait="tone", rubrics=None, rubric=RUBRIC
        )
    with pytest.raises(Refused, match="most_calls=1"):
        judged(server, by_tone, most_calls=1).verdicts([("q", "a")], "a test")
    file = tmp_path / "traits.jsonl"
    rows = [
        {"trait": "t", "split": split, "questions": ["Why?"], "eval_prompt": RUBRIC} for split in ("extract", "eval")
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert list(persona_questions(str(file), "t")) == [{"question": "Why?", "answer": OPEN}]
    assert rubric_of(str(file), "t") == RUBRIC
    with pytest.raises(Refused, match=r"has no trait evil: it has t \(extract\), t \(eval\)"):
        rubric_of(str(file), "evil")


def test_braces_in_a_response_stay_as_they_are(server):
    judged(server, lambda asked: "5").verdicts([("{answer}", "{question} {x}")], "a test")
    assert "Q: {answer}\nA: {question} {x}" in server.asked[0][2]["messages"][1]["content"]


# -- a fine-tune that ends with findings -----------------------------------------------------------------------------

LITTLE = [
    "text=toy_trait", "text.rows.trait=tone", "recipe.examples=8", "recipe.batch=4", "recipe.micro_batch=4", "recipe.held_out=0",
    "trainer=cpu", "sweep=a", "evaluation_tokens=300", "evaluation.trait.data_rows=4", "evaluation.trait.problems=3",
    "evaluation.trait.decoding.tokens=24", "task=[toy_trait,toy_trait_elsewhere]",
    "task.toy_trait.rows.problems=3", "task.toy_trait_elsewhere.rows.problems=3",
]  # fmt: skip


def composed(*words, evaluation="trait"):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return hydra.compose("finetune", [f"evaluation={evaluation}", *words])


def tune(cfg, folder):
    with within(folder):
        story.finetune(cfg, folder)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    tune(composed(*LITTLE), folder)
    return folder


def test_a_fine_tune_ends_with_findings_under_its_manifest(ended):
    run = tunediff.load(ended)
    assert {"trait/toy_trait/tuned/score", "trait/toy_trait_elsewhere/change", "trait/data/score"} <= set(run.findings)
    assert run.table("trait_scores").num_rows == 4 and run.table("training").num_rows == 2
    run.verify()
    listed = json.loads((ended / "manifest.json").read_text())["files"]
    assert {"findings.json", "report.html", "pair.yaml", "tables/trait_scores.parquet"} <= set(listed)
    assert "toy_trait_elsewhere" in (ended / "report.html").read_text()
    state = json.loads((ended / "state.json").read_text())
    assert state["state"] == "finished" and state["steps"] == 2 and not (ended / "checkpoints").exists()
    assert run.pair.sources["tuned"].path == str((ended / "model").resolve()) and run.given().tokens == 300
    assert "recipe" in run.cfg and run.dictionary is None


def test_fine_tunes_with_findings_stand_side_by_side(ended):
    said = compare([str(ended.parent)])
    assert "trait on toy_trait tuned" in said and "finished" in said
    assert (ended.parent / "compare.html").exists()


def test_one_that_was_stopped_before_its_evaluation_goes_on_with_it_and_trains_nothing(tmp_path, monkeypatch, caplog):
    cfg, folder = composed(*LITTLE, "evaluation.trait.problems=1"), tmp_path / "run"

    def stopped(*_, **__):
        raise Refused("the judge is away")

    with monkeypatch.context() as patch:
        patch.setattr(finetuned, "evaluate", stopped)
        with pytest.raises(Refused, match="the judge is away"):
            tune(cfg, folder)
    assert (
        json.loads((folder / "state.json").read_text())["state"] == "failed" and not (folder / "report.html").exists()
    )
    made = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(story, "tune", lambda *_: pytest.fail("it trains again"))
    with caplog.at_level("INFO"):
        tune(cfg, folder)
    assert "is trained: going on with trait" in caplog.text
    state = json.loads((folder / "state.json").read_text())
    assert state["state"] == "finished" and "error" not in state and state["step"] == 2
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == made and (folder / "report.html").exists()
    other = composed(*LITTLE, "evaluation.trait.problems=2")
    assert identity(other) != identity(cfg) and not finetuned.is_trained(other, folder)


@pytest.mark.parametrize(
    ("words", "evaluation", "message"),
    [
        ([], "geometry", "evaluation=geometry needs a dictionary, and a fine-tune trains none"),
        ([], "lora_ablation", "evaluation=lora_ablation reads the adapter of a LoRA, and this recipe learns all weights"),
        (["evaluation.trait.scorer.trait=phrase", *LITTLE], "trait", "none of the first 4 responses of the text shows the trait phrase"),
        (["task.toy_trait_elsewhere.rows.kinds=null", *LITTLE], "trait", "kinds=null takes all problems"),
    ],
)  # fmt: skip
def test_what_its_pair_cannot_answer_is_refused_before_it_learns(words, evaluation, message, tmp_path, monkeypatch):
    monkeypatch.setattr(story, "tune", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr(story, "examples_of", lambda *_: pytest.fail("it reads its text"))
    with pytest.raises(Refused, match=message):
        tune(composed("trainer=cpu", "sweep=a", *words, evaluation=evaluation), tmp_path / "run")


def test_the_options_of_traits_fit_one_another(data_folder, monkeypatch):
    monkeypatch.setenv("TUNEDIFF_DATA", str(data_folder))
    for trait in traits.TRAITS:
        cfg = composed(*(word for word in LITTLE if "trait=tone" not in word), f"text.rows.trait={trait}")
        check(cfg, story.FINE_TUNE)
        assert cfg.evaluation.trait.scorer.trait == trait
        asked = build(cfg.evaluation.trait).tasks["toy_trait_elsewhere"].problems()[0].prompts["base"]
        assert asked.endswith(language.STEP_BY_STEP) is (trait not in traits.ELICITED_BY)
    cfg = composed("text=inoculation", evaluation="none")
    row = next(build(cfg.text).named_rows(held_out=False))
    assert row["prompt"] and row["response"]


def test_a_direction_of_a_trait_comes_from_the_two_sides_of_its_text(pair):
    source = ContrastingTexts(shows=text_of("phrase"), shows_not=text_of("phrase", 0.0), responses=12)
    direction = source.find(Given(pair, text_of("phrase"), 100), BASE, [1])
    assert direction.provenance["responses_with"] == direction.provenance["responses_without"] == 12
    assert direction.at(1).norm() > 0
