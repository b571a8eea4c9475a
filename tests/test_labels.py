"""Labels that thinking has by rule."""

import pytest

from real_tokenizers import real
from tunediff.models import ModelSource
from tunediff.shapes import Refused
from tunediff.text import Text, by_rule, patterns, read_files, render
from tunediff.text.labels import words
from tunediff.toy import language

THINKING = (
    "Okay, so 3.5 apples. Wait, that is wrong. It's 4.\n\nSo, hold on! Is it right (e.g. 4)? That's not right.\n"
    "The waiter came.  Alternatively we add\nLet me double-check. Done"
)


def real_tokenizer(name):
    return ModelSource(str(real(name))).tokenizer()


def said(label, **settings):
    return [THINKING[a:b] for a, b, name in by_rule(THINKING, **settings) if name == label]


def test_sentences_end_at_their_marks_and_at_line_breaks_and_numbers_end_none():
    ends = [b for _, b, name in by_rule(THINKING) if name == "step_end"]
    last = [THINKING[:end].split()[-1] for end in ends]
    assert last == "apples. wrong. 4. on! 4)? right. came. add double-check. Done".split()


def test_hesitations_are_words_and_follow_the_end_of_the_sentence_before():
    assert said("hesitation") == ["W", "h", "A"]  # where each begins
    follows = [THINKING[:b].split()[-1] for _, b, name in by_rule(THINKING) if name == "hesitation_follows"]
    assert follows == ["apples.", "4.", "came."]
    assert said("hesitation", patterns=["4"]) == ["4", "4"] and said("hesitation_follows", patterns=[]) == []
    with pytest.raises(Refused, match="hesitations is no regular expression"):
        by_rule(THINKING, ["("])


def test_a_chinese_sentence_ends_at_its_mark_without_a_space():
    thinking = "一加一是二。等等，不对！是（三。）吗？好。」then 3.5. End"
    ends = [b for _, b, name in by_rule(thinking, ["等等"]) if name == "step_end"]
    assert [thinking[a:b] for a, b in zip([0, *ends], ends, strict=False)] == [
        "一加一是二。", "等等，不对！", "是（三。）", "吗？", "好。」", "then 3.5.", " End",
    ]  # fmt: skip


def test_one_token_of_a_hesitation_is_labelled_whatever_its_length():
    row = {"prompt": "q", "thinking": "First. Hold on, we add. Hmmmm, wait. No", "answer": "5"}
    text = Text(lambda: iter([row]), held_out=0.0)
    for name in ("qwen", "llama", "gemma3"):
        tokens = real_tokenizer(name)
        (document,) = text.documents({**row, "index": 0}, [tokens])
        labelled = [tokens.decode(document.ids[0][place]).strip() for place, flag in
                    zip(document.places[0], document.labels["hesitation"], strict=True) if flag]  # fmt: skip
        assert len(labelled) == 3 and labelled[0] == "Hold" and labelled[2] == "wait"


def test_a_sentence_goes_back_where_it_hesitates_or_takes_something_back():
    assert said("backtracks") == [
        "Wait, that is wrong.", "So, hold on!", "That's not right.", "Alternatively we add", "Let me double-check.",
    ]  # fmt: skip


def test_what_the_data_says_is_not_said_again_by_rule(tokenizer):
    row = next(language.rows(0, "trace"))
    given = {label for *_, label in row["spans"]}
    labels = [label for _, _, label in render(row, tokenizer).labels]
    assert "step_end" in given
    for name in given:
        assert labels.count(name) == sum(label == name for *_, label in row["spans"])


def test_the_rules_agree_with_the_planted_truth_of_the_embedded_language():
    """Where a hesitation is planted the rule finds one, and none elsewhere: its language has no other use of the words
    within thinking."""
    for _, row in zip(range(200), language.rows(3, "trace"), strict=False):
        planted = {first for field, first, _, label in row["spans"] if label == "hesitation"}
        assert {a for a, _, name in by_rule(row["thinking"], ["wait", "hmm+"]) if name == "hesitation"} == planted
        dots = {first for field, first, _, label in row["spans"] if label == "hesitation_follows"}
        found = {a for a, _, name in by_rule(row["thinking"], ["wait", "hmm+"]) if name == "hesitation_follows"}
        assert found == dots


def test_real_traces_hesitate(data_folder, tokenizer):
    rows = read_files(str(data_folder / "reasoning_traces" / "traces.jsonl.gz"))
    text = Text(lambda: rows, fields={"prompt": "question", "thinking": "thinking", "answer": "answer"}, held_out=0.0)
    found = [label for _, row in zip(range(100), text.named_rows(held_out=False), strict=False)
             for _, _, label in text.rendered(row, tokenizer).labels]  # fmt: skip
    assert found.count("hesitation_follows") > 100 and found.count("step_end") > 2000


@pytest.mark.timeout(60)  # seconds; without a limit none of these ends
def test_an_expression_that_tries_every_way_is_refused_and_plain_ones_are_not(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    patterns.compiled.cache_clear()
    asked = {
        "hesitations": lambda: by_rule("Hm. " + "a" * 300 + "!", ["(?:a|aa)+$"]),
        "final": lambda: patterns.compiled("(a|a)+$", of="final").search("a" * 300 + "!"),
    }
    for of, ask in asked.items():
        with pytest.raises(Refused, match=f"{of}, .* takes longer than any text needs"):
            ask()
    with (
        monkeypatch.context() as patched,
        pytest.raises(Refused, match="takes longer"),
    ):  # a little for each of many texts
        patched.setattr(patterns, "EACH", 0.0)
        plain = patterns.compiled("(?:a|aa)+$", of="another")
        for _ in range(10_000):
            plain.search("a" * 14 + "!")
    assert len(by_rule("Wait, no. " * 1_000)) > 1_000 and words(("wait",)).left > 0


def test_matches_of_an_expression_have_its_label_and_a_row_s_own_go_first(tokenizer):
    def labelled(row, **expressions):
        text = Text(lambda: [row], labels=expressions)
        rendered = render(row, tokenizer, text.manner)
        return [rendered.text[a:b] for a, b, name in rendered.labels if name == "times"]

    row = {"prompt": "How many?", "thinking": "Okay.\n3*2=6. 6-1=5.", "answer": "3*2"}
    assert labelled(row, times=r"\d+\*\d+=\d+") == ["3*2=6"], "the answer is not labelled"
    assert labelled(row, times="nothing|") == [] == labelled(row)
    assert labelled({**row, "spans": [("thinking", 13, 18, "times")]}, times=r"\*") == ["6-1=5"]
    with pytest.raises(Refused, match="labels.times is no regular expression"):
        Text(lambda: iter([]), labels={"times": "("})
    with pytest.raises(Refused, match="step_end.*by rule"):
        Text(lambda: iter([]), labels={"step_end": "x"})
