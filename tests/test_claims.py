"""A claim is judged by where the whole interval of its effect lies, and by nothing that was not written down before."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from scipy import stats

from tunediff.claims import (
    CONTRADICTED,
    NOT_APPLICABLE,
    REPRODUCED,
    UNDERPOWERED,
    VERDICTS,
    Number,
    claims_in,
    found_in,
    in_words,
    of_members,
    of_run,
    over_seeds,
    read,
    written,
)
from tunediff.folders import read_table, write_table
from tunediff.report.comparison import _leave_out_shared
from tunediff.shapes import Finding, Refused, Table

SAID = {"says": "it is so", "source": "A title, 2025, section 1", "finding": "a/b"}


def claim(**words):
    return claims_in({"one": {**SAID, **words}})["one"]


def found(value, low=None, high=None, over="documents"):
    return {"value": value, "low": low, "high": high, "over": over}


def verdict(effect, settings=(), others=(), **words):
    (judged,) = of_run({"one": claim(**words)}, {"a/b": found(*effect), **dict(others)}, dict(settings))
    return judged


# -- the rule ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", ["above", "below", "near"])
def test_the_whole_interval_decides_and_one_that_straddles_does_not(relation):
    """Against the rule written out: the set that is claimed, and the interval inside it, outside it, or neither."""
    words = {"relation": relation, "least": 1.0, "expected": 3.0}
    inside = {"above": lambda x: x > 1, "below": lambda x: x < -1, "near": lambda x: 2 < x < 4}[relation]
    seen = set()
    for low, high in itertools.combinations(np.arange(-3.25, 6, 0.5), 2):
        truth = [inside(x) for x in np.linspace(low, high, 200)]
        expected = REPRODUCED if all(truth) else UNDERPOWERED if any(truth) else CONTRADICTED
        assert verdict(((low + high) / 2, low, high), **words).word == expected, (low, high)
        seen.add(expected)
    assert len(seen) == 3


def test_an_effect_is_a_difference_and_its_interval_that_of_two_independent_ones():
    draw = np.random.default_rng(0)
    first, second = (draw.normal(mean, 1.0, (4000, 50)) for mean in (2.0, 1.0))
    reach = 1.96 / math.sqrt(50)
    held = 0
    for a, b in zip(first.mean(1), second.mean(1), strict=True):
        effect = Number(a, a - reach, a + reach).less(Number(b, b - reach, b + reach))
        held += effect.low < 1.0 < effect.high
    assert held / 4000 == pytest.approx(0.95, abs=0.015)
    shifted = Number(2.0, 1.0, 4.0, "draws").less(Number(0.5, 0.5, 0.5))
    assert shifted == Number(1.5, 0.5, 3.5, "draws"), "a number that it is held against moves the interval alone"
    assert Number(2.0, 1.0, 4.0).less(Number(0.5)).low is None, "a finding without an interval gives none"


def test_against_names_a_finding_or_is_a_number():
    others = {"c/d": found(1.0, 0.9, 1.1)}
    assert verdict((3.0, 2.9, 3.1), others=others, against="c/d", least=1.5).word == REPRODUCED
    assert verdict((3.0, 2.9, 3.1), others=others, against="c/d", least=2.5).word == CONTRADICTED
    assert verdict((3.0, 2.9, 3.1), against=2.95).word == UNDERPOWERED
    assert verdict((3.0, 2.9, 3.1), against=2).word == REPRODUCED


def test_the_sample_that_would_do_does():
    """Of normal data whose effect is what it seems, so many times as many documents bring the interval to the bound."""
    for value, n, least in ((0.30, 40, 0.1), (0.05, 100, 0.1), (-0.2, 60, 0.0)):
        reach = 1.96 / math.sqrt(n)
        said = verdict((value, value - reach, value + reach), least=least)
        assert said.word == UNDERPOWERED
        times = float(said.why.partition("about ")[2].split()[0])
        end = value + math.copysign(1.96 / math.sqrt(n * times), least - value)
        assert end == pytest.approx(least, abs=0.02)
        assert f"{times:.2g} times as many documents" in said.why
        for word, factor in ((UNDERPOWERED, 0.7), (REPRODUCED if value > least else CONTRADICTED, 1.5)):
            reach = 1.96 / math.sqrt(n * times * factor)
            assert verdict((value, value - reach, value + reach), least=least).word == word
    assert "no sample would tell" in verdict((0.1, 0.0, 0.2), least=0.1).why


def test_a_wider_side_needs_more_and_a_bare_value_asks_for_seeds():
    even, lopsided = (verdict((2.0, low, 2.5), least=1.5).why for low in (1.4, 1.0))
    times = [float(why.partition("about ")[2].split()[0]) for why in (even, lopsided)]
    assert times[1] == pytest.approx(times[0] * (1.0 / 0.6) ** 2, rel=0.05)
    bare = verdict((5.0, None, None), least=1.0)
    assert bare.word == UNDERPOWERED and "no interval" in bare.why and "several seeds" in bare.why


# -- controls, other models, what is not there -----------------------------------------------------------------------------


def under(control, effect=(3.0, 2.0, 4.0)):
    condition = {"says": "the control", "finding": "c"}
    return verdict(effect, others={} if control is None else {"c": found(*control)}, control={"c": condition})


def test_a_control_decides_whether_the_number_says_anything():
    effects = {REPRODUCED: (3.0, 2.0, 4.0), CONTRADICTED: (-3.0, -4.0, -2.0), UNDERPOWERED: (0.1, -1.0, 1.0)}
    for word, effect in effects.items():
        assert under((1.0, 0.5, 1.5), effect).word == word, "one that holds changes nothing"
        failing = under((-1.0, -1.5, -0.5), effect)
        assert failing.word == NOT_APPLICABLE and "'the control' fails" in failing.why
        assert failing.effect is not None and failing.held["c"].startswith("fails")
        for untold in ((0.1, -1.0, 1.0), (1.0, None, None), (math.nan, None, None), None):
            assert under(untold, effect).word == UNDERPOWERED, untold
            assert under(untold, effect).held["c"].startswith("is not told")


def test_of_several_controls_one_that_fails_outweighs_one_that_is_not_told():
    controls = {name: {"says": name, "finding": name} for name in ("fails", "untold")}
    for order in (controls, dict(reversed(controls.items()))):
        others = {"fails": found(-1.0, -2.0, -0.5), "untold": found(0.0, -1.0, 1.0)}
        assert verdict((3.0, 2.0, 4.0), others=others, control=order).word == NOT_APPLICABLE


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_is_not_judged(value):
    assert verdict((value, None, None)).word == NOT_APPLICABLE
    assert verdict((3.0, 2.0, 4.0), others={"c": found(value)}, against="c").word == NOT_APPLICABLE
    (missing,) = of_run({"one": claim()}, {}, {})
    assert missing.word == NOT_APPLICABLE and "a/b" in missing.why and missing.effect is None
    assert verdict((3.0, value, 4.0)).word == UNDERPOWERED, "an interval without an end is none"


def test_a_number_of_one_model_is_asked_of_no_other():
    words = {"only": {"model_pair.tuned.path": ["x", "y"], "budget.tokens": 7}, "elsewhere": "the layer is theirs"}
    told = {"model_pair.tuned.path": "x", "budget.tokens": 7, "seed": 3}
    assert verdict((3.0, 2.0, 4.0), told, **words).word == REPRODUCED
    for other in ({"model_pair.tuned.path": "z"}, {"budget.tokens": 8}, {"budget.tokens": None}):
        judged = verdict((3.0, 2.0, 4.0), told | other, **words)
        assert judged.word == NOT_APPLICABLE and "the layer is theirs" in judged.why
        assert str(*other.values()) in judged.why and next(iter(other)) in judged.why
    assert verdict((3.0, 2.0, 4.0), {}, **words).word == NOT_APPLICABLE, "of a run that does not say it is not asked"


# -- seeds and sweeps ------------------------------------------------------------------------------------------------------


def member(value, sweep="s", claims=None, interval=(None, None), **keys):
    metrics = {"a/b": [value, *interval]}
    return {"claims": claims or {"one": claim()}, "keys": keys, "metrics": metrics, "settings": {}, "sweep": sweep}


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_the_interval_over_seeds_is_students(seeds):
    values = np.random.default_rng(seeds).normal(1.0, 2.0, seeds)
    number = over_seeds(list(values))
    low, high = stats.t.interval(0.95, seeds - 1, loc=values.mean(), scale=stats.sem(values))
    assert (number.value, number.low, number.high) == pytest.approx((values.mean(), low, high))
    (judged,) = of_members([member(value, seed=n) for n, value in enumerate(values)])
    assert judged.effect == number and judged.effect.over == f"{seeds} seeds"


def test_the_seeds_that_would_do_are_more_than_there_are():
    (judged,) = of_members([member(value, seed=n) for n, value in enumerate((1.0, 2.0, 6.0))])
    assert judged.word == UNDERPOWERED and int(judged.why.partition("; about ")[2].split()[0]) > 3
    one, other = Number(1.0, 0.9, 1.1), Number(0.0, -0.1, 0.1)
    (single,) = of_members([member(one.value, interval=(one.low, one.high), seed=0)])
    assert single.effect == one.less(Number(0.0, 0.0, 0.0)) and other.value == 0.0, "one seed keeps its own interval"


def compared(finding, against, members, **words):
    asked = {"finding": {"finding": "a/b", "where": finding}, "against": {"finding": "a/b", "where": against}, **words}
    claims = {"one": claim(**asked)}
    return of_members([{**one, "claims": claims} for one in members])


def test_members_are_compared_seed_by_seed():
    """What all members of a seed have in common takes no part in a difference of two of them."""
    members = [
        member(100.0 * seed + bonus * (1 + 0.02 * seed), dictionary=name, seed=seed)
        for seed in (0, 1, 2)
        for name, bonus in (("l1", 0.0), ("topk", 5.0))
    ]
    (judged,) = compared({"dictionary": "topk"}, {"dictionary": "l1"}, random.Random(0).sample(members, 6), least=4.0)
    assert judged.word == REPRODUCED and judged.effect.value == pytest.approx(5.1) and judged.of == ""
    (missing,) = compared({"dictionary": "topk"}, {"dictionary": "sae"}, members)
    assert missing.word == NOT_APPLICABLE and "0 members are dictionary=sae" in missing.why
    (several,) = compared({"dictionary": "topk"}, {}, members)
    assert several.word == NOT_APPLICABLE and "2 members" in several.why


def test_lowest_and_highest_are_the_ends_of_a_numeric_key():
    members = [member(10.0 * k, k=k, seed=s) for k in (32, 4, 8) for s in (0, 1)]
    (judged,) = compared({"k": "highest"}, {"k": "lowest"}, members)
    assert judged.effect.value == 280.0
    (words,) = compared({"k": "highest"}, {"k": "lowest"}, [member(1.0, k=word) for word in ("a", "b")])
    assert words.word == NOT_APPLICABLE and "no member has a number as its k" in words.why


def test_one_members_claim_is_judged_of_each_part_and_another_sweeps_members_are_none_of_its():
    members = [member(v, dictionary=n, seed=s) for n, v in (("l1", 1.0), ("topk", -1.0)) for s in (0, 1)]
    members += [member(5.0, sweep="other", dictionary="l1", seed=s) for s in (0, 1)]
    judged = of_members(members)
    assert [(one.of, one.effect.value) for one in judged] == [
        ("dictionary=l1", 1.0),
        ("dictionary=topk", -1.0),
        ("", 5.0),
    ]


def test_a_run_judges_no_claim_that_compares_members():
    claims = claims_in({"own": SAID, "sweep": {**SAID, "control": {"c": {"says": "x", "finding": {"finding": "a/b"}}}}})
    assert [one.name for one in of_run(claims, {"a/b": found(1.0, 0.5, 1.5)}, {})] == ["own"]


# -- what is written down --------------------------------------------------------------------------------------------------

FULL = {
    **SAID, "published": "44 %", "trust": "table", "against": 0.5, "relation": "near", "least": 0.1, "expected": 0.4,
    "control": {"c": {"says": "holds", "finding": "c", "least": 0.2}}, "only": {"layer": 3}, "elsewhere": "so",
    "learnt": {REPRODUCED: "a thing"},
}  # fmt: skip
OTHERWISE = {
    "says": "it is not", "source": "Another", "finding": "x", "published": "16 %", "trust": "text", "against": 0.6,
    "relation": "above", "least": 0.11, "expected": 0.5, "only": {"layer": 4}, "elsewhere": "otherwise",
    "control": {"c": {"says": "holds", "finding": "c", "least": 0.3}},
}  # fmt: skip


def test_each_word_that_decides_changes_the_digest_and_what_was_learnt_does_not():
    digest = claim(**FULL).digest
    assert {*OTHERWISE} == {*FULL} - {"learnt"}
    for word, value in OTHERWISE.items():
        assert claim(**{**FULL, word: value}).digest != digest, word
    assert claim(**{**FULL, "learnt": {CONTRADICTED: "another"}}).digest == digest
    assert claim(**dict(reversed(FULL.items()))).digest == digest, "the order of the words decides nothing"


def test_what_is_written_is_read_back_and_a_changed_claim_is_not():
    claims = claims_in({"one": FULL, "two": {**SAID, "finding": {"finding": "a/b", "where": {"frozen": None}}}})
    content = json.loads(json.dumps(written(claims, {}, "Monday")))
    assert read(content) == claims
    content["claims"]["one"]["learnt"] = {REPRODUCED: "said later"}
    assert read(content)["one"].digest == claims["one"].digest
    content["claims"]["one"]["least"] = 0.001
    with pytest.raises(Refused, match="one is not as it was written before"):
        read(content)


def test_a_claim_keeps_the_time_it_was_first_written_and_one_that_changed_says_what_it_was():
    first = written({"one": claim()}, {}, "Monday")
    again = written({"one": claim()}, first, "Tuesday")
    assert again == first
    changed = written({"one": claim(least=1.0)}, again, "Wednesday")
    assert changed["claims"]["one"]["written"] == "Wednesday"
    assert changed["claims"]["one"]["earlier"] == [claim().digest]
    back = written({"one": claim()}, changed, "Thursday")
    assert back["claims"]["one"]["earlier"] == [claim(least=1.0).digest]
    assert back["claims"]["one"]["written"] == "Thursday"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"finding": None}, "claims.one: it does not say `finding`"),
        ({"says": ""}, "claims.one: it does not say `says`"),
        ({"source": ""}, "claims.one: it says no source"),
        ({"colour": 1}, "claims.one.colour: a claim has no such word"),
        ({"relation": "over"}, "claims.one.relation=over: choose of above, below, near"),
        ({"trust": "rumour"}, "claims.one.trust=rumour"),
        ({"least": -1}, "claims.one.least=-1"),
        ({"least": "much"}, "claims.one.least='much'"),
        ({"least": math.nan}, "claims.one.least=nan"),
        ({"least": math.inf}, "claims.one.least=inf"),
        ({"expected": True}, "claims.one.expected=True"),
        ({"relation": "near", "least": 1}, "claims.one: near what"),
        ({"relation": "near", "expected": 1}, "claims.one: how near"),
        ({"finding": 3}, "claims.one.finding=3"),
        ({"against": [1]}, r"claims.one.against=\[1\]"),
        ({"against": True}, "claims.one.against=True"),
        ({"against": math.nan}, "claims.one.against=nan"),
        ({"against": {"where": {"k": 1}}}, "claims.one.against: of a sweep"),
        ({"finding": {"finding": "a/b", "where": 3}}, "claims.one.finding.where=3"),
        ({"finding": {"finding": "a/b", "when": {}}}, "claims.one.finding: of a sweep"),
        ({"learnt": {"proved": "x"}}, "claims.one.learnt.proved"),
        ({"learnt": "much"}, "claims.one.learnt='much'"),
        ({"only": "toy"}, "claims.one.only='toy'"),
        ({"says": True}, "claims.one.says=True"),
        ({"expected": 0.9}, "claims.one.expected=0.9: relation=near asks"),
        ({"control": ["x"]}, "claims.one.control"),
        ({"control": {"c": {"says": "x"}}}, "claims.one.control.c: it does not say `finding`"),
        ({"control": {"c": {**SAID}}}, "claims.one.control.c.source: a claim has no such word"),
        ({"control": {"c": {"says": "x", "finding": "c", "relation": "near"}}}, "claims.one.control.c: near what"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused_by_its_place(words, said):
    with pytest.raises(Refused, match=said):
        claim(**words)


def test_claims_that_are_none_are_refused_and_a_name_without_one_is_left_out():
    for wrong in (["a"], "a", {"one": "a"}):
        with pytest.raises(Refused, match="claims"):
            claims_in(wrong)
    assert claims_in(None) == {} and [*claims_in({"one": SAID, "gone": None})] == ["one"]
    assert claim(published=0.98).published == "0.98", "a bare number is the words of its source"


def test_a_verdict_is_a_finding_where_it_has_a_number_and_always_a_row(tmp_path):
    claims = claims_in({"one": FULL, "bare": {**SAID, "published": 3}, "none": {**SAID, "finding": "not/there"}})
    verdicts = of_run(claims, {"a/b": found(0.9, 0.85, 0.95), "c": found(1.0, 0.9, 1.1)}, {"layer": 3})
    *findings, table = found_in(verdicts)
    assert [(one.name, one.value, one.over) for one in findings] == [
        ("claims/one/verdict", 1, ""),
        ("claims/one/effect", pytest.approx(0.4), "documents"),
        ("claims/bare/verdict", 1, ""),
        ("claims/bare/effect", 0.9, "documents"),
        ("claims/none/verdict", None, ""),
    ]
    assert all(isinstance(one, Finding) for one in findings) and isinstance(table, Table)
    write_table(tmp_path, table)
    rows = read_table(tmp_path / "tables" / "claims.parquet").to_pydict()
    assert rows["verdict"] == [REPRODUCED, REPRODUCED, NOT_APPLICABLE] and {*rows["verdict"]} < {*VERDICTS}
    assert rows["learnt"] == ["a thing", "", ""] and rows["digest"] == [one.claim.digest for one in verdicts]
    lines = in_words(verdicts).splitlines()
    assert len(lines) == 3 and all(
        one.name in line and one.word in line for one, line in zip(verdicts, lines, strict=True)
    )


def test_an_effect_at_the_bound_but_for_rounding_asks_for_no_sample():
    (verdict,) = of_run(
        claims_in({"one": {**SAID, "relation": "below", "least": 0.3}}), {"a/b": found(-(0.1 + 0.2), -0.9, 0.1)}, {}
    )
    assert verdict.word == UNDERPOWERED and "at the bound itself" in verdict.why


def test_an_effect_is_told_as_the_finding_where_it_is_held_against_a_number():
    """0.918 above 0.5 is no 0.418 to whoever reads it beside what was published."""
    (verdict,) = of_run(claims_in({"one": {**SAID, "against": 0.5}}), {"a/b": found(0.9, 0.8, 1.0)}, {})
    row = verdict.row()
    assert (row["effect"], row["low"], row["high"]) == pytest.approx((0.9, 0.8, 1.0)) and row["asked"] == "above 0.5"
    assert (row["asked_low"], row["asked_high"]) == (0.5, None) and verdict.why.startswith("0.9 (0.8 to 1), above 0.5")


def test_seeds_that_are_all_alike_are_no_certainty():
    """Of a count that is 0 in half of the runs, three runs are alike one time in eight."""
    (judged,) = of_members([member(0.0, seed=seed) for seed in (0, 1, 2)])
    assert judged.word == UNDERPOWERED and "3 seeds, all alike" in judged.why


def test_the_one_member_of_a_sweep_keeps_its_key_and_fine_tunes_are_told_by_what_differs(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    words = {"sweep/a": ["layer=3"], "tunes/a": ["seed=1", "recipe=plain"], "tunes/b": ["seed=1", "recipe=lora"]}
    members = [{"folder": str(tmp_path / place), "words": typed} for place, typed in words.items()]
    _leave_out_shared(members)
    assert [member["words"] for member in members] == [["layer=3"], ["recipe=plain"], ["recipe=lora"]]
