"""The embedded pair: the language tells the truth, the tokenizer loses nothing, the shipped models are what the card says."""

import filecmp
import itertools
import json
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

import toy_pair
from tunediff import randomness, toy
from tunediff.toy import language

WEIGHTS = Path(toy.__file__).parent / "weights"
EQUATION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


def some(kind, count=300, seed=3):
    return list(itertools.islice(language.rows(seed, kind), count))


def true_result(found):
    return language.Step(found[2], int(found[3]), "").result(int(found[1]))


def covers(spans, first, last, label):
    return any(f == first and e == last for _, f, e, name in spans if name == label)


@pytest.mark.parametrize(("kind", "field"), [("trace", "thinking"), ("steps", "answer"), ("fact", "text")])
def test_an_equation_is_wrong_exactly_where_a_mistake_is_marked(kind, field):
    wrong = 0
    for row in some(kind):
        for found in EQUATION.finditer(row[field]):
            mistaken = int(found[4]) != true_result(found)
            assert mistaken == covers(row["spans"], found.start(4), found.end(4), "mistake")
            wrong += mistaken
    assert wrong > 30


def test_a_decision_dot_is_followed_by_a_hesitation_exactly_where_it_says_so():
    counted = 0
    for row in some("trace"):
        starts = {first for _, first, _, label in row["spans"] if label == "hesitation"}
        follows = {first for _, first, _, label in row["spans"] if label == "hesitation_follows"}
        for _, first, last, label in row["spans"]:
            if label == "step_end":
                assert row["thinking"][first:last] == "."
                assert (first in follows) == (last + 1 in starts)
        counted += len(follows)
    assert counted > 100


def test_every_hesitation_span_holds_a_hesitation_and_every_correction_is_right():
    for row in some("trace"):
        for _, first, last, label in row["spans"]:
            piece = row["thinking"][first:last]
            if label == "hesitation":
                assert piece in language.HESITATIONS
            if label == "correction":
                found = EQUATION.fullmatch(piece)
                assert int(found[4]) == true_result(found)


def test_the_last_line_of_a_trace_is_the_answer():
    for row in some("trace") + some("direct"):
        assert f"\\boxed{{{row['final']}}}" in row["answer"]


def test_rows_are_the_same_for_the_same_seed_and_others_for_another():
    assert some("trace", 20) == some("trace", 20)
    assert some("trace", 20) != some("trace", 20, seed=4)


def test_no_held_out_problem_is_trained_on():
    rows = itertools.islice(toy_pair.training_rows({**toy_pair.BASE_MIXTURE, "trace": 0.5}, 0), 5000)
    assert not any(language.is_held_out(row["prompt"]) for row in rows if "prompt" in row)
    assert 0.05 < sum(language.is_held_out(row["prompt"]) for row in some("trace", 2000)) / 2000 < 0.15
    asked = some("steps", 1)[0]["prompt"]
    assert language.is_held_out(asked) == language.is_held_out(asked.removesuffix(language.STEP_BY_STEP))


def test_the_tokenizer_loses_nothing_and_keeps_markers_and_digits_whole():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "base")
    for kind in language.KINDS:
        for row in some(kind, 100):
            for text in (row[field] for field in ("text", "prompt", "thinking", "answer") if field in row):
                assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    for marker in ("<think>", "</think>", "\\boxed{", "<｜User｜>", "<｜Assistant｜>", "7", "\n", "."):
        assert len(tokenizer.encode(marker, add_special_tokens=False)) == 1, marker
    assert tokenizer.decode(tokenizer.encode("naïve 東京 🙂", add_special_tokens=False)) == "naïve 東京 🙂"


def test_a_smoke_build_runs_and_is_deterministic(tmp_path, capsys):
    threads = toy_pair.torch.get_num_threads()
    for name in ("first", "second"):
        toy_pair.build(tmp_path / name, smoke=True)
    toy_pair.torch.use_deterministic_algorithms(False)
    toy_pair.torch.set_num_threads(threads)
    for model in ("base", "tuned"):
        pair = [tmp_path / name / model / "model.safetensors" for name in ("first", "second")]
        assert filecmp.cmp(*pair, shallow=False)
    assert "Wilson" in (tmp_path / "first" / "README.md").read_text()


def test_the_card_keeps_its_promises():
    models = json.loads((WEIGHTS / "card.json").read_text())["models"]
    assert models["base"]["problems"] == models["tuned"]["problems"] == 500
    assert models["base"]["accuracy"] <= 0.35
    assert models["tuned"]["accuracy"] >= 0.85
    assert models["base"]["hesitating_share"] <= 0.01
    assert models["tuned"]["hesitating_share"] >= 0.30
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 12e6


def test_the_shipped_models_do_what_the_card_says():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "base")
    problems = toy_pair.held_out_problems(60, seed=9)
    measured = {
        role: toy_pair.measure(Qwen2ForCausalLM.from_pretrained(WEIGHTS / role).float().eval(), tokenizer, problems)
        for role in ("base", "tuned")
    }
    assert measured["base"]["accuracy"] < 0.4 < 0.85 < measured["tuned"]["accuracy"]
    assert measured["base"]["hesitating_share"] == 0 < 0.2 < measured["tuned"]["hesitating_share"]


def test_wilson_intervals_are_those_of_the_textbook():
    low, high = toy_pair.wilson(22, 50)  # 44 % of 50
    assert (round(low, 3), round(high, 3)) == (0.312, 0.577)


def test_rows_that_are_read_again_are_the_same_whoever_changed_what_it_read(monkeypatch):
    monkeypatch.setattr(language, "KEPT", 4)  # the others are made anew
    chance = randomness.chance(11, "trace")
    whole = [language.trace(chance) for _ in range(9)]
    for _ in range(2):
        for row, made in zip(language.rows(11, "trace"), whole, strict=False):
            assert row == made
            row["spans"].clear()
            row["prompt"] = ""
