"""A name and a layer -> the module where a hidden vector can be read or written, in any transformers causal LM.

    resid_pre     what enters decoder layer l             mlp_in        what enters its MLP (after the norm)
    resid_post    what leaves it                          mlp_neurons   what enters the MLP's last projection
    attn_out      what attention gives, before it is      mlp_out       what the MLP gives, before it is added
                  added (Gemma norms it once more         lora          A x of every adapter of the model, side by side,
                  afterwards: this is before that)                      without scale and without B (lora.py)

Each is a row of a table (places.py), and a user's own is one more, in a YAML of one's own or on the command line:
`dictionary.hookpoint.name=attn_z +dictionary.hookpoint.module=self_attn.o_proj +dictionary.hookpoint.read=input`.

Layer l is counted from 0, and resid_post of layer l is resid_pre of layer l+1: a published "layer l" must say which.
Hooks live inside a `with` and are gone afterwards, also when the body raises.
"""

from tunediff.hookpoints.hooks import ForwardStopped, attending, reading, writing, writing_pieces
from tunediff.hookpoints.lora import LoraAdapter, in_order, lora_adapters
from tunediff.hookpoints.places import (
    HOOKPOINTS,
    LORA,
    Point,
    add_hookpoint,
    check_hookpoint,
    decoder_layers,
    mlp_of,
    module_of,
    transcoder_of,
    width_of,
)
