"""Directions: vectors at a hookpoint, one a layer, each with the words on how it was found.

    direction.py   what one is, and its file       windows.py, before_events.py   means over tokens before an event
    persona.py     the same of what a model answers under system prompts
    means.py       other differences of means      rows.py   of a head, of a decoder; components; chance

A source finds a direction in one model of a pair, of which a model alone is a special case: find(given, role, layers). A
direction is taken wherever an edit takes a vector.
"""

from tunediff.directions.before_events import DifferenceOfMeans
from tunediff.directions.direction import Direction, Place, Source, check_layers, read_direction
from tunediff.directions.means import ContrastingTexts, PairDifference
from tunediff.directions.persona import PersonaVector
from tunediff.directions.rows import (
    DecoderRow,
    FromFile,
    Orthogonal,
    PrincipalComponent,
    RandomDirection,
    Unembedding,
    WithoutLogitEffect,
)
