"""Laws of what changes an answer: a word of magnitude or sign in Chinese and Korean, a later sentence that takes it back, the
unit behind it."""

import pytest

from test_grading import grader  # noqa: F401 (a fixture)
from tunediff.benchmarks import grade, read

# output, the number that it says
SAID = [
    ("所以答案是 3万。", "30000"), ("所以答案是 3 万。", "30000"), ("一共需要 5 亿元。", "500000000"), ("정답은 3만 원입니다.", "30000"), ("총 5천 원입니다.", "5000"), ("答案是负5。", "-5"),
    ("答案是负的5。", "-5"), ("答案是负$5$。", "-5"), ("답은 마이너스 5입니다.", "-5"), ("정답은 음수 5입니다.", "-5"), ("答案是2的3次方", "8"), ("答案是 10 的 3 次方。", "1000"), ("정답은 2의 3제곱입니다.", "8"),
    ("答案是 2百万元。", "2000000"), ("答案是3千万。", "30000000"), ("答案是 3 万 5 千。", "35000"), ("정답은 1억 2천만 원입니다.", "120000000"), ("정답은 1만 2345원입니다.", "12345"),
    ("答案是 1.5万。", "15000"), ("答案是 3百。", "300"), ("정답은 3백 명입니다.", "300"), ("答案是负3万。", "-30000"), ("答案是 3分之1。", "1/3"), ("정답은 3분의 1입니다.", "1/3"), ("答案是百分之50。", "50%"),
    # a kilometre is one word
    ("所以她一共跑了 10 千米", "10"), ("答案是 5千克。", "5"), ("答案是 5 个。", "5"), ("정답은 5개입니다.", "5"), ("答案是正5。", "5"), ("第3题的答案是 42。", "42"), ("比原来多 3 元，所以答案是 42。", "42"),
    (r"So \boxed{3千}.", "3000"), (r"So \boxed{3만 5천}.", "35000"), (r"So \boxed{-3万}.", "-30000"), (r"So \boxed{负5}.", "-5"), ("The answer is negative 5.", "-5"), ("The answer is minus 5.", "-5"),
    ("So 12 minus 5 is 7.", "7"),
]  # fmt: skip
# output, the number that stands there and is not what it says
UNREAD = [
    ("答案是 3 万多。", "3"), ("答案是 30多。", "30"), ("答案是 3 兆。", "3"), ("정답은 3조 원입니다.", "3"), ("答案是2的平方根。", "2"), ("答案是5的阶乘。", "5"), ("答案是2的一半。", "2"), ("정답은 2의 제곱근입니다.", "2"),
    ("答案是根号2。", "2"), ("정답은 루트 2입니다.", "2"), ("答案是正负5。", "5"), ("答案是正负5。", "-5"), ("答案是3万5。", "3"), ("答案是3万5。", "30005"), ("答案是3万5。", "5"), (r"\boxed{3兆}", "3"), (r"\boxed{2的平方根}", "2"),
    (r"\boxed{30多}", "30"), ("答案是5的倒数。", "5"), ("答案是5余3。", "5"), ("정답은 5의 절반입니다.", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "number"), SAID)
def test_a_magnitude_a_sign_and_a_power_in_words_are_part_of_the_number(grader, output, number):  # noqa: F811
    others = {"3", "5", "2", "10", "1", "-3", "-5", "50", "42", "12", "8", "1000"} - {number} - {"50"}
    grades = grader.grade([(output, gold) for gold in (number, *others)])
    assert grades[0].correct, grades[0]
    assert not [gold for gold, each in zip(others, grades[1:], strict=True) if each.correct]


@pytest.mark.parametrize(("output", "number"), UNREAD)
def test_a_number_beside_a_word_that_changes_it_otherwise_is_not_read_alone(grader, output, number):  # noqa: F811
    assert not grader.grade([(output, number)])[0].correct


# output, kind, what it says in the end, what it took back
TAKEN_BACK = [
    ("The answer is 5. Wait, no, it is 7.", "math", "7", "5"), ("The answer is 5. Wait, no. The answer is 7.", "math", "7", "5"), ("The answer is 5. Actually, it should be 7.", "math", "7", "5"),
    ("The answer is 5. Sorry, 7.", "math", "7", "5"), ("The answer is 5. I mean 7.", "math", "7", "5"), ("The answer is $5$. Hold on, that is wrong. The correct answer is $\\frac{1}{2}$.", "math", "1/2", "5"),
    ("So \\boxed{5}. Wait, no, it is 7.", "math", "7", "5"), ("The answer is 5.\n\nWait, no, the answer is 7.", "math", "7", "5"), ("The answer is not 5 but 7.", "math", "7", "5"),
    ("답은 5입니다. 아니, 답은 7입니다.", "math", "7", "5"), ("答案是5。等等，不对，答案是7。", "math", "7", "5"), ("The answer is 5. Wait, no, it is 7 apples.", "math", "7", "5"),
    ("The answer is 5. Wait, no, it is 6. Wait, no, it is 7.", "math", "7", "6"),
    ("The answer is yes. Wait, no, the answer is no.", "boolean", "no", "yes"), ("The answer is yes. Wait, no. The answer is no.", "boolean", "no", "yes"), ("The answer is no. Wait, actually it is yes.", "boolean", "yes", "no"),
    ("The answer is no. Wait, no, the answer is yes.", "boolean", "yes", "no"), ("The answer is true. Actually, it is false.", "boolean", "false", "true"), ("\\boxed{yes}. Wait, no. The answer is no.", "boolean", "no", "yes"),
    ("\\boxed{B}. Wait, no. The correct option is D.", "choice", "D", "B"), ("The answer is B. I mean D.", "choice", "D", "B"), ("The answer is B. Sorry, D.", "choice", "D", "B"), ("The answer is not B but D.", "choice", "D", "B"),
    ("정답은 B입니다. 아니, 정답은 C입니다.", "choice", "C", "B"), ("정답은 B가 아니라 C입니다.", "choice", "C", "B"), ("The answer is B. Wait, no. The answer is D.", "choice", "D", "B"),
    ("The answer is not (B), but rather (D).", "choice", "D", "B"), ("正确答案是 C。等等,不对,应该是 D。", "choice", "D", "C"), ("\\boxed{B} Hold on. \\boxed{D}", "choice", "D", "B"),
    ("The answer is B. Wait, no. The correct option is D.", "choice", "D", "B"),
    # what only looks back takes nothing back
    ("The answer is 5. Wait, let me check: 5 + 2 = 7, as it should.", "math", "5", "7"), ("The answer is 5. To check the answer: 5 + 2 = 7.", "math", "5", "7"), ("The answer is 5. Actually, 7 would be too many.", "math", "5", "7"),
    ("The answer is 5. Wait, is it 7? No, it is 5.", "math", "5", "7"), ("Wait, no, it is 7. So the answer is 5.", "math", "5", "7"), ("Wait, it is 7. So \\boxed{5}.", "math", "5", "7"), ("\\boxed{5}. Note that 7 is not prime.", "math", "5", "7"),
    ("The answer is yes. Wait, let me check whether it is true that no one left. It is.", "boolean", "yes", "no"), ("The answer is yes. Actually, it is true of all n.", "boolean", "yes", "no"),
    ("\\boxed{B}. Wait, let me double check: A is wrong, C is wrong. Yes, B.", "choice", "B", "A"), ("The answer is B. Wait, is it A? No, B is right.", "choice", "B", "A"), ("The answer is B, not D.", "choice", "B", "D"),
    ("\\boxed{B}. Actually, D decreases as A does.", "choice", "B", "D"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "kind", "last", "before"), TAKEN_BACK)
def test_an_answer_that_is_taken_back_is_the_one_that_replaces_it(output, kind, last, before):
    assert grade(output, last, kind=kind).correct, read(output, kind=kind)
    assert not grade(output, before, kind=kind).correct


def test_a_correction_that_was_cut_is_not_read():
    assert read("The answer is 5. Wait, no, it is 7", finished=False).text != "7"
    assert read("The answer is 5. Wait, no, it is 7. For", finished=False).text == "7"


UNITS = [
    (r"5\text{ cm}", r"5\text{ m}", False), ("5 cm", r"5\text{ m}", False), (r"5\text{ kg}", "5 g", False), (r"\frac{1}{2}\text{ m}", r"\frac{1}{2}\text{ km}", False), (r"5\text{ m}^2", r"5\text{ m}^3", False),
    (r"5\text{ hours}", r"5\text{ minutes}", False), (r"2\sqrt{3}\,\mathrm{cm}", r"2\sqrt{3}\,\mathrm{mm}", False), (r"5\text{ m/s}", r"5\text{ km/h}", False), (r"5\text{ dollars}", r"5\text{ cents}", False),
    (r"5\text{ cm}", "5", True), ("5", r"5\text{ m}", True), (r"5\text{ cm}", "5 centimeters", True), (r"5\text{ m}^2", "5 square meters", True), (r"5\text{ ft}", "5 feet", True), (r"5\text{ hr}", "5 hours", True),
    (r"5\text{ m/s}", "5 meters per second", True), (r"5\ \text{cm}^3", r"5\text{ cubic centimeters}", True), (r"5\text{ units}", r"5\text{ cm}", True), (r"5\text{ apples}", r"5\text{ pieces}", True),
    (r"5\text{ in}", "5 inches", True),  (r"5\text{ cm}", "5 cm", True), (r"2\pi m", r"2\pi\text{ cm}", False), (r"3\text{ cm}, 4\text{ cm}", r"3\text{ cm}, 4\text{ cm}", True),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold", "equal"), UNITS)
def test_two_units_that_stand_there_are_one_unit_and_a_missing_one_is_no_other(grader, answer, gold, equal):  # noqa: F811
    assert grader.grade([(f"So \\boxed{{{answer}}}.", gold)])[0].correct is equal
