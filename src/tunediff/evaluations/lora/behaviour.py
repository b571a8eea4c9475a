"""Adapters by type -> the conditions under which an adapted model solves problems: with all of its adapters, with none,
without those of a type, and without as many drawn at random. The paper's claim (arXiv 2511.06739) is about two of them:
without attention adapters the model still does better than its base, without MLP adapters worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunediff.benchmarks import Problem
from tunediff.evaluations.behaviour.runner import Found
from tunediff.evaluations.behaviour.solving import Condition, asked_differently
from tunediff.evaluations.given import Given
from tunediff.evaluations.lora.groups import lora_groups, random_groups, removal
from tunediff.hookpoints import LoraAdapter
from tunediff.measures import difference, mcnemar
from tunediff.shapes import BASE, TUNED, Finding, Stream

FULL, NONE = "full", "without_all"


def without_types(at: Stream, adapters: Sequence[LoraAdapter], *, draws: int, seed: int) -> list[Condition]:
    """The conditions, all compared with the full adapter and asked alike. Leaving one of two types out leaves the other alone."""

    def without(name: str, title: str, members: frozenset[int], control: bool = False) -> Condition:
        return Condition(name, title, TUNED, (removal(at, adapters, members),), control, FULL)

    made = [Condition(FULL, "all adapters", TUNED)]
    made.append(without(NONE, "without any adapter", frozenset(range(len(adapters)))))
    types = lora_groups(adapters, ["type"])
    for group in types if len(types) > 1 else ():
        left = " and ".join(other.name for other in types if other != group)
        made.append(without(f"without_{group.name}", f"without {group.name}: {left} alone", group.members))
        size = len(group.members)
        for drawn in random_groups(len(adapters), [size], draws, seed=seed):
            title = f"without {size} random adapters of {len(adapters)}"
            made.append(without(f"random/without_{group.name}/{drawn.draw}", title, drawn.members, control=True))
    return made


def pairs_base(given: Given, problems: Sequence[Problem]) -> list[Condition]:
    """The condition of the pair's base asked in its own way, where that is another question than the adapted model's, or other weights."""
    if not asked_differently(problems) and given.pair.shares_weights(TUNED):
        return []
    return [Condition(BASE, "base, asked in its own way", BASE, control=True, reference=FULL)]


def against_none(name: str, found: Found) -> Iterator[Finding]:
    """Compares each type left out with the model without any adapter, which tells if the adapters that are left still help."""
    for (task, key), (condition, solved) in found.items():
        if condition.reference != FULL or condition.control or key == NONE:
            continue
        before, right = ([one.grade.correct for one in some] for some in (found[task, NONE].solved, solved))
        paired, where = difference(before, right), f"{name}/{task}/{key}"
        meaning = "accuracy less that without any adapter, on the same problems, Newcombe's paired interval"
        yield Finding(f"{where}/difference_from_none", paired.value, paired.low, paired.high, meaning)
        meaning = "McNemar's exact test against the model without any adapter"
        yield Finding(f"{where}/p_from_none", mcnemar(before, right).p, meaning=meaning)
