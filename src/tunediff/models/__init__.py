"""Two causal language models side by side.

source.py         where a model comes from       lora.py               low-rank adapters on the weights of another
files.py          what its files hold            hybrid.py             the tuned one with the base's MLPs, with
architecture.py   can it be read                                       transcoder adapters beside them or without
whole.py          is it all there                adapted_source.py     where such a model comes from
rotary.py         a text read by its own         transcoder_files.py   its adapters, ours and in the authors' format
                  length, beside longer ones
heads.py          last hidden vectors -> logits, a block at a time; what a direction writes on them
pair.py           the two, read together         agreement.py          what the two read differently
                  and run under edits            reach.py              places, before a weight is read
option.py         the two, as pair.yaml          untrained.py          the two, as if they had learnt nothing
"""

from transformers import PreTrainedModel

from tunediff.models.adapted_source import AdaptedSource
from tunediff.models.agreement import Agreed, agree
from tunediff.models.files import PairError
from tunediff.models.heads import LOGITS_MB, Head, head_of, unembedding
from tunediff.models.hybrid import replaceable, replacing, switch_mlps
from tunediff.models.option import option, pair_of_adapter, placed
from tunediff.models.pair import ALL_LAYERS, ModelPair
from tunediff.models.reach import check_places, check_widths
from tunediff.models.source import ModelSource
from tunediff.models.transcoder_files import TranscoderFiles, save_adapted
from tunediff.models.untrained import untrained
from tunediff.models.whole import skeleton
