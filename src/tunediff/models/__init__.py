"""Two causal language models side by side.

source.py   where a model comes from      adapter.py   low-rank adapters on the weights of another
pair.py     the two, read together and run under edits
"""

from tunediff.models.adapter import PairError
from tunediff.models.pair import ModelPair
from tunediff.models.source import ModelSource

__all__ = ["ModelPair", "ModelSource", "PairError"]
