"""A Hub id, a local folder or shipped weights -> its files, and what can be read in them without a weight: the JSON, and
of safetensors the header with each tensor's name, shape and type of numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import tokenizers
import transformers

from tunediff.shapes import Refused, is_file_name
from tunediff.text.rows import POINTED, is_pointer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
GENERATION = "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
OTHERS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.bin.index.json",
)  # weights that are not read
# what generation_config.json may say of each setting that is followed; null stands for nothing said
LEGAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "do_sample": ("true or false", lambda x: isinstance(x, bool)),
    "temperature": ("a number of 0 or more", lambda x: _number(x) and x >= 0),
    "top_k": ("a whole number", lambda x: _whole(x)),
    "top_p": ("a number above 0 and at most 1", lambda x: _number(x) and 0 < x <= 1),
    "min_p": ("a number from 0 to 1", lambda x: _number(x) and 0 <= x <= 1),
    "repetition_penalty": ("a number above 0", lambda x: _number(x) and x > 0),
    "eos_token_id": ("a token id or a list of them", lambda x: all(map(_whole, x if isinstance(x, list) else [x]))),
}


class PairError(Refused):
    """A pair of models that cannot be used as asked; the message says why and what to do."""


class Header(NamedTuple):
    """A tensor as the header of its file has it; `dtype` is one of safetensors' names, such as BF16."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def from_hub(what: str, place: str, name: str, revision: str | None) -> Path:
    """One file of what stands on the Hub. Raises PairError where the Hub does not give it."""
    try:
        return Path(huggingface_hub.hf_hub_download(place, name, revision=revision))
    except (ValueError, OSError) as error:
        raise PairError(
            f"Cannot load the {what} '{place}'{f' at {revision}' if revision else ''}: it is no local folder with {name}, and "
            "the Hub did not give it (no network, no such id or revision, or no permission). Download it where there is a "
            "network and name the folder."
        ) from error


def commit_of(file: Path) -> str | None:
    """The commit of a file in the Hub's cache; None for any other."""
    return file.parent.name if file.parent.parent.name == "snapshots" else None


def whole_file(file: Path, of: str) -> Path:
    """The file itself. Raises PairError where Git left a pointer in its place; `of` is what the user named."""
    if is_pointer(file):
        raise PairError(f"{of}: {file.name} {POINTED}")
    return file


def json_in(file: Path, of: str) -> dict[str, Any]:
    """The mapping in a JSON file. Raises PairError for anything else."""
    text = whole_file(file, of)
    try:
        content = json.loads(text.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PairError(f"{of}: {file.name} is not JSON ({error}): download or save it again.") from error
    if not isinstance(content, dict):
        raise PairError(f"{of}: {file.name} holds a {type(content).__name__} where settings belong: download it again.")
    return content


def said(error: Exception) -> str:
    """The words of an error that is another library's, in one line: its first, and what follows while a colon ends it."""
    words: list[str] = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        words.append(line)
        if not line.endswith(":"):
            break
    text = " ".join(words).rstrip(".")
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) or not text else text


def generation_in(folder: Path, of: str) -> dict[str, Any]:
    """The settings that generation_config.json names; none where it is not there. Raises PairError for one that says what no
    model can be decoded by."""
    if not (folder / GENERATION).is_file():
        return {}
    named = json_in(folder / GENERATION, of)
    for name, (legal, holds) in LEGAL.items():
        value = named.get(name)
        if value is not None and not holds(value):
            raise PairError(
                f"{of}: its {GENERATION} says {name}={json.dumps(value)}, which must be {legal}: correct it there, or download "
                "the file again."
            )
    try:
        return transformers.GenerationConfig.from_dict(named).to_diff_dict()
    except Exception as error:  # of any class: settings that are not looked at here
        raise PairError(
            f"{of}: transformers cannot read its {GENERATION}: {said(error)}. Correct it there, or download the file again."
        ) from error


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_tokenizer(folder: Path, of: str) -> None:
    """Raises PairError for files of a tokenizer that are no JSON, as far as they are here."""
    for name in (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            json_in(folder / name, of)


def unread_tokenizer(folder: Path, of: str, error: Exception) -> PairError:
    """The sentence about a tokenizer that transformers cannot read, with the file that is to blame."""
    name = TOKENIZER_CONFIG
    if (folder / TOKENIZER).is_file():
        try:
            tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as wrong:  # the library raises the class itself
            name, error = TOKENIZER, wrong
    return PairError(
        f"{of}: transformers cannot read its {name}: {said(error)}. Download the tokenizer again, or take the one of the model "
        "that this was made from."
    )


# bits of a number, by safetensors' names
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "BOOL": 8}
BITS |= dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16) | dict.fromkeys(("U32", "I32", "F32"), 32)
BITS |= dict.fromkeys(("U64", "I64", "F64"), 64)
LONGEST_HEADER = 100_000_000  # bytes; safetensors itself reads no longer one


def headers_in(file: Path, of: str) -> dict[str, Header]:
    """The tensors of a safetensors file by name; its header alone is read, so that no memory is asked for the rest. Raises
    PairError for a file that is not whole, and for a header that does not tell the truth about it."""
    size = file.stat().st_size
    with open(whole_file(file, of), "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        text = content.read(length) if 0 < length <= min(size - 8, LONGEST_HEADER) else b""
    try:
        found = dict(json.loads(text, object_pairs_hook=_once))
        about = found.pop("__metadata__", None)
        if not isinstance(about, dict | None) or not all(isinstance(word, str) for word in (about or {}).values()):
            raise TypeError
        end = max((one["data_offsets"][1] for one in found.values()), default=-size)
        whole = size == 8 + length + end
    except _Twice as twice:
        raise _lies(file, of, f"it has {twice} twice") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise PairError(f"{of}: {file.name} ({size:,} bytes) is cut off, or no safetensors: download or save it again.")
    try:
        headers = {name: _header(name, one, file) for name, one in found.items()}
        spans = sorted((*one["data_offsets"], name) for name, one in found.items())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _lies(file, of, str(error)) from error
    before = 0
    for first, last, name in spans:
        if first != before:
            raise _lies(file, of, f"{name!r:.80} begins at byte {first:,}, and what is before it ends at {before:,}")
        before = last
    return headers


def _header(name: str, one: Mapping[str, Any], file: Path) -> Header:
    """Raises ValueError for a tensor that cannot be what it says."""
    shape, dtype, (first, last) = one["shape"], one["dtype"], one["data_offsets"]
    if (
        not isinstance(shape, list)
        or not all(_whole(number) and number >= 0 for number in (*shape, first, last))
        or last < first
    ):
        raise ValueError(f"{name!r:.80} has no shape or no place: {str(one):.120}")
    if dtype not in BITS:
        raise ValueError(f"{name!r:.80} is of the type {dtype!r:.40}, which safetensors does not have")
    if math.prod(shape) * BITS[dtype] != 8 * (last - first):
        raise ValueError(
            f"{name!r:.80} of the shape {str(shape):.80} in {dtype} does not fill its {last - first:,} bytes"
        )
    return Header(tuple(shape), dtype, file)


class _Twice(Exception):
    """A name that a header has more than once; readers choose one of the two."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{next(name for name in names if names.count(name) > 1)!r:.80}")
    return made


def _lies(file: Path, of: str, why: str) -> PairError:
    return PairError(f"{of}: the header of {file.name} does not tell what is in it: {why}. Download or save it again.")


def weight_files(folder: Path, of: str, config: Mapping[str, Any], *, cached: bool = False) -> list[Path]:
    """The safetensors of a model in a folder. In a folder of the Hub's cache, `cached`, files may be missing that have
    not been brought yet: then none. Raises PairError where they are missing for good."""
    first = config.get("transformers_weights") or next((n for n in (WEIGHTS, INDEX) if (folder / n).is_file()), None)
    if first is None:
        unknown = folder.parent.parent / ".no_exist" / folder.name  # where the cache keeps what the Hub does not have
        if cached and not all((unknown / name).exists() for name in (WEIGHTS, INDEX)):
            return []
        raise PairError(_why_none(folder, of))
    first = beside(str(first), of)
    if not (folder / first).is_file():
        if cached:
            return []
        raise PairError(f"{of} has no {first}, which its {CONFIG} names as transformers_weights: download it again.")
    if not first.endswith(".json"):
        return [folder / first]
    index = json_in(folder / first, of)
    named = index.get("weight_map")
    files = list(named.values()) if isinstance(named, dict) else []
    if not files or not all(isinstance(name, str) for name in files):
        raise PairError(f"{of}: {first} has no weight_map that names the files of its tensors: save it again.")
    if not isinstance(index.get("metadata"), dict):
        raise PairError(
            f"{of}: {first} has no metadata, which transformers reads beside its weight_map: save it again."
        )
    shards = sorted({beside(file, of) for file in files})
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing and not cached:
        raise PairError(
            f"{of} has no {missing[0]}, which {first} names, {len(missing)} of {len(shards)} files missing: download it again, "
            f"`hf download <its id> {missing[0]} --local-dir <folder>`."
        )
    return [] if missing else [folder / name for name in shards]


def beside(name: str, of: str) -> str:
    """The name of a file of weights, which lies beside the file that names it. Raises PairError for one that would be
    elsewhere."""
    if not is_file_name(name):
        raise PairError(
            f"{of}: its files name {name!r:.120} as weights, which is no file of that folder: download it again."
        )
    return name


def _why_none(folder: Path, of: str) -> str:
    found = [file for kind in OTHERS for file in sorted(folder.glob(kind)) if file.name != "training_args.bin"]
    if found:
        name = found[0].name
        return (
            f"{of} has its weights as {f'the .bin files of {name}' if name.endswith('.json') else name} alone, and only safetensors are read: load it once with transformers where "
            "you trust its files, save it with save_pretrained(<folder>), and name that folder."
        )
    if found := sorted(folder.glob("*.safetensors")):
        return f"{of} has no {WEIGHTS} and no {INDEX}: transformers does not read {found[0].name}, which is there."
    return f"{of} has no weights: neither {WEIGHTS} nor {INDEX} is there. Download or save the model again."
