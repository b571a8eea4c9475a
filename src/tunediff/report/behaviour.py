"""Tables of conditions and of outputs -> what the page shows of how the models behave.

Conditions are a figure and come with the controls of each below it; of the outputs a few problems are kept, those first on which the
conditions disagree, each packed by itself and unpacked when it is looked at. Knows no model, no task and no grade: only
the columns that evaluations leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow

from tunediff.shapes import Figure, Refused, Table

PROBLEMS = 40  # of a task, whose outputs the page carries
CHARACTERS = 20_000  # of a response: as many words as two responses are compared by
CONDITIONS, OUTPUTS = "_conditions", "_outputs"
MEASURES = ("accuracy", "hesitations", "tokens", "perplexity")  # that have a panel of their own
FACTS = ("finished", "closed", "repetition", "touched", "change")
WORDS = {
    "hesitations": "hesitations per 1,000 tokens",
    "tokens": "tokens a response",
}
CAPTION = (
    "Whiskers and ranges are 95 % intervals. The dashed line continues the condition that others are compared with; rings, "
    "paler and indented, are controls of the condition above them. Perplexity is that of the responses under the model "
    "without edits. Difference and p, an exact McNemar test problem by problem (of several samples a problem a test by signs), are against the condition that is named. Finished, closed, touched: shares of responses that ended by themselves, closed "
    "their thinking, were changed by the edit in at least one token; repetition: the share of repeated text; change: the mean "
    "norm of what the edit changed."
)


def tells_behaviour(name: str) -> bool:
    """True for the name of a table of conditions or of outputs."""
    return name.endswith((CONDITIONS, OUTPUTS))


def behaviour(tables: Mapping[str, pyarrow.Table]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data that the page needs at once, empty where there is nothing to show, and those it unpacks later, by name.
    Raises Refused where outputs do not say which model's condition wrote them."""
    packed: dict[str, Any] = {}
    blocks = [block for name in tables if name.endswith(CONDITIONS) for block in _conditions(name, tables[name])]
    sets = []
    for name in tables:
        if name.endswith(OUTPUTS):
            for kept, texts in _outputs(name.removesuffix(OUTPUTS), tables[name], blocks):
                packed |= {f"outputs-{len(sets)}-{n}": problem for n, problem in enumerate(texts)}
                sets.append(kept)
    conditions = [_figure(block)._asdict() for block in blocks]
    return {name: found for name, found in (("conditions", conditions), ("outputs", sets)) if found}, packed


# -- conditions ------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """The conditions of one task in the order they are drawn in. Entry "key" of a row names its condition, "compared" the
    key of its reference, "under" that of the condition it is a control of."""

    name: str
    task: str
    by_role: bool  # both models stand under conditions of one name
    rows: list[dict[str, Any]]


def _conditions(name: str, table: pyarrow.Table) -> Iterator[Block]:
    for task, rows in _by_task(table).items():
        by_role = len({row["condition"] for row in rows}) < len(rows)
        for row in rows:
            reference = row["reference"]
            row["key"] = _key(row["role"], row["condition"], by_role)
            row["compared"] = None if reference is None else _key(row["role"], reference, by_role)
        plain = {row["key"]: row["condition"] for row in rows if not row["control"]}
        titles = Counter(row["title"] for row in rows if row["control"])
        for row in rows:
            row["under"] = _controlled(row, plain, by_role) if row["control"] else None
            draw = row["condition"].rpartition("/")[2]
            if titles[row["title"]] > 1 and draw.isdigit():
                row["title"] = f"{row['title']}, draw {int(draw) + 1}"
        # a control follows its condition, and draws of a kind stand together; those of no condition come last
        kinds, places = [row["condition"].partition("/")[0] for row in rows], [*plain, None]
        before = [places.index(row["under"] if row["control"] else row["key"]) for row in rows]
        order = [(before[n], row["control"], kinds.index(kinds[n]), n) for n, row in enumerate(rows)]
        yield Block(name.removesuffix(CONDITIONS), task, by_role, [rows[n] for *_, n in sorted(order)])


def _figure(block: Block) -> Figure:
    """The figure of one task: one row per condition, with a rule at those that others are compared with."""
    rows, given = block.rows, Table.of(block.name, block.rows).columns
    titles, counted = {row["key"]: row["title"] for row in rows}, Counter(given["title"])
    compared = {row["compared"] for row in rows} - {None}
    labels = []
    for row in rows:
        # a control stands below its condition, whose name it need not repeat
        brief = row["title"].removeprefix(f"{titles.get(row['under'])}: ")
        labels.append(f"{brief} · {row['role']}" if counted[row["title"]] > 1 else brief)
    drawn, words = {"condition": labels}, dict(WORDS)
    if len(compared) > 1:
        drawn["against"] = [titles.get(key, key) for key in given["compared"]]
    elif compared:
        words["difference"] = f"difference against “{titles.get(*compared, *compared)}”"
    ended = [f"{measure}{end}" for measure in (*MEASURES, "difference") for end in ("", "_low", "_high")]
    kept = [*ended[:3], *ended[-3:], "p", *ended[3:-3], *FACTS, "edit", "role", "control"]
    drawn |= {column: given[column] for column in kept if column in given}
    drawn["ruled"] = [row["compared"] is None and row["key"] in compared for row in rows]
    task, most = block.task, max(given["problems"])
    return Figure(
        name=f"{block.name}/{task}/conditions",
        kind="intervals",
        columns=drawn,
        x="condition",
        y=MEASURES,
        section="Behaviour, condition by condition",
        title=f"{block.name.replace('_', ' ').capitalize()} on {task}: {most:,} problems",
        caption=CAPTION,
        group="role",
        control="control",
        rule="ruled",
        log=("tokens", "perplexity"),
        words=words,
    )


def _key(role: str, condition: str, by_role: bool) -> str:
    return f"{role}/{condition}" if by_role else condition


def _controlled(row: Mapping[str, Any], plain: Mapping[str, str], by_role: bool) -> str | None:
    """The key of the condition that a control such as "random_latents/zero/delta/0" stands beside: the longest that its
    name holds in whole parts, else the one that it is compared with."""
    within = f"/{row['condition']}/"
    held = [
        key
        for key, condition in plain.items()
        if f"/{condition}/" in within and (not by_role or key == f"{row['role']}/{condition}")
    ]
    return max(held, key=len, default=row["compared"] if row["compared"] in plain else None)


# -- outputs ---------------------------------------------------------------------------------------------------------


def _outputs(
    name: str, table: pyarrow.Table, blocks: Sequence[Block]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yields for each task its conditions and problems with their grades, and the texts of each problem."""
    for task, rows in _by_task(table).items():
        block = next((some for some in blocks if (some.name, some.task) == (name, task)), Block(name, task, False, []))
        by_role = block.by_role
        if by_role and "role" not in table.column_names:
            raise Refused(
                f"Conditions of {name} on {task} bear the same names for both models, but {name}{OUTPUTS} has no column "
                '"role": name the conditions differently, or add the column.'
            )
        problems: dict[Any, dict[str, dict[str, Any]]] = {}
        for row in rows:
            key = _key(row.get("role", ""), row["condition"], by_role)
            sample = row.get("sample")
            asked = row["problem"] if sample is None else f"{row['problem']}, sample {sample + 1}"
            problems.setdefault(asked, {})[key] = row
        written = dict.fromkeys(key for answers in problems.values() for key in answers)
        described = _described(block, list(written))
        plain = [condition["key"] for condition in described if not condition["control"]]
        kept = sorted(problems, key=lambda problem: _sameness(problems[problem], plain))[:PROBLEMS]
        texts = [_texts(problems[problem]) for problem in kept]
        index = {
            "name": name,
            "task": task,
            "conditions": described,
            "problems": kept,
            "left_out": len(problems) - len(kept),
            "correct": {key: [problems[problem].get(key, {}).get("correct") for problem in kept] for key in written},
            "text": {key: [problem["of"].get(key, {}).get("text") for problem in texts] for key in written},
        }
        yield index, texts


def _described(block: Block, written: Sequence[str]) -> list[dict[str, Any]]:
    """Conditions that something was written under, in the order of their table; those it lacks at the end, by key."""
    names = ("key", "title", "role", "control", "compared")
    known = [{name: row[name] for name in names} for row in block.rows if row["key"] in written]
    missing = [key for key in written if key not in {condition["key"] for condition in known}]
    return known + [{"key": key, "title": key, "role": None, "control": False, "compared": None} for key in missing]


def _sameness(answers: Mapping[str, Mapping[str, Any]], plain: Sequence[str]) -> int:
    """Rank of a problem: 0 where edits change its grade, 1 where a control does, 2 where the text alone differs, 3 where nothing
    does."""
    if len({answers[key]["correct"] for key in plain if key in answers}) > 1:
        return 0
    if len({answer["correct"] for answer in answers.values()}) > 1:
        return 1
    return 2 if len({answer["response"] for answer in answers.values()}) > 1 else 3


def _texts(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A problem as it is read: equal responses stand in it once."""
    first = next(iter(answers.values()))
    numbers: dict[str, int] = {}
    facts = ("answer", "rule", "correct", "finished", "tokens", "hesitations", "repetition", "nll", "touched")
    of = {
        key: {"text": numbers.setdefault(row["response"], len(numbers)), **{fact: row.get(fact) for fact in facts}}
        for key, row in answers.items()
    }
    return {"question": first["question"], "gold": first["gold"], "texts": [*map(shortened, numbers)], "of": of}


def shortened(text: str, most: int = CHARACTERS) -> str:
    """The text, or the beginning and end of a very long one, and between them how much is missing."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end]}\n\n[… {len(text) - most:,} characters are left out on this page …]\n\n{text[-end:]}"


def _by_task(table: pyarrow.Table) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["task"], []).append(row)
    return found
