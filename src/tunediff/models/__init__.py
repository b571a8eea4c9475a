"""Two causal language models side by side.

source.py    where a model comes from     lora.py               low-rank adapters on the weights of another
pair.py      the two, read together       hybrid.py             the tuned one with the base's MLPs, with transcoder
             and run under edits                                adapters beside them or without
option.py    the two, as pair.yaml        adapted_source.py     where such a model comes from
heads.py     last hidden vectors ->       transcoder_files.py   its adapters, ours and in the authors' format
             logits, a block at a time
"""

from transformers import PreTrainedModel

from tunediff.models.adapted_source import AdaptedSource
from tunediff.models.heads import LOGITS_MB, Head, head_of
from tunediff.models.hybrid import replaceable, replacing, switch_mlps
from tunediff.models.lora import PairError
from tunediff.models.option import option, pair_of_adapter, placed
from tunediff.models.pair import ALL_LAYERS, ModelPair
from tunediff.models.source import ModelSource, skeleton
from tunediff.models.transcoder_files import TranscoderFiles, save_adapted
