"""Laws of the answer checker by kind of answer: how R1 and Qwen write it, with what a strict marker would say of each.

Every kind has answers that are right and near misses that are not.
"""

import pytest

from test_grading import cases_of, grader  # noqa: F401 (a fixture)
from tunediff.benchmarks import grade, read

# kind: (answer in a box, gold, equal)
BOXED = {
    "tiny numbers": [
        ("1/2^98", "1/2^99", False), (r"\frac{1}{2^{98}}", "1/2^98", True), ("2^{-98}", r"\frac{1}{2^{98}}", True), (r"\frac{1}{2^{98}}", "0", False),
        ("0", r"\frac{1}{2^{98}}", False), (r"\frac{\pi}{10^{12}}", r"\frac{3}{10^{12}}", False), (r"10^{-40}\sqrt{2}", r"10^{-41}\sqrt{2}", False),
        (r"\frac{\sqrt{2}}{10^{9}}", r"\sqrt{2}\cdot 10^{-9}", True), ("(1/2^{98}, 1)", "(1/2^{99}, 1)", False), (r"\frac{1}{100!}", r"\frac{1}{101!}", False),
        (r"\frac{1}{50!}", r"\frac{51}{51!}", True), ("2^{100}", "2^{100}+1", False), (r"e^{-30}", r"e^{-31}", False), (r"(\frac{1}{2})^{40}", "2^{-40}", True),
    ],
    "units behind anything": [
        (r"13\sqrt3\text{ m}^2", r"13\sqrt{3}", True), (r"\frac52\text{ m/s}", r"\frac{5}{2}", True), (r"\frac{5}{2}\text{ m/s}", "2.5", True),
        (r"2\pi\text{ m}^2", r"2\pi", True), (r"5\sqrt{2}\,\mathrm{cm}", r"5\sqrt{2}", True), (r"13\sqrt3", r"13\sqrt{3}\text{ m}^2", True),
        (r"(2+\sqrt{3})\text{ units}", r"2+\sqrt{3}", True), (r"\frac{9}{2}\text{ square inches}", "4.5", True), (r"\dfrac{\pi}{3}\text{ radians}", r"\frac{\pi}{3}", True),
        (r"4x\text{ cm}", "4x", True), (r"12\sqrt{5}\ \text{km/h}", r"12\sqrt{5}", True), (r"6\pi\ \mathrm{cm^3}", r"6\pi", True), (r"2\sqrt{3} units", r"2\sqrt{3}", True),
        (r"5\text{ m} \cdot \text{s}^{-1}", "5", True), (r"36\pi\text{ cubic centimeters}", r"36\pi", True),
        ("42个", "42", True), (r"42\text{元}", "42", True), (r"2\sqrt{3}\text{ 厘米}", r"2\sqrt{3}", True), ("12개", "12", True), ("42个", "4", False), ("2小时30分钟", "2", False),
        (r"13\sqrt3\text{ m}^2", "13", False), (r"\frac52\text{ m/s}", "52", False), (r"2\pi\text{ m}^2", r"4\pi", False), (r"2\pi m", r"2\pi", False),
        (r"3\text{ or }4", "3", False), (r"10\text{ hours } 30\text{ minutes}", "10", False), (r"5\text{ if } x>2", "5", False), (r"2\sqrt{3}\text{ and }4", r"2\sqrt{3}", False),
        (r"\sqrt{3}x", r"\sqrt{3}", False),
    ],
    "dressing": [
        (r"\textcolor{red}{7}", "7", True), (r"\underline{7}", "7", True), (r"\bf 7", "7", True), (r"{\bf 7}", "7", True), (r"\hspace{1cm}7", "7", True),
        (r"\color{blue}{7}", "7", True), (r"{\color{blue}7}", "7", True), (r"\mathbf{7}", "7", True), (r"\boldsymbol{\frac{1}{2}}", "0.5", True),
        (r"\underline{\underline{7}}", "7", True), (r"\textbf{\underline{7}}", "7", True), (r"\large 7", "7", True), (r"\textcolor{red}{\frac{1}{2}}", r"\frac{1}{2}", True),
        (r"7\phantom{0}", "7", True), (r"\mathbf{(B)}", r"\text{(B)}", True), (r"\mathrm{even}", r"\text{even}", True), (r"\underline{\text{even}}", r"\text{even}", True),
        (r"\Large{9}", "9", True), (r"\text{\bf 12}", "12", True),
        (r"\textcolor{red}{7}", "8", False), (r"\underline{7}", "77", False), (r"\bf 7", "17", False), (r"\hspace{1cm}7", "17", False), (r"7\hspace{1cm}1", "7", False),
    ],
    "regions as inequalities": [
        (r"2\le x<5", "[2,5)", True), (r"x\ne3", r"(-\infty,3)\cup(3,\infty)", True), (r"x \neq 3", r"x\ne3", True), (r"5>x\ge 2", "[2,5)", True), ("[2,5)", r"2\le x<5", True),
        (r"x\le -1 \text{ or } x\ge 2", r"(-\infty,-1]\cup[2,\infty)", True), (r"x > 2 \text{ and } x < 5", "(2,5)", True), (r"x \in \mathbb{R}\setminus\{3\}", r"x\ne 3", True),
        (r"\{x \mid x>2\}", r"(2,\infty)", True), (r"-\frac{1}{2} < x \leq 3", r"\left(-\frac{1}{2},3\right]", True), (r"x \geqslant \sqrt{2}", r"[\sqrt{2},\infty)", True),
        (r"3 \le y", r"y \ge 3", True), (r"x<-2 \cup x>2", r"(-\infty,-2)\cup(2,\infty)", True), (r"0 < \theta < \pi", r"(0,\pi)", True), (r"x>5", r"(5,+\infty)", True),
        (r"x \in \mathbb{R}, x\neq 3", r"x \ne 3", True), (r"x \in (-\infty, 3) \cup (3, \infty)", r"x\neq 3", True),
        (r"|x|<3", "(-3,3)", True), (r"|x| \ge 3", r"(-\infty,-3]\cup[3,\infty)", True), (r"\{x \in \mathbb{R} : x \ne \pm 2\}", r"(-\infty,-2)\cup(-2,2)\cup(2,\infty)", True),
        (r"|x|<3", "[-3,3]", False), (r"|x|>3", "(-3,3)", False), ("2<x<5", "[2,5)", False), (r"2\le x\le5", "[2,5)", False), (r"x\ne3", "3", False), (r"x\ne3", "x=3", False), ("3", r"x\ne3", False), ("x<2 or x>5", "(2,5)", False),
        (r"x\ne3", r"x\ne4", False), (r"2\le x<6", "[2,5)", False), ("x>5", "5", False), (r"x \in \mathbb{R}\setminus\{3\}", r"x\ne 4", False), (r"x>2", r"(-\infty,2)", False),
        ("x>5", "y>5", False), (r"2\le x<5", "x=2", False), (r"x \ne 3", r"(3,\infty)", False),
    ],
    "an equation and its right side": [
        ("y=2x+1", "2x+1", True), ("2x+1", "y=2x+1", True), ("2x+1=y", "y=2x+1", True), ("y=1+2x", "y=2x+1", True), ("y=2x+1", "2x-y+1=0", True), ("2x-y+1=0", "y=2x+1", True),
        (r"y=\frac{4x+2}{2}", "y=2x+1", True), ("f(x)=2x+1", "2x+1", True), ("y=2x+1", "y=2x-1", False), ("y=2x+1", "x=2y+1", False), ("y=2x+1", "2x-y-1=0", False),
        ("2x-y+1=0", "2x+1", False), ("y=2x+1", "2x", False), ("x^2+y^2=4", "4", False), ("x^2+y^2=4", "y^2+x^2=4", True), ("x^2+y^2=4", "x^2+y^2=2", False),
    ],
    "one unknown with several values": [
        ("a=1 or a=-2", "1,-2", True), (r"x=1\text{ or }x=-2", "-2,1", True), ("x=1, x=-2", "1,-2", True), ("x = 1, -2", "1,-2", True), ("x_1=1, x_2=-2", "1,-2", True),
        ("1, -2", "x=1 or x=-2", True), (r"x=\frac{1}{2}\text{ and }x=3", r"3,\frac{1}{2}", True), (r"x \in \{1,-2\}", "1,-2", True), (r"x = 1 \pm \sqrt{2}", r"1+\sqrt{2},1-\sqrt{2}", True),
        ("a=1 or a=-2", "1,2", False), ("a=1 or a=-2", "1", False), ("a=1", "1,-2", False), ("x=1, x=-2, x=3", "1,-2", False), ("a=1 or a=1", "1,-2", False), ("a=1 or a=-2", "(1,-2)", False),
    ],
    "named tuples": [
        ("(x,y)=(2,3)", "(2,3)", True), ("(2,3)", "(x,y)=(2,3)", True), ("(x, y) = (2, 3)", "(x,y)=(2,3)", True), (r"(x,y)=(2,3),(1,1)", "(1,1),(2,3)", True),
        (r"(x, y, z) = \left(1, \frac{1}{2}, 3\right)", "(1,0.5,3)", True), (r"(a,b) \in \{(2,3),(1,1)\}", "(1,1),(2,3)", True), (r"\mathbf{v} = (2,3)", "(2,3)", True),
        ("(x,y)=(2,3)", "(3,2)", False), ("(x,y)=(2,3)", "2,3", False), ("(x,y)=(2,3)", "(y,x)=(2,3)", False), ("(x,y)=(2,3)", "(2,3,4)", False), ("(x,y)=(2,3)", "(x,y)=(2,4)", False),
    ],
    "approximations": [
        (r"\approx 3.14", "3.14", True), (r"\pi\approx 3.14", r"\pi", True), (r"2\sqrt{3} \approx 3.46", r"2\sqrt{3}", True), (r"\frac{22}{7} \approx 3.14", r"\frac{22}{7}", True),
        (r"x \approx 3.14", "3.14", True), (r"\sqrt{10} \approx 3.16", "3.16", True), ("≈ 3.14", "3.14", True), (r"\approx 3.14\text{ cm}", "3.14", True), (r"x = \ln 2 \approx 0.693", r"\ln 2", True),
        (r"\approx 3.14", r"\pi", False), (r"\approx 3.14", "3.15", False), (r"\sqrt{3} \approx 1.73", r"\sqrt{2}", False), (r"\sqrt{11}\approx 3.3", r"3", False), (r"\approx 0.33", r"\frac{1}{3}", False),
    ],
    "congruences": [
        (r"x\equiv2\pmod5", r"x\equiv 2\pmod{5}", True), (r"x\equiv2\pmod5", "2", True), (r"2\pmod{5}", r"x\equiv2\pmod5", True), (r"x \equiv 2 \mod 5", r"x\equiv 2\pmod{5}", True),
        (r"x \equiv 2 \pmod{5}", r"2 \pmod 5", True), (r"17\equiv 2\pmod 5", "2", True), (r"n\equiv 1,4 \pmod{5}", r"n\equiv 4, 1\pmod 5", True), (r"2 \bmod 5", "2", True),
        (r"x\equiv2\pmod5", r"x\equiv2\pmod7", False), (r"x\equiv2\pmod5", "3", False), (r"x\equiv2\pmod5", "5", False), (r"x\equiv2\pmod5", r"x\equiv3\pmod5", False),
        ("2", r"x\equiv 3\pmod 5", False), (r"x\equiv2\pmod5", "25", False),
    ],
    "a choice and its text": [
        (r"\text{(C)}\ 12", r"\text{(C)}", True), ("C. 12", r"\text{(C)}", True), (r"\textbf{(C) }12", r"\text{(C)}", True), (r"\text{(C)}\ 12", "C", True), ("C. 12", "C", True),
        (r"\textbf{(C)}\ \frac{1}{2}", "C", True), (r"\text{C}", "C", True), (r"\text{Option C}", "C", True), ("(C)", "C", True), (r"\textbf{(C)}\ 12", "12", True), (r"\textbf{(C)}\ \frac{1}{2}", r"\frac{1}{2}", True),
        (r"\text{(D)}\ 12", r"\text{(C)}", False), ("D. 12", "C", False), ("C+12", "C", False), ("12C", "C", False), ("C^2", "C", False), (r"\textbf{(C)}\ 12", "13", False),
        (r"\text{(C)}\ 12", "D", False), ("(C) and (D)", "C", False),
    ],
    "numbers with a word": [
        ("3 million", "3000000", True), (r"3\text{ million}", "3,000,000", True), ("3.5 million", "3500000", True), (r"\$3\text{ million}", "3000000", True), ("3000000", "3 million", True),
        ("3 million dollars", "3000000", True), ("2 billion", "2000000000", True), (r"12\text{ thousand}", "12000", True), ("1.2 trillion", r"1.2\times 10^{12}", True),
        ("3万", "30000", True), ("1.2亿元", "120000000", True), ("5만 원", "50000", True), ("3 millionths", "3000000", False), ("3万", "3", False),
        ("3 million", "3", False), ("3", "3 million", False), ("3 thousand", "3000000", False), ("3 billion", "3 million", False), ("3.5 million", "3000000", False),
    ],
    "repeating decimals": [
        (r"0.\overline{3}", r"\frac{1}{3}", True), (r"0.1\overline{6}", r"\frac{1}{6}", True), (r"0.\overline{36}", r"\frac{4}{11}", True), (r"\frac{1}{3}", r"0.\overline{3}", True),
        (r"0.\bar{3}", r"\frac{1}{3}", True), (r"0.\dot{3}", r"\frac{1}{3}", True), (r"0.333\ldots", r"\frac{1}{3}", True), ("0.3636...", r"\frac{4}{11}", True), (r"2.\overline{142857}", r"\frac{15}{7}", True),
        (r"0.\overline{9}", "1", True), (r"-0.\overline{3}", r"-\frac{1}{3}", True), (r"0.\overline{36}", r"0.3\overline{63}", True),
        (r"0.\overline{3}", "0.3", False), (r"0.\overline{3}", "0.333", False), (r"0.3", r"0.\overline{3}", False), (r"0.1\overline{6}", r"\frac{16}{99}", False), (r"0.\overline{36}", r"0.3\overline{6}", False),
        (r"\overline{36}", "36", False), ("0.3...", "0.3", False), (r"0.\overline{36}", "0.36", False),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("answer", "gold", "equal"), cases_of(BOXED))
def test_each_kind_is_marked_as_a_strict_marker_would(grader, answer, gold, equal):  # noqa: F811
    assert grader.grade([(f"Hence \\boxed{{{answer}}}.", gold)])[0].correct is equal


CUT = [
    r"So the answer is \boxed{\frac{1}{2", r"The answer is $\boxed{42", r"\boxed{7}. Correction: the answer is \boxed{8", r"7</think>The answer is \boxed{42", r"\boxed{42", r"So 42, that is \boxed{",
    r"\boxed{7}</think>So it is \boxed{\text{7", r"so \boxed{\frac", "The answer is 42. So $\\boxed",
]  # fmt: skip


@pytest.mark.parametrize("output", CUT)
@pytest.mark.parametrize("finished", [False, True])
def test_an_output_cut_inside_a_box_is_unfinished(output, finished):
    for gold in ("42", "7", "8", "1/2", "4", "1"):
        assert grade(output, gold, finished=finished) == (False, None, "unfinished")


def test_an_output_cut_inside_a_box_of_open_thinking_is_unfinished():
    for finished in (False, True):
        assert read(r"So \boxed{7}. No: \boxed{8", opened="<think>", finished=finished) == (None, "unfinished")


def test_a_box_that_was_closed_before_the_cut_counts():
    assert grade(r"So \boxed{42} follows from 6 \cdot 7 =", "42", finished=False).correct
    assert grade(r"So \boxed{\frac{1}{2}}", "0.5", finished=False).correct
    assert grade(r"Put it in a box: \boxed{42}. In LaTeX that is {", "42", finished=False).correct


CORRECTED = [
    ("B. Wait, no. The correct option is D.", "D"), ("The answer is B. Wait, that is wrong. The answer is D.", "D"), ("(B) is right. No, (D) is.", "D"), ("Answer: B\n\nActually, the answer is D.", "D"),
    ("B.\n\nHmm, I made a mistake. The correct choice is (D).", "D"), ("The answer is B. Hold on, it should be D.", "D"), ("**B**. Actually, let me reconsider: the correct answer is **D**.", "D"),
    ("The answer is B. Wait, no: D.", "D"), ("It is not B. The correct option is D.", "D"), ("The correct answer is D, not B.", "D"), ("D. The correct option is not B.", "D"), ("The answer is D. Option B is wrong, for it has no root.", "D"),
    ("The answer is D. Options A, B and C are wrong.", "D"), ("A, because the force is zero. On second thought, it is D.", "D"),
    ("The answer is D. There is no change, so B decreases.", "D"), ("The answer is D. Actually, B decreases as A does.", "D"), ("The answer is D, no other is right.", "D"), ("D is correct. B would be correct if x were 2.", "D"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "letter"), CORRECTED)
def test_a_choice_that_is_corrected_is_taken_as_corrected(output, letter):
    assert {gold for gold in "ABCD" if grade(output, gold, kind="choice").correct} == {letter}


TRANSLATED = [
    ("所以答案是 42。", "math", "42", "41"), ("因此，最终答案为：42", "math", "42", "4"), ("答案：$\\frac{1}{2}$", "math", "0.5", "2"), ("第3题的答案是 42。", "math", "42", "3"), ("答案不是 41，而是 42。", "math", "42", "41"),
    ("因此，3个盒子一共有36个苹果。", "math", "36", "3"), ("小明还剩下 15 元。", "math", "15", "1"), ("所以，总价是 1,200 元，比原来多 3 元。", "math", "1200", "3"), ("综上，$x=7$。", "math", "7", "1"), ("所以她一共跑了 10 千米", "math", "10", "1"),
    ("**答案**：42 个", "math", "42", "4"), ("答：他需要 12 天。", "math", "12", "2"), ("最终答案是\\(2\\sqrt{3}\\)。", "math", r"2\sqrt{3}", "3"), ("故选：C。", "choice", "C", "A"), ("因此选 B。", "choice", "B", "A"), ("正确答案是 D。", "choice", "D", "A"),
    ("答案：C", "choice", "C", "B"), ("选项 B 是正确的。", "choice", "B", "A"), ("答案是（D）。", "choice", "D", "A"), ("答案：是", "boolean", "yes", "no"), ("不，这是错误的。", "boolean", "no", "yes"), ("是的。", "boolean", "yes", "no"), ("答案：否", "boolean", "no", "yes"),
    ("정답은 42입니다.", "math", "42", "4"), ("답: 42", "math", "42", "4"), ("따라서 답은 12개입니다.", "math", "12", "2"), ("최종 답은 $\\frac{1}{2}$ 입니다.", "math", "1/2", "2"), ("따라서 3개의 상자에 총 36개의 사과가 있습니다.", "math", "36", "3"),
    ("그러므로 그는 1,200원을 냅니다.", "math", "1200", "1"), ("정답: C", "choice", "C", "A"), ("정답은 B입니다.", "choice", "B", "A"), ("따라서 정답은 (D)입니다.", "choice", "D", "A"), ("네, 맞습니다.", "boolean", "yes", "no"), ("아니요.", "boolean", "no", "yes"),
    ("답은 9가 아니라 12입니다.", "math", "12", "9"), ("따라서 x = 7이다.", "math", "7", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "kind", "gold", "other"), TRANSLATED)
def test_an_answer_without_a_box_in_chinese_or_korean_is_read(output, kind, gold, other):
    assert grade(f"嗯……\n\n{output}", gold, kind=kind).correct
    assert not grade(output, other, kind=kind).correct


def test_a_cut_sentence_in_chinese_or_korean_is_no_answer():
    for output in ("因此，一共有 3", "따라서 모두 3"):
        assert read(output, finished=False).rule == "unfinished"
