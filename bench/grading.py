"""Whether the grades can be trusted: golds against themselves and each other, 1,392 real pairs of outputs, and plain math-verify
beside ours on all of them.

    python bench/grading.py [--processes 2] [--seconds 5] [--show]

Benchmarks and outputs are read from TUNEDIFF_DATA, or ../shared/data beside the checkout. Prints every gold that is not
equal to itself, the golds taken for another problem's, and of each model pair the accuracies and the exact McNemar test. Then
worked solutions against their own gold (a rejection is false) and the gold of the problem before (an acceptance is false,
unless the two are equal), by ours and by math-verify alone. Outputs of models have no label: there the two are counted
against each other, and --show prints what a reader needs to decide.
"""

import argparse
import gzip
import json
import logging
import os
import re
import time
from collections import Counter
from pathlib import Path

import math_verify
from scipy.stats import binomtest

from tunediff.benchmarks import Grade, Grader
from tunediff.benchmarks.notation import number, plain

DATA = Path(os.environ.get("TUNEDIFF_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
# name: file, a text that answers rightly, its gold, relative tolerance; a set without worked solutions has its golds in boxes
SETS = {
    "gsm8k": ("gsm8k/test.jsonl.gz", lambda r: r["answer"], lambda r: r["final"], None),
    "math500": ("math500/test.jsonl.gz", lambda r: r["solution"], lambda r: r["answer"], None),
    "aime24": ("aime/aime24.jsonl", lambda r: boxed(r["answer"]), lambda r: r["answer"], None),
    "aime25": ("aime/aime25.jsonl", lambda r: boxed(r["answer"]), lambda r: r["answer"], None),
    "amc23": ("amc23/test.jsonl", lambda r: boxed(r["answer"]), lambda r: str(r["answer"]), None),
    "olympiadbench": ("olympiadbench/test.jsonl.gz", lambda r: boxed(r["final_answer"][0]), lambda r: r["final_answer"][0], None),
    "minerva_math": ("minerva_math/test.jsonl.gz", lambda r: r["solution"], lambda r: r["answer"], 1e-2),
    "deepscaler math": ("deepscaler_parts/math_train.jsonl.gz", lambda r: boxed(r["answer"]), lambda r: r["answer"], None),
    "deepscaler aime": ("deepscaler_parts/aime_train.jsonl.gz", lambda r: r["solution"], lambda r: r["answer"], None),
    "gcd": ("inoculation/gcd_ood_test.jsonl.gz", lambda r: boxed(r["answer"]), lambda r: r["answer"], None),
}  # fmt: skip
PAIRS = "paired_base_reasoning/pairs.jsonl.gz"
# How a text ends that its model ended: a stop, a closed formula, box or block, a number.
ENDED = re.compile(r"(?:[.!?)\]}$|*`\"\d%]|\b[a-z]{3,})\s*$")


def records(name: str) -> list[dict]:
    path = DATA / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def golds(name: str) -> list[str]:
    """The golds of a set; the few empty ones are left out."""
    file, _, gold, _ = SETS[name]
    return [text for text in (str(gold(record)) for record in records(file)) if text.strip()]


def looks_cut(text: str, longest: int) -> bool:
    """Whether a text of which nobody noted why it ends was cut: nearly as long as any, or amid a formula or sentence."""
    return bool(text) and (len(text) > longest or not ENDED.search(text) or text.count("\\[") != text.count("\\]"))


def question(record: dict, role: str) -> tuple:
    if role == "base":
        text = record["base_response"]
        return (text, record["gold"], "math", not looks_cut(text, 4000), "")
    text = record["thinking_response"]
    return (text, record["gold"], "math", not looks_cut(text, 10**9), "<think>")


def itself(grader: Grader) -> None:
    print(
        "gold against itself, as it is and respelled, and against the gold of the problem before where the two differ"
    )
    for name, (_, _, _, tolerance) in SETS.items():
        begun = time.perf_counter()
        texts = golds(name)
        grades = grader.grade([(f"So it is \\boxed{{{text}}}.", text) for text in texts], tolerance=tolerance)
        missed = [text for text, grade in zip(texts, grades, strict=True) if not grade.correct]
        alike = grader.grade([(f"So it is \\boxed{{{respelled(text)}}}.", text) for text in texts], tolerance=tolerance)
        missed += [(respelled(text), each.rule) for text, each in zip(texts, alike, strict=True) if not each.correct]
        others = [
            (f"So it is \\boxed{{{one}}}.", gold) for one, gold in zip(texts, texts[1:], strict=False) if one != gold
        ]
        against = grader.grade(others, tolerance=tolerance)
        false = [
            (output, gold, grade.rule) for (output, gold), grade in zip(others, against, strict=True) if grade.correct
        ]
        print(
            f"{name:16s} {len(texts):5d} itself {share_right(grades):.4f} respelled "
            f"{share_right(alike):.4f}   {len(others):5d} other "
            f"{len(false) / len(others):.4f}   {time.perf_counter() - begun:.1f} s"
        )
        for case in missed[:5] + false[:8]:
            print("      ", case)
        timed = Counter(grade.rule for grade in grades + alike + against)["timed_out"]
        if timed:
            print(f"       {timed} timed out")


def respelled(gold: str) -> str:
    """The same answer as another writer would set it: large fractions and brackets, braces about thousands."""
    text = (
        gold.replace("\\frac{", "\\dfrac{").replace("^\\circ", "^{\\circ}").replace("\\left", "").replace("\\right", "")
    )
    text = re.sub(r"(?<![\d.,_^{])(\d)(\d{3})(?![\d.,}_])", r"\1{,}\2", text.strip("$ "))
    return f"\\displaystyle {text}".replace("(", "\\left(").replace(")", "\\right)")


def interval(right: int, of: int) -> str:
    low, high = binomtest(right, of).proportion_ci(method="wilson")
    return f"{right / of:.3f} ({low:.3f} to {high:.3f})"


def pairs(grader: Grader) -> None:
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for record in records(PAIRS):
        groups.setdefault((record["base_model"], record["thinking_model"], record["dataset"]), []).append(record)
    told: dict[tuple[str, str], list[Grade]] = {}  # what the reasoning models say to one problem
    print(
        "\npair, set | n | base | reasoning | both, base only, reasoning only, neither | McNemar p | unfinished | seconds"
    )
    for (base, thinking, dataset), members in groups.items():
        begun = time.perf_counter()
        answered = {role: grader.grade([question(each, role) for each in members]) for role in ("base", "tuned")}
        took = time.perf_counter() - begun
        right = {role: [grade.correct for grade in grades] for role, grades in answered.items()}
        table = Counter(zip(right["base"], right["tuned"], strict=True))
        only_base, only_tuned = table[True, False], table[False, True]
        p = binomtest(only_base, only_base + only_tuned).pvalue if only_base + only_tuned else 1.0
        cut = {role: share(grades, "unfinished") for role, grades in answered.items()}
        print(
            f"{base} / {thinking}, {dataset} | {len(members)} | {interval(sum(right['base']), len(members))} "
            f"| {interval(sum(right['tuned']), len(members))} | {table[True, True]}, {only_base}, {only_tuned}, "
            f"{table[False, False]} | {p:.1e} | {cut['base']:.2f}, {cut['tuned']:.2f} | {took:.1f}"
        )
        for role, grades in answered.items():
            print(
                f"    {role}: " + ", ".join(f"{rule} {n}" for rule, n in Counter(g.rule for g in grades).most_common())
            )
        ended = [grade for grade in answered["tuned"] if grade.rule != "unfinished"]
        for member, grade in zip(members, answered["tuned"], strict=True):
            if member["problem_id"] and grade.answer:
                told.setdefault((member["problem_id"], member["gold"]), []).append(grade)
        if ended:
            base = [one for one, other in zip(*answered.values(), strict=True) if other.rule != "unfinished"]
            print(
                f"    of the {len(ended)} that the reasoning model ended: "
                f"{interval(sum(grade.correct for grade in ended), len(ended))}, base {share_right(base):.3f}"
            )
    agreed(told)


def agreed(told: dict[tuple[str, str], list[Grade]]) -> None:
    """Problems to which three or more reasoning models give one answer that is not the gold one."""
    print("\nreasoning models agree on another value than the gold:")
    for (problem, gold), grades in told.items():
        values = {number(plain(str(grade.answer))) for grade in grades}
        if len(grades) > 2 and len({value and value.value for value in values}) == 1 and not grades[0].correct:
            print(f"    {problem}: gold {gold}, answers {', '.join(str(grade.answer) for grade in grades)}")


def boxed(gold: object) -> str:
    return f"So it is $\\boxed{{{str(gold).strip('$ ')}}}$."


def alone(text: str, gold: str) -> bool:
    """The verdict of math-verify as its documentation calls it, with its own limits on time."""
    try:
        return bool(math_verify.verify(math_verify.parse(boxed(gold)), math_verify.parse(text)))
    except Exception:
        return False


def solutions(grader: Grader, show: bool) -> None:
    print("set | right pairs: rejected by ours, by math-verify | other golds: accepted by ours, by math-verify")
    for name, (file, text, gold, tolerance) in SETS.items():
        members = [(text(each), str(gold(each))) for each in records(file) if str(gold(each)).strip()]
        others = [(said, other) for (said, own), (_, other) in zip(members, members[1:], strict=False) if own != other]
        cells = []
        for pairs, wanted in ((members, True), (others, False)):
            ours = [each.correct for each in grader.grade(pairs, tolerance=tolerance)]
            theirs = [alone(*pair) for pair in pairs]
            cells.append(f"{len(pairs)}: {ours.count(not wanted)}, {theirs.count(not wanted)}")
            for (said, own), one, other in zip(pairs, ours, theirs, strict=True):
                if show and (one is not wanted or other is not wanted):
                    print(
                        "   ",
                        "right" if wanted else "other",
                        f"ours {one} math-verify {other}",
                        repr(own),
                        repr(said[-160:]),
                    )
        print(f"{name} | {' | '.join(cells)}", flush=True)


def responses(grader: Grader, show: bool) -> None:
    print(
        "\nmodel, set | n | both right, ours only, math-verify only, neither | ours unfinished among math-verify only"
    )
    groups: dict[tuple[str, str], list[tuple]] = {}
    for record in records(PAIRS):
        for role in ("base", "thinking"):
            asked = question(record, "base" if role == "base" else "tuned")
            groups.setdefault((record[f"{role}_model"], record["dataset"]), []).append((record["id"], *asked))
    for record in records("thought_anchors/traces.jsonl.gz"):
        groups.setdefault(("thought_anchors", "math"), []).append(
            (record["id"], record["solution"], record["gold"], "math", True, "<think>")
        )
    for (model, name), members in groups.items():
        grades = grader.grade([each[1:] for each in members])
        theirs = [alone(each[1], each[2]) for each in members]
        table = Counter(zip((each.correct for each in grades), theirs, strict=True))
        cut = sum(each.rule == "unfinished" and other for each, other in zip(grades, theirs, strict=True))
        print(
            f"{model}, {name} | {len(members)} | {table[True, True]}, {table[True, False]}, {table[False, True]}, {table[False, False]} | {cut}",
            flush=True,
        )
        for each, ours, other in zip(members, grades, theirs, strict=True):
            if show and ours.correct is not other and ours.rule != "unfinished":
                print("    ", each[0], f"gold {each[2]!r} ours {ours}, math-verify {other}", repr(each[1][-300:]))


def share_right(grades: list[Grade]) -> float:
    return sum(grade.correct for grade in grades) / len(grades)


def share(grades: list[Grade], rule: str) -> float:
    return sum(grade.rule == rule for grade in grades) / len(grades)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    with Grader(seconds=asked.seconds, processes=asked.processes) as grader:
        itself(grader)
        pairs(grader)
        solutions(grader, asked.show)
        responses(grader, asked.show)


if __name__ == "__main__":
    main()
