"""The effect of latents on what a model writes: problems solved under an edit of them, beside the controls without which such
numbers say nothing.

    unedited            the model as it is                            other, same_prompt   the other model; another's prompt
                        (beside a model with transcoder adapters: the hybrid that they stand in)
    reconstruction      the splice alone: what mode replace costs before any latent is touched
    random_latents      the same operation on latents that write as much where the edit is
    random_direction    a change of the same size at the same tokens, in a random direction; of a dictionary of one layer
                        Of both many draws, which answer the problems in turn (solving.py)
    twin                the same of the dictionary from another seed that was trained beside it, with controls of its own, where
                        latents are chosen by a rule: does the answer hang on one dictionary?
    all_latents, whole  of a patch: what every latent, and the whole hidden vector, would bring

With mode replace everything is compared with the reconstruction, else with the unedited model. A study of R1 reported an
accuracy of 0 % for latents scaled by 1.5 as well as by 0.5; without the row `reconstruction` it cannot be told from a
broken splice. Mode unrestored breaks it in the way that the study's text suggests: what the dictionary says of normalised
activations is written without being restored; its reconstruction/unrestored is what that alone costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.benchmarks import Problem
from tunediff.edits import Edit, Everywhere, Gate, Keep, Operation, Whole
from tunediff.edits.editing import MODES
from tunediff.evaluations.behaviour.changes import Changed, over_random
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found
from tunediff.evaluations.behaviour.solving import Condition, asked_differently
from tunediff.evaluations.given import TWIN, LatentStatistics, Trained
from tunediff.evaluations.latents.edits import (
    CONTRAST,
    UNRESTORED,
    check_role,
    latent_edits,
    random_direction,
    role_of,
    written_at,
)
from tunediff.evaluations.latents.selection import Selection, alike, asked_for, choose, decoder_rows
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, OTHER, TUNED, Finding, Note, Refused, Table

UNEDITED, SPLICED = "unedited", "reconstruction"
CONTROLS = LATENTS, DIRECTION = "random_latents", "random_direction"


@dataclass(kw_only=True)
class Intervention(BehaviourEvaluation):
    """name          first part of the names of its findings and tables
    role          the model that is written: base, tuned or adapter; None: the dictionary's, tuned where it reads both
    latents       the latents, as in latents/selection.py; None: as `chosen_by` chooses
    operations    name -> operation on the latents
    modes         delta keeps the reconstruction error, replace does not, unrestored is replace in the units of the dictionary;
                  one or several; None: delta and replace where there is a reconstruction, which a transcoder adapter has not
    gate          the tokens at which the edit acts
    own_response  patches take what stood at the same place of the other model's own response, not at the same tokens
    draws         number of sets of random latents, and of random directions, that answer the problems in turn; 0: none
    seed          seed of the draws
    """

    name: str  # pyright: ignore[reportIncompatibleVariableOverride] (the config names it: one class asks several questions)
    operations: Mapping[str, Operation]
    role: str | None
    modes: Sequence[str] | None
    chosen_by: Selection | None
    draws: int
    latents: int | str | Sequence[int] | None = None
    gate: Gate = Everywhere()
    own_response: bool = False
    seed: int = 0

    def __post_init__(self):
        check_role(self.role, setting=self.name)
        if wrong := [mode for mode in self.modes or () if mode not in (*MODES, UNRESTORED)]:
            raise Refused(f"{self.name}.modes names {wrong[0]}: choose of delta, replace and unrestored.")

    @property
    def asks_for(self) -> Mapping[str, int]:
        return asked_for(self.latents, self.chosen_by)

    def times_asked(self, pair: ModelPair) -> int:
        modes = len(MODES if self.modes is None else self.modes)
        patches = sum(operation.reads_other for operation in self.operations.values())
        edited = len(self.operations) * modes * (3 if self.draws else 1) + patches * (modes + 1)
        return edited + 5  # unedited, the other one, the reconstruction, and each asked as the other

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        role = role_of(trained, self.role, setting=self.name)
        seen = trained.statistics
        chosen = choose(trained, seen, self.latents, self.chosen_by)
        conditions = self.conditions(trained, role, seen, chosen)
        yield Note(f"{self.name}: latents {', '.join(map(str, chosen))}, written into the {role} model")
        if role == ADAPTER and self.draws:
            yield Note(
                f"{self.name}: latents of a transcoder adapter write at several layers, for which there is no control in a "
                "random direction: the others that write as much are the control."
            )
        if trained.dictionary.normalisation.needs_moments:
            yield Note(
                f"{self.name}: the dictionary normalises each sequence by its own moments, of which edits know those of the "
                "prompt; activations are then not quite those it was trained on."
            )
        yield Table(f"{self.name}_latents", latents_table(seen, chosen))
        if TWIN in trained.companions and (self.latents is None or isinstance(self.latents, int)):
            # numbers, and expressions over tables of the run, speak of one dictionary alone
            twin = trained.beside(TWIN)
            of_twin = choose(twin, twin.statistics, self.latents, self.chosen_by)
            yield Note(f"{self.name}: of the twin, by the same rule, latents {', '.join(map(str, of_twin))}")
            yield Table(f"{self.name}_twin_latents", latents_table(twin.statistics, of_twin))
            conditions += self.of_twin(twin, role, of_twin)
        found: Found = {}
        for name, problems in (yield from self.asked(trained)).items():
            asked = [*conditions, *(other_prompt(role, problems) if role != ADAPTER else [])]
            found |= self.solved(trained, {name: problems}, asked)
        yield from self.side_by_side(found)
        for (name, key), (condition, solved) in found.items():
            for control in CONTROLS if condition.edits and not condition.control else ():
                beside = found.get((name, f"{control}/{key}"))
                if beside is not None:
                    yield from over_random(f"{self.name}/{name}/{key}", Changed(solved, control=beside.solved), control)

    def of_twin(self, twin: Trained, role: str, chosen: Sequence[int]) -> list[Condition]:
        """The conditions of the twin: the same operations on the latents that the same rule chooses of it."""
        made = []
        for one in self.conditions(twin, role, twin.statistics, chosen):
            first, _, rest = one.name.partition("/")
            if first in (UNEDITED, "other", "whole", "all_latents"):
                continue
            name = f"{first}/{TWIN}/{rest}" if first in CONTROLS else f"{TWIN}/{one.name}"
            spliced = (one.reference or "").startswith(SPLICED)
            reference = f"{TWIN}/{one.reference}" if spliced else one.reference
            made.append(replace(one, name=name, title=f"twin: {one.title}", reference=reference))
        return made

    def conditions(self, trained: Trained, role: str, seen: LatentStatistics, chosen: Sequence[int]) -> list[Condition]:
        beside = role == ADAPTER
        modes = (("delta",) if beside else MODES) if self.modes is None else self.modes
        other, asked_as = CONTRAST[role], TUNED if beside else None
        made = [
            Condition(UNEDITED, f"{role}, unedited", role, asked_as=asked_as),
            Condition("other", f"{other}, unedited", other, control=True, reference=UNEDITED, asked_as=asked_as),
        ]

        splices = {"replace": SPLICED, UNRESTORED: f"{SPLICED}/{UNRESTORED}"}

        def add(name: str, title: str, edits: tuple[Edit, ...], control: bool = False, mode: str = "delta") -> None:
            beside = splices.get(mode, UNEDITED)
            made.append(Condition(name, title, role, edits, control, beside, asked_as, beside_own(edits)))

        def add_drawn(name: str, title: str, drawn: Sequence[tuple[Edit, ...]], mode: str) -> None:
            if drawn:
                one, title = drawn[0], f"{title}, {len(drawn)} draws"
                given = (splices.get(mode, UNEDITED), asked_as, beside_own(one))
                made.append(Condition(name, title, role, (), True, *given, drawn=tuple(drawn)))

        def beside_own(edits: tuple[Edit, ...]) -> bool:
            return self.own_response and edits[0].operation.reads_other

        def edits(numbers: Sequence[int], operation: Operation, mode: str, along: Tensor | None = None):
            return latent_edits(trained, role, numbers, operation, seen=seen, gate=self.gate, mode=mode, along=along)

        for mode in (mode for mode in modes if mode in splices):
            words = "reconstruction alone" + (", not restored" if mode == UNRESTORED else "")
            add(splices[mode], words, edits(chosen, Keep(), mode), control=True)
        for name, operation in self.operations.items():
            if operation.reads_other:
                for mode in modes:
                    everything = edits(range(trained.dictionary.latents), operation, mode)
                    add(f"all_latents/{name}/{mode}", f"{name}, {mode}: all latents", everything, True, mode)
                gate = self.gate.of(trained.dictionary)
                whole = Edit(written_at(trained, role), Whole(), operation, gate)
                add(f"whole/{name}", f"{name}: the whole hidden vector", (whole,), control=True)
            at = None if beside else written_at(trained, role)
            written = decoder_rows(trained, at, exchanged=operation.reads_other).norm(dim=-1).cpu()
            for mode in modes:
                add(f"{name}/{mode}", f"{name}, {mode}", edits(chosen, operation, mode), mode=mode)
                others, along = [], []
                for n in range(self.draws if mode != UNRESTORED else 0):  # which is a control itself
                    generator = randomness.generator(self.seed, "latents that write as much", n)
                    others.append(edits(alike(seen, written, chosen, generator), operation, mode))
                    if at is not None:
                        generator = randomness.generator(self.seed, "directions of an intervention", n)
                        along.append(edits(chosen, operation, mode, random_direction(at, generator)))
                add_drawn(f"{LATENTS}/{name}/{mode}", f"{name}, {mode}: latents that write as much", others, mode)
                add_drawn(f"{DIRECTION}/{name}/{mode}", f"{name}, {mode}: as much in a random direction", along, mode)
        return made


def other_prompt(role: str, problems: Sequence[Problem]) -> list[Condition]:
    """The conditions in which each model is asked as the other is, for a task that asks the two differently."""
    if not asked_differently(problems):
        return []
    other = OTHER[role]
    return [
        Condition("same_prompt", f"{role}, unedited, asked as {other}", role, (), True, UNEDITED, other),
        Condition("other_same_prompt", f"{other}, unedited, asked as {role}", other, (), True, UNEDITED, role),
    ]


def latents_table(seen: LatentStatistics, chosen: Sequence[int]) -> dict[str, list]:
    """The chosen latents with what each does on held-out text: the columns of the table <evaluation>_latents."""
    numbers = torch.tensor(chosen)
    return {
        "latent": list(chosen),
        "maximum": seen.maximum[numbers].tolist(),
        "mean": seen.mean[numbers].tolist(),
        "firing_rate": seen.rate[numbers].tolist(),
    }
