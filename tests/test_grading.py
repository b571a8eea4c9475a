"""Laws of the answer checker: one line per way of writing an answer, with what a strict marker would say."""

import gzip
import json
import re
import time

import pytest

from tunediff.benchmarks import RULES, Grader, grade, read
from tunediff.benchmarks.answers import truth
from tunediff.benchmarks.choices import option
from tunediff.shapes import Refused

# kind: (answer in a box, gold, equal)
BOXED = {
    "integers": [("42", "42", True), ("42", "43", False), ("042", "42", True)],
    "negatives": [("-47", "-47", True), ("\u221247", "-47", True), ("47", "-47", False)],
    "thousands commas": [
        ("1234567", "1,234,567", True), ("1,234,567", "1234567", True), ("1{,}234", "1234", True),
        (r"1\,234", "1234", True), (r"10,\!080", "10080", True), ("(1,234)", "1234", True), ("1,234", "1,235", False),
        (r"1{,}600\pi", r"1600\pi", True), (r"1,600\pi", r"1600\pi", True), (r"1,600\pi", r"1,600", False),
    ],
    "comma of a pair": [("(1,234)", "(1,234)", True), ("(1, 234)", "(1,234)", True), ("1234", "(1,234)", False)],
    "leading zeros": [("25", "025", True), ("025", "25", True), ("250", "025", False)],
    "floats as gold": [("27", "27.0", True), ("27.0", "27", True), ("27.5", "27.0", False)],
    "fractions": [
        (r"\dfrac12", r"\frac{1}{2}", True), (r"\tfrac{1}{2}", "0.5", True), ("1/2", r"\frac 12", True),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", True), (r"\frac{2}{1}", r"\frac{1}{2}", False),
    ],
    "mixed numbers": [(r"1\frac{1}{2}", "1.5", True), ("1 1/2", r"\frac{3}{2}", True), (r"1\frac{1}{2}", r"\frac{11}{2}", False)],
    "decimal of a fraction": [("0.333333", r"\frac{1}{3}", True), ("0.33", r"\frac{1}{3}", False)],
    "e-notation": [
        (r"4.5\times 10^{33}", "4.5e33", True), ("4.5e33", "4.5e33", True), ("4.5 x 10^33", "4.5e33", True),
        (r"4.5\times 10^{32}", "4.5e33", False), (r"10^{-3}", "1e-3", True),
    ],
    "bases": [
        ("52_8", "52_8", True), ("52", "52_8", True), ("52_{8}", "52_8", True), (r"52_{\text{eight}}", "52_8", True),
        ("42", "52_8", False), ("42_{10}", "52_8", True), ("52_9", "52_8", False),
    ],
    "units": [
        (r"5 \text{ cm}", "5", True), (r"\$18", "18", True), ("18 dollars", "18", True), (r"18.00\text{ dollars}", "18", True),
        ("864", r"864 \mbox{ inches}^2", True), (r"5.1 \text{ cents}", r"5.4 \text{ cents}", False), ("5n", "5", False),
        ("7 m", "7", True), ("7", "7m", False), (r"\frac{9}{\pi} \text{ square meters}", r"\frac{9}{\pi}", True), (r"12^{\text{th}} \text{ floor}", "12", True),
    ],
    "percent": [
        (r"50\%", "50", True), ("50", r"50\%", True), ("0.5", r"50\%", True), (r"50\%", "0.5", True), ("0.5", "50", False),
    ],
    "degrees": [("30", r"30^\circ", True), (r"30^{\circ}", "30", True), ("60", r"30^\circ", False)],
    "names": [("x=5", "5", True), ("5", "x=5", True), ("y = 5", "x=5", False), ("f(t)=t+1", "f(x)=x+1", True), ("2x-y=0", "0", False)],
    "options as text": [(r"\text{(B)}", r"\text{(B)}", True), ("B", r"\text{(B)}", True), ("C", r"\text{(B)}", False)],
    "words": [("even", r"\text{even}", True), (r"\text{Even}", r"\text{even}", True), ("odd", r"\text{even}", False), ("yes", "yes", True)],
    "tuples": [("(2,4)", "(2,4)", True), ("(4,2)", "(2,4)", False), (r"\{2,4\}", "(2,4)", False), (r"(2, \frac{8}{2})", "(2,4)", True)],
    "sets": [(r"\{4,2\}", r"\{2,4\}", True), ("2, 4", r"\{2,4\}", True), ("(2,4)", r"\{2,4\}", False), (r"\{2\}", r"\{2,4\}", False)],
    "intervals": [
        ("(3,4]", "(3,4]", True), (r"\left(3,4\right]", "(3,4]", True), ("[3,4]", "(3,4]", False), (r"x\in(3,4]", "(3,4]", True),
        (r"(-\infty, 2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", True), ("x > 5", r"(5,\infty)", True), (r"x \ge 5", r"(5,\infty)", False),
    ],
    "plus or minus": [
        (r"1 \pm \sqrt{3}", r"1+\sqrt{3}, 1-\sqrt{3}", True), (r"1+\sqrt3", r"1 \pm \sqrt{3}", False), (r"2\pm\sqrt{3}", r"1\pm\sqrt{3}", False),
    ],
    "matrices": [
        (r"\begin{bmatrix} 1 \\ 1/2 \end{bmatrix}", r"\begin{pmatrix} 1 \\ \frac{1}{2} \end{pmatrix}", True),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", False),
    ],
    "several answers in one string": [
        ("84, 69", "$69$,$84$", True), (r"69 \text{ and } 84", "$69$,$84$", True), ("69", "$69$,$84$", False),
        ("(3,2),(1,1)", "$(1,1), (3,2)$", True), ("(2,3),(1,1)", "$(1,1), (3,2)$", False), ("8, 221", "$221,$8$", True),
        ("33/100, or 0.33", r"\frac{33}{100}", True), ("33/100, or 0.3", r"\frac{33}{100}", False), ("3 or 4", "3", False), ("3 or 4", "4", False), (r"\frac{1}{2} or 2", "2", False),
    ],
    "expressions": [("(x+1)^2", "x^2+2x+1", True), ("x^2+1", "x^2+2x+1", False), (r"\sqrt{12}", r"2\sqrt{3}", True), ("2k", "2", False)],
    "Python-like gold": [
        (r"\arcsin\left(\frac{10}{13}\right)", "np.arcsin(10/13)", True), (r"\arcsin(10/14)", "np.arcsin(10/13)", False),
        (r"-\frac{1}{3}", "-1./3", True), ("x^2", "x**2", True), ("x^3", "x**2", False), ("2x", "x**2", False),
    ],
    "dollars and full stops": [("$42$.", "42", True), (r"\(42\)", "$42$", True)],
}  # fmt: skip


def cases_of(kinds):
    """A case a pair of answers, named by its kind."""
    return [
        pytest.param(*case, id=f"{kind}: {case[0]} for {case[1]}") for kind, cases in kinds.items() for case in cases
    ]


@pytest.fixture(scope="module")
def grader():
    with Grader(seconds=5, processes=1) as made:
        yield made


@pytest.mark.parametrize(("answer", "gold", "equal"), cases_of(BOXED))
def test_a_boxed_answer_is_marked_as_a_strict_marker_would(grader, answer, gold, equal):
    assert grader.grade([(f"Hence \\boxed{{{answer}}}.", gold)])[0].correct is equal


TOLERATED = [("4.52e33", "4.5e33", True), ("4.6e33", "4.5e33", False), ("3.97", "4", True), ("15700", "15625", False)]


@pytest.mark.parametrize(("answer", "gold", "equal"), [*TOLERATED, ("0.878", "np.arcsin(10/13)", True)])
def test_a_tolerance_is_for_rounded_numbers_only(grader, answer, gold, equal):
    assert grader.grade([(f"\\boxed{{{answer}}}", gold)], tolerance=1e-2)[0].correct is equal
    assert not grader.grade([(f"\\boxed{{{answer}}}", gold)])[0].correct


# kind: (output, what is read, rule)
OUTPUTS = {
    "the last box": (r"First \boxed{1}, no: \boxed{2}. So 3.", "2", "boxed"),
    "braces in a box": (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}", "boxed"),
    "printed braces in a box": (r"\boxed{\{1,2\}}", r"\{1,2\}", "boxed"),
    "an incomplete box": (r"\boxed{7} and then \boxed{\frac{1}{", None, "unfinished"),
    "a box in a box": (r"\boxed{x = \boxed{5}}", "x = 5", "boxed"),
    "an fbox": (r"\fbox{9}", "9", "boxed"),
    "a box without braces": (r"so \boxed 5.", "5", "boxed"),
    "an empty box is none": (r"Put it in \boxed{}. The answer is 3.", "3", "stated"),
    "several boxes": (r"so \boxed{2} and \boxed{-3}.", "2, -3", "boxed"),
    "two boxes far apart": (r"Step one gives \boxed{2} units, step two \boxed{3}.", "3", "boxed"),
    "the answer is": ("We add 40 and 2. The answer is 42. That was question 7.", "42", "stated"),
    "hashes": ("40 + 2 = 42\n#### 42", "42", "stated"),
    "a colon": ("**Answer:** 42", "42", "stated"),
    "an answer in prose": ("Answer: Mrs. Low has 9 hens on her 2 farms.", "9", "stated"),
    "the last sentence": ("He had 50. He spent 8. So he has 42 left after 3 days.", "42", "concluding_number"),
    "an equals sign": ("The total is 6 * 7 = 42", "42", "concluding_number"),
    "a purpose": ("So she needs 310 grams to make 8 cakes and 1 pie.", "310", "concluding_number"),
    "a condition": ("Hence you save 6 if you buy 2 tubs and 4 jars.", "6", "concluding_number"),
    "there are, in passing": ("There are 4 weeks in a month, so she pays 4 * 12 = 48.", "48", "concluding_number"),
    "there are": ("Answer: There are 3 divisors of both 100 and 150.", "3", "stated"),
    "money": ("So, 6 pens and 8 cups cost $36.", "36", "concluding_number"),
    "a hyphen": ("Ann runs the 400-meter race in 36 seconds.", "36", "concluding_number"),
    "a formula before words": ("The area is 20000/π square meters.", "20000/π", "concluding_expression"),
    "an interval in prose": ("The solution is (5, ∞).", "(5, ∞)", "concluding_expression"),
    "a next problem": ("So he has 42 left.\n\nQuestion: Ann has 3 hens and 4 cats. How many?\nAnswer: 7", "42", "concluding_number"),
    "a next problem in a box": ("It is \\boxed{42}.\nProblem: what is 1+1?\n\\boxed{2}", "42", "boxed"),
    "repetition": ("So Ann has 42 hens in the yard.\n" * 9 + "So Ann has", "42", "concluding_number"),
    "two sentences in turn": ("So the sum is 42.\nHence the sum is 42.\n" * 9 + "So the", "42", "concluding_number"),
    "a circle": ("We know that x = 3.\nWe know that y = 4.\nWe know that z = 5.\n" * 9, "5", "concluding_number"),
    "a program": ("```python\nprint(6 * 7)\n```\n```output\n42\n```", "42", "program_output"),
    "words after a program": ("```python\nprint(80/2)\n```\n```output\n40.0\n```\nThe answer is 40.", "40", "stated"),
    "no answer": ("", None, "no_answer"),
    "closed thinking": ("I think 7.</think>It is \\boxed{8}.", "8", "boxed"),
    "a box in the thinking does not count once the answer has one": (r"\boxed{7}</think>\boxed{8}", "8", "boxed"),
    "a box in the thinking does not count once the answer states one": (r"\boxed{7}</think>The answer is 8.", "8", "stated"),
    "a cut answer after a boxed thinking": (r"So \boxed{7}.</think>We add 3 and", "7", "boxed_in_thinking"),
    "an empty answer after a boxed thinking": (r"So \boxed{7}.</think>", "7", "boxed_in_thinking"),
    "the last end of thinking": (r"a</think>\boxed{1}</think>\boxed{2}", "2", "boxed"),
    "s1's marks": ("<|im_start|>think\nSo \\boxed{7}.\n<|im_start|>answer\nAnswer: \\boxed{8}", "8", "boxed"),
    "s1's thinking, cut": ("<|im_start|>think\nSo the answer is 7.", None, "unfinished"),
    "a next turn after s1's answer": ("<|im_start|>think\na\n<|im_start|>answer\nAnswer: 8<|im_start|>user\n\\boxed{9}", "8", "stated"),
    "open thinking": ("<think>It is 42. So the answer is 42.", None, "unfinished"),
    "open thinking with a box, ended": (r"<think>It is \boxed{42}. But wait", "42", "boxed_in_thinking"),
    "a box before thinking opened again": (r"\boxed{1}<think>no", None, "unfinished"),
    "a next problem in open thinking": ("<think>So \\boxed{42}.\n\nQuestion: what is 1+1?\n\\boxed{2}", "42", "boxed_in_thinking"),
    "a problem restated in open thinking": ("<think>1.\nProblem: what is 40+2? So \\boxed{42}.", "42", "boxed_in_thinking"),
    "thinking opened again": (r"<think>a</think>\boxed{1}<think>no", None, "unfinished"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_gives_the_answer_it_concludes_with(kind):
    output, answer, rule = OUTPUTS[kind]
    found = read(output)
    if kind == "a circle":
        assert read(output, finished=False).rule == "unfinished"
    else:
        assert found == (answer, rule)


def test_an_output_cut_inside_the_thinking_is_unfinished_and_never_guessed():
    cut = "So the answer is 42. \\boxed{42} But wait"
    assert grade(cut, "42", opened="<think>", finished=False) == (False, None, "unfinished")
    assert read("<think>" + cut, finished=False) == (None, "unfinished")
    assert grade("So the answer is 42. \\boxed{42}", "42", opened="").correct
    assert grade("hm</think>So \\boxed{42}", "42", opened="<think>").correct


def test_a_model_that_ended_by_itself_without_closing_the_thinking_gives_its_last_box_and_nothing_weaker():
    for opened, begun in (("<think>", ""), ("", "<think>")):
        assert read(begun + "First \\boxed{7}, no: \\boxed{42}. Done.", opened=opened) == ("42", "boxed_in_thinking")
        assert read(begun + "So the answer is 42.", opened=opened) == (None, "unfinished")
        assert read(begun + "So \\boxed{\\frac{4", opened=opened) == (None, "unfinished")
    assert grade("So \\boxed{\\text{No}}.", "no", kind="boolean", opened="<think>").correct


def test_a_cut_answer_counts_only_if_it_was_stated_before_the_cut():
    cut = "He has 40 hens and 2 cats. So he has 4"
    assert grade(cut, "4").correct
    assert grade(cut, "4", finished=False).rule == "unfinished"
    assert grade("The answer is 42. To see why, take 4", "42", finished=False).correct


BOOLEANS = [
    ("Yes, it is.", "true", True), ("No.", "false", True), ("The answer is yes.", "true", True), (r"\boxed{\text{No}}", "false", True),
    ("Yes. Looking again, the answer is no.", "true", False), ("Yes. Looking again, the answer is no.", "false", True),
    ("It is true that no one knows. So: yes.", "true", True), ("The claim is not true.", "false", True), ("Nobody knows.", "false", False),
    ("<think>yes</think>No", "false", True), ("True", "True", True),
]  # fmt: skip
CHOICES = [
    ("The answer is (B).", "B", True), ("Answer: C", "C", True), (r"\boxed{\text{(D)}}", "D", True), ("**B**", "B", True),
    ("It could be (A). But the answer is (C).", "A", False), ("It could be (A). But the answer is (C).", "C", True),
    ("A bird flies.", "A", False), ("B. 12 hens", "B", True), ("So option D it is.", "D", True), ("So (E) is right.", "E", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "output", "gold", "right"),
    [("boolean", *case) for case in BOOLEANS] + [("choice", *case) for case in CHOICES],
)
def test_a_hedging_output_is_taken_at_its_conclusion(kind, output, gold, right):
    assert grade(output, gold, kind=kind).correct is right


@pytest.mark.parametrize(
    ("kind", "said", "invented", "answer"),
    [
        ("boolean", "So the answer is yes.", "The answer is no.", "true"),
        ("boolean", "Yes, it is.", "Answer: no", "true"),
        ("choice", "The answer is (B).", "The answer is (C).", "B"),
        ("word", "The answer is Ada", "The answer is Bob", "Ada"),
    ],
)
def test_a_next_question_is_cut_off_after_an_answer_without_a_number(kind, said, invented, answer):
    assert spelled(read(f"{said}\n\nQuestion: And what of this?\n{invented}", kind=kind), kind) == answer
    assert spelled(read(f"Question: What of this?\n{said}", kind=kind), kind) == answer


def spelled(found, kind):
    """What was read, as its kind spells it."""
    return {"boolean": truth, "choice": option, "word": str}[kind](found.text)


ENDS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
    "<|im_start|>user", "<|start_header_id|>user<|end_header_id|>", "</s>", "<end_of_turn>",
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_what_follows_the_end_of_a_turn_is_not_read(end):
    for next_turn in ("\nWhat is 1+1? \\boxed{2}", "\nWhat is 1+1?</think>The answer is 2.", "\n<think>I"):
        assert read(f"So \\boxed{{42}}.{end}{next_turn}", finished=False) == ("42", "boxed")
        assert read(f"So \\boxed{{42}}.{end}{next_turn}", finished=False, opened="<think>") == (
            "42",
            "boxed_in_thinking",
        )
        assert read(f"7</think>So it is 42.{end}{next_turn}", finished=False, opened="<think>") == (
            "42",
            "concluding_number",
        )
        assert read(f"So the answer is yes{end}{next_turn} no.", kind="boolean").text == "true"


def test_a_turn_that_ended_at_once_gives_no_answer():
    for end in ("<|im_end|>", "<｜end▁of▁sentence｜>", "<|im_start|>user"):
        assert read(f"{end}\n\\boxed{{2}}") == (None, "no_answer")
        assert read(f"{end}\n\\boxed{{2}}", opened="<think>") == (None, "unfinished")


def test_a_whole_invented_conversation_is_not_read():
    turns = "<|im_end|>\n<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n\\boxed{2}"
    assert read(f"\\boxed{{42}}.{turns}") == ("42", "boxed")


@pytest.mark.parametrize(
    "header", ["<|im_start|>assistant\n", "<｜begin▁of▁sentence｜><｜Assistant｜>", "<|begin_of_text|>"]
)
def test_an_output_may_open_with_the_header_of_its_own_turn(header):
    assert read(f"{header}So \\boxed{{42}}.<|im_end|>\n\\boxed{{2}}") == ("42", "boxed")


def test_a_word_may_be_the_subject_of_the_last_sentence_unless_it_is_denied():
    assert grade("Speeds are 3 and 4. Therefore, Ada is the fastest with 4.", r"\text{Ada}").correct
    assert not grade("Therefore, it is not Ada.", r"\text{Ada}").correct


def test_endless_algebra_is_timed_out_and_the_rest_is_graded():
    endless = ["9**9**9**9", "(" * 300 + "x" + ")" * 300]
    asked = [(f"\\boxed{{{each}}}", "x^3+1") for each in endless] + [
        ("\\boxed{(x+1)^2}", "x^2+2x+1"),
        ("\\boxed{7}", "7"),
    ]
    begun = time.monotonic()
    with Grader(seconds=2.0, processes=1) as short:
        grades = short.grade(asked)
        workers = list(short._idle.queue)
    assert [each.rule for each in grades] == ["timed_out"] * 2 + ["boxed/symbolic", "boxed/literal"]
    assert [each.correct for each in grades] == [False] * 2 + [True, True]
    assert time.monotonic() - begun < 60
    assert all(worker.process is None for worker in workers)


def test_two_workers_keep_the_order_and_no_worker_starts_for_numbers():
    with Grader(processes=2) as two:
        assert [each.correct for each in two.grade([("\\boxed{2}", "2"), ("\\boxed{3}", "2")])] == [True, False]
        assert all(worker.process is None for worker in two._idle.queue)
        pairs = [(f"\\boxed{{x+{n}}}", f"{n}+x" if n % 3 else f"{n}-x") for n in range(12)]
        assert [each.correct for each in two.grade(pairs)] == [bool(n % 3) for n in range(12)]


def test_every_rule_of_a_grade_is_documented():
    outputs = [(output, "42") for output, _, _ in OUTPUTS.values()]
    with Grader(processes=1) as some:
        for rule in {each.rule for each in some.grade(outputs)}:
            first, _, second = rule.partition("/")
            assert first in RULES and (not second or f"/{second}" in RULES)


def test_a_problem_without_gold_or_of_an_unknown_kind_is_refused():
    with pytest.raises(Refused, match="no gold"):
        grade("\\boxed{1}", " ")
    with pytest.raises(Refused, match="essay"):
        grade("\\boxed{1}", "1", kind="essay")


# -- real benchmarks

SETS = {
    "gsm8k/test.jsonl.gz": "final", "math500/test.jsonl.gz": "answer", "aime/aime24.jsonl": "answer",
    "aime/aime25.jsonl": "answer", "amc23/test.jsonl": "answer", "olympiadbench/test.jsonl.gz": "final_answer",
    "minerva_math/test.jsonl.gz": "answer", "deepscaler_parts/math_train.jsonl.gz": "answer",
}  # fmt: skip


def golds(folder, name, most):
    path = folder / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        found = [json.loads(line)[SETS[name]] for line in lines]
    texts = [str(gold[0] if isinstance(gold, list) else gold) for gold in found]
    texts = [text for text in texts if text.strip()]
    return texts[:: max(1, len(texts) // most)]


def respelled(gold):
    """The same answer as another writer would set it."""
    text = gold.replace("\\frac{", "\\dfrac{").replace("^\\circ", "^{\\circ}").strip("$ ")
    return (
        re.sub(r"(?<![\d.,_^{])(\d)(\d{3})(?![\d.,}_])", r"\1{,}\2", text)
        .replace("(", "\\left(")
        .replace(")", "\\right)")
    )


def test_a_gold_answer_is_equal_to_itself_and_seldom_to_another(grader, data_folder):
    for name in SETS:
        texts = golds(data_folder, name, 25)
        same = grader.grade([(f"\\boxed{{{respelled(text)}}}", text) for text in texts], tolerance=1e-2)
        missed = [text for text, each in zip(texts, same, strict=True) if not each.correct]
        assert len(missed) <= 0.05 * len(texts), (name, missed)
        exact = grader.grade([(f"\\boxed{{{text}}}", text) for text in texts])
        assert sum(each.correct for each in exact) >= 0.99 * len(texts), name
        others = [(f"\\boxed{{{one}}}", gold) for one, gold in zip(texts, texts[1:], strict=False) if one != gold]
        false = [pair for pair, each in zip(others, grader.grade(others), strict=True) if each.correct]
        assert len(false) <= 0.03 * len(others), (name, false)


# -- multiple choice -------------------------------------------------------------------------------------------------

SUGARS = ("D-glucose", "C-14 and B cells", "A", r"$\frac{1}{2}\,\text{eV}$")
PLAIN = ("10^-4 eV", "10^{-9} eV", "a mixture of B and C", "(E)-2-butene")
NAMED = [
    # as it is asked for, and as models write it instead
    (r"So it is \boxed{C}.", PLAIN, "C"), (r"\boxed{\text{C}}", PLAIN, "C"), (r"\boxed{\textbf{(C)}}", PLAIN, "C"), (r"$\boxed{c}$", PLAIN, "C"),
    (r"\boxed{\mathrm{B}}", PLAIN, "B"), (r"\boxed{\text{Option D}}", PLAIN, "D"), (r"\boxed{B) 10^{-9} eV}", PLAIN, "B"), (r"\boxed{C.\ }", PLAIN, "C"),
    ("Answer: C", PLAIN, "C"), ("answer: c", PLAIN, "C"), ("**Answer:** (C)", PLAIN, "C"), ("**Final answer**\n\n**C**", PLAIN, "C"), ("Answer: $C$", PLAIN, "C"),
    ("(C)", PLAIN, "C"), ("The answer is C.", PLAIN, "C"), ("So the answer is (c).", PLAIN, "C"), ("The correct answer is C) a mixture of B and C", PLAIN, "C"),
    ("The correct option is (D).", PLAIN, "D"), ("Therefore, B is correct.", PLAIN, "B"), ("It might be (A). But the answer is (D).", PLAIN, "D"),
    ("The answer is B because it decays.", PLAIN, "B"), ("The answer is B, not A.", PLAIN, "B"), ("The answer is A - 10^-4 eV", PLAIN, "A"),
    # word for word
    ("The answer is 10^-9 eV.", PLAIN, "B"), (r"\boxed{10^{-4}\text{ eV}}", PLAIN, "A"), (r"\boxed{\text{a mixture of B and C}}", PLAIN, "C"),
    (r"\boxed{\text{(E)-2-butene}}", PLAIN, "D"), (r"\boxed{\frac{1}{2} \text{eV}}", SUGARS, "D"), ("The answer is D-Glucose.", SUGARS, "A"),
    # choices that look like letters
    (r"\boxed{\text{D-glucose}}", SUGARS, "A"), ("The answer is D-glucose.", SUGARS, "A"), ("Answer: C-14 and B cells", SUGARS, "B"), (r"\boxed{A}", SUGARS, "A"),
    (r"\boxed{D}", SUGARS, "D"), ("Answer: A) D-glucose", SUGARS, "A"), ("Answer: C) A", SUGARS, "C"), ("The answer is (D)-glucose, as (A) says.", SUGARS, "A"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "choices", "letter"), NAMED)
def test_a_choice_is_named_by_its_letter_or_word_for_word(output, choices, letter):
    for gold in "ABCD":
        assert grade(output, gold, kind="choice", choices=choices).correct is (gold == letter), gold
    assert grade(
        f"First (B), no, (A).</think>\n{output}", letter, kind="choice", choices=choices, opened="<think>"
    ).correct


@pytest.mark.parametrize(
    "output",
    [
        r"\boxed{B, C}", r"\boxed{\text{B and C}}", "The answer is B or C.", r"\boxed{B} or \boxed{C}", r"\boxed{E}", "The answer is (F).",
        "The answer is a mixture.", "D cells are the answer.", "The answer is B cells of the liver.", "A bird flies.", "", "I do not know.",
    ],
)  # fmt: skip
def test_what_names_no_choice_or_several_is_right_for_none(output):
    assert not [gold for gold in "ABCD" if grade(output, gold, kind="choice", choices=PLAIN).correct]


def test_a_choice_in_thinking_that_was_cut_is_unfinished():
    for output in ("It is (C). Answer: C. But wait", r"So \boxed{C}. Hmm", "The answer is 10^-9 eV"):
        asked = {"kind": "choice", "choices": PLAIN, "finished": False}
        assert grade(output, "C", opened="<think>", **asked) == (False, None, "unfinished")
        assert grade(f"<think>{output}", "B", **asked) == (False, None, "unfinished")
    assert grade("Let us see, is it D", "D", kind="choice", choices=PLAIN, finished=False).rule == "unfinished"
