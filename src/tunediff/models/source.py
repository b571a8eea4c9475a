"""The source of a model: a Hub id, a local folder, or weights that ship, with or without an adapter on them; its
configuration and tokenizer, and only then its weights. Only safetensors and JSON are read, and no code that came with a
model is run: the transcoder adapters of a checkpoint in their authors' format stand beside its MLPs as our own
modules."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import huggingface_hub
import torch
import transformers

from tunediff.files import MODEL, located, refuse_odd
from tunediff.folders import verify
from tunediff.hookpoints import LoraAdapter, decoder_layers
from tunediff.hub import is_commit
from tunediff.models.architecture import check_config
from tunediff.models.files import (
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Header,
    PairError,
    check_tokenizer,
    commit_of,
    generation_in,
    headers_in,
    json_in,
    said,
    unread_tokenizer,
    weight_files,
)
from tunediff.models.hybrid import adapted as with_transcoders
from tunediff.models.lora import adapted, aligned, brought, shapes, twin
from tunediff.models.lora import check as check_lora
from tunediff.models.rotary import by_own_length
from tunediff.models.transcoder_files import KEY, LATENTS, TranscoderFiles
from tunediff.models.whole import (
    Found,
    check_layers,
    check_tie,
    check_tied,
    check_whole,
    foreseen,
    found_by,
    silent,
    skeleton,
)
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

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Precision):
            raise PairError(f"dtype='{self.dtype}' of {self.path}: choose one of {', '.join(get_args(Precision))}.")

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
        made_on = None if self.adapter is None else check_lora(self._adapter()).base_model_name_or_path
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

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of config.json, which is brought from the Hub where the source is no local one."""
        place = Path(self.location)
        if place.is_dir():
            for pattern in MODEL:
                for file in place.glob(pattern):
                    refuse_odd(file)
            if (place / CONFIG).is_file():
                return place
            if (place / ADAPTER_CONFIG).is_file():
                raise PairError(
                    f"{self.path} holds an adapter and no model: name what it was made on as path, and it as adapter."
                )
            raise PairError(f"{self.path} has no {CONFIG}: name the folder of a model in transformers' format.")
        if self.path.startswith((".", "/", "~")):  # no Hub id begins so
            raise PairError(f"Cannot load '{self.path}': there is no folder {place.absolute()}.")
        try:
            folder = Path(huggingface_hub.hf_hub_download(self.path, CONFIG, revision=self.revision)).parent
        except (ValueError, OSError) as error:
            raise self._not_given() from error
        given = commit_of(folder / CONFIG)
        if is_commit(self.revision) and is_commit(given) and given != self.revision:
            raise PairError(
                f"'{self.path}' was asked for at commit {self.revision}, and the Hub gave {given}: nothing of it is read."
            )
        return folder

    @functools.cached_property
    def commit(self) -> str | None:
        """The commit on the Hub that every file of the model is read at, from its configuration on; None for a local
        folder."""
        return None if Path(self.location).is_dir() else commit_of(self.folder / CONFIG)

    @property
    def commits(self) -> dict[str, str]:
        """The commits of all that it is made of, by `path@revision` as they were asked for; none of local folders."""
        found = {} if self.commit is None else {f"{self.path}@{self.revision or 'main'}": self.commit}
        if self.adapter is not None and (commit := commit_of(self._adapter() / ADAPTER_CONFIG)) is not None:
            found[f"{self.adapter}@{self.adapter_revision or 'main'}"] = commit
        return found

    def config(self) -> transformers.PretrainedConfig:
        """The configuration. Raises PairError for one that transformers does not know, or that asks for code of its own or
        for quantised weights."""
        settings = json_in(self.folder / CONFIG, self.path)
        check_config(self.path, settings)
        try:
            return self._get(transformers.AutoConfig)
        except PairError:
            raise
        except Exception as error:  # of any class: what a setting is computed with first
            check_layers(self.path, settings, self._headers())
            raise PairError(
                f"{self.path}: transformers cannot read its {CONFIG}: {said(error)}. Take the file that was saved with the weights."
            ) from error

    def check(self) -> None:
        """Raises PairError for files that are not those of one whole model, as far as they are here, without reading a
        weight."""
        if (self.folder / ADAPTER_CONFIG).is_file():
            raise PairError(
                f"{self.path} holds an adapter beside its model, which would be loaded with it: take {ADAPTER_CONFIG} out, or "
                "name the adapter's own folder as adapter."
            )
        generation_in(self.folder, self.path)
        headers = self._headers()
        if headers:
            check_whole(self.path, self.empty, self._without_latents(foreseen(self.empty, headers)), headers)
            check_tie(self.path, self.empty, headers, getattr(torch, self.dtype))
        if self.beside is not None:
            self.beside.check()
        if self.adapter is not None and Path(located(self.adapter)).is_dir():
            check_lora(self._adapter())

    def _headers(self) -> dict[str, Header]:
        """The tensors of the files of weights by name, none where they are still on the Hub."""
        config = json_in(self.folder / CONFIG, self.path)
        files = weight_files(self.folder, self.path, config, cached=self.commit is not None)
        return {name: header for file in files for name, header in headers_in(file, self.path).items()}

    def _without_latents(self, found: Found) -> Found:
        """Less the transcoder adapters of a checkpoint that has some, which transformers has no place for."""
        if self.beside is None:
            return found
        return found._replace(unexpected=[name for name in found.unexpected if not KEY.search(name)])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer as tokenizer.json says. AutoTokenizer would rebuild a Qwen2 model's tokenizer from its type:
        with other splitting rules, and one more special token, than the file has."""
        check_tokenizer(self.folder, self.path)
        for name in (TOKENIZER, TOKENIZER_CONFIG, "chat_template.jinja"):
            verify(self.folder / name)
        try:
            try:
                found = self._get(transformers.PreTrainedTokenizerFast)
            except (ValueError, PairError):  # no tokenizer.json: an older format that AutoTokenizer converts
                found = self._get(transformers.AutoTokenizer)
        except PairError:
            raise
        except Exception as error:  # tokenizers raises the class itself
            check_tokenizer(self.folder, self.path)  # of files that were not here before
            raise unread_tokenizer(self.folder, self.path, error) from error
        if (
            len(found) < 2 or not found("a word", add_special_tokens=False).input_ids
        ):  # transformers makes an empty one of a folder
            # that has none
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
        return TranscoderFiles(self.path, self.commit or self.revision) if LATENTS in self.config().to_dict() else None

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
            whole = by_own_length(self._whole())
            model = with_transcoders(whole, self.beside.read().to(getattr(torch, self.dtype)))
        else:
            model = by_own_length(self._whole())
        if self.adapter is not None:
            verify(self._adapter())
            model = adapted(model, self._adapter(), merged=self.merged)
        return aligned(model).eval().requires_grad_(False)

    def _whole(self) -> transformers.PreTrainedModel:
        """The model as its files have it, checked again by what transformers found in them."""
        self.check()
        verify(self.folder)
        kind, dtype = transformers.AutoModelForCausalLM, getattr(torch, self.dtype)
        options = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            with silent():
                model, info = self._get(kind, dtype=dtype, **options)
        except Exception as error:
            self.check()  # of files that were not here before
            if isinstance(error, PairError):
                raise
            raise PairError(f"{self.path}: transformers cannot load it: {said(error)}.") from error
        generation_in(self.folder, self.path)
        headers = self._headers()
        check_whole(self.path, self.empty, self._without_latents(found_by(info)), headers)
        check_tied(self.path, self.empty, model)
        return model

    def _adapter(self) -> Path:
        assert self.adapter is not None
        return brought(located(self.adapter), self.adapter_revision)

    @functools.cached_property
    def generation_config(self) -> dict[str, Any]:
        """The settings that generation_config.json names; none where it is not there. Raises PairError for one that no model
        can be decoded by."""
        if self.commit is not None and not (self.folder / GENERATION).is_file():
            try:
                huggingface_hub.hf_hub_download(self.path, GENERATION, revision=self.at)
            except (ValueError, OSError):  # it has none
                return {}
        return generation_in(self.folder, self.path)

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
        config = self.config()
        try:
            return skeleton(config)
        except Exception as error:
            raise PairError(f"{self.path}: transformers cannot build what its {CONFIG} says: {said(error)}.") from error

    @property
    def at(self) -> str:
        """The revision that is asked of the Hub: the commit that the configuration was read at."""
        return self.commit or self.revision or "main"

    def _get(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.location, revision=self.at, trust_remote_code=False, **options)
        except OSError as error:
            raise self._not_given() from error

    def _not_given(self) -> PairError:
        at, given = (f" at {self.revision}", f" --revision {self.revision}") if self.revision else ("", "")
        return PairError(
            f"Cannot load '{self.path}'{at}: it is no local folder with a model, and the Hub did not give it "
            f"(no network, no such id or revision, or no permission). Download it where there is a network, "
            f"`hf download {self.path}{given} --local-dir <folder>`, and name the folder: model_pair.base.path=<folder>, "
            f"model_pair.tuned.path=<folder>, or of a fine-tune model.path=<folder>."
        )
