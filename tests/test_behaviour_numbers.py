"""The numbers of graded responses, from responses that nobody wrote: every denominator, weight and side is planted."""

import math
import random

import pytest
import torch

from test_behaviour import benchmark, steering, trained  # noqa: F401  (trained is a fixture)
from test_expressions import trained as of_columns  # noqa: F401  (a fixture)
from tunediff.benchmarks import Behaviour, Grade, Problem
from tunediff.evaluations import Telling
from tunediff.evaluations.behaviour.benchmark import _scaling
from tunediff.evaluations.behaviour.changes import Changed, columns, told
from tunediff.evaluations.behaviour.conditions import perplexity, row
from tunediff.evaluations.behaviour.oversteering import Curve, coherent, dip
from tunediff.evaluations.behaviour.runner import mostly_cut, outputs
from tunediff.evaluations.behaviour.solving import Answered, Condition, Solved, in_turn
from tunediff.evaluations.given import ALL, LatentStatistics
from tunediff.evaluations.latents.selection import alike
from tunediff.evaluations.latents.steering import steering_parts
from tunediff.evaluations.transcoders.latent_sets import AskedSet, _compared
from tunediff.generation import Response
from tunediff.measures import share
from tunediff.measures.clustered import Estimate
from tunediff.randomness import generator
from tunediff.shapes import ADAPTER, BASE, HYBRID, TUNED, Finding, Note


def one(
    tokens=10,
    *,
    nats=0.0,
    correct=False,
    hesitations=0,
    closed=None,
    repetition=0.0,
    finished=True,
    touched=(),
    change=(),
):
    response = Response(list(range(tokens)), "said", finished, False, touched, change)
    grade, how = Grade(correct, "1", "last number"), Behaviour(tokens, hesitations, closed, repetition, 0.5)
    return Solved(Problem("p", "how many?", "1", {}), response, grade, how, nats)


# -- one condition ---------------------------------------------------------------------------------------------------


def test_what_an_edit_changed_is_a_mean_over_the_tokens_that_it_changed():
    solved = [
        one(touched=(3, 0), change=(2.0, 0.0)),
        one(touched=(1, 2), change=(6.0, 9.0)),
        one(touched=(0, 0), change=(0.0, 0.0)),
        one(touched=(0, 0), change=(0.0, 0.0)),
    ]
    found = row(Condition("a", "a", TUNED), solved, None)
    assert found["change"] == pytest.approx((3 * 2 + 1 * 6 + 2 * 9) / 6) and found["p"] is None


def test_a_share_is_of_the_responses_that_it_applies_to():
    solved = [one(closed=True), one(closed=False), one(closed=None), one(closed=None, finished=False, hesitations=3)]
    found = row(Condition("a", "a", TUNED), solved, None)
    assert found["closed"] == 0.5 and found["finished"] == 0.75 and found["hesitating"] == 0.25
    assert found["hesitations"] == pytest.approx(1000 * 3 / 40) and found["touched"] is None


def test_perplexity_weighs_tokens_alike_and_not_responses():
    found = perplexity([one(10, nats=10.0), one(90, nats=360.0)])
    assert found[0] == pytest.approx(math.exp(370 / 100)) and found[1] < found[0] < found[2]
    (said,) = [
        entry["nll"] for entry in outputs({("t", "a"): Answered(Condition("a", "a", TUNED), [one(90, nats=360.0)])})
    ]
    assert said == 4.0


def test_a_condition_is_compared_with_its_reference_and_not_the_other_way_round():
    before, after = [one(correct=n < 2) for n in range(10)], [one(correct=n < 9) for n in range(10)]
    found = row(Condition("a", "a", TUNED, reference="b"), after, before)
    assert found["difference"] == pytest.approx(0.7) and 0 < found["difference_low"] < 0.7 < found["difference_high"]
    assert found["p"] == pytest.approx(2 / 2**7)


def test_it_is_said_where_more_than_half_were_cut_and_only_there():
    def cut(count):
        solved = [one(finished=n >= count) for n in range(10)]
        return [note.text for note in mostly_cut("mine", {("t", "a"): Answered(Condition("a", "a", TUNED), solved)})]

    assert cut(5) == cut(2) == [] and "under a 60% of the responses were cut" in cut(6)[0]


# -- changes and sets ------------------------------------------------------------------------------------------------


def of_lengths(*lengths, draws=0):
    return [one(n)._replace(draw=place % draws if draws else None) for place, n in enumerate(lengths)]


def test_a_change_is_the_changed_model_less_the_whole_one_and_less_the_controls_draw_by_draw():
    control = of_lengths(8, 12, 16, 30, draws=2)
    changed = Changed(of_lengths(10, 20, 60, 30), of_lengths(20, 40, 60, 40), control)
    found = columns(changed)
    assert found["length"] == 30 and found["length_change"] == -10
    assert found["length_over_random"] == pytest.approx(30 - 66 / 4)
    # of the first draw 46 / 2, of the second 8 / 2: two units of chance
    reach = 12.706 * abs((60 + 10 - 24) / 2 - (20 + 30 - 42) / 2) / 2
    assert found["length_over_random_high"] == pytest.approx(13.5 + reach, abs=0.01)
    said = {f.name: f for f in told("here", changed)}
    assert said["here/length_change"].value == -10 and said["here/length_change"].over == "problems"
    assert "30 less 40 of the whole model" in said["here/length_change"].meaning
    beyond = said["here/length_over_random"]
    assert beyond.value == found["length_over_random"] and "that of 2 random controls" in beyond.meaning
    assert beyond.over == "draws and problems"


def test_draws_answer_every_problem_once_between_them_and_never_are_more_than_problems():
    assert [list(some) for some in in_turn(7, 3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [list(some) for some in in_turn(2, 20)] == [[0], [1]]


def test_of_draws_that_differ_the_interval_is_over_draws_and_not_over_problems():
    """20 draws of 10 problems each; the accuracy of a draw is anything from 0 to 1. Problems would be taken for 200."""
    chance, held, naive = random.Random(0), 0, 0
    for _ in range(300):
        rates = [chance.betavariate(1, 1) for _ in range(20)]
        solved = [one(correct=chance.random() < rates[n % 20])._replace(draw=n % 20) for n in range(200)]
        found = row(Condition("a", "a", TUNED), solved, None)
        held += found["accuracy_low"] <= 0.5 <= found["accuracy_high"]
        _, low, high = share(found["correct"], 200)
        naive += low <= 0.5 <= high
    assert found["draws"] == 20 and found["problems"] == 200 and found["p"] is None
    assert 0.92 < held / 300 < 0.98 and naive / 300 < 0.8


def test_a_set_is_compared_with_random_sets_of_its_own_size_asked_in_the_same_way():
    questions = [AskedSet("necessity", "chosen", ((3,),)), AskedSet("necessity", "random", ((0,), (1,)))]
    questions += [AskedSet("necessity", "random", ((4, 5),)), AskedSet("sufficiency", "random", ((6,),))]
    lengths = dict(zip([q.name for q in questions], (10, 20, 500, 700), strict=True))
    lengths |= {ADAPTER: 100, HYBRID: 1, TUNED: 2}
    found = {name: of_lengths(n, n + 1, draws=2 * name.startswith("random")) for name, n in lengths.items()}
    said = {f.name.rpartition("/")[2]: f for f in _compared("t", questions, found)}
    assert said["length_over_random"].value == 10 - 20 and said["length_change"].value == 10 - 100
    assert "that of 2 random controls" in said["length_over_random"].meaning


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_slopes_bear_the_name_of_their_unit_and_the_difference_is_the_tuned_model_less_the_base():
    tuned = [[n < 10 * k for k in (1, 2, 4, 8)] for n in range(80)]
    base = [[False] * 4 for _ in range(80)]
    evaluation = benchmark(budgets=[16, 32, 64])
    assert evaluation.budgets_below(128) == [16, 32, 64, 128]
    of_both = {BASE: base, TUNED: tuned}
    found = {f.name.removeprefix("benchmark/toy/"): f for f in _scaling("toy", of_both, [16, 32, 64, 128])}
    assert found["tuned/best_accuracy"].value == 1 and found["base/best_accuracy"].value == 0
    per_token = 100 * 10 / 80 / 16
    for whose in ("tuned", "tuned_less_base"):
        assert found[f"{whose}/slope_per_token"].value == pytest.approx(per_token)
        assert found[f"{whose}/slope_per_1000_tokens"].value == pytest.approx(1000 * per_token)
        assert found[f"{whose}/slope_per_doubling"].value > 0 < found[f"{whose}/area"].value < 1
        assert "points a token" in found[f"{whose}/slope_per_token"].meaning
        assert "per 1,000 tokens" in found[f"{whose}/slope_per_1000_tokens"].meaning
        assert "area under accuracy" in found[f"{whose}/area"].meaning
    assert found["tuned_less_base/best_accuracy"].value == 1


# -- steering --------------------------------------------------------------------------------------------------------


def test_a_text_has_broken_down_beyond_so_many_times_the_plain_perplexity_or_so_much_repetition():
    plain = [one(10, nats=10.0), one(30, nats=30.0)]
    of = [(math.log(2.9), 0.1), (math.log(3.1), 0.1), (0.0, 0.45), (0.0, 0.55)]
    curve = [
        [one(10, nats=10 * (1 + by), repetition=share), one(30, nats=30 * (1 + by), repetition=share)]
        for by, share in of
    ]
    assert coherent(plain, curve, collapse=3.0, repetition=0.5) == [True, False, True, False]


def test_the_peak_stands_at_its_own_strength_and_not_where_the_text_has_broken_down():
    sweep = steering(strengths=[0.5, 1.0, 2.0, 4.0])
    plain, broken = [one(1000, hesitations=1) for _ in range(3)], {"nats": 9000.0}
    curve = [
        [one(1000, hesitations=n + m, **more) for m in range(3)]
        for n, more in ((2, {}), (6, {}), (4, {}), (50, broken))
    ]
    fine = coherent(plain, curve, collapse=sweep.collapse, repetition=sweep.repetition)
    found = list(sweep._verdict("gate", Curve(plain, curve, [], fine)))
    values = {item.name.rpartition("/")[2]: item.value for item in found if isinstance(item, Finding)}
    assert values["peak"] == pytest.approx(7.0) and values["peak_strength"] == 1.0
    assert any(isinstance(item, Note) for item in found)


def test_a_rise_must_hold_together_over_all_strengths_that_were_tried():
    """A rise of 2.2 standard errors is beyond doubt for one strength and not for the best of five."""
    problems, rise = 200, 1.0
    signs = torch.where(torch.arange(problems) % 2 == 0, 1.0, -1.0).double()
    error = rise / 2.2

    def rate(value, noise):
        influence = noise * signs * error / problems**0.5 * ((problems - 1) / problems) ** 0.5
        return Estimate(torch.tensor(value).double(), influence)

    plain, top, flat = rate(0.0, 0.0), rate(rise, 1.0), rate(0.0, 0.0)
    low, _ = (top - plain).interval(0.95)
    assert low > 0
    assert "no strength beyond the peak" in dip(plain, [top], [True]).why  # it rises, and nothing was tried beyond
    assert "does not rise beyond doubt" in dip(plain, [flat, flat, flat, flat, top], [True] * 5).why


def test_a_change_in_units_of_the_stream_is_shared_among_its_latents(trained):  # noqa: F811
    seen, numbers = trained.statistics, [0, 3, 5, 7]
    ((at, part),), _ = steering_parts(trained, TUNED, seen, numbers, unit="residual_norm", draws=0, seed=0)
    sizes = part.scale * trained.dictionary.W_dec[numbers].norm(dim=-1)
    assert sizes.tolist() == pytest.approx([seen.norms[TUNED] / 4] * 4, rel=1e-5) and at.role == TUNED


# -- controls --------------------------------------------------------------------------------------------------------


def test_no_control_is_drawn_twice():
    alive = torch.ones(10)
    seen = LatentStatistics({ALL: 1}, {ALL: alive}, alive, alive, {})
    for seed in range(5):
        assert sorted(alike(seen, alive, range(5), generator(seed, "a test"))) == [5, 6, 7, 8, 9]


def test_a_dead_latent_tells_no_label_better_than_one_that_tells_the_opposite(of_columns):  # noqa: F811
    order = Telling("hesitation_follows", 6, None).choose(of_columns, of_columns.statistics)
    assert order[0] == 0 and order[-1] == 3 and order[-2] == 4  # 3 is dead, and 4 is silent exactly at the label
