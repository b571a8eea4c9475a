"""Is a model whole? What transformers would make of its files -> one sentence about the first tensor that is missing,
unknown or of another shape, before a weight is read and again as the weights were.

The rules are transformers' own, both times: names that it converts, prefixes that it adds, buffers that it leaves out.
Before loading it is given tensors without values, by the headers of the files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import safetensors
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tunediff.models.files import Header, PairError, said

# what a tensor's name has in front where a wrapper was saved in place of the model in it, and whose it is
WRAPPERS = {
    "module.": "DistributedDataParallel or DeepSpeed",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "PEFT",
}
QUANTISED = re.compile(r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|weight_scale(_inv)?|weight_packed)$")
NUMBERS = ("F64", "F32", "F16", "BF16")  # types that a weight may be stored in
ROWS = 4096  # of two tensors that are compared, at once
NOT_ONE = "Its config.json and its files are not of one model: take both from one save or download."


class Found(NamedTuple):
    """The verdict of transformers on files against an architecture: names in the model's spelling, and for misshapen tensors
    the shape in the files and the one asked for. `broken`: why its tensors could not be put together."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    broken: str | None = None


def skeleton(config: transformers.PretrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device: shapes without weights."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def found_by(info: Mapping[str, Any]) -> Found:
    """The verdict in what `from_pretrained(output_loading_info=True)` gives, in the order of layers."""
    misshapen = [(name, tuple(there), tuple(asked)) for name, there, asked in info["mismatched_keys"]]
    return Found(
        sorted(info["missing_keys"], key=_natural),
        sorted(info["unexpected_keys"], key=_natural),
        sorted(misshapen, key=lambda one: _natural(one[0])),
    )


def foreseen(empty: PreTrainedModel, headers: Mapping[str, Header]) -> Found:
    """The verdict before loading, from the headers alone: transformers loads tensors without values into a model without
    memory."""
    tensors = {name: torch.empty(header.shape, device="meta") for name, header in headers.items()}
    with silent():
        try:
            made: Any = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=tensors,
                device_map={"": "meta"},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
            )
        except Exception as error:  # of a conversion, such as of experts that are one tensor in the model
            return Found([], [], [], said(error))
    return found_by(made[1])


@contextmanager
def silent() -> Iterator[None]:
    """Context in which transformers reports nothing: what it found is looked at here."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def check_whole(of: str, empty: PreTrainedModel, found: Found, headers: Mapping[str, Header]) -> None:
    """Raises PairError for what is quantised, missing, unknown or of another shape; `of` is what the user named."""
    _check_numbers(of, empty, headers)
    if found.broken is not None or found.missing or found.unexpected:
        _check_names(of, headers)
    if found.broken is not None:
        lone = _odd_one(headers)
        raise PairError(f"{of} {lone}. {NOT_ONE}" if lone else f"{of}: {found.broken}. {NOT_ONE}")
    _check_depth(of, empty, found)
    _check_head(of, empty, found)
    if found.missing:
        raise PairError(f"{of} has no {_first(found.missing)}: its files are not whole. {NOT_ONE}")
    if found.unexpected:
        raise PairError(
            f"{of} has an unknown tensor {_first(found.unexpected)}, for which {type(empty).__name__} has no place: what it computes would not be "
            f"what was saved. {NOT_ONE}"
        )
    if found.misshapen:
        name, there, asked = found.misshapen[0]
        raise PairError(f"{of} has {name} of shape {list(there)}, and its config.json says {list(asked)}. {NOT_ONE}")


def check_layers(of: str, settings: Mapping[str, Any], headers: Mapping[str, Header]) -> None:
    """Raises PairError where a config.json that transformers does not read, for it lists more or fewer layer_types than it
    says layers, contradicts the files on the number of layers."""
    one_length = _of_one_length(settings)
    if one_length is None or not headers:
        return
    try:
        empty = skeleton(transformers.CONFIG_MAPPING[settings["model_type"]].from_dict(one_length))
    except Exception:  # it is not the number of layers, or not that alone
        return
    _check_depth(of, empty, foreseen(empty, headers))


def _of_one_length(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """A config.json that lists more or fewer layer_types than it says layers, with a list of as many; None of any other."""
    nested = settings.get("text_config")
    if isinstance(nested, Mapping) and (inner := _of_one_length(nested)) is not None:
        return {**settings, "text_config": inner}
    depth, kinds = settings.get("num_hidden_layers"), settings.get("layer_types")
    if not isinstance(depth, int) or not isinstance(kinds, list) or not kinds or depth == len(kinds):
        return None
    return {**settings, "layer_types": [*kinds[: max(depth, 0)], *kinds[-1:] * (depth - len(kinds))]}


def _check_numbers(of: str, empty: PreTrainedModel, headers: Mapping[str, Header]) -> None:
    """Raises PairError for weights that are stored as something else than their values. Buffers may be: masks, counts."""
    kept = {
        name for name, value in (*empty.named_parameters(), *empty.named_buffers()) if not value.is_floating_point()
    }
    kept |= {name.removeprefix(f"{empty.base_model_prefix}.") for name in kept}
    left_out = empty._keys_to_ignore_on_load_unexpected or ()
    for name in sorted(headers, key=_natural):
        dtype = headers[name].dtype
        known = name in kept or any(re.search(pattern, name) for pattern in left_out)
        if QUANTISED.search(name) or (dtype not in NUMBERS and not known):
            raise PairError(f"{of} is quantised: it has {name}, stored as {dtype}. {unquantised(of)}")


def unquantised(of: str) -> str:
    """The way out for a quantised model."""
    return (
        f"Its rounded weights would be taken for what fine-tuning changed, so name the model that {of} was quantised from, in "
        "bfloat16."
    )


def check_tie(of: str, empty: PreTrainedModel, headers: Mapping[str, Header], dtype: torch.dtype) -> None:
    """Raises PairError where two tensors that config.json says are one are both in the files, and differ in the numbers
    that they are read as."""
    for name, source in empty.get_expanded_tied_weights_keys(all_submodels=True).items():
        here, there = _spelled(name, empty, headers), _spelled(source, empty, headers)
        if here is not None and there is not None and not _equal(of, here, there, headers, dtype):
            raise PairError(contradiction(of, name, source))


def contradiction(of: str, name: str, source: str) -> str:
    """The sentence about two tensors that ought to be one."""
    return (
        f"{of} has a {name} that differs from its {source}, and its config.json says that they are one (tie_word_embeddings): "
        "set it to false there if both were trained, or save the model again without the copy."
    )


def check_tied(of: str, empty: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raises PairError where a model that was loaded has two tensors in place of one."""
    for name, source in empty.get_expanded_tied_weights_keys(all_submodels=True).items():
        if model.get_parameter(name) is not model.get_parameter(source):
            raise PairError(contradiction(of, name, source))


def _check_names(of: str, headers: Mapping[str, Header]) -> None:
    """Raises PairError for the names of a wrapper or of a quantised model."""
    for name in sorted(headers, key=_natural):
        for prefix, whose in WRAPPERS.items():
            if name.startswith(prefix) or (prefix.startswith("_") and prefix in name):
                raise PairError(
                    f"{of} has {name}: the prefix {prefix} comes from {whose}, whose wrapper was saved in place of the model in "
                    "it. Save the model inside, or rename its tensors without the prefix."
                )


def _check_depth(of: str, empty: PreTrainedModel, found: Found) -> None:
    """Raises PairError where config.json and the files disagree on the number of layers."""
    config, missing = empty.config.get_text_config(), set(found.missing)
    depth, setting = config.num_hidden_layers, config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    says = f"{of}: config.json says {setting}={depth}, and the files hold"
    stacks: dict[str, dict[int, bool]] = {}  # of each numbered row of modules, which have a tensor in the files
    for name in empty.state_dict():
        stack, number = _layer(name)
        layers = stacks.setdefault(stack, {})
        layers[number] = layers.get(number, False) or name not in missing
    if depth < 1:
        stacks = {stack: {} for stack, number in map(_layer, found.unexpected) if number >= 0}
    for stack, layers in stacks.items():
        if len(layers) != max(depth, 0):
            continue
        here = [number for number, any_of_it in layers.items() if any_of_it]
        if here and len(here) < depth and here == list(range(len(here))):
            first = next(name for name in found.missing if _layer(name) == (stack, len(here)))
            raise PairError(f"{says} {len(here)} layers: there is no {first}. {NOT_ONE}")
        # a file may leave out the prefix of the base model
        more = [name for name in found.unexpected if f".{stack}".endswith(f".{_layer(name)[0]}")]
        more = [name for name in more if _layer(name)[1] >= depth]
        if more:
            raise PairError(f"{says} {_layer(more[-1])[1] + 1} layers: there is {more[0]}. {NOT_ONE}")


def _check_head(of: str, empty: PreTrainedModel, found: Found) -> None:
    """Raises PairError for a head that is neither in the files nor the embeddings again."""
    head = next((name for name in found.missing if name in (empty._tied_weights_keys or {})), None)
    if head is not None and found.missing == [head]:
        raise PairError(
            f"{of} has no {head}, and its config.json says tie_word_embeddings=false: set it to true there if the model writes "
            "with its embeddings, or take files that were saved with the head."
        )


def _layer(name: str) -> tuple[str, int]:
    """The row of modules that a tensor stands in and its number there: `model.layers` and 3; -1 of one in none."""
    parts = re.match(r"(.*?)\.(\d+)\.", name)
    return (parts[1], int(parts[2])) if parts else (name, -1)


def _odd_one(headers: Mapping[str, Header]) -> str | None:
    """Words about the first tensor of a numbered row of modules, such as experts, that is not as its siblings."""
    rows: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    numbers: dict[str, set[str]] = {}
    for name, header in headers.items():
        if parts := re.match(r"(.*)\.(\d+)\.(.*)", name):
            row, number, rest = parts.groups()
            rows.setdefault((row, rest), {})[number] = header.shape
            numbers.setdefault(row, set()).add(number)
    odd = {}
    for (row, rest), shapes in rows.items():
        usual = Counter(shapes.values()).most_common(1)[0][0]
        for number in numbers[row]:
            name, shape = f"{row}.{number}.{rest}", shapes.get(number)
            if shape is None:
                odd[name] = f"has no {name}, as its siblings are there"
            elif shape != usual:
                odd[name] = f"has {name} of shape {list(shape)}, and its siblings are {list(usual)}"
    return odd[min(odd, key=_natural)] if odd else None


def _spelled(name: str, empty: PreTrainedModel, headers: Mapping[str, Header]) -> str | None:
    """A tensor's name in the files, with the prefix of the base model or without; None where it is not there."""
    short = name.removeprefix(f"{empty.base_model_prefix}.")
    return next((one for one in (name, short) if one in headers), None)


def _equal(of: str, here: str, there: str, headers: Mapping[str, Header], dtype: torch.dtype) -> bool:
    """Compares two tensors of the files a few rows at a time. Raises PairError where one holds NaN, equal to nothing."""
    if headers[here].shape != headers[there].shape:
        return False
    with (
        safetensors.safe_open(headers[here].file, framework="pt") as first,
        safetensors.safe_open(headers[there].file, framework="pt") as second,
    ):
        one, other = first.get_slice(here), second.get_slice(there)

        def rows(name: str, content: Any, start: int) -> Tensor:
            found = content[start : start + ROWS].to(dtype)
            if found.isnan().any():
                raise PairError(
                    f"{of} has NaN in {name}: its training or its saving failed, so take an earlier save of it."
                )
            return found

        return all(
            torch.equal(rows(here, one, start), rows(there, other, start))
            for start in range(0, headers[here].shape[0], ROWS)
        )


def _natural(name: str) -> list[Any]:
    """A key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _first(names: Sequence[str] | Iterable[str]) -> str:
    names = list(names)
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
