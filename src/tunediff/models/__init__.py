"""Two causal language models side by side.

source.py   where a model comes from      adapter.py   low-rank adapters on the weights of another
pair.py     the two, read together        hybrid.py    the tuned one with the base's MLPs, with transcoder adapters
            and run under edits                        beside them or without
"""

from tunediff.models.adapter import PairError
from tunediff.models.hybrid import choose, replaceable, replacing
from tunediff.models.pair import ModelPair
from tunediff.models.source import ModelSource

__all__ = ["ModelPair", "ModelSource", "PairError", "choose", "replaceable", "replacing"]
