"""Two causal language models with the roles base and tuned, and one agreed token stream for both.

Loading has two steps, so that a mistake costs nothing: `ModelPair(...)` reads configurations and tokenizers only and
answers every question about layers, widths and tokens; `load(device)` brings the weights.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
import transformers
from torch import Tensor, nn

from tunediff.dictionary import TranscoderAdapter
from tunediff.edits import Edit, Sequences, editing, needed
from tunediff.hookpoints import LORA, ForwardStopped, Point, check_hookpoint, reading, width_of
from tunediff.models.files import PairError
from tunediff.models.hybrid import adapted, hybrid
from tunediff.models.rotary import crosses_switch, follows_length
from tunediff.models.source import ModelSource
from tunediff.shapes import ADAPTER, BASE, DIFFERENCE, HYBRID, OTHER, ROLES, TRANSCODER, TUNED, Stream
from tunediff.text import HESITATIONS, LAYOUTS, Batch, Layout, layout
from tunediff.text.tokenizers import differing_marks

ALL_LAYERS = "all"
# roles of models that may stand beside a pair; configuration and tokenizer are the tuned one's
BESIDE = (HYBRID, ADAPTER)
FOREIGN = ("skip", "respell", "keep", "refuse")
Caches = dict[str, transformers.Cache]  # role -> the keys and values of the columns that were computed


class ModelPair:
    """base and tuned, read side by side.

    tokenizer   whose tokenizer cuts the text and whose chat template renders it: base or tuned
    align       strict: both models read the same ids, and the tokenizers must agree on ordinary text;
                by_text: each model reads its own ids, tokens that end on the same character are paired
    foreign     what becomes of marks (added tokens, such as <think>) that the two read differently: skip gives both models the
                same ids and keeps none of these tokens; respell lets each model read its own spelling of them; keep treats
                them as any other token; refuse refuses the pair
    shift       tokens by which what is read of the tuned model lies before what stands beside it of the base: 0 pairs the same
                tokens. A misalignment on purpose, as two tokenizers bring about of which one puts a token in front
    thinking_format   how the models mark their thinking: the name of a known format, or a string with {thinking} and {answer}
    hesitations   what the tuned model says when it hesitates: words, as regular expressions
    """

    def __init__(
        self,
        base: ModelSource,
        tuned: ModelSource,
        *,
        tokenizer: str = BASE,
        align: str = "strict",
        foreign: str = "skip",
        shift: int = 0,
        thinking_format: str = "think",
        hesitations: Sequence[str] = HESITATIONS,
    ):
        if tokenizer not in ROLES:
            raise PairError(f"model_pair.tokenizer='{tokenizer}': choose base or tuned.")
        if align not in ("strict", "by_text"):
            raise PairError(f"model_pair.align='{align}': choose strict or by_text.")
        if foreign not in FOREIGN:
            raise PairError(f"model_pair.foreign='{foreign}': choose {', '.join(FOREIGN)}.")
        if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0:
            raise PairError(f"model_pair.shift={shift!r}: give a number of tokens, 0 or more.")
        self.sources = {BASE: base, TUNED: tuned}
        self.configs = {role: source.config().get_text_config() for role, source in self.sources.items()}
        for source in dict.fromkeys(self.sources.values()):
            source.check()
        self.owner, self.align, self.foreign_policy, self.shift = tokenizer, align, foreign, shift
        self.layout, self.hesitations = layout(thinking_format), tuple(hesitations)
        self.layouts = (self.layout, *(parts for parts in LAYOUTS if parts != self.layout))
        self._tokenizers = {role: source.tokenizer() for role, source in self.sources.items()}
        self.models: dict[str, transformers.PreTrainedModel] = {}
        self.adapter: TranscoderAdapter | None = None  # of the models that stand beside, and what it stands in
        self.adapter_on = HYBRID
        for role in BESIDE:
            self.configs[role], self._tokenizers[role] = self.configs[TUNED], self._tokenizers[TUNED]

    @property
    def same_ids(self) -> bool:
        """True where both models read the same ids."""
        return self.align == "strict" and self.foreign_policy != "respell"

    @property
    def tokenizers(self) -> tuple:
        """The owner's tokenizer; where each model reads its own ids also the other's."""
        mine, other = self._tokenizers[self.owner], self._tokenizers[OTHER[self.owner]]
        return (mine,) if self.same_ids else (mine, other)

    @functools.cached_property
    def foreign(self) -> Sequence[str]:
        """The marks whose tokens are not kept: those that the two models read differently."""
        if self.foreign_policy == "keep":
            return ()
        mine, other = self._tokenizers[self.owner], self._tokenizers[OTHER[self.owner]]
        return differing_marks(mine, other, same_ids=self.same_ids)

    def knows(self, parts: Layout) -> None:
        """The marks of a text are known to all that ask where the models think, before those of the pair."""
        self.layouts = tuple(dict.fromkeys((parts, *self.layouts)))

    def tokenizer_of(self, role: str):
        """The tokenizer that came with a model, whoever's the pair reads with."""
        return self._tokenizers[role]

    def embedded(self, role: str) -> int:
        """Number of ids that a model has embeddings for, padding of the vocabulary counted."""
        return self.configs[role].vocab_size

    def ends(self, role: str) -> set[int]:
        """Tokens with which a model may end a response: instruction models often have several."""
        named = self.source(role).generation_config.get("eos_token_id")
        given = [named, self.configs[role].eos_token_id, self._tokenizers[role].eos_token_id]
        every = (one if isinstance(one, list) else [one] for one in given)
        return {token for tokens in every for token in tokens if token is not None}

    def entry(self, role: str) -> int:
        """The number of this model's entry in a batch's ids, mask and places."""
        return 0 if self.same_ids or (TUNED if role in BESIDE else role) == self.owner else 1

    def follows_length(self, role: str) -> bool:
        """True where a model computes its rotary embedding by the length of a text: models/rotary.py."""
        return follows_length(self.configs[role])

    def source(self, role: str) -> ModelSource:
        """The source of a model; of one that stands beside the pair, where its attention, norms and embeddings do."""
        return self.sources[TUNED if role in BESIDE else role]

    @property
    def own_ids_by(self) -> str:
        """The setting by which each model reads its own ids."""
        return "model_pair.align=by_text" if self.align == "by_text" else "model_pair.foreign=respell"

    def depth(self, role: str) -> int:
        return self.configs[role].num_hidden_layers

    def streams(
        self,
        hookpoint: str,
        layer: int | float | str | Sequence[int | float],
        *,
        reads: str = "both",
        equal_widths: bool = True,
    ) -> list[Stream]:
        """The places a dictionary reads: every layer asked for, of both models (base, then tuned), of one, or of their
        difference. An integer counts from 0, a fraction below 1 is a relative depth (0.5 is half of each model), "all"
        is every layer. The hookpoint lora is one place for all adapters of a model, named by the last layer that has
        one."""
        check_hookpoint(hookpoint)
        if reads not in ("both", *ROLES, DIFFERENCE, *BESIDE):
            raise PairError(f"dictionary.reads='{reads}': choose both, base, tuned, difference, hybrid or adapter.")
        if reads in BESIDE:
            self._check_same_tokens()
        if hookpoint == LORA:
            return [self._adapters(reads, layer)]
        single = reads in (*ROLES, *BESIDE)
        roles = [reads] if single else ROLES
        if layer == ALL_LAYERS:
            layer = list(range(self.depth(roles[-1])))
        layers: Sequence = layer if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
        if not layers:
            raise PairError("layer=[] names no layer: give at least one.")
        found = [
            Stream(role, hookpoint, self._layer(role, one), self.width(role, hookpoint))
            for one in layers
            for role in roles
        ]
        twice = next((stream for n, stream in enumerate(found) if stream in found[:n]), None)
        if twice is not None:
            raise PairError(f"layer={list(layers)} names layer {twice.layer} twice.")
        if single:
            return found
        widths = {stream.role: stream.width for stream in found}
        if equal_widths and len(set(widths.values())) > 1:
            raise PairError(
                f"The models have different widths at {hookpoint} (base {widths[BASE]}, tuned {widths[TUNED]}), so decoder "
                f"directions cannot be compared. Set dictionary.hookpoint.equal_widths=false to train without a shared "
                f"initialisation and without cosines."
            )
        if reads == DIFFERENCE:
            pairs = list(zip(found[::2], found[1::2], strict=True))
            if any((base.layer, base.width) != (tuned.layer, tuned.width) for base, tuned in pairs):
                raise PairError("dictionary.reads=difference needs models of the same width and the same layers.")
            return [tuned._replace(role=DIFFERENCE) for _, tuned in pairs]
        return found

    def _adapters(self, reads: str, layer: int | float | str | Sequence) -> Stream:
        if reads not in ROLES:
            raise PairError(f"dictionary.reads={reads}: only one of the models has adapters, so read tuned.")
        source = self.sources[reads]
        if not source.adapters:
            why = (
                "its adapter is merged: set merged=false"
                if source.merged
                else "choose model_pair=toy_lora, or one made by finetune.py recipe=lora_rank1"
            )
            raise PairError(f"The {reads} model {source.path} has no adapters to read; {why}.")
        last = source.adapters[-1].layer
        if layer not in (ALL_LAYERS, last):
            raise PairError(
                f"layer={layer}: the hookpoint lora reads the adapters of all layers side by side. Leave layer out, or give "
                "layer=all; adapters in some layers only are a matter of training (recipe.part.layers)."
            )
        return Stream(reads, LORA, last, source.adapters[-1].columns.stop)

    def width(self, role: str, hookpoint: str) -> int:
        """Width of a hidden vector at a hookpoint of one layer."""
        return self._latents_of(role) if hookpoint == TRANSCODER else width_of(self.configs[role], hookpoint)

    def _layer(self, role: str, layer: int | float | str) -> int:
        depth = self.depth(role)
        if isinstance(layer, bool) or not isinstance(layer, int | float):
            raise PairError(f"layer={layer!r} is not a number: give 0 to {depth - 1}, a fraction such as 0.5, or all.")
        if isinstance(layer, float) and not layer.is_integer():
            if not 0 < layer < 1:
                raise PairError(f"layer={layer}: a fraction is a relative depth between 0 and 1.")
            return int(layer * depth)
        if not 0 <= layer < depth:
            raise PairError(
                f"layer={layer} is out of range: the {role} model {self.source(role).path} has layers 0 to {depth - 1}."
            )
        return int(layer)

    def load(self, device: torch.device | str = "cpu", *, roles: Sequence[str] = ROLES) -> ModelPair:
        """Brings the weights of both models, or of one. The same source is loaded once, and an adapter on the base's
        own weights stands beside them: they are in memory once."""
        for role in roles:
            shared = self.models.get(BASE) if role == TUNED and BASE in roles else None
            if shared is not None and self.sources[TUNED] == self.sources[BASE]:
                self.models[role] = shared
            else:
                under = shared if self.shares_weights(role) else None
                self.models[role] = self.sources[role].weights(under)
                _move(self.models[role], device)
        return self

    def stand_beside(self, adapter: TranscoderAdapter, *, on: str = HYBRID) -> None:
        """The hybrid, and a model with this adapter beside its MLPs, as models with the roles hybrid and adapter:
        everything that takes a role takes these. `on` is what the adapter stands in: the hybrid, or the tuned model
        itself. Weights are in memory once. Raises PairError for an adapter that was trained on another pair."""
        self._check_same_tokens()
        self.models[HYBRID] = hybrid(self.models[TUNED], self.models[BASE])
        self.models[ADAPTER] = adapted(self.models[on], adapter)
        self.adapter, self.adapter_on = adapter, on

    def with_adapter(self, adapter: TranscoderAdapter, *, on: str = HYBRID) -> ModelPair:
        """Another pair over the same weights, with another adapter beside it."""
        other = copy.copy(self)
        other.models = dict(self.models)
        other.stand_beside(adapter, on=on)
        return other

    def _check_same_tokens(self) -> None:
        if not self.same_ids:
            raise PairError(f"{self.own_ids_by}: a transcoder adapter needs two models that read the same tokens.")

    def _latents_of(self, role: str) -> int:
        if role == ADAPTER and self.adapter is not None:
            return self.adapter.latents_per_layer
        if role in ROLES and (beside := self.sources[role].beside) is not None:
            return beside.latents
        raise PairError(f"The {role} model has no transcoder adapters: dictionary=transcoder_adapter trains them.")

    def shares_weights(self, role: str) -> bool:
        """True where the model takes no memory of its own beside the base, but for what is added to it: an adapter, or
        the MLPs of another model with one."""
        return role == TUNED and self.sources[TUNED].without_adapter == self.sources[BASE]

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Context in which the weights wait in the memory of the host, so that another model has room on their
        devices."""
        devices = {role: self.device(role) for role in self.models}
        try:
            for model in self.models.values():
                _move(model, "cpu")
            torch.cuda.empty_cache()  # for engines with an allocator of their own
            yield
        finally:
            for role, device in devices.items():
                _move(self.models[role], device)

    def device(self, role: str) -> torch.device:
        role = TUNED if role == DIFFERENCE else role
        return next(self.models[role].parameters()).device

    def inputs(self, role: str, batch: Batch) -> dict[str, Tensor]:
        device, m = self.device(role), self.entry(role)
        return {"input_ids": batch.ids[m].to(device), "attention_mask": batch.mask[m].to(device)}

    @torch.no_grad()
    def read(self, batch: Batch, streams: Sequence[Stream]) -> list[Tensor]:
        """Hidden vectors of the kept tokens, [token, width] for each stream. Each model runs once, to the highest
        layer asked for; the LM head is never computed."""
        whole: dict[tuple[str, Point], Tensor] = {}
        for role in dict.fromkeys(role for stream in streams for role in stream.models):
            points = [Point(s.hookpoint, s.layer) for s in streams if role in s.models]
            with reading(self.models[role], points) as found, suppress(ForwardStopped):
                self.models[role].base_model(**self.inputs(role, batch), use_cache=False)
            whole |= {(role, point): value for point, value in found.items()}

        def kept(role: str, stream: Stream) -> Tensor:
            value = whole[role, Point(stream.hookpoint, stream.layer)]
            if value.shape[-1] != stream.width:
                raise PairError(
                    f"{stream} is {value.shape[-1]} wide and not {stream.width}: set dictionary.hookpoint.width."
                )
            return value.flatten(0, 1)[self.places(role, batch)]

        def read(stream: Stream) -> Tensor:
            if stream.role != DIFFERENCE:
                return kept(stream.role, stream)
            tuned = kept(TUNED, stream)
            return tuned - kept(BASE, stream).to(tuned)

        return [read(stream) for stream in streams]

    def read_at(self, role: str, batch: Batch) -> Tensor:
        """[token] index of what is read of a model for each kept token, in the flattened [batch*position], where the batch lies; of the
        tuned model `shift` positions earlier, and no earlier than the first of its document."""
        entry = self.entry(role)
        places = batch.places[entry]
        if self.shift and role == TUNED:
            places = places - (places % batch.ids[entry].shape[1]).clamp(max=self.shift)
        return places

    def places(self, role: str, batch: Batch) -> Tensor:
        """The same on the device of the model."""
        return self.read_at(role, batch).to(self.device(role))

    # -- under edits, in scoring, generation and training ----------------------------------------------------------------

    def run(
        self,
        role: str,
        known: Sequences,
        edits: Sequence[Edit] = (),
        *,
        caches: Caches | None = None,
        alongside: Sequences | None = None,
        last: int = 0,
    ) -> tuple[Tensor, list[Tensor]]:
        """One forward pass over the new columns of `known`: logits [batch, new position, vocabulary], with `last` of
        the last so many positions alone, and for each edit the norm of what it changed at each token, [batch, new
        position].

        caches      of new_caches(), where the columns before have been computed, and are again where a text crosses the
                    switch of longrope; None: all columns are new
        alongside   what the other model reads in the same columns, such as its own response; None: the same tokens

        The other model runs first, unedited, where an edit asks for it. Raises Refused where it cannot."""
        # refused before a model runs: a hook that fails halfway leaves caches with columns of some layers only
        others = needed(edits, role)
        for at in (edit.at for edit in edits):
            if at not in self.streams(at.hookpoint, at.layer, reads=role):
                width = self.configs[role].hidden_size
                raise PairError(
                    f"An edit at {at} of width {at.width} has no place in the {role} model of width {width}."
                )
        read, available, columns = {}, None, known.ids.shape[1] - known.first
        beside = known if alongside is None else alongside
        read_by = {role: known, **{stream.role: beside for stream in others}}
        if caches is not None and self._are_outdated(read_by, known.first, known.ids.shape[1]):
            known.first = 0
            caches.update(self.new_caches())
        if others:
            read, available = self._read_alongside(others, known, alongside, caches)
        with editing(self.models[role], edits, known, read, available=available) as changes:
            logits = self._forward(
                self.models[role], known, known.new(known.ids), known.real, caches, role, last
            ).logits
        return logits[:, -columns:].float(), [change[:, -columns:] for change in changes]

    def new_caches(self) -> Caches:
        """Nothing has been computed yet, in either model."""
        return {role: transformers.DynamicCache(config=self.configs[role]) for role in self.models}

    def _are_outdated(self, read_by: dict[str, Sequences], first: int, columns: int) -> bool:
        """True where the keys and values of the first columns of what a model reads no longer hold beside the others."""
        for role, known in read_by.items():
            real = _as_long(known.real, columns)
            if first and crosses_switch(self.configs[role], real[:, :first].sum(1), real.sum(1)):
                return True
        return False

    @torch.no_grad()
    def _read_alongside(
        self, others: Sequence[Stream], known: Sequences, alongside: Sequences | None, caches: Caches | None
    ) -> tuple[dict[Stream, Tensor], Tensor | None]:
        role = others[0].role
        if self.shift:
            raise PairError(
                f"An edit that reads the other model needs the same tokens of both, and model_pair.shift={self.shift} pairs "
                "others: a misaligned dictionary is measured and never edited with."
            )
        if not self.same_ids:
            raise PairError(
                f"An edit that reads the other model needs both to read the same tokens, and {self.own_ids_by} gives "
                "each its own. Edit with a dictionary of one model, or choose a pair that shares a tokenizer."
            )
        ids, real = known.ids, known.real
        if alongside is not None:
            ids, real = (_as_long(value, ids.shape[1]) for value in (alongside.ids, alongside.real))
        points = {Point(stream.hookpoint, stream.layer): stream for stream in others}
        with reading(self.models[role], list(points)) as read, suppress(ForwardStopped):
            self._forward(self.models[role].base_model, known, known.new(ids), real, caches, role)
        here = {points[point]: value.to(self.device(OTHER[role])) for point, value in read.items()}
        return here, None if alongside is None else known.new(real)

    def _forward(
        self,
        model: nn.Module,
        known: Sequences,
        ids: Tensor,
        real: Tensor,
        caches: Caches | None,
        role: str,
        last: int = 0,
    ):
        device = self.device(role)
        options = {"logits_to_keep": last} if last else {}
        options |= {} if caches is None else {cache_argument(model): caches[role]}
        return model(
            input_ids=ids.to(device),
            attention_mask=real.long().to(device),
            # counted over real tokens, so that padding on the left moves no token to another position
            position_ids=known.new(real.long().cumsum(1) - 1).clamp(min=0).to(device),
            use_cache=caches is not None,
            **options,
        )

    @torch.no_grad()
    def last_hidden(self, role: str, batch: Batch | Sequences) -> Tensor:
        """Hidden vectors behind the final norm, of which head_of(model) makes logits, [batch, position, width]."""
        model = self.models[role].base_model
        if isinstance(batch, Sequences):
            return self._forward(model, batch, batch.ids, batch.real, None, role).last_hidden_state
        return model(**self.inputs(role, batch), use_cache=False).last_hidden_state


def _move(model: nn.Module, device: torch.device | str) -> None:
    model.to(device)


def cache_argument(model: nn.Module) -> str:
    """Name of the forward argument that takes the keys and values of earlier columns: transformers 5.24 renames
    past_key_values to cache, and 5.40 knows the new name alone."""
    taken = inspect.signature(model.forward).parameters  # of what decorators wrap: they say so in __wrapped__
    return "cache" if "cache" in taken else "past_key_values"


def _as_long(values: Tensor, columns: int) -> Tensor:
    """[batch, columns]: cut, or filled with zeros."""
    return nn.functional.pad(values, (0, max(0, columns - values.shape[1])))[:, :columns]
