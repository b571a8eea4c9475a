"""Sparse dictionaries: pure modules that know no model and no data."""

from tunediff.dictionary.crosscoder import Crosscoder
from tunediff.dictionary.normalisation import Normalisation
from tunediff.dictionary.sparsity import L1, BatchTopK, Sparsity

__all__ = ["L1", "BatchTopK", "Crosscoder", "Normalisation", "Sparsity"]
