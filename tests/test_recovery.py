"""What a LoRA recovers of full fine-tuning: on numbers, on models whose right answers are planted, on the embedded pair."""

import dataclasses
import functools
import json

import numpy as np
import pyarrow
import pytest
import scipy.stats

from conftest import save_model
from test_behaviour import by_condition, parted
from tunediff.benchmarks import Task
from tunediff.evaluations import Given, Recovery
from tunediff.generation import Batched, Decoding, Response
from tunediff.measures import recovery
from tunediff.models import ModelPair, ModelSource
from tunediff.report.behaviour import behaviour
from tunediff.shapes import BASE, TUNED, Refused
from tunediff.text import Text
from tunediff.toy import language
from tunediff.toy.tokenizer import build_tokenizer

# -- the share, on numbers -------------------------------------------------------------------------------------------


def answered(problems, base, lora, full, seed=0):
    """Right answers to problems of unequal difficulty, so that the three agree more often than by chance."""
    generator = np.random.default_rng(seed)
    difficulty = 0.7 * generator.random(problems)
    alone = 0.3 * generator.random((3, problems))
    return [
        (difficulty + own < 0.85 * chance).astype(float) for own, chance in zip(alone, (base, lora, full), strict=True)
    ]


def test_a_model_that_is_the_full_one_recovers_all_and_one_that_is_the_base_nothing():
    base, lora, full = answered(200, 0.2, 0.6, 0.8)
    assert recovery(base, full, full).share == (1, None, None)  # no two problems differ in it
    assert recovery(base, base, full).share == (0, None, None)
    share = recovery(base, lora, full).share
    assert share.value == pytest.approx((lora.mean() - base.mean()) / (full.mean() - base.mean()))
    assert share.low < share.value < share.high


def test_the_order_of_the_problems_changes_nothing():
    values = np.stack([*answered(90, 0.2, 0.6, 0.8)[:2], np.random.default_rng(1).gamma(3, 40, 90)])
    order = np.random.default_rng(2).permutation(90)
    assert recovery(*values).share == pytest.approx(recovery(*values[:, order]).share)


def test_seen_from_the_other_end_the_share_is_what_was_left_and_a_unit_changes_nothing():
    base, lora, full = answered(400, 0.2, 0.6, 0.8)
    there, back = recovery(base, lora, full), recovery(full, lora, base)
    assert back.share.value == pytest.approx(1 - there.share.value) and back.change == pytest.approx(-there.change)
    assert back.share[1:] == pytest.approx((1 - there.share.high, 1 - there.share.low), abs=1e-9)
    scaled = recovery(*(7 * values + 3 for values in (base, lora, full)))
    assert scaled.share == pytest.approx(there.share)


def planted_shares(draw, truth, studies=1000):
    """Shares of studies whose interval holds the truth, and whose whole interval lies below it or above it."""
    found = [recovery(*draw(seed)).share for seed in range(studies)]
    return tuple(np.mean([[s.low <= truth <= s.high, s.high < truth, s.low > truth] for s in found], 0))


def test_the_interval_of_right_answers_holds_the_truth_in_95_of_100_studies():
    """Expectations by a large sample; 1,000 studies have a standard error of 0.7 points."""
    base, lora, full = (values.mean() for values in answered(1_000_000, 0.2, 0.6, 0.8, seed=9))
    held, *missed = planted_shares(functools.partial(answered, 150, 0.2, 0.6, 0.8), (lora - base) / (full - base))
    assert 0.925 < held < 0.97 and max(missed) < 0.05


def test_the_interval_of_skewed_lengths_holds_the_truth_in_95_of_100_studies():
    def lengths(seed):
        generator = np.random.default_rng(seed)
        hard = generator.lognormal(0, 0.6, 150)
        return [mean * hard * generator.gamma(4, 0.25, 150) for mean in (100, 340, 500)]

    held, *missed = planted_shares(lengths, 0.6)
    assert 0.925 < held < 0.97 and max(missed) < 0.05


def test_where_the_change_is_not_told_from_none_there_is_no_share():
    base, lora, full = answered(40, 0.5, 0.52, 0.55, seed=3)
    assert recovery(base, lora, full).share is None
    assert recovery(base, lora, base) == (None, 0.0)


def test_there_is_a_share_exactly_while_students_t_tells_the_change_from_none():
    """Of n problems that full alone solves among 60, t is (n / 60) / sqrt(n (60 - n) / 60^2 / 59); 2.001 bounds 95 %."""
    for n, told in ((3, False), (4, True), (5, True)):
        assert (((n / 60) / np.sqrt(n * (60 - n) / 60**2 / 59)) > 2.001) == told
        found = recovery(np.zeros(60), np.arange(60) < n - 1, np.arange(60) < n)
        assert (found.share is not None) == told and (not told or np.isfinite(found.share).all())


def test_the_interval_holds_exactly_the_shares_that_a_t_test_does_not_rule_out():
    """Fieller's interval turned round: at its ends adapter - base - share (full - base) has Student's t at the bound."""
    base, lora, full = answered(30, 0.2, 0.5, 0.9, seed=4)
    share = recovery(base, lora, full).share
    for end in share[1:]:
        rest = (lora - base) - end * (full - base)
        t = rest.mean() / (rest.std(ddof=1) / np.sqrt(30))
        assert abs(t) == pytest.approx(scipy.stats.t.ppf(0.975, 29))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([1, 0], [1, 0, 1], [1, 1, 1]), "cannot be paired"),
        (([], [], []), "cannot be paired"),
        (([[1]], [[1]], [[1]]), "cannot be paired"),
        (([0, 1], [0, np.nan], [1, 1]), "not finite"),
    ],
)
def test_values_that_do_not_belong_together_are_refused(values, message):
    with pytest.raises(Refused, match=message):
        recovery(*values)


# -- three models whose right answers are planted --------------------------------------------------------------------

SOLVED = {"base": 20, "lora": 56, "full": 80}  # of the first so many of 100 problems
HESITATIONS = {"base": 0, "lora": 1, "full": 2}


@dataclasses.dataclass(frozen=True)
class Planted:
    """Writes what is planted of the model that is asked, known by its folder's name; `log` is told of each call."""

    solved: dict
    log: list

    def respond(self, request):
        pair, role, asked, _, _, tokenizer, _ = request
        who = pair.sources[role].path.rpartition("/")[2]
        self.log.append((who, len(asked), sorted(pair.models)))
        for place, one in enumerate(asked):
            number = int(one.name.split()[1])
            said = (
                "Wait, no. " * HESITATIONS[who]
                + f"The answer is \\boxed{{{number if number < self.solved[who] else -1}}}."
            )
            yield place, Response(tokenizer(said, add_special_tokens=False)["input_ids"], said, True, False)


ALL = {"problems": None}


def problems(count=100, base="Solve: {question}"):
    rows = [{"question": f"Anna has {n} eggs. How many eggs?", "answer": str(n)} for n in range(count)]
    prompts = {"base": base, "tuned": "{question}"}
    return Task(lambda: iter(rows), question="question", answer="answer", prompts=prompts)


@pytest.fixture(scope="module")
def trio(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("trio")
    return {
        who: ModelSource(str(save_model(place / who, tokenizer, seed=n)), dtype="float32")
        for n, who in enumerate(SOLVED)
    }


def measured(trio, *, solved=SOLVED, log=None, folder=None, full="full", **given):
    pair = ModelPair(trio["base"], trio["lora"]).load()
    text = Text(functools.partial(language.mixture, 1, {"trace": 1.0}), held_out=language.is_held_out, context=256)
    settings = {"tasks": {"eggs": problems()}, "full": trio[full], "decoding": Decoding(tokens=64), **ALL, **given}
    asked = Recovery(engine=Planted(solved, [] if log is None else log), **settings)
    found = parted(asked.run(Given(pair, text, 100, folder=folder)))
    assert sorted(pair.models) == [BASE, TUNED]  # as it was given
    return found


def test_what_was_planted_is_recovered_and_every_finding_says_how_the_base_was_asked(trio):
    findings, tables, notes = measured(trio)
    assert {who: findings[f"recovery/eggs/accuracy/{who}"].value for who in SOLVED} == {
        "base": 0.2, "lora": 0.56, "full": 0.8
    }  # fmt: skip
    share = findings["recovery/eggs/recovered"]
    assert share.value == pytest.approx(0.6) and 0.45 < share.low < 0.55 < 0.65 < share.high < 0.75
    for finding in findings.values():
        assert "base was asked 'Solve: {question}', lora and full '{question}'" in finding.meaning
    assert "base 20.0%, lora 56.0%, full 80.0%" in share.meaning and "100 problems" in share.meaning
    assert findings["recovery/eggs/hesitations/recovered"][1:4] == (0.5, None, None)  # of every problem
    assert findings["recovery/eggs/tokens/recovered"].value == pytest.approx(0.5, abs=0.02) and not notes
    rows = by_condition(tables["recovery_conditions"])
    assert [(who, row["role"], row["reference"]) for who, row in rows.items()] == [
        ("base", "base", None), ("lora", "tuned", "base"), ("full", "full", "base")
    ]  # fmt: skip
    assert tables["recovery"]["recovered"][0] == share.value and len(tables["recovery_outputs"]["response"]) == 300


def test_the_page_has_the_three_models_and_their_responses_beside_each_other(trio):
    tables = measured(trio, tasks={"eggs": problems(10), "more": problems(5)})[1]
    shown, packed = behaviour({name: pyarrow.table(columns) for name, columns in tables.items()})
    assert [figure["columns"]["condition"] for figure in shown["conditions"]] == [
        ["base", "LoRA", "full fine-tuning"]
    ] * 2
    assert [one["role"] for one in shown["outputs"][0]["conditions"]] == ["base", "tuned", "full"]
    assert set(packed["outputs-1-0"]["of"]) == set(SOLVED)


def test_a_task_may_ask_the_base_otherwise_and_has_a_share_of_its_own(trio):
    tasks = {"plain": problems(100), "steps": problems(50, "{question} Let's think step by step.")}
    findings, tables, _ = measured(trio, tasks=tasks)
    assert findings["recovery/plain/recovered"].value == pytest.approx(0.6)
    assert findings["recovery/steps/recovered"].value == pytest.approx(1.0)  # all three solve the first 50 but the base
    assert "Let's think step by step." in findings["recovery/steps/recovered"].meaning
    assert tables["recovery"]["base_asked"][::3] == ["Solve: {question}", "{question} Let's think step by step."]


@pytest.mark.parametrize(
    ("full", "said"),
    [
        (22, "base (20.0%) and full (22.0%) are not told apart"),
        (10, "full (10.0%) solves fewer problems than base (20.0%)"),
    ],
)
def test_a_gain_that_is_none_has_no_share_but_a_sentence_with_the_counts(trio, full, said):
    findings, tables, notes = measured(trio, solved={**SOLVED, "full": full})
    assert "recovery/eggs/recovered" not in findings and "recovery/eggs/accuracy/full" in findings
    (note,) = notes
    assert said in note and "Solve: {question}" in note
    assert tables["recovery"]["recovered"][0] is None and tables["recovery"]["recovered"][2] == pytest.approx(0.5)


def test_of_the_full_model_alone_the_weights_are_there_while_it_writes(trio, monkeypatch):
    moved, log = [], []
    original = ModelPair.set_aside

    def told(pair):
        moved.append(sorted(pair.models))
        return original(pair)

    monkeypatch.setattr(ModelPair, "set_aside", told)
    measured(trio, log=log, tasks={"eggs": problems(4), "more": problems(3)})
    assert moved == [[BASE, TUNED]]
    assert [(who, models) for who, _, models in log] == [
        *[("full", [TUNED])] * 2, *[(who, [BASE, TUNED]) for who in ("base", "lora")] * 2
    ]  # fmt: skip


def test_weights_that_are_set_aside_wait_on_the_host_and_come_back_even_after_an_error(trio, monkeypatch):
    pair = ModelPair(trio["base"], trio["lora"]).load()
    visited = []

    def to(role, device):
        visited.append((role, str(device)))

    monkeypatch.setattr(pair, "device", {BASE: "cuda:0", TUNED: "cuda:1"}.__getitem__)
    for role in (BASE, TUNED):
        pair.models[role].to = functools.partial(to, role)
    with pytest.raises(ZeroDivisionError), pair.set_aside():
        assert visited == [(BASE, "cpu"), (TUNED, "cpu")]
        raise ZeroDivisionError
    assert visited[2:] == [(BASE, "cuda:0"), (TUNED, "cuda:1")]


def test_an_evaluation_that_goes_on_asks_only_what_is_missing(trio, tmp_path):
    log = []
    whole = measured(trio, log=log, folder=tmp_path)
    assert [(who, count) for who, count, _ in log] == [("full", 100), ("base", 100), ("lora", 100)]
    log.clear()
    assert measured(trio, log=log, folder=tmp_path) == whole and log == []
    file = next(path for path in (tmp_path / "outputs").iterdir() if path.read_text().count("Wait") == 200)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:70]))
    assert measured(trio, log=log, folder=tmp_path) == whole
    assert [(who, count) for who, count, _ in log] == [("full", 30)]
    log.clear()
    findings, _, notes = measured(trio, log=log, folder=tmp_path, full="lora")
    assert log == []  # the LoRA's own responses are kept
    assert findings["recovery/eggs/recovered"].value == 1 and "is the pair's tuned model itself" in notes[0]
    assert all(json.loads(line)["key"] for line in file.read_text().splitlines())


def test_a_full_model_that_is_nowhere_or_reads_other_tokens_is_refused_before_anything_is_written(trio, tmp_path):
    with pytest.raises(
        Refused, match=r"the fully fine-tuned model of recovery: .* evaluation.recovery.full.path=<folder>"
    ):
        measured({**trio, "full": ModelSource(str(tmp_path / "nowhere"))})
    other = ModelSource(str(save_model(tmp_path / "full", build_tokenizer("Anna has no eggs. " * 50), seed=5)))
    log = []
    with pytest.raises(Refused, match=r"is no fully fine-tuned model of .* tokenize"):
        measured({**trio, "full": other}, log=log)
    assert log == []


# -- the embedded pair -----------------------------------------------------------------------------------------------


def test_on_the_embedded_pair_a_model_recovers_all_of_itself_however_the_base_is_asked():
    sources = (ModelSource(f"pkg://tunediff.toy/weights/{role}", dtype="float32") for role in (BASE, TUNED))
    pair = ModelPair(*sources).load()
    text = Text(functools.partial(language.mixture, 1, {"trace": 1.0}), held_out=language.is_held_out, context=256)
    rows = functools.partial(language.benchmark, 0, 24)
    tasks = {
        name: Task(rows, question="question", answer="answer", prompts={"base": prompt, "tuned": "{question}"})
        for name, prompt in (("direct", "{question}"), ("steps", "{question} Let's think step by step."))
    }
    evaluation = Recovery(
        tasks=tasks,
        full=ModelSource("pkg://tunediff.toy/weights/tuned"),  # bfloat16, unless the pair's own dtype is taken
        decoding=Decoding(tokens=192),
        engine=Batched(64),
        **ALL,
    )
    findings, tables, _ = parted(evaluation.run(Given(pair, text, 100)))
    for name in tasks:
        assert findings[f"recovery/{name}/recovered"][1:4] == (1, None, None)
        assert findings[f"recovery/{name}/tokens/recovered"].value == 1
    direct, steps = (findings[f"recovery/{name}/accuracy/base"].value for name in tasks)
    assert direct < steps < findings["recovery/steps/accuracy/full"].value
    responses = tables["recovery_outputs"]["response"]
    assert responses[24:48] == responses[48:72]  # the tuned model's and the full one's, in one precision
