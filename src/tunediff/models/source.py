"""The source of a model: a Hub id, a local folder, or weights that ship, with or without an adapter on them; its
configuration and tokenizer, and only then its weights. Only safetensors and JSON are read, and no code that came with a
model is run: the transcoder adapters of a checkpoint in their authors' format stand beside its MLPs as our own
modules."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from tunediff.hookpoints import LoraAdapter, decoder_layers
from tunediff.models.hybrid import adapted as with_transcoders
from tunediff.models.lora import PairError, adapted, aligned, brought, check, located, shapes, twin
from tunediff.models.rotary import by_own_length
from tunediff.models.transcoder_files import KEY, LATENTS, TranscoderFiles
from tunediff.shapes import Precision
from tunediff.text import Tokenizer

transformers.utils.logging.disable_progress_bar()  # one bar a model for what takes a moment


@dataclass(frozen=True)
class ModelSource:
    """The source of a model: a Hub id, a local folder in its format, or pkg://package/folder for shipped weights.

    revision   branch, tag or commit on the Hub
    dtype      of the weights in memory: float32, bfloat16, float16
    adapter    low-rank adapters on these weights, in PEFT's format: again a Hub id or a folder
    merged     true: added to the weights; false: beside them, where they can be read (hookpoint lora)
    adapter_revision   branch, tag or commit of the adapter on the Hub
    """

    path: str
    revision: str | None = None
    dtype: Precision = "bfloat16"
    adapter: str | None = None
    merged: bool = False
    adapter_revision: str | None = None

    @property
    def location(self) -> str:
        return located(self.path)

    @property
    def name(self) -> str:
        """The last part of where it comes from; of a fine-tune's folder, whose model is `model`, that folder's."""
        place = Path(self.adapter or self.path)
        return place.parent.name if place.name == "model" and place.parent.name else place.name

    def remarks(self) -> list[str]:
        """Sentences about what is allowed and may not be meant."""
        made_on = None if self.adapter is None else check(self._adapter()).base_model_name_or_path
        if made_on is None or Path(located(made_on)).name == Path(self.location).name:
            return []
        return [f"The adapter {self.adapter} was made on {made_on}, and stands on {self.path}."]

    @property
    def described(self) -> str:
        if self.adapter is None:
            return self.path
        return f"{self.path} with {self.adapter}{', merged' if self.merged else ''}"

    @property
    def without_adapter(self) -> ModelSource:
        """The model on whose weights this one stands, and which it leaves as it is; a merged adapter changes them."""
        return self if self.merged else replace(self, adapter=None, adapter_revision=None)

    def config(self) -> transformers.PretrainedConfig:
        return self._get(transformers.AutoConfig)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer as tokenizer.json says. AutoTokenizer would rebuild a Qwen2 model's tokenizer from its type:
        with other splitting rules, and one more special token, than the file has."""
        try:
            found = self._get(transformers.PreTrainedTokenizerFast)
        except (ValueError, PairError):  # no tokenizer.json: an older format that AutoTokenizer converts
            found = self._get(transformers.AutoTokenizer)
        if len(found) < 2:  # transformers makes an empty one of a folder that has none
            raise PairError(
                f"{self.path} has no tokenizer: put tokenizer.json and tokenizer_config.json beside its model."
            )
        return found

    @functools.cached_property
    def adapters(self) -> list[LoraAdapter]:
        """The low-rank adapters that can be read, from the adapter's files alone; none without an adapter or with a
        merged one."""
        return [] if self.adapter is None or self.merged else shapes(self._adapter())

    @functools.cached_property
    def beside(self) -> TranscoderFiles | None:
        """The transcoder adapters beside its MLPs: those of a checkpoint in their authors' format."""
        return TranscoderFiles(self.path, self.revision) if LATENTS in self.config().to_dict() else None

    def weights(self, under: transformers.PreTrainedModel | None = None) -> transformers.PreTrainedModel:
        """The model. `under` is the same one without the adapter, if it is in memory: its weights are used and left as
        they are, with the adapter beside them."""
        if self.adapter is not None and self.beside is not None:
            raise PairError(
                f"{self.path} has transcoder adapters, and no low-rank one is put on them: leave adapter={self.adapter} out."
            )
        if under is not None:
            model = twin(under)
        elif self.beside is not None:
            whole = by_own_length(self._around())
            model = with_transcoders(whole, self.beside.read().to(getattr(torch, self.dtype)))
        else:
            model = by_own_length(self._whole())
        if self.adapter is not None:
            model = adapted(model, self._adapter(), merged=self.merged)
        return aligned(model).eval().requires_grad_(False)

    def _whole(self, **options: Any) -> Any:
        kind, dtype = transformers.AutoModelForCausalLM, getattr(torch, self.dtype)
        return self._get(kind, dtype=dtype, use_safetensors=True, **options)

    def _around(self) -> transformers.PreTrainedModel:
        """The model without the transcoder adapters in its files, which transformers has no place for."""
        said = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()  # what was found is looked at here
        try:
            model, found = self._whole(output_loading_info=True)
        finally:
            transformers.utils.logging.set_verbosity(said)
        unknown = [key for key in sorted(found["unexpected_keys"]) if not KEY.search(key)]
        for words, keys in (("has no", sorted(found["missing_keys"])), ("has an unknown tensor", unknown)):
            if keys:
                raise PairError(f"{self.path} {words} {keys[0]}: its files are not whole, or not of one model.")
        return model

    def _adapter(self) -> Path:
        assert self.adapter is not None
        return brought(located(self.adapter), self.adapter_revision)

    @functools.cached_property
    def generation_config(self) -> dict[str, Any]:
        """The settings that generation_config.json names; none where it is not there."""
        try:
            found = transformers.GenerationConfig.from_pretrained(self.location, revision=self.revision or "main")
        except OSError:
            return {}
        return found.to_diff_dict()

    def files(self) -> list[tuple[str, int, int]]:
        """Weight files of a local folder with their size and time, which change when another model takes its place."""
        places = [self.location, *([] if self.adapter is None else [located(self.adapter)])]
        places += [] if self.beside is None or self.beside.folder in places else [self.beside.folder]
        found = [path for place in places for path in sorted(Path(place).glob("*.safetensors"))]
        return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Parameters of the whole model and of one decoder layer, counted without loading a weight."""
        model = self.empty
        layers = decoder_layers(model)
        more = 0 if self.beside is None else self.beside.parameters
        whole, layer = (sum(p.numel() for p in one.parameters()) for one in (model, layers[0]))
        return whole + len(layers) * more, layer + more

    @property
    def added(self) -> int:
        """Parameters beside those of the model it stands on; the few of low-rank adapters are not counted."""
        return 0

    @functools.cached_property
    def empty(self) -> transformers.PreTrainedModel:
        """The model without its weights, and without adapters."""
        return skeleton(self.config())

    def _get(self, kind: Any, **options: Any) -> Any:
        place = Path(self.location).expanduser()
        if self.path.startswith((".", "/", "~")) and not place.is_dir():  # no Hub id begins so
            raise PairError(f"Cannot load '{self.path}': there is no folder {place.absolute()}.")
        try:
            return kind.from_pretrained(
                self.location, revision=self.revision or "main", trust_remote_code=False, **options
            )
        except OSError as error:
            raise PairError(
                f"Cannot load '{self.path}': it is no local folder with a model, and the Hub did not give it "
                f"(no network, no such id, or no permission). Download it where there is a network, "
                f"`hf download {self.path} --local-dir <folder>`, and name the folder: model_pair.base.path=<folder>, "
                f"model_pair.tuned.path=<folder>, or of a fine-tune model.path=<folder>."
            ) from error


def skeleton(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """The model of a configuration on the meta device: shapes without weights."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)
