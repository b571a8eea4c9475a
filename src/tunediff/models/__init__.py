"""Two causal language models side by side.

source.py   where a model comes from      pair.py   the two, read together and run under edits
"""

from tunediff.models.pair import ModelPair
from tunediff.models.source import ModelSource, PairError

__all__ = ["ModelPair", "ModelSource", "PairError"]
