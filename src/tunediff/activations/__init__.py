"""A pair and its text -> shuffled batches of activations [token, width], live from the models or from stored shards.

    live.py or stored.py  ->  admitted rows  ->  shuffled.py: a ring buffer, permuted at each refill  ->  batches

Both sources give the same rows in the same order, so a dictionary does not know which one it reads. Every position
can be saved and taken up again: state_dict() now, load_state_dict() later, same batches. Nothing here knows a
dictionary, a loss or a step. sequences.py is for dictionaries that stand inside the models and learn from whole texts.
"""

from tunediff.activations.controls import (
    CONTROLS,
    EQUAL,
    NOISE,
    OF_EACH,
    PERMUTED,
    PLANTED,
    RATES,
    STRENGTHS,
    View,
    control_view,
    has_controls,
    planted_events,
)
from tunediff.activations.live import ActivationError, ActivationSource, Live, LiveRows, Wanted, harvest
from tunediff.activations.planted import Planted, PlantedRows
from tunediff.activations.sequences import WholeSequences
from tunediff.activations.shuffled import Drawn, Reader, ShuffledRows, check_buffer, select, take
from tunediff.activations.stored import Stored, StoredRows, store
