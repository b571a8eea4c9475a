"""Where a model comes from: a Hub id, a local folder, or weights that ship, with or without an adapter on them; its
configuration and tokenizer, and only then its weights. Only safetensors and JSON are read, and no code that came with a
model is run."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import nn

from tunediff.hookpoints import Adapter, decoder_layers
from tunediff.models.adapter import PairError, adapted, brought, check, located, shapes, twin

transformers.utils.logging.disable_progress_bar()  # one bar a model for what takes a moment


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a Hub id, a local folder in its format, or pkg://package/folder for shipped weights.

    revision   branch, tag or commit on the Hub
    dtype      of the weights in memory: float32, bfloat16, float16
    adapter    low-rank adapters on these weights, in PEFT's format: again a Hub id or a folder
    merged     true: added to the weights; false: beside them, where they can be read (hookpoint lora)
    adapter_revision   branch, tag or commit of the adapter on the Hub
    """

    path: str
    revision: str | None = None
    dtype: str = "bfloat16"
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
        return replace(self, adapter=None, merged=False, adapter_revision=None)

    def config(self) -> transformers.PretrainedConfig:
        return self._get(transformers.AutoConfig)

    def tokenizer(self):
        """As tokenizer.json says. AutoTokenizer would rebuild a Qwen2 model's tokenizer from its type: with other
        splitting rules, and one more special token, than the file has."""
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
    def adapters(self) -> list[Adapter]:
        """Those that can be read, from the adapter's files alone; none without an adapter or with a merged one."""
        return [] if self.adapter is None or self.merged else shapes(self._adapter())

    def weights(self, under: nn.Module | None = None) -> nn.Module:
        """The model. `under` is the same one without the adapter, if it is in memory: its weights are used and left as
        they are, with the adapter beside them."""
        if under is None:
            model = self._get(transformers.AutoModelForCausalLM, dtype=getattr(torch, self.dtype), use_safetensors=True)
        else:
            model = twin(under)
        if self.adapter is not None:
            model = adapted(model, self._adapter(), merged=self.merged)
        return model.eval().requires_grad_(False)

    def _adapter(self) -> Path:
        return brought(located(self.adapter), self.adapter_revision)

    def ends(self) -> int | list[int] | None:
        """The end tokens of generation_config.json, where there is one."""
        try:
            found = transformers.GenerationConfig.from_pretrained(self.location, revision=self.revision or "main")
        except OSError:
            return None
        return found.eos_token_id

    def files(self) -> list[tuple[str, int, int]]:
        """Weight files of a local folder with their size and time, which change when another model takes its place."""
        places = [self.location, *([] if self.adapter is None else [located(self.adapter)])]
        found = [path for place in places for path in sorted(Path(place).glob("*.safetensors"))]
        return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Parameters of the whole model and of one decoder layer, counted without loading a weight."""
        config = self.config()
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        layers = decoder_layers(model)
        return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in layers[0].parameters())

    def _get(self, kind, **options):
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
