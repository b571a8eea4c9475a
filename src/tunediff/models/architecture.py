"""Can a model be read as config.json describes it? Architecture, code and quantisation, from the file's own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunediff.models.files import PairError
from tunediff.models.whole import unquantised


def check_config(of: str, config: Mapping[str, Any]) -> None:
    """Raises PairError for an architecture that transformers does not have or that writes no text, and for quantised
    weights; `of` is what the user named, `config` the content of its config.json."""
    kind = config.get("model_type")
    if not kind or not isinstance(kind, str):
        raise PairError(
            f"{of}: its config.json has no model_type, by which transformers knows an architecture: take the file that was "
            "saved with the weights."
        )
    known, writes = kind in transformers.CONFIG_MAPPING, kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    own = config.get("auto_map")
    own = own if isinstance(own, Mapping) else {}
    if not (known and writes) and "AutoModelForCausalLM" in own:
        raise PairError(
            f"{of} (model_type={kind}) is computed by code of its own, {own['AutoModelForCausalLM']}, and no code that came with a "
            "model is run here: choose a model whose architecture transformers has."
        )
    if not known:
        raise PairError(
            f"{of} has model_type={kind}, which transformers {transformers.__version__} does not know: a newer transformers may, "
            "or take a model whose architecture it has."
        )
    if not writes:
        raise PairError(
            f"{of} has model_type={kind}, of which transformers has no causal language model (AutoModelForCausalLM): choose a "
            "model that writes text from left to right."
        )
    _check_numbers(of, config)


def _check_numbers(of: str, config: Mapping[str, Any]) -> None:
    texts = config.get("text_config")
    for one in (config, texts if isinstance(texts, Mapping) else {}):
        name = next((n for n in ("quantization_config", "compression_config") if one.get(n) is not None), None)
        if name is None:
            continue
        settings = one[name]
        if not isinstance(settings, Mapping) or not settings:
            raise PairError(
                f"{of}: its config.json says {name}={json.dumps(settings)}, which names no method: take it out there if the "
                "weights are not quantised, or name the model that they were quantised from."
            )
        bits = {"load_in_4bit": "bitsandbytes, 4 bits", "load_in_8bit": "bitsandbytes, 8 bits"}
        method = next((words for name, words in bits.items() if settings.get(name)), settings.get("quant_method", "?"))
        raise PairError(f"{of} is quantised ({method}), as its config.json says. {unquantised(of)}")
