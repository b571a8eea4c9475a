"""The section of the page on the 2 x 2: curves over strengths beside random directions, those of every control, and each cell at
its largest coherent strength."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from tunediff.evaluations.behaviour.steered import DIRECTION, PLAIN, RANDOM, TITLES
from tunediff.shapes import TUNED, Figure, Table

UNITS = {
    "residual_norm": "mean norms of the hidden vectors there",
    "own": "lengths of the direction as it was found",
}


def figures(rows: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]], unit: str) -> Iterator[Figure]:
    """Draws the curves of the directions beside random ones, those of all controls, and what was found of each cell."""
    section = "Directions: the 2 x 2"
    caption = "The axis of strengths is logarithmic and begins with 0, no edit, which the dashed level continues."
    words = {
        "behaviour": "hesitations per 1,000 tokens",
        "perplexity": "perplexity of the responses",
        "judged": "share in which a judge sees backtracking",
        "keyword_share": "share of words that are keywords",
        "strength": f"strength, in {UNITS[unit]}",
        "from": "direction from",
        "control": "control",
        "into": "into",
    }
    drawn = [
        {
            **row,
            "from": "random directions" if row["kind"] == RANDOM else row["source"],
            "into": f"into {row['target']}",
        }
        for row in with_plain(rows, [DIRECTION, RANDOM])
    ]
    columns = Table.of("", [{**row, "control": row["kind"] == RANDOM} for row in drawn]).columns
    yield Figure(
        name="direction_steering/curves",
        kind="lines",
        columns=columns,
        x="strength",
        y=["behaviour", "perplexity", "accuracy", *["judged"] * any(row["judged"] is not None for row in rows)],
        section=section,
        title="Steered",
        caption="A direction found in the base or in the tuned model, as its colour says, is added to the hidden vectors of either. "
        f"{caption} Bands are 95 % intervals over problems, of random directions over these with their problems. The rate rises as "
        f"well where text falls apart: read it with the perplexity. Strengths count {UNITS[unit]}: published figures that count "
        "otherwise are not comparable.",
        group="from",
        facet="into",
        control="control",
        rule="plain",
        log=["strength", "perplexity"],
        words=words,
    )
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != PLAIN]
    every = []
    for row in with_plain(rows, kinds):
        for cell in [one["cell"] for one in cells if one["cell"].endswith(f"to {row['target']}")]:
            if row["source"] in (None, cell.split(" to ")[0]):
                title = TITLES.get(row["kind"], row["kind"].replace("label/", "direction of "))
                every.append({**row, "cell": cell, "added": title, "control": row["kind"] != DIRECTION})
    every.sort(key=lambda row: row["target"] != TUNED)  # the page shows the first cell
    yield Figure(
        name="direction_steering/controls",
        kind="lines",
        columns=Table.of("", every).columns,
        x="strength",
        y=["behaviour", "perplexity"],
        section="Directions: every control",
        title="With every control",
        caption=f"The direction (unbroken) beside all that was added in its place, as long as it is. {caption}",
        group="added",
        choices=["cell"],
        control="control",
        rule="plain",
        log=["strength", "perplexity"],
        words={**words, "cell": "from"},
    )
    yield Figure(
        name="direction_steering/cells",
        kind="intervals",
        columns=Table.of("", cells).columns,
        x="cell",
        y=["rate", "change", "over_random", "perplexity"],
        section=section,
        title="At the largest coherent strength",
        caption="The last figure has each direction at the largest strength at which the text is coherent; its intervals of rates hold "
        "for whichever strength that is (Bonferroni), and against random directions they are those of the difference from one more.",
        group="source",
        words={
            "cell": "from",
            "rate": "hesitations per 1,000 tokens",
            "change": "less those without steering",
            "over_random": "less those of random directions",
            "perplexity": "perplexity of the responses",
            "strength": "strength there",
        },
        log=["perplexity"],
    )


def with_plain(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of these kinds, before each of their lines the row of the unsteered model, at strength 0."""
    plain = {row["target"]: row for row in rows if row["kind"] == PLAIN}
    for (source, target, kind), some in itertools.groupby(rows, key=lambda r: (r["source"], r["target"], r["kind"])):
        if kind in kinds:
            yield {**plain[target], "source": source, "kind": kind, "plain": True}
            yield from ({**row, "plain": False} for row in some)
