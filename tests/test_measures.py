"""Accuracies, token budgets and the writing of responses, on numbers whose truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from tunediff.benchmarks import behaviour, closed, distinct, hesitations, repetition
from tunediff.measures import difference, mcnemar, scaling, scaling_difference, wilson
from tunediff.shapes import Refused

BUDGETS = [128, 256, 512, 1024]


def answers(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


def rising(problems, chances, seed=0):
    """Right answers [problem, budget]: who solves one within a budget solves it within every larger one."""
    return np.random.default_rng(seed).random((problems, 1)) < np.array(chances)


# -- accuracy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_score_interval_is_the_published_one(successes, trials, low, high):
    """Table I of Newcombe 1998, Statistics in Medicine 17:857, method 3."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("successes", "trials", "level"), [(22, 50, 0.95), (0, 7, 0.9), (7, 7, 0.99), (1, 1, 0.95)])
def test_the_score_interval_is_scipys_and_stays_between_0_and_1(successes, trials, level):
    theirs = binomtest(successes, trials).proportion_ci(level, method="wilson")
    found = wilson(successes, trials, level)
    assert found == pytest.approx(tuple(theirs), abs=1e-12) and 0 <= found[0] < found[1] <= 1


def test_no_trials_have_no_interval():
    with pytest.raises(Refused, match="0 successes of 0 trials are no share"):
        wilson(0, 0)
    with pytest.raises(Refused, match="5 successes of 4 trials"):
        wilson(5, 4)


def test_one_against_five_is_a_split_that_14_of_64_coins_give():
    found = mcnemar(*answers(10, 5, 1, 4))
    assert found[:2] == (5, 1) and found.p == pytest.approx(14 / 64)  # 2 (1 + 6) / 2^6
    assert mcnemar(*answers(0, 1, 5, 0)).p == found.p


def test_the_chance_of_a_split_is_twice_the_tail_of_a_fair_binomial():
    for only_first, only_second in ((0, 1), (0, 7), (3, 40), (120, 90), (0, 900)):
        smaller, discordant = min(only_first, only_second), only_first + only_second
        theirs = min(1.0, 2 * binom.cdf(smaller, discordant, 0.5))
        assert mcnemar(*answers(2, only_first, only_second, 1)).p == pytest.approx(theirs, rel=1e-12)


def test_an_even_split_and_none_at_all_say_nothing():
    assert mcnemar(*answers(3, 4, 4, 3)).p == 1.0
    assert mcnemar(*answers(3, 0, 0, 3)) == (0, 0, 1.0)


@pytest.mark.parametrize(("cells", "low", "high"), [((20, 12, 2, 16), 0.0562, 0.3292), ((1, 7, 1, 12), 0.0256, 0.5069)])
def test_the_paired_interval_is_the_published_one(cells, low, high):
    """Newcombe 1998, Statistics in Medicine 17:2635; the second with Fagerland et al. 2014, Statistics in Medicine 33:2850."""
    found = difference(*reversed(answers(*cells)))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.value == pytest.approx((cells[1] - cells[2]) / sum(cells))


def test_the_difference_is_the_second_less_the_first_and_turns_with_them():
    first, second = answers(20, 2, 12, 16)
    there, back = difference(first, second), difference(second, first)
    assert there.value == pytest.approx(0.2) and there == pytest.approx((-back.value, -back.high, -back.low))


def test_two_models_that_agree_leave_room_for_a_difference_only_on_a_few_problems():
    few, many = (difference(*answers(n, 0, 0, n)) for n in (5, 500))
    assert few.value == many.value == 0 and few.low < -0.05 and few.high > 0.05 and -0.01 < many.low < many.high < 0.01


def test_the_paired_interval_covers():
    chance = np.random.default_rng(0)
    cells = chance.multinomial(40, [0.3, 0.1, 0.25, 0.35], size=500)
    found = [difference(*answers(*row)) for row in cells]
    assert 0.92 < np.mean([one.low <= 0.15 <= one.high for one in found]) < 0.99


def test_models_on_different_problems_cannot_be_paired():
    for compare in (mcnemar, difference):
        with pytest.raises(Refused, match="give both models the same ones"):
            compare([True], [True, False])


# -- what a budget of tokens buys ------------------------------------------------------------------------------------


def test_a_line_has_its_own_slope_in_every_unit():
    """80 problems, of which 10, 20, 40, 80 are solved: 10 / 128 problems a token."""
    correct = np.arange(80)[:, None] < np.array([10, 20, 40, 80])
    found = scaling(correct, BUDGETS)
    assert found.per_token.value == pytest.approx(100 / 1024)
    assert found.per_1000_tokens.value == pytest.approx(1000 * 100 / 1024)
    assert found.best.value == 1


def test_a_line_over_doublings_has_its_slope_and_its_middle_as_area():
    correct = np.arange(40)[:, None] < np.array([8, 16, 24, 32])
    found = scaling(correct, BUDGETS)
    assert found.per_doubling.value == pytest.approx(20) and found.area.value == pytest.approx(0.5)


def test_the_area_under_a_flat_curve_is_its_height():
    correct = np.repeat(np.arange(8)[:, None] < 3, 4, axis=1)
    found = scaling(correct, [100, 700, 800, 5000])
    assert (
        found.area.value == pytest.approx(3 / 8) and found.best.value == 1 / 4
    )  # of the second, fourth, sixth and eighth
    assert found.per_token.value == found.per_doubling.value == 0 and found.area.low < 3 / 8 < found.area.high


def test_the_order_of_the_budgets_does_not_matter():
    correct = rising(60, [0.1, 0.3, 0.4, 0.8])
    assert np.allclose(scaling(correct, BUDGETS), scaling(correct[:, ::-1], BUDGETS[::-1]))


def test_one_budget_has_an_accuracy_and_no_slope():
    found = scaling(rising(60, [0.5]), [1024])
    assert found.best.low < found.best.value < found.best.high
    assert found[1:] == (None,) * 4


def test_the_intervals_cover_the_truth_that_was_planted():
    chances = [0.2, 0.4, 0.6, 0.8]  # 20 points a doubling, area 0.5, best 0.8
    truths = {"best": 0.8, "per_doubling": 20.0, "area": 0.5}
    inside = dict.fromkeys(truths, 0)
    for seed in range(400):
        found = scaling(rising(40, chances, seed), BUDGETS)
        for name, truth in truths.items():
            inside[name] += getattr(found, name).low <= truth <= getattr(found, name).high
    assert all(0.92 * 400 <= count <= 0.98 * 400 for count in inside.values()), inside


def test_the_best_budget_is_chosen_on_problems_that_it_is_not_measured_on():
    """Of budgets that are all alike the largest accuracy is above the truth; what is said of it is not."""
    alike = [np.random.default_rng(seed).random((40, 8)) < 0.5 for seed in range(300)]
    found = [scaling(each, range(1, 9)).best for each in alike]
    assert np.mean([each.mean(0).max() for each in alike]) > 0.58
    assert np.mean([one.value for one in found]) == pytest.approx(0.5, abs=0.015)
    assert 0.92 < np.mean([one.low <= 0.5 <= one.high for one in found]) < 0.98


def test_a_problem_counts_once_at_all_budgets():
    """Every problem has the same slope, so that little but the rare other problem is unknown; budgets apart would say more."""
    found = scaling(np.tile([0, 0, 1, 1], (30, 1)), BUDGETS)
    assert found.per_doubling.value == pytest.approx(40)
    assert 0 < found.per_doubling.high - found.per_doubling.low < 12


def test_curves_without_a_right_answer_and_of_right_answers_alone_still_have_intervals():
    for answer in (0, 1):
        found = scaling(np.full((30, 4), answer), BUDGETS)
        for one in (found.best, found.area):
            assert one.value == answer and 0.05 < one.high - one.low < 0.3
        assert found.per_doubling.low < 0 == found.per_doubling.value < found.per_doubling.high


def test_a_difference_of_curves_is_that_of_their_values_and_narrower_on_shared_problems():
    first, second = rising(200, [0.1, 0.2, 0.3, 0.4]), rising(200, [0.2, 0.4, 0.6, 0.8])
    found, one, other = (
        scaling_difference(first, second, BUDGETS),
        scaling(first, BUDGETS),
        scaling(second, BUDGETS),
    )
    for here, a, b in zip(found, one, other, strict=True):
        assert here.value == pytest.approx(b.value - a.value)
    apart = math.hypot(one.area.high - one.area.low, other.area.high - other.area.low)
    assert found.area.high - found.area.low < apart
    assert scaling_difference(first, first, BUDGETS).best.value == 0


@pytest.mark.parametrize(
    ("shape", "budgets", "message"),
    [((5, 2), [1, 2, 3], r"not \[problem, budget\] of 3"), ((5, 2), [9, 9], "none twice"), ((5, 2), [0, 9], "above 0")],
)
def test_budgets_that_do_not_fit_are_refused(shape, budgets, message):
    with pytest.raises(Refused, match=message):
        scaling(np.ones(shape), budgets)


# -- how a response is written ---------------------------------------------------------------------------------------


def test_a_waiter_does_not_hesitate():
    assert hesitations("The waiter awaits. Wait, no. WAIT! Hmmm... wait") == 4
    assert hesitations("The waiter awaits a schwimmhmm.") == 0


def test_a_pair_has_hesitations_of_its_own():
    text = "Actually, no. Let me check: on second thought, wait."
    assert hesitations(text, ["actually", "on second thought"]) == 2
    assert hesitations(text, []) == 0
    with pytest.raises(Refused, match="hesitations is no regular expression"):
        hesitations(text, ["("])


@pytest.mark.parametrize(
    ("text", "opened", "truth"),
    [
        ("<think>\nso 4\n</think>\n4", "", True),
        ("so 4\n</think>\n4", "<think>", True),
        ("so 4 and", "<think>", False),
        ("<think>\nso", "", False),
        ("<think>a</think> b <think>again", "", False),
        ("The answer is 4.", "", None),
    ],
)
def test_thinking_is_closed_where_its_last_opening_is(text, opened, truth):
    assert closed(text, opened) is truth


def test_a_repeated_block_counts_from_its_second_time_on():
    block = list(range(10))
    assert repetition(block) == 0
    assert repetition(block * 3) == pytest.approx(1 - 10 / 27)  # 27 4-grams, of which 10 differ: the seams repeat too
    assert repetition([7] * 104) == pytest.approx(100 / 101)


def test_different_ngrams_as_a_share_of_all():
    assert distinct([1, 2, 1, 2], 1) == 0.5 and distinct([1, 2, 1, 2], 2) == pytest.approx(2 / 3)


def test_a_response_too_short_for_an_ngram_has_no_share_of_them():
    assert repetition([1, 2, 3]) is None and distinct([], 1) is None
    with pytest.raises(Refused, match="n=0"):
        distinct([1, 2], 0)


def test_a_response_is_described_in_one_go():
    found = behaviour("<think>\nWait. Hmm.\n</think>\nok", [5, 6, 7, 8] * 10)
    assert found == (40, 2, True, pytest.approx(1 - 4 / 37), pytest.approx(4 / 39))
    assert behaviour("", []) == (0, 0, None, None, None)
