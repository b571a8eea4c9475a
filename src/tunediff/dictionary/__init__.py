"""Sparse dictionaries: pure modules that know no model and no data."""

from tunediff.dictionary.codes import Codes, DenseCodes, SparseCodes
from tunediff.dictionary.crosscoder import Crosscoder, latents_of, sparse_pays
from tunediff.dictionary.dual import DualBatchTopK
from tunediff.dictionary.normalisation import Normalisation
from tunediff.dictionary.partition import Partition
from tunediff.dictionary.polarities import SIGNS, Polarities
from tunediff.dictionary.protocol import (
    Dictionary,
    LearningDictionary,
    LinearDecoder,
    ReconstructingDictionary,
    load_weights,
    save_dictionary,
)
from tunediff.dictionary.published import published_sae
from tunediff.dictionary.sparsity import L1, BatchTopK, JumpReLU, Linear, Sparsity, TopK
from tunediff.dictionary.transcoder_adapter import Pass, Transcoder, TranscoderAdapter
