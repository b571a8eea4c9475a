"""Prompts -> responses of one model of a pair, under edits.

    responses.py   what is asked, how it is decoded, what came of it       writer.py    one response as it grows
    batched.py     the models as they are loaded, under any edit           sampling.py  its next token
    vllm.py        long unedited runs on GPUs

Knows no task and no grade.
"""

from tunediff.generation.batched import Batched
from tunediff.generation.responses import (
    NOT_FOLLOWED,
    OWN,
    Asked,
    Decoding,
    Engine,
    Request,
    Response,
    ask,
    generate,
    surprise,
)
from tunediff.generation.vllm import VLLM
