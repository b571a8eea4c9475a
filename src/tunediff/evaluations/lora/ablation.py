"""The loss of an adapted model without some of its low-rank adapters, and with those alone (arXiv 2511.06739).

Groups are the adapters of a layer, of a module such as gate_proj, of a type (attention, mlp), or of a type in a layer.
Each is left out (by "layer"), and may be all that is left (by "only_layer"):

    kl_full_ablated   KL(full || ablated), nats a token            kl_ablated_full   KL(ablated || full)
    ce, excess        cross-entropy of the text, and that less the full adapter's
    share             (CE_ablated - CE_full) / (CE_base - CE_full): of what all adapters gain on this text, the share that is
                      lost; given where that gain is above 0 beyond doubt
    over_random       kl_full_ablated over that of as many adapters drawn at random, mean of the draws

Costs do not add up: later layers are not linear. Intervals: 95 %, over documents, and over draws where adapters are drawn;
those of ratios are Fieller's (measures/clustered.py).
`centre` is where the layers' costs lie, by the KL of each left out alone: sum KL_l l / (L - 1) / sum KL_l, 0 the first layer, 1 the last.
On benchmarks the adapters of each type are left out while the model writes, beside random adapters of the same number.

# Differs from the paper: text is the study's held-out text and tokens are those that it keeps, where the paper takes 16
# random s1K examples of at most 2,048 tokens whole; random groups and the opposite KL are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tunediff.benchmarks import Problem, Task
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found
from tunediff.evaluations.behaviour.solving import Condition, asked_differently
from tunediff.evaluations.given import Given, Needs, Work
from tunediff.evaluations.lora.costs import MEASURES, Costs, Removed, costs
from tunediff.evaluations.lora.groups import BY, RANDOM, LoraGroup, lora_groups, random_groups, removal
from tunediff.evaluations.lora.units import check_adapters
from tunediff.hookpoints import LORA, LoraAdapter
from tunediff.measures import difference, mcnemar
from tunediff.measures.clustered import Bounded, Estimate, interval_columns, number, over_draws, quotient, ratio
from tunediff.models import ModelPair
from tunediff.shapes import BASE, TUNED, Figure, Finding, Note, Refused, Stream, Table
from tunediff.text import Text

NAME, KL = "lora_ablation", "kl_full_ablated"
MEANINGS = {
    "kl_full_ablated": "KL(full || ablated), nats a token",
    "kl_ablated_full": "KL(ablated || full), nats a token",
    "ce": "cross-entropy, nats a token",
    "excess": "CE_ablated - CE_full, nats a token",
    "share": "(CE_ablated - CE_full) / (CE_base - CE_full)",
    "over_random": "KL(full || ablated) over the mean one of as many random adapters",
}
FULL, NONE = "full", "without_all"  # conditions: with all adapters, without any
Each = Mapping[str, Estimate]  # the MEASURES of a model, in nats a token
Measured = Mapping[str, Bounded]


class Ablation(NamedTuple):
    """A group that is left out, or with `only` the one that is left."""

    group: LoraGroup
    only: bool = False

    @property
    def by(self) -> str:
        return f"only_{self.group.by}" if self.only else self.group.by

    def removed(self, everything: Removed) -> Removed:
        return everything - self.group.members if self.only else self.group.members


@dataclass(kw_only=True)
class LoraAblation(BehaviourEvaluation):
    """by          kinds of groups: of layer, module, type, layer_type
    only        true: each group is also measured alone         random     draws of as many adapters; 0: no control
                                                                       on benchmarks they answer in turn
    seed        seed of the draws

    Without tasks (None) no benchmark is solved.
    """

    tasks: Mapping[str, Task] | None  # pyright: ignore[reportIncompatibleVariableOverride] (None: no benchmark)
    by: Sequence[str]
    only: bool
    random: int
    seed: int = 0

    name = NAME
    needs = Needs.PAIR

    def __post_init__(self):
        unknown = [kind for kind in self.by if kind not in BY]
        if unknown:
            raise Refused(f"{NAME}.by names {unknown}: choose of {', '.join(BY)}.")
        self.by = tuple(dict.fromkeys(self.by))

    def times_asked(self, pair: ModelPair) -> int:
        return 3 + 2 * (2 if self.random else 1)  # all adapters, none, the base, and without either type

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """A pass without each group of adapters beside the responses."""
        adapters = pair.sources[TUNED].adapters
        return super().work(pair, streams)._replace(passes=1 + len(self.ablations(adapters)) if adapters else 0)

    def check(self, pair: ModelPair, text: Text) -> None:
        check_adapters(pair)
        super().check(pair, text)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        at = given.pair.streams(LORA, "all", reads=TUNED)[0]
        adapters = given.pair.sources[TUNED].adapters
        if not given.pair.shares_weights(TUNED):
            yield Note(
                f"{NAME}: the adapters lie on other weights than the pair's base. Base means here those weights without "
                "any adapter."
            )
        yield from self._on_text(given, at, adapters)
        yield from self._on_tasks(given, at, adapters)

    # -- on held-out text ----------------------------------------------------------------------------------------------

    def _on_text(
        self, given: Given, at: Stream, adapters: Sequence[LoraAdapter]
    ) -> Iterator[Finding | Table | Figure | Note]:
        everything = frozenset(range(len(adapters)))
        ablations = self.ablations(adapters)
        sets = list(dict.fromkeys(ablation.removed(everything) for ablation in ablations))
        found = costs(given, at, adapters, sets)
        each = {ablation: _each(found, sets.index(ablation.removed(everything))) for ablation in ablations}
        full, base = (each[ablation] for ablation in ablations[:2])
        gain = base["ce"] - full["ce"]
        if gain.sign() <= 0:
            yield Note(
                f"{NAME}: on this text the adapters do not lower the cross-entropy beyond doubt, so that no share of their "
                "gain can be given: measure on text they were trained for, or on more of it (tokens=...)."
            )
        means = {
            alike: {name: over_draws([each[one][name] for one in some]) for name in MEASURES}
            for alike, some in _draws(ablations).items()
        }
        measured: dict[Ablation, Measured] = {}
        for ablation in ablations:
            alike = None if ablation.group.by == RANDOM else means.get((ablation.only, len(ablation.group.members)))
            measured[ablation] = _measured(each[ablation], full, gain, alike)
            if ablation.group.draw is None:
                yield from self._findings(ablation, measured[ablation], len(adapters))
        for alike, some in _draws(ablations).items():  # each draw is a row of the table, and their mean is found
            of, what = _measured(means[alike], full, gain, None), f", mean of {len(some)} random draws"
            yield from self._findings(some[0], of, len(adapters), what, over="draws and documents")
        layers = [one for one in ablations if one.group.by == "layer" and not one.only]
        yield from _centre(
            found, {adapters[min(one.group.members)].layer: sets.index(one.group.members) for one in layers}
        )
        rows = table(measured)
        yield rows
        yield from figure(rows.columns)

    def ablations(self, adapters: Sequence[LoraAdapter]) -> list[Ablation]:
        """The full adapter, none of it, and then every group."""
        groups = lora_groups(adapters, self.by)
        drawn = random_groups(len(adapters), (len(group.members) for group in groups), self.random, seed=self.seed)
        whole = [LoraGroup("whole", "full", frozenset()), LoraGroup("whole", BASE, frozenset(range(len(adapters))))]
        modes = (False, True) if self.only else (False,)
        return [
            *(Ablation(group) for group in whole),
            *(Ablation(group, only) for only in modes for group in [*groups, *drawn]),
        ]

    def _findings(
        self, ablation: Ablation, of: Measured, adapters: int, what: str = "", over: str = "documents"
    ) -> Iterator[Finding]:
        group = ablation.group
        how = f"{'only' if ablation.only else 'without'} {len(group.members)} of {adapters} adapters{what}"
        for name, (value, low, high) in of.items():
            if value is not None:
                ways = "draws and documents" if name == "over_random" else over
                meaning = f"{MEANINGS[name]}; {how}"
                yield Finding(f"{NAME}/{ablation.by}/{group.name}/{name}", value, low, high, meaning, over=ways)

    # -- on benchmarks -------------------------------------------------------------------------------------------------

    def _on_tasks(self, given: Given, at: Stream, adapters: Sequence[LoraAdapter]) -> Iterator[Finding | Table | Note]:
        if not self.tasks:
            return
        found: Found = {}
        conditions = without_types(at, adapters, draws=self.random, seed=self.seed)
        for name, problems in (yield from self.asked(given)).items():
            found |= self.solved(given, {name: problems}, [*conditions, *pairs_base(given, problems)])
        yield from self.side_by_side(found)
        yield from against_none(NAME, found)


def _draws(ablations: Sequence[Ablation]) -> dict[tuple[bool, int], list[Ablation]]:
    """The draws of random groups, by whether they are what is left and by their size."""
    found = defaultdict(list)
    for ablation in ablations:
        if ablation.group.by == RANDOM:
            found[ablation.only, len(ablation.group.members)].append(ablation)
    return found


def without_types(at: Stream, adapters: Sequence[LoraAdapter], *, draws: int, seed: int) -> list[Condition]:
    """The conditions, all compared with the full adapter and asked alike. Leaving one of two types out leaves the other alone."""

    def without(name: str, title: str, members: frozenset[int]) -> Condition:
        return Condition(name, title, TUNED, (removal(at, adapters, members),), False, FULL)

    made = [Condition(FULL, "all adapters", TUNED)]
    made.append(without(NONE, "without any adapter", frozenset(range(len(adapters)))))
    types = lora_groups(adapters, ["type"])
    for group in types if len(types) > 1 else ():
        left = " and ".join(other.name for other in types if other != group)
        made.append(without(f"without_{group.name}", f"without {group.name}: {left} alone", group.members))
        size = len(group.members)
        drawn = random_groups(len(adapters), [size], draws, seed=seed)
        if drawn:
            title = f"without {size} random adapters of {len(adapters)}, {len(drawn)} draws"
            turns = tuple((removal(at, adapters, one.members),) for one in drawn)
            made.append(Condition(f"random/without_{group.name}", title, TUNED, (), True, FULL, drawn=turns))
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
        meaning = "accuracy less that without any adapter, on the same problems"
        yield Finding(f"{where}/difference_from_none", *paired, meaning, over="problems")
        meaning = "McNemar's exact test against the model without any adapter"
        yield Finding(f"{where}/p_from_none", mcnemar(before, right).p, meaning=meaning)


# -- tables and figures ----------------------------------------------------------------------------------------------


def _each(found: Costs, number: int) -> Each:
    """The MEASURES without one set of adapters."""
    return {name: ratio(found.sums[:, number, n], found.tokens) for n, name in enumerate(MEASURES)}


def _measured(each: Each, full: Each, gain: Estimate, alike: Each | None) -> Measured:
    """All that is said of an ablation, beside the mean of as many random adapters where there is one."""
    nothing = None, None, None
    excess = each["ce"] - full["ce"]
    return {
        **{name: estimate.bounded(least=0.0) for name, estimate in each.items()},
        "excess": excess.bounded(),
        "share": quotient(excess, gain) if gain.sign() > 0 else nothing,
        "over_random": _over(each[KL], alike[KL]) if alike else nothing,
    }


def _centre(found: Costs, sets: Mapping[int, int]) -> Iterator[Finding]:
    """Yields the finding of where the costs of layers lie, of layer -> number of the set without its adapters; none where no
    two layers have adapters, or the layers cost nothing."""
    if len(sets) < 2:
        return
    kls = found.sums[:, list(sets.values()), list(MEASURES).index(KL)]
    depth = torch.tensor(list(sets), dtype=kls.dtype)
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    bounded = quotient(ratio(kls @ depth, found.tokens), ratio(kls.sum(1), found.tokens), least=0.0, most=1.0)
    if bounded[0] is not None:
        meaning = "mean relative depth of the layers with adapters, weighted by KL(full || without that layer's)"
        yield Finding(f"{NAME}/layer/centre", *bounded, meaning, over="documents")


def _over(own: Estimate, random: Estimate) -> Bounded:
    """One KL over another; without an interval where so few draws or documents leave that of the denominator open."""
    value, low, high = quotient(own, random, least=0.0)
    return number(own.value / random.value) if value is None else value, low, high


def table(measured: Mapping[Ablation, Measured]) -> Table:
    """The table with one row per ablation; `adapters` counts those that are removed, or with `only` those that are left."""
    rows = []
    for ablation, of in measured.items():
        group = ablation.group
        row = {"group": group.name, "by": group.by, "only": ablation.only, "draw": group.draw}
        row["adapters"] = len(group.members)
        for name, bounded in of.items():
            row |= interval_columns(name, bounded)
        rows.append(row)
    return Table.of(NAME, rows)


def figure(columns: Mapping[str, list]) -> Iterator[Figure]:
    """Draws the groups of one kind, left out or alone, beside random ones of their sizes and the base; none without groups."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    whole = [row for row in rows if row["by"] == "whole" and row["adapters"] > 0]
    shown = []
    for kind in dict.fromkeys(row["by"] for row in rows if row["by"] not in ("whole", RANDOM)):
        for only in dict.fromkeys(row["only"] for row in rows if row["by"] == kind):
            mine = [row for row in rows if (row["by"], row["only"]) == (kind, only)]
            sizes = {row["adapters"] for row in mine}
            drawn = [row for row in rows if (row["by"], row["only"]) == (RANDOM, only) and row["adapters"] in sizes]
            for row in (*mine, *drawn, *whole):
                kinds = {"kinds": kind.replace("layer_type", "layer and type"), "mode": "alone" if only else "left out"}
                shown.append({**row, "adapters": _label(row), **kinds, "random": row["by"] == RANDOM})
    if not shown:
        return
    measures = ["kl_full_ablated", "kl_ablated_full", "excess", "share"]
    yield Figure(
        name=f"{NAME}/costs",
        kind="intervals",
        columns={
            name: [row[name] for row in shown] for name in shown[0] if name not in ("group", "by", "only", "draw")
        },
        x="adapters",
        y=measures,
        section="What each adapter carries",
        title="What is lost",
        caption="The tuned model on held-out text without some of its adapters, or with those alone; full is the model with "
        "all of them. Rings: as many adapters drawn at random, without which a cost says little. In the last row all are "
        "left out. Whiskers are 95 % intervals; costs do not add up.",
        choices=["kinds", "mode"],
        control="random",
        log=measures[:2],
        words={
            "kl_full_ablated": "KL(full || ablated), nats",
            "kl_ablated_full": "KL(ablated || full), nats",
            "excess": "excess CE, nats a token",
            "share": "share of the gain lost",
            "kinds": "adapters by",
            "mode": "that are",
        },
    )


def _label(row: Mapping[str, Any]) -> str:
    if row["by"] == RANDOM:
        return f"{row['group']} random adapters, draw {row['draw'] + 1}"
    if row["by"] == "whole":
        return "all, which leaves the base"
    layer = "layer " if row["by"] == "layer" else ""
    return f"{layer}{row['group']}, {row['adapters']} adapter{'s' if row['adapters'] > 1 else ''}"
