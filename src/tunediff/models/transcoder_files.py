"""Files of transcoder adapters <-> TranscoderAdapter: those a run leaves, and checkpoints in the format of the paper's
authors (arXiv 2602.20904), whole models with these tensors among their own, and two keys in config.json:

    model.layers.<l>.mlp.transcoder_enc.{weight [latent, width], bias [latent]}      transcoder_n_features
    model.layers.<l>.mlp.transcoder_dec.{weight [width, latent], bias [width]}       transcoder_dec_bias: false has no bias

Only safetensors and JSON are read. Of the rest of a checkpoint nothing is known here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunediff import dictionary
from tunediff.dictionary import L1, Normalisation, Sparsity, TranscoderAdapter, latents_of
from tunediff.files import located
from tunediff.folders import verify
from tunediff.hookpoints import lora_adapters
from tunediff.models.files import (
    CONFIG,
    INDEX,
    WEIGHTS,
    PairError,
    beside,
    commit_of,
    from_hub,
    headers_in,
    json_in,
    whole_file,
)
from tunediff.models.hybrid import AdaptedMLP
from tunediff.models.lora import aligned, twin
from tunediff.shapes import ADAPTER, Stream

# keys by which config.json says that a checkpoint is in the authors' format
LATENTS, DECODER_BIAS = "transcoder_n_features", "transcoder_dec_bias"
KEY = re.compile(r"\.(\d+)\.mlp\.transcoder_(enc|dec)\.(weight|bias)$")
OURS = {("enc", "weight"): "W_enc", ("enc", "bias"): "b_enc", ("dec", "weight"): "W_dec", ("dec", "bias"): "b_dec"}
THEIRS = {ours: f"transcoder_{part}.{kind}" for (part, kind), ours in OURS.items()}
OURS_IN = "weights.safetensors"


@dataclass(frozen=True)
class TranscoderFiles:
    """place   a run folder, its folder `dictionary`, or a checkpoint in the authors' format, then also a Hub id"""

    place: str
    revision: str | None = None

    @functools.cached_property
    def folder(self) -> str:
        """The folder of config.json; a Hub id stays one."""
        inside = Path(located(self.place)) / "dictionary"
        return str(inside) if (inside / CONFIG).is_file() else located(self.place)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        file = self._file(CONFIG)
        verify(file)
        config = json_in(file, self.place)
        if "streams" not in config and LATENTS not in config:
            raise PairError(
                f"{self.place} has no transcoder adapters: name a run that trained dictionary=transcoder_adapter, or a "
                f"checkpoint whose {CONFIG} has {LATENTS}."
            )
        return config

    @property
    def commit(self) -> str | None:
        """The commit on the Hub; None for local files."""
        return commit_of(self._file(CONFIG))

    @property
    def published(self) -> bool:
        """True where the files are in the authors' format."""
        return LATENTS in self.config

    @functools.cached_property
    def streams(self) -> list[Stream]:
        if not self.published:
            return [Stream(*stream) for stream in self.config["streams"]]
        layers, width = self.config["num_hidden_layers"], self.config["hidden_size"]
        return [Stream(ADAPTER, "mlp_in", layer, width) for layer in range(layers)]

    @property
    def latents(self) -> int:
        """Number of latents of each layer."""
        return self.config[LATENTS] if self.published else latents_of(self.config["latents"], self.streams)

    @property
    def decoder_bias(self) -> bool:
        return self.config.get(DECODER_BIAS, False) if self.published else self.config.get("decoder_bias", True)

    @property
    def parameters(self) -> int:
        """Number of parameters of one layer."""
        width = self.streams[0].width
        return 2 * width * self.latents + self.latents + (width if self.decoder_bias else 0)

    def read(self) -> TranscoderAdapter:
        """Frozen, on the CPU, in the precision of the files. Raises PairError where tensors are missing, or have other
        shapes than config.json says."""
        made = self._empty()
        if not self.published:
            verify(self._file(OURS_IN))
        found = self._published_tensors() if self.published else _tensors(whole_file(self._file(OURS_IN), self.place))
        if self.published:
            found |= {f"normalisation.{name}": value for name, value in made.normalisation.state_dict().items()}
        self._check({name: tuple(value.shape) for name, value in found.items()}, made)
        made.load_state_dict(found, assign=True)
        return aligned(made).eval().requires_grad_(False)

    def check(self) -> None:
        """The same refusals from the headers of local files, without reading a weight."""
        if not Path(self.folder).is_dir():
            return
        made = self._empty()
        if not self.published:
            found = {name: header.shape for name, header in headers_in(self._file(OURS_IN), self.place).items()}
        else:
            found = {f"normalisation.{name}": tuple(v.shape) for name, v in made.normalisation.state_dict().items()}
            for path, keys in self._shards().items():
                headers = headers_in(path, self.place)
                found |= {_ours(key): headers[key].shape[::-1] for key in keys if key in headers}
        self._check(found, made)

    def _empty(self) -> TranscoderAdapter:
        """The adapter without its weights."""
        # a penalty is for training alone
        sparsity = L1(0.0) if self.published else sparsity_of(self.config["sparsity"])
        with torch.device("meta"):
            made = TranscoderAdapter(
                self.streams, latents=self.latents, sparsity=sparsity, decoder_bias=self.decoder_bias
            )
        made.normalisation = Normalisation(made.widths, kind="none", sink_multiple=None)
        return made

    def files(self) -> list[Path]:
        """Weight files of a local folder."""
        return sorted(Path(self.folder).glob("*.safetensors"))

    def _check(self, found: Mapping[str, tuple], made: TranscoderAdapter) -> None:
        expected = {name: tuple(value.shape) for name, value in made.state_dict().items()}
        missing = [name for name in expected if name not in found]
        more = [name for name in found if name not in expected]
        unlike = [name for name in expected if name in found and found[name] != expected[name]]
        said = {"has no": missing, "has, without a word of it in its config.json,": more}
        for words, names in said.items():
            if names:
                raise PairError(
                    f"The transcoder adapter of {self.place} {words} {self._spelled(names[0])}"
                    f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}: its files are not whole, or not of one model."
                )
        if unlike:
            name = unlike[0]
            shapes = [list(shape)[:: -1 if self.published else 1] for shape in (found[name], expected[name])]
            raise PairError(
                f"The transcoder adapter of {self.place} has {self._spelled(name)} of shape {shapes[0]}, and its {CONFIG} says "
                f"{shapes[1]}: they are not of one model."
            )

    def _spelled(self, name: str) -> str:
        """A tensor's name as it stands in the files."""
        if not self.published:
            return name
        _, layer, ours = name.split(".")
        return f"layers.{layer}.mlp.{THEIRS[ours]}"

    def _published_tensors(self) -> dict[str, Tensor]:
        found = {}
        for path, keys in self._shards().items():
            for key, value in _tensors(path, keys).items():
                found[_ours(key)] = value.T if value.dim() == 2 else value
        return found

    def _shards(self) -> dict[Path, list[str]]:
        """Weight files with the names of their transcoders' tensors; files that have none are not brought."""
        try:
            index = self._file(INDEX)
        except PairError:  # one file has them all
            names = dict.fromkeys(headers_in(self._file(WEIGHTS), self.place), WEIGHTS)
        else:
            names = json_in(index, self.place)["weight_map"]
        shards: dict[str, list[str]] = {}
        for key, file in names.items():
            if KEY.search(key):
                shards.setdefault(file, []).append(key)
        return {self._file(file): keys for file, keys in shards.items()}

    def _file(self, name: str) -> Path:
        """A file of the folder, or from the Hub. Raises PairError where it is not there, or would be elsewhere."""
        beside(name, self.place)
        if not Path(self.folder).is_dir() and not self.folder.startswith((".", "/", "~")):
            return from_hub("transcoder adapter", self.folder, name, self.revision)
        path = Path(self.folder).expanduser() / name
        if not path.is_file():
            why = ": only safetensors are read" if name.endswith(".safetensors") else ""
            raise PairError(f"{self.place} has no {name}{why}.")
        return path


def _ours(key: str) -> str:
    """The name of a tensor of the authors' format in a TranscoderAdapter."""
    layer, part, kind = re.findall(KEY, key)[0]
    return f"layers.{layer}.{OURS[part, kind]}"


def sparsity_of(node: Mapping[str, Any]) -> Sparsity:
    """One of tunediff's own, from its node of a config; schedules say how it was trained, and are left out."""
    package, _, name = node["_target_"].rpartition(".")
    kind = getattr(dictionary, name, None)
    if not f"{package}.".startswith("tunediff.dictionary.") or not (
        isinstance(kind, type) and issubclass(kind, Sparsity)
    ):
        raise PairError(
            f"The transcoder adapter has the sparsity {node['_target_']}, which is none of tunediff's own: read it with "
            "tunediff.load(<run folder>).dictionary."
        )
    given = {key: value for key, value in node.items() if not key.startswith("_") and not isinstance(value, Mapping)}
    return kind(**given)


def save_adapted(model: PreTrainedModel, folder: str | Path, tokenizer: Any = None, *, shard: str = "50GB") -> Path:
    """A model with transcoder adapters beside its MLPs, as a checkpoint in the authors' format and in the precision of
    the model's weights; of a Qwen2 model their own class reads it. `shard`: largest weight file. Raises PairError for
    what the format has no place for."""
    folder = Path(folder)
    beside = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedMLP)}
    if not beside:
        raise PairError(
            "The model has no transcoder adapters beside its MLPs: save_pretrained saves it as it stands, and the role "
            "adapter is the model that has some."
        )
    first = next(iter(beside.values())).transcoder
    if type(first.sparsity) is not L1:
        raise PairError(
            f"The authors' format has ReLU latents, and this adapter has {type(first.sparsity).__name__}: train one with "
            "dictionary/sparsity=l1, or keep the run folder, which model_pair reads as it is (tunediff.models.AdaptedSource)."
        )
    if lora_adapters(model):
        raise PairError("The model has low-rank adapters as well: load it with merged=true, and save that.")
    if folder.exists() and any(folder.iterdir()):
        raise PairError(f"{folder} is not empty: name a new folder.")
    state, dtype = {}, model.dtype
    for name, value in model.state_dict().items():
        place = next((place for place in beside if name.startswith(f"{place}.")), None)
        if place is None:
            state[name] = value
            continue
        side, _, rest = name.removeprefix(f"{place}.").partition(".")
        if side == "mlp":
            state[f"{place}.{rest}"] = value
        else:
            state[f"{place}.{THEIRS[rest]}"] = (value.T if value.dim() == 2 else value).to(dtype).contiguous()
    twin(model).save_pretrained(folder, state_dict=state, max_shard_size=shard)  # it writes into its configuration
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config |= {LATENTS: first.get_parameter("W_enc").shape[1], DECODER_BIAS: first.b_dec is not None}
    config["architectures"] = [f"{name}WithTranscoder" for name in config["architectures"]]
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def _tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    with safetensors.safe_open(path, framework="pt") as content:
        return {name: content.get_tensor(name) for name in (content.keys() if names is None else names)}
