"""What latents do to what a model writes: problems solved under an edit of them, beside the controls without which such
numbers say nothing.

    unedited            the model as it is                            other, same_prompt   the other model; another's prompt
                        (beside a model with transcoder adapters: the hybrid that they stand in)
    reconstruction      the splice alone: what mode replace costs before any latent is touched
    random_latents      the same operation on latents that write as much where the edit is
    random_direction    a change of the same size at the same tokens, in a random direction; of a dictionary of one layer
    all_latents, whole  of a patch: what every latent, and the whole hidden vector, would bring

With mode replace everything is compared with the reconstruction, else with the unedited model. A study of R1 reported an accuracy of 0 % for latents scaled by 1.5 as well as by 0.5; without the second row it cannot be
told from a broken splice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tunediff.benchmarks import Task
from tunediff.edits import Edit, Everywhere, Gate, Keep, Operation, Whole
from tunediff.edits.editing import MODES
from tunediff.evaluations.behaviour.conditions import mostly_cut, side_by_side
from tunediff.evaluations.behaviour.solving import Condition, Solved, Solver, problems_of
from tunediff.evaluations.given import Trained
from tunediff.evaluations.latents.edits import CONTRAST, check_role, latent_edits, random_direction, role_of, written_at
from tunediff.evaluations.latents.selection import Selection, alike, choose, decoder_rows
from tunediff.evaluations.latents.statistics import LatentStatistics
from tunediff.generation import Decoding, Engine
from tunediff.shapes import ADAPTER, OTHER, TUNED, Finding, Note, Table

UNEDITED, SPLICED = "unedited", "reconstruction"


class Intervention:
    """name          of its findings and tables
    role          the model that is written: base, tuned or adapter; None: the dictionary's, tuned where it reads both
    latents       their numbers, an expression that chooses them, or how many of those that belong most to one model; None:
                  as `chosen_by` chooses
    operations    name -> what becomes of them
    modes         delta keeps the reconstruction error, replace does not; one or both; None: both where there is a
                  reconstruction, which a transcoder adapter has not
    gate          at which tokens                                 own_response   patches take what stood at the same place of
                                                                              the other model's own response, not the same tokens
    tasks         name -> benchmark                               problems     of each at most; null: all
    draws         random latents and random directions for each operation and mode
    hesitations   words that count as one, as regular expressions; None: the pair's own
    """

    def __init__(
        self,
        *,
        name: str,
        operations: Mapping[str, Operation],
        tasks: Mapping[str, Task],
        decoding: Decoding,
        engine: Engine,
        role: str | None = None,
        gate: Gate = Everywhere(),  # noqa: B008 (a frozen dataclass)
        modes: Sequence[str] | None = None,
        latents: int | str | Sequence[int] | None = None,
        chosen_by: Selection | None = None,
        own_response: bool = False,
        problems: int | None = None,
        draws: int = 2,
        hesitations: Sequence[str] | None = None,
        seed: int = 0,
    ):
        check_role(role, setting=name)
        self.name, self.role, self.operations = name, role, operations
        self.latents, self.chosen_by = latents, chosen_by
        self.tasks, self.decoding, self.engine, self.gate = tasks, decoding, engine, gate
        self.modes, self.own_response, self.problems = modes, own_response, problems
        self.draws, self.hesitations, self.seed = draws, hesitations, seed

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        role = role_of(trained, self.role, setting=self.name)
        seen = trained.statistics
        chosen = choose(trained, seen, self.latents, self.chosen_by, whose=self._whose(role))
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
        solver = Solver(trained, self.name, self.decoding, engine=self.engine, hesitations=self.hesitations)
        found: dict[tuple[str, str], tuple[Condition, list[Solved]]] = {}
        for name, task in self.tasks.items():
            problems, notes = problems_of(task, name, self.problems)
            yield from notes
            differ = any(len(set(p.prompts.values())) > 1 for p in problems)
            asked = [*conditions, *(other_prompt(role) if differ and role != ADAPTER else [])]
            for condition, solved in solver.solve(name, task, problems, asked):
                found[name, condition.name] = (condition, solved)
            yield from never_touched(self.name, name, found)
        yield from mostly_cut(self.name, found)
        findings, tables = side_by_side(self.name, found)
        yield from findings
        yield from tables

    def _whose(self, role: str) -> str:
        """Which model's own latents are asked for by their count: those that are written, or patched in."""
        patched = all(operation.reads_other for operation in self.operations.values())
        return CONTRAST[role] if patched else role

    def conditions(self, trained: Trained, role: str, seen: LatentStatistics, chosen: Sequence[int]) -> list[Condition]:
        beside = role == ADAPTER
        modes = (("delta",) if beside else MODES) if self.modes is None else self.modes
        other, asked_as = CONTRAST[role], TUNED if beside else None
        made = [
            Condition(UNEDITED, f"{role}, unedited", role, asked_as=asked_as),
            Condition("other", f"{other}, unedited", other, control=True, reference=UNEDITED, asked_as=asked_as),
        ]

        def add(name: str, title: str, edits: tuple[Edit, ...], control: bool = False) -> None:
            against = UNEDITED if edits[0].mode == "delta" or name == SPLICED else SPLICED
            alongside = self.own_response and edits[0].operation.reads_other
            made.append(Condition(name, title, role, edits, control, against, asked_as, alongside))

        def edits(numbers: Sequence[int], operation: Operation, mode: str, along: Tensor | None = None):
            return latent_edits(trained, role, numbers, operation, seen=seen, gate=self.gate, mode=mode, along=along)

        if "replace" in modes:
            add(SPLICED, "reconstruction alone", edits(chosen, Keep(), "replace"), control=True)
        for name, operation in self.operations.items():
            if operation.reads_other:
                for mode in modes:
                    everything = edits(range(trained.dictionary.latents), operation, mode)
                    add(f"all_latents/{name}/{mode}", f"{name}, {mode}: all latents", everything, control=True)
                gate = self.gate.of(trained.dictionary)
                whole = Edit(written_at(trained, role), Whole(), operation, gate)
                add(f"whole/{name}", f"{name}: the whole hidden vector", (whole,), control=True)
            at = None if beside else written_at(trained, role)
            written = decoder_rows(trained, at, exchanged=operation.reads_other).norm(dim=-1).cpu()
            for mode in modes:
                add(f"{name}/{mode}", f"{name}, {mode}", edits(chosen, operation, mode))
                for draw in range(self.draws):
                    add(
                        f"random_latents/{name}/{mode}/{draw}",
                        f"{name}, {mode}: latents that write as much",
                        edits(alike(seen, written, chosen, seed=self.seed + draw), operation, mode),
                        control=True,
                    )
                    if at is None:
                        continue
                    along = random_direction(at, seed=self.seed + draw)
                    add(
                        f"random_direction/{name}/{mode}/{draw}",
                        f"{name}, {mode}: as much in a random direction",
                        edits(chosen, operation, mode, along),
                        control=True,
                    )
        return made


def other_prompt(role: str) -> list[Condition]:
    """For a task that asks the two models differently: each also as the other is asked."""
    other = OTHER[role]
    return [
        Condition("same_prompt", f"{role}, unedited, asked as {other}", role, (), True, UNEDITED, other),
        Condition("other_same_prompt", f"{other}, unedited, asked as {role}", other, (), True, UNEDITED, role),
    ]


def latents_table(seen: LatentStatistics, chosen: Sequence[int]) -> dict[str, list]:
    numbers = torch.tensor(chosen)
    return {
        "latent": list(chosen),
        "maximum": seen.maximum[numbers].tolist(),
        "mean": seen.mean[numbers].tolist(),
        "firing_rate": seen.rate[numbers].tolist(),
    }


def never_touched(
    name: str, task: str, found: Mapping[tuple[str, str], tuple[Condition, Sequence[Solved]]]
) -> Iterator[Note]:
    """Gates behind which no edit changed a token are said: they never opened, or nothing it acts on was active."""
    idle: dict[str, list[str]] = {}
    for (of, key), (condition, solved) in found.items():
        if of == task and condition.edits and not any(sum(s.response.touched) for s in solved):
            idle.setdefault(condition.edits[0].gate.described, []).append(key)
    for gate, keys in idle.items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        yield Note(
            f"{name}, {task}: the edit of {keys[0]}{more} touched no position of any response; the gate is {gate}."
        )
