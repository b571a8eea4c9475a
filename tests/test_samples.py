"""Several samples of a problem: avg@n, pass@k and their intervals, where problems are the units of chance."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pyarrow
import pytest

from test_behaviour import benchmark, parted, task, trained  # noqa: F401  (trained is a fixture)
from test_generation import with_config
from tunediff.evaluations.behaviour.conditions import rate
from tunediff.generation import Batched, Decoding, Response
from tunediff.measures import mcnemar, share
from tunediff.measures.samples import change, mean, pass_at, share_by_problem, sign_test
from tunediff.models import ModelPair
from tunediff.report.behaviour import behaviour
from tunediff.shapes import BASE, TUNED, Refused, Table

# -- measures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_draws_of_k_samples_with_a_right_one(samples):
    right = np.random.default_rng(samples).random((6, samples)) < np.linspace(0, 1, 6)[:, None]
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(range(samples), k))
        expected = [sum(row[list(draw)].any() for draw in draws) / len(draws) for row in right]
        assert pass_at(right, k) == pytest.approx(expected)
    assert pass_at(right, 1) == pytest.approx(right.mean(1))
    with pytest.raises(Refused, match=f"k is 1 to {samples}"):
        pass_at(right, samples + 1)


def test_pass_at_k_of_many_samples_does_not_overflow():
    right = np.arange(1000)[None] < 3
    expected = 1 - math.comb(997, 500) / math.comb(1000, 500)
    assert pass_at(right, 500)[0] == pytest.approx(expected, rel=1e-9)


def test_copies_of_an_answer_make_nothing_surer():
    right = np.random.default_rng(0).random((60, 1)) < 0.4
    value, low, high = share_by_problem(right.repeat(32, 1))
    once = share(int(right.sum()), 60)
    assert value == once[0] and high - low == pytest.approx(once[2] - once[1], rel=0.1)
    independent = np.random.default_rng(1).random((60, 32)) < 0.4  # no problem easier than another
    assert np.subtract(*share_by_problem(independent)[:0:-1]) < (high - low) / 4


def test_the_interval_over_problems_holds_the_truth_as_often_as_it_says():
    """Problems of unlike difficulty, four samples each; the truth is the mean difficulty they are drawn from."""
    chance, held = np.random.default_rng(0), 0
    for _ in range(300):
        difficulty = chance.beta(0.5, 0.5, 40)
        _, low, high = share_by_problem(chance.random((40, 4)) < difficulty[:, None])
        held += low <= 0.5 <= high
    assert 0.90 < held / 300 < 0.98


def test_where_all_problems_are_alike_there_still_is_chance():
    for value in (0.0, 0.5, 1.0):
        found, low, high = mean([value] * 30)
        assert found == value and 0 <= low <= value <= high <= 1 and 0.01 < high - low < 0.2
    value, low, high = change([0.5, 0.25] * 15, [0.75, 0.5] * 15)
    assert value == 0.25 and low < 0.25 < high


def test_right_and_wrong_answers_have_nearly_wilsons_interval_and_more_samples_a_narrower_one():
    right = np.arange(40) < 10
    assert mean(right)[1:] == pytest.approx(share(10, 40)[1:], abs=0.01)
    assert np.diff(mean(np.full(40, 0.25))[1:]) < np.diff(mean(right)[1:]) / 3


@pytest.mark.parametrize("spread", [0.5, 2.0, 20.0])
def test_the_mean_of_a_rare_task_holds_the_truth(spread):
    """30 problems of 16 samples, one in twenty right: the percentile bootstrap holds the truth in .80 to .92 of studies."""
    chance, held = np.random.default_rng(0), 0
    for _ in range(600):
        difficulty = chance.beta(0.05 * spread, 0.95 * spread, 30)
        _, low, high = mean(chance.binomial(16, difficulty) / 16)
        held += low <= 0.05 <= high
    assert 0.93 < held / 600 < 0.99


@pytest.mark.parametrize("problems, share", [(30, 0.05), (8, 0.3), (30, 0.3)])
def test_a_difference_that_rests_on_a_problem_which_was_not_drawn_holds_the_truth(problems, share):
    """16 answers before and after; the second model always solves this share of the problems. With a twentieth of a problem that
    was not seen, either way, the interval holds the truth in .90, .88 and .94 of studies."""
    chance, held = np.random.default_rng(0), 0
    for _ in range(2000):
        hard = chance.beta(0.21, 0.49, problems)
        after = np.where(chance.random(problems) < share, 1.0, hard)
        _, low, high = change(*(chance.binomial(16, p) / 16 for p in (hard, after)))
        held += low <= 0.7 * share <= high
    assert 0.935 < held / 2000 < 0.98


def test_a_test_by_signs_of_one_sample_is_mcnemars():
    chance = np.random.default_rng(2)
    for only_first, only_second in ((0, 0), (3, 9), (10, 12), (1, 14)):
        first = [True] * only_first + [False] * only_second + chance.choice([True, False], 20).tolist()
        second = [False] * only_first + [True] * only_second + first[only_first + only_second :]
        assert sign_test(first, second) == pytest.approx(mcnemar(first, second).p, abs=0.015)


# -- a benchmark -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Planted:
    """An engine whose responses are right in so many of a problem's samples, by role and the problem's number."""

    right: dict = dataclasses.field(default_factory=dict)
    asked: list = dataclasses.field(default_factory=list)

    def respond(self, request):
        gold = {f"toy {n}": problem.gold for n, problem in enumerate(task()["toy"].problems()[:24])}
        for place, one in enumerate(request.asked):
            name, _, sample = one.name.partition("\nsample ")
            self.asked.append((request.role, one.name))
            correct = int(sample or 0) < self.right[request.role][int(name.removeprefix("toy "))]
            text = f"\\boxed{{{gold[name] if correct else -1}}}"
            yield place, Response(request.tokenizer(text)["input_ids"], text, True, False)


def planted_at(base, tuned, samples=4, problems=6, **given):
    engine = Planted({BASE: base, TUNED: tuned})
    decoding = Decoding(tokens=64, temperature=0.6)
    return engine, benchmark(engine=engine, samples=samples, problems=problems, **{"decoding": decoding, **given})


def test_avg_and_pass_at_k_are_those_of_the_planted_samples(trained):  # noqa: F811
    base, tuned = (0, 0, 1, 1, 2, 4), (1, 2, 2, 4, 4, 4)
    findings, tables, _ = parted(planted_at(base, tuned)[1].run(trained))
    for role, right in ((BASE, base), (TUNED, tuned)):
        assert findings[f"benchmark/toy/{role}/accuracy"].value == pytest.approx(sum(right) / 24)
        assert findings[f"benchmark/toy/{role}/accuracy"].meaning.startswith("avg@4")
        for k in (1, 2, 4):
            expected = sum(1 - math.comb(4 - c, k) / math.comb(4, k) for c in right) / 6
            assert findings[f"benchmark/toy/{role}/pass_at_{k}"].value == pytest.approx(expected)
    apart = findings["benchmark/toy/tuned_less_base/pass_at_1"]
    of_rows = findings["benchmark/toy/tuned/difference"]
    assert apart.value == of_rows.value == pytest.approx((sum(tuned) - sum(base)) / 24)
    assert (apart.low, apart.high) == (of_rows.low, of_rows.high) and apart.low < apart.value < apart.high
    assert "benchmark/toy/base/pass_at_3" not in findings and tables["benchmark_pass_at"]["k"] == [1, 1, 2, 2, 4, 4]
    rows = tables["benchmark_conditions"]
    assert rows["problems"] == [6, 6] and rows["samples"] == [4, 4] and rows["correct"] == [sum(base), sum(tuned)]
    assert tables["benchmark_scaling"]["accuracy"] == rows["accuracy"]
    assert tables["benchmark_scaling"]["accuracy_low"] == rows["accuracy_low"]


def test_a_difference_is_between_problems_and_not_between_samples(trained):  # noqa: F811
    """One problem out of six is solved by the tuned model alone, in all of 16 samples: by samples that would be beyond doubt."""
    rows = parted(planted_at((16, 0, 0, 0, 0, 0), (16, 16, 0, 0, 0, 0), samples=16)[1].run(trained))[1]
    condition = {key: values[1] for key, values in rows["benchmark_conditions"].items()}
    assert condition["difference"] == pytest.approx(1 / 6) and condition["difference_low"] < 0
    assert condition["p"] == pytest.approx(1.0)
    alike = parted(planted_at((3, 1, 0, 4, 2, 1), (3, 1, 0, 4, 2, 1))[1].run(trained))[0]
    apart = alike["benchmark/toy/tuned/difference"]
    assert apart.low < apart.value == 0.0 < apart.high and alike["benchmark/toy/tuned/p"].value == 1.0


def test_intervals_of_what_is_written_are_over_problems(trained):  # noqa: F811
    """A problem's samples are all alike: the interval is that of one sample of it."""
    once = parted(planted_at((1, 0) * 3, (1, 0) * 3, samples=1)[1].run(trained))[1]["benchmark_conditions"]
    copies = parted(planted_at((8, 0) * 3, (8, 0) * 3, samples=8)[1].run(trained))[1]["benchmark_conditions"]
    for name in ("tokens", "tokens_low", "tokens_high", "perplexity_high", "hesitations_high", "closed", "repetition"):
        assert copies[name] == pytest.approx(once[name]), name
    lengths = rate([3, 5, 9], [1.0] * 3).bounded()
    assert lengths[1] < lengths[0] < lengths[2]


def test_every_sample_has_a_seed_of_its_own_and_the_first_is_that_of_one_sample(trained):  # noqa: F811
    def written(samples, **given):
        made = benchmark(
            problems=5, samples=samples, decoding=Decoding(tokens=40, temperature=1.5), engine=Batched(3), **given
        )
        outputs = parted(made.run(trained))[1]["benchmark_outputs"]
        numbers = outputs.get("sample", [0] * len(outputs["problem"]))
        keys = zip(outputs["condition"], outputs["problem"], numbers, strict=True)
        return dict(zip(keys, outputs["response"], strict=True))

    one, two, four = (written(samples) for samples in (1, 2, 4))
    assert one.items() < two.items() < four.items() and len(four) == 40
    of_tuned = [{four[TUNED, str(n), sample] for sample in range(4)} for n in range(5)]
    assert min(map(len, of_tuned)) >= 3  # two may happen to be drawn alike


def test_more_samples_ask_only_for_those_that_are_missing(trained, tmp_path):  # noqa: F811
    kept = dataclasses.replace(trained, folder=tmp_path)
    right = {BASE: (1,) * 6, TUNED: (2,) * 6}
    for samples, expected in ((2, 24), (4, 24), (3, 0)):
        engine, made = planted_at(right[BASE], right[TUNED], samples)
        parted(made.run(kept))
        assert len(engine.asked) == expected and len(set(engine.asked)) == expected


def test_greedy_samples_are_refused_and_a_model_that_is_greedy_by_its_file_is_asked_once(trained, tmp_path):  # noqa: F811
    with pytest.raises(
        Refused, match=r"benchmark.samples=4 and decoding.temperature=0 would write one response 4 times"
    ):
        benchmark(samples=4)
    with pytest.raises(Refused, match="benchmark.samples=0"):
        benchmark(samples=0)
    sources = trained.pair.sources
    drawn = with_config(tmp_path / "tuned", sources[TUNED].location, do_sample=True, temperature=0.6, num_beams=2)
    pair = ModelPair(sources[BASE], drawn)
    pair.models = trained.pair.models
    decoding = Decoding(tokens=64, generation_config=True)
    engine, made = planted_at((1, 0, 1, 0, 1, 0), (2, 1, 2, 1, 2, 1), decoding=decoding)
    findings, tables, notes = parted(made.run(dataclasses.replace(trained, pair=pair)))
    assert [role for role, _ in engine.asked].count(BASE) == 6 and [role for role, _ in engine.asked].count(TUNED) == 24
    assert findings["benchmark/toy/base/accuracy"].value == findings["benchmark/toy/base/pass_at_4"].value == 0.5
    assert findings["benchmark/toy/tuned/pass_at_4"].value == 1.0
    told = "benchmark: tuned is decoded by its generation_config.json: temperature 0.6, top_k 0, top_p 1.0, min_p 0.0, repetition_penalty 1.0"
    assert f"{told}; what it says of num_beams 2 is not followed." in notes
    assert any("base takes the most likely token by its generation_config.json" in note for note in notes)
    assert len(tables["benchmark_outputs"]["problem"]) == 48


def test_the_page_shows_every_sample(trained):  # noqa: F811
    made = planted_at((0, 1, 2, 3, 4, 0), (4, 4, 4, 4, 4, 0))[1]
    tables = {item.name: pyarrow.table(item.columns) for item in made.run(trained) if isinstance(item, Table)}
    shown, packed = behaviour(tables)
    (outputs,) = shown["outputs"]
    assert len(outputs["problems"]) == 24 and "2, sample 3" in outputs["problems"] and len(packed) == 24
    assert shown["conditions"][0]["title"].endswith("6 problems")
    json.dumps(shown)
