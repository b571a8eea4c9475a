"""Laws of reading degenerate output: a text ten times as long takes about ten times as long to read, not a hundred times."""

import time

import pytest

from tunediff.benchmarks import Grader, read

# What a model writes that goes round in a circle, or the worst that a reader of brackets, fences and sentences may meet.
PIECES = {
    "one character": "是", "dots": ".", "dollars": "$1", "words": "a ", "marks": "####", "fences": "```\n", "fences without lines": "```", "open boxes": "\\boxed{",
    "boxes": "\\boxed{1}, ", "stars": "**", "newlines": "\n", "next problems": "Question:\n", "a denial": "不是", "答案": "答案是", "정답": "정답은", "magnitudes": "3万", "powers": "2的3次方",
    "not but": "1이 아니라", "digits": "7", "thousands": "1,234", "copulas": "is ", "equations": "x=", "answers": "answer is ", "answers in lines": "The answer is\n", "asides": "for 4 ",
    "clauses": " if 1 of", "open formulas": "\\(", "open displays": "\\[", "open doubles": "$$ ", "corrections": "Wait, no, ", "corrected": "Wait, it is 7. ", "letters": "(A) ", "several": "A, ",
    "negations": "not ", "not but in English": "not 5 but ", "frames": "\\frac{1}{", "powers of Python": "2**", "numpy": "np.sqrt(", "spaces": " ", "lines that end": "So 1. ", "fractions": "1/",
    "magnitudes in words": "3 万 多 ", "digits of a foreign text": "是7",
    "wide lines": "So x is 7 and more\n",
}  # fmt: skip
READ = (("", "math"), ("The answer is ", "math"), ("", "choice"), ("是", "math"))


def seconds(text, kind):
    begun = time.process_time()
    read(text, kind=kind)
    return time.process_time() - begun


@pytest.mark.parametrize("name", PIECES)
def test_a_text_of_one_piece_is_read_in_time_that_grows_as_its_length(name):
    for opening, kind in READ:
        short, long = (opening + (PIECES[name] * size)[:size] + "5" for size in (4_000, 40_000))
        first = seconds(short, kind)
        assert seconds(long, kind) < 0.5 + 25 * first, (opening, kind)


def test_boxes_in_boxes_are_read_in_time_that_grows_as_their_number():
    nested = ["\\boxed{" * depth + "1" + "}" * depth for depth in (1_000, 10_000)]
    first, second = (seconds(text, "math") for text in nested)
    assert second < 0.5 + 25 * first
    assert read(nested[0]).text == "1"


def test_a_grader_is_not_held_up_by_degenerate_output():
    asked = [(PIECES[name] * (100_000 // len(PIECES[name])) + "5", "5") for name in PIECES]
    begun = time.monotonic()
    with Grader(seconds=2.0, processes=1) as grader:
        assert len(grader.grade(asked)) == len(asked)
    assert time.monotonic() - begun < 2.0 * len(asked)


def test_an_answer_that_is_said_after_a_degenerate_text_is_read_as_ever():
    for piece in ("是", ".", "a ", "```\n", "\n", "$1 "):
        assert read(piece * 20_000 + "\n\nThe answer is 42.").text == "42"
        assert read(piece * 20_000 + "\n\nSo it is \\boxed{42}.").text == "42"
