"""A Hub id, a local folder or shipped weights -> its files, and what can be read in them without a weight: the JSON, and
of safetensors the header with each tensor's name, shape and type of numbers.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub

from tunediff.shapes import Refused

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
POINTER = b"version https://git-lfs"  # how a file of a few lines begins that Git leaves in place of a large one
OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")  # files of weights that are not read


class PairError(Refused):
    """A pair of models that cannot be used as asked; the message says why and what to do."""


class Header(NamedTuple):
    """A tensor as the header of its file has it; `dtype` is one of safetensors' names, such as BF16."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def located(path: str) -> str:
    """A Hub id or folder as it stands; pkg://package/folder as the folder of an installed package."""
    if not path.startswith("pkg://"):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    package, _, folder = path.removeprefix("pkg://").partition("/")
    return str(importlib.resources.files(package) / folder)


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
    with open(file, "rb") as content:
        if content.read(len(POINTER)) == POINTER:
            raise PairError(
                f"{of}: {file.name} is a pointer of git-LFS, not the file itself. Run `git lfs pull` in the folder, or download "
                "it with `hf download`."
            )
    return file


def json_in(file: Path, of: str) -> dict[str, Any]:
    """The mapping in a JSON file. Raises PairError for anything else."""
    try:
        content = json.loads(whole_file(file, of).read_text(encoding="utf-8"))
    except ValueError as error:
        raise PairError(f"{of}: {file.name} is not JSON ({error}): download or save it again.") from error
    if not isinstance(content, dict):
        raise PairError(f"{of}: {file.name} holds a {type(content).__name__} where settings belong: download it again.")
    return content


def headers_in(file: Path, of: str) -> dict[str, Header]:
    """The tensors of a safetensors file by name; its header alone is read, so that no memory is asked for the rest. Raises
    PairError for a file that is not whole."""
    size = file.stat().st_size
    with open(whole_file(file, of), "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            found = json.loads(content.read(length)) if length <= size else {}
            found.pop("__metadata__", None)
            end = max((one["data_offsets"][1] for one in found.values()), default=0)
            headers = {name: Header(tuple(one["shape"]), one["dtype"], file) for name, one in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            headers, end = {}, 0
    if not headers or size != 8 + length + end:
        raise PairError(f"{of}: {file.name} ({size:,} bytes) is cut off, or no safetensors: download or save it again.")
    return headers


def weight_files(folder: Path, of: str, config: Mapping[str, Any], *, cached: bool = False) -> list[Path]:
    """The safetensors of a model in a folder. In a folder of the Hub's cache, `cached`, files may be missing that have
    not been brought yet: then none. Raises PairError where they are missing for good."""
    first = config.get("transformers_weights") or next((n for n in (WEIGHTS, INDEX) if (folder / n).is_file()), None)
    if first is None:
        unknown = folder.parent.parent / ".no_exist" / folder.name  # where the cache keeps what the Hub does not have
        if cached and not all((unknown / name).exists() for name in (WEIGHTS, INDEX)):
            return []
        raise PairError(_why_none(folder, of))
    if not str(first).endswith(".json"):
        return [folder / first]
    try:
        shards = sorted(set(json_in(folder / first, of)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise PairError(
            f"{of}: {first} has no weight_map that names the files of its tensors: save it again."
        ) from error
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing and not cached:
        raise PairError(
            f"{of} has no {missing[0]}, which {first} names, {len(missing)} of {len(shards)} files missing: download it again, "
            f"`hf download <its id> {missing[0]} --local-dir <folder>`."
        )
    return [] if missing else [folder / name for name in shards]


def _why_none(folder: Path, of: str) -> str:
    found = [file for kind in OTHERS for file in sorted(folder.glob(kind)) if file.name != "training_args.bin"]
    if found:
        return (
            f"{of} has its weights as {found[0].name} alone, and only safetensors are read: load it once with transformers where "
            "you trust its files, save it with save_pretrained(<folder>), and name that folder."
        )
    if found := sorted(folder.glob("*.safetensors")):
        return f"{of} has no {WEIGHTS} and no {INDEX}: transformers does not read {found[0].name}, which is there."
    return f"{of} has no weights: neither {WEIGHTS} nor {INDEX} is there. Download or save the model again."
