"""Edits written at a hookpoint while a model runs: an operation on a part of its hidden vectors, at the tokens of a
gate.

    sequences.py   the tokens that are known            gates.py        which of them are touched
    thinking.py    where they think
    parts.py       latents, directions, the whole       operations.py   what becomes of the part
    editing.py     an edit, and the `with` it lives in
    gradients.py   what becomes of gradients on their way back

Legal wherever a model runs: in scoring, in generation with a KV cache and rows of unequal length, in training.
"""

from tunediff.edits.editing import Edit, editing, needed, transcoder_edits
from tunediff.edits.gates import (
    AfterMatch,
    AfterPrefix,
    AfterTokens,
    Answer,
    Every,
    Everywhere,
    Gate,
    Prompt,
    Response,
    Thinking,
    WhileActive,
)
from tunediff.edits.operations import Add, Clamp, Keep, MeanAblate, Operation, Patch, Scale, Zero
from tunediff.edits.parts import Axes, Directions, Latents, Part, Whole, opposite
from tunediff.edits.sequences import Sequences
from tunediff.edits.thinking import ThinkingMarks, opening_of
