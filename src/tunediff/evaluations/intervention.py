"""What latents do to what a model writes: problems solved under an edit of them, beside the controls without which such
numbers say nothing.

    unedited            the model as it is                            other, same_prompt   the other model; another's prompt
    reconstruction      the splice alone: what mode replace costs before any latent is touched
    random_latents      the same operation on latents that write as much where the edit is
    random_direction    a change of the same size at the same tokens, in a random direction
    all_latents, whole  of a patch: what every latent, and the whole hidden vector, would bring

With mode replace everything is compared with the reconstruction, else with the unedited model. A study of R1 reported an accuracy of 0 % for latents scaled by 1.5 as well as by 0.5; without the second row it cannot be
told from a broken splice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from tunediff.benchmarks import Task
from tunediff.edits import Edit, Everywhere, Gate, Keep, Latents, Operation, Whole
from tunediff.evaluations.conditions import mostly_cut, side_by_side
from tunediff.evaluations.selection import Selection, Usual, alike, choose, decoder_rows, usual
from tunediff.evaluations.solving import Condition, Solved, Solver, problems_of
from tunediff.evaluations.trained import Trained
from tunediff.generation import Decoding, Engine
from tunediff.shapes import BASE, DIFFERENCE, OTHER, TUNED, Finding, Note, Refused, Stream, Table

UNEDITED, SPLICED = "unedited", "reconstruction"


class Intervention:
    """name          of its findings and tables                      role         the model that is written
    latents       their numbers, or how many of those that belong most to one model; None: as `chosen_by` chooses
    operations    name -> what becomes of them
    modes         delta keeps the reconstruction error, replace does not; one or both
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
        role: str,
        operations: Mapping[str, Operation],
        tasks: Mapping[str, Task],
        decoding: Decoding,
        engine: Engine,
        gate: Gate = Everywhere(),  # noqa: B008 (a frozen dataclass)
        modes: Sequence[str] = ("delta", "replace"),
        latents: int | Sequence[int] | None = None,
        chosen_by: Selection | None = None,
        own_response: bool = False,
        problems: int | None = None,
        draws: int = 2,
        hesitations: Sequence[str] | None = None,
        seed: int = 0,
    ):
        if role not in (BASE, TUNED):
            raise Refused(f"{name}.role={role}: choose base or tuned.")
        self.name, self.role, self.operations = name, role, operations
        self.latents, self.chosen_by = latents, chosen_by
        self.tasks, self.decoding, self.engine, self.gate = tasks, decoding, engine, gate
        self.modes, self.own_response, self.problems = tuple(modes), own_response, problems
        self.draws, self.hesitations, self.seed = draws, hesitations, seed

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        seen = usual(trained)
        chosen = choose(trained, seen, self.latents, self.chosen_by, whose=self.whose)
        conditions = self.conditions(trained, seen, chosen)
        yield Note(f"{self.name}: latents {', '.join(map(str, chosen))}, written into the {self.role} model")
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
            asked = [*conditions, *self._other_prompt(any(len(set(p.prompts.values())) > 1 for p in problems))]
            for condition, solved in solver.solve(name, task, problems, asked):
                found[name, condition.name] = (condition, solved)
            yield from never_touched(self.name, name, found)
        yield from mostly_cut(self.name, found)
        findings, tables = side_by_side(self.name, found)
        yield from findings
        yield from tables

    @property
    def whose(self) -> str:
        """Which model's own latents are asked for by their count: those that are written, or patched in."""
        patched = all(operation.reads_other for operation in self.operations.values())
        return OTHER[self.role] if patched else self.role

    def conditions(self, trained: Trained, seen: Usual, chosen: Sequence[int]) -> list[Condition]:
        at, gate = written_at(trained, self.role), self.gate.of(trained.dictionary)
        other = OTHER[self.role]
        made = [
            Condition(UNEDITED, f"{self.role}, unedited", self.role),
            Condition("other", f"{other}, unedited", other, control=True, reference=UNEDITED),
        ]

        def add(name: str, title: str, edit: Edit, control: bool = False) -> None:
            against = UNEDITED if edit.mode == "delta" or name == SPLICED else SPLICED
            alongside = self.own_response and edit.operation.reads_other
            made.append(Condition(name, title, self.role, (edit,), control, against, alongside=alongside))

        if "replace" in self.modes:
            splice = Edit(at, self._part(trained, seen, chosen), Keep(), gate, mode="replace")
            add(SPLICED, "reconstruction alone", splice, control=True)
        for name, operation in self.operations.items():
            written = decoder_rows(trained, at, exchanged=operation.reads_other).norm(dim=-1).cpu()
            if operation.reads_other:
                everything = self._part(trained, seen, range(trained.dictionary.latents))
                for mode in self.modes:
                    edit = Edit(at, everything, operation, gate, mode=mode)
                    add(f"all_latents/{name}/{mode}", f"{name}, {mode}: all latents", edit, control=True)
                whole = Edit(at, Whole(), operation, gate)
                add(f"whole/{name}", f"{name}: the whole hidden vector", whole, control=True)
            for mode in self.modes:
                edit = Edit(at, self._part(trained, seen, chosen), operation, gate, mode=mode)
                add(f"{name}/{mode}", f"{name}, {mode}", edit)
                for draw in range(self.draws):
                    others = alike(seen, written, chosen, seed=self.seed + draw)
                    part = self._part(trained, seen, others)
                    add(
                        f"random_latents/{name}/{mode}/{draw}",
                        f"{name}, {mode}: latents that write as much",
                        Edit(at, part, operation, gate, mode=mode),
                        control=True,
                    )
                    along = random_direction(at, seed=self.seed + draw)
                    add(
                        f"random_direction/{name}/{mode}/{draw}",
                        f"{name}, {mode}: as much in a random direction",
                        Edit(at, self._part(trained, seen, chosen), operation, gate, mode=mode, along=along),
                        control=True,
                    )
        return made

    def _part(self, trained: Trained, seen: Usual, chosen: Sequence[int]) -> Latents:
        numbers = torch.tensor(chosen)
        device = trained.pair.device(self.role)
        return Latents(
            trained.dictionary, numbers.to(device), seen.maximum[numbers].to(device), seen.mean[numbers].to(device)
        )

    def _other_prompt(self, differ: bool) -> list[Condition]:
        """Where a task asks the two models differently, each also as the other is asked."""
        if not differ:
            return []
        other = OTHER[self.role]
        return [
            Condition("same_prompt", f"{self.role}, unedited, asked as {other}", self.role, (), True, UNEDITED, other),
            Condition(
                "other_same_prompt", f"{other}, unedited, asked as {self.role}", other, (), True, UNEDITED, self.role
            ),
        ]


def written_at(trained: Trained, role: str) -> Stream:
    """Where the dictionary's latents of a model are written. Raises Refused where there is no such place."""
    streams = trained.dictionary.streams
    own = [stream for stream in streams if stream.role == role]
    if not own and streams[0].role == DIFFERENCE and role == TUNED:
        own = [streams[0]._replace(role=TUNED)]
    if not own and len(streams) == 1 and streams[0].role != DIFFERENCE:  # an SAE of one model reads the other as well
        own = [streams[0]._replace(role=role)]
    if len(own) != 1:
        raise Refused(
            f"Latents of a dictionary that reads {', '.join(map(str, streams))} cannot be written into the {role} model: "
            "that takes one layer of it."
        )
    return own[0]


def random_direction(at: Stream, *, seed: int) -> torch.Tensor:
    return torch.randn(at.width, generator=torch.Generator().manual_seed(seed))


def latents_table(seen: Usual, chosen: Sequence[int]) -> dict[str, list]:
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
