"""A composed config -> checked settings, and the objects that they describe, before any model is loaded.

Hydra does not look into the arguments of a `_target_`, and lets `+key=value` through.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import hydra
import hydra.errors
import pydantic
import pydantic_core
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from tunediff import hub
from tunediff.claims import claims_in
from tunediff.shapes import Refused, flat, path_in
from tunediff.trusted import (
    check_target,
    check_trust,
    targets_in,
    variables_of,
)

NESTED = "budget model_pair text dictionary l1_schedule optimizer activations trainer launcher evaluation task direction logger model recipe".split()
# of Lightning's, those that change neither what is learned nor for how long
TRAINER = "_target_ accelerator devices num_nodes strategy precision deterministic benchmark".split()
LEARNING = ("dictionary", "l1_schedule", "optimizer", "activations")  # what a dictionary is trained with: all or none
SEVERAL = ("evaluation", "task", "logger")  # groups of which a study may choose several options
COUNT = Annotated[int, pydantic.Field(gt=0, strict=True)]  # 12, and not 12.0: one number, one way to write it
# of held-out tokens, which are kept in memory: a text of that size is no sample any more, and a toy one never ends
HELD_OUT = Annotated[int, pydantic.Field(gt=0, le=10**9, strict=True)]
POSITIVE = pydantic.Field(gt=0, allow_inf_nan=False)
SHARE = Annotated[float, pydantic.Field(ge=0, lt=1)]
ABSENT = object()
# settings that no class of their own takes
NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("optimizer.batch", "activations.fit_tokens"), COUNT),
    **dict.fromkeys(("budget.evaluation_tokens", "evaluation_tokens"), HELD_OUT),
    **dict.fromkeys(("budget.tokens", "activations.buffer"), Annotated[int, pydantic.Field(ge=0, strict=True)]),
    **dict.fromkeys(("optimizer.learning_rate", "logits_mb"), Annotated[float, POSITIVE]),
    "checkpoint_every": Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)],  # 0: at every step
    "optimizer.betas": tuple[SHARE, SHARE],
    "optimizer.clip_norm": Annotated[float | None, POSITIVE],
    **dict.fromkeys(
        ("seed", "text.seed", "dictionary.seed"), Annotated[int, pydantic.Field(ge=0, lt=2**63, strict=True)]
    ),
    **dict.fromkeys(("trainer.devices", "trainer.num_nodes"), COUNT),
    "tokens": typing.Optional[HELD_OUT],  # noqa: UP045
    **dict.fromkeys(("dry_run", "launcher.pack"), pydantic.StrictBool),
    "optimized_metric": pydantic.StrictStr,
    "commits": dict[str, Annotated[str, pydantic.Field(pattern=f"^{hub.COMMIT.pattern}$")]] | None,
    **dict.fromkeys(("launcher.device", "device"), typing.Literal["h200", "h100", "a100", "cpu"] | None),
    **dict.fromkeys(("launcher.memory_gb", "memory_gb"), Annotated[float | None, POSITIVE]),
}


def not_set(key: str, words: str) -> str:
    return f"{key} is not set: give it on the command line, {words}."


def nearest(word: str, legal: typing.Iterable[str], kind: str) -> str:
    legal = sorted((key for key in legal if not key.endswith("_")), key=lambda key: (key.count("."), key))
    last, ends = word.rpartition(".")[2], {key: key.rpartition(".")[2] for key in legal}
    close = [key for key in legal if ends[key] == last] or difflib.get_close_matches(word, legal, n=1)
    if not close:
        near = difflib.get_close_matches(last, ends.values(), n=1)
        close = [key for key in legal if ends[key] in near]
    if close:
        return f"Did you mean {close[0]}?"
    return f"The {kind} are {', '.join(key for key in legal if '.' not in key)}."


def check(cfg: DictConfig, legal: Sequence[str]) -> None:
    """Raises Refused for an unknown top-level key, a _target_ that may not be built, an argument it does not take, a value of
    the wrong type or out of range, or a value that was left open (???); what stands in an environment variable is named by
    it."""
    try:
        _check(cfg, legal)
    except Refused as refusal:
        said = str(refusal)
        for word in variables_of(cfg):
            held = os.environ.get(word.removeprefix("env:"), "")
            said = said.replace(held, f"<{word}>") if len(held) > 3 else said
        raise Refused(said) from None


def _check(cfg: DictConfig, legal: Sequence[str]) -> None:
    for key in cfg:
        if key not in legal and key != "hydra":
            raise Refused(f"{key} is not a setting here. {nearest(str(key), legal, 'settings')}")
    trust = check_trust(plain(cfg.get("trust")))
    given = cfg.get("dictionary") or {}
    if given and not OmegaConf.is_dict(given):
        raise Refused(f"dictionary={given!s:.60} is one value, where settings by name belong: choose an option of it.")
    for key in READ_BY_STUDY["dictionary"] if cfg.get("optimizer") else ():  # it is to be trained
        if key not in given and not key.startswith("start"):
            raise Refused(
                f"dictionary.{key} is not set. The study reads it beside the settings of {given.get('_target_')}: "
                "see conf/dictionary/defaults/crosscoder.yaml."
            )
    try:
        settings: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise Refused(not_set(str(error.full_key), f"{error.full_key}=<...>")) from error
    except OmegaConfBaseException as error:
        raise unset(error) or Refused(f"{error.full_key or 'The config'}: {str(error).splitlines()[0]}") from error
    if isinstance(trainer := settings.get("trainer"), dict) and "_target_" not in trainer:
        raise Refused("trainer._target_ is not set: choose an option of trainer, such as trainer=auto.")
    for key in trainer or ():
        if key not in TRAINER:
            near = difflib.get_close_matches(key, TRAINER, n=1)
            way = (
                f"Did you mean trainer.{near[0]}?"
                if near
                else f"A study's has {', '.join(TRAINER[1:])}; budget says how long it is."
            )
            raise Refused(f"trainer.{key} is not a setting of lightning.Trainer. {way}")
    if not isinstance((settings.get("dictionary") or {}).get("hookpoint", {}), dict):
        raise Refused("dictionary.hookpoint is one value, where settings by name belong: choose an option of it.")
    for key in NESTED:
        if (value := settings.get(key, {})) is not None or key not in SEVERAL:
            refuse_one_value(key, value)
    values = flat(settings)
    for key, kind in NUMBERS.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)  # settings by name stand where one belongs, or not
        if value is not ABSENT:
            try:
                pydantic.TypeAdapter(kind).validate_python(plain(value))
            except pydantic.ValidationError as error:
                raise Refused(f"{key}={value}: {error.errors()[0]['msg'].lower()}.") from error
    for key, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            raise Refused(f"{key}=nan is no number.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise Refused(f"{key}={value} is larger than any number that is counted with.")
        if isinstance(value, str) and "${" in value:  # an object is described once more before it is built
            raise Refused(
                f"{key}={value:.80} holds a reference within what another one stands for: name the value itself."
            )
    claims_in(settings.get("claims"))
    if "sweep" in cfg:
        path_in(Path("multirun"), str(cfg.sweep), "sweep=")
    for node, path in targets_in(settings):
        _check_settings(node, path, check_target(node, path, trust))


def refuse_one_value(key: str, value: Any) -> None:
    if not isinstance(value, dict):
        ways = {"budget": "give one of them, budget.tokens=...", "launcher": "where a sweep runs is hydra/launcher=..."}
        way = ways.get(key, f"choose an option of {key}")
        said = "null" if value is None else f"{value!s:.60}"
        raise Refused(f"{key}={said} is one value, where settings by name belong: {way}.")


# keys of a dictionary option that are read by the study rather than by the dictionary's class
READ_BY_STUDY = {"dictionary": ("hookpoint", "objective", "reads", "l1_schedule", "start", "start_revision")}


def _check_settings(node: Mapping[str, Any], path: str, target: Any) -> None:
    name = node["_target_"]
    parameters = inspect.signature(target).parameters
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # a foreign class whose annotations name what only its type checker imports
        hints = {}
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        if key.startswith("_") or key in READ_BY_STUDY.get(path, ()):
            continue
        if key not in parameters and not free:
            where = f"{path}." if path else ""
            raise Refused(
                f"{where}{key} is not a setting of {name}. "
                + nearest(f"{where}{key}", [f"{where}{p}" for p in parameters if p != "self"], "settings")
            )
        _check_value(f"{path}.{key}", value, hints.get(key, Any))
    asked = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    called_later = node.get("_partial_") and path.rpartition(".")[2] != "rows"  # which are called as they are
    missing = [] if called_later else [key for key in asked if key not in node]
    if missing:
        raise Refused(
            f"{path}.{missing[0]} is not set, and {name} asks for it: add {missing[0]}: <...> to its settings."
        )


def _check_value(path: str, value: Any, hint: Any) -> None:
    if _describes_objects(value):  # checked as what they are
        return
    if isinstance(value, Mapping) and not _takes_mappings(hint):
        raise Refused(f"{path} names no class: {path}._target_=<a class>, and its settings beside it.")
    parts = typing.get_args(hint) or (hint,)
    if isinstance(value, float) and value.is_integer() and int in parts and float not in parts:
        raise Refused(f"{path}={value} is not of type {_spelled(hint)}: write {int(value)}.")
    if isinstance(value, str) and all(part in (int, float, bool, type(None)) for part in parts):
        raise Refused(f"{path}={value!r} is not of type {_spelled(hint)}.")
    try:
        pydantic.TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except pydantic.ValidationError as error:
        if typing.get_origin(hint) is typing.Literal:
            raise Refused(f"{path}={value!r}: choose {', '.join(map(str, typing.get_args(hint)))}.") from error
        raise Refused(
            f"{path}={value!r} is not of type {_spelled(hint)}: {error.errors()[0]['msg'].lower()}."
        ) from error
    except pydantic.PydanticUserError:  # a type that cannot be checked by value, such as a module
        if isinstance(hint, type) and isinstance(value, int | float | str | None):
            said = "null" if value is None else repr(value)
            raise Refused(
                f"{path}={said}: a {_spelled(hint)} belongs there, and no single value. Leave {path} to its option, or "
                f"change one of its settings, {path}.<setting>=..."
            ) from None
    except pydantic_core.SchemaError as error:  # a protocol: only an object of some class can have it
        if value is None and type(None) in typing.get_args(hint):
            return
        raise Refused(
            f"{path}={value!r} is no {_spelled(hint)}: name its class, {path}._target_=..., and its settings with +{path}.<setting>=..."
        ) from error


# of the top-level keys that a verb reads, those that a config may lack
MAY_LACK = {"commits", "task", "claims", *LEARNING}


def refuse_unset(cfg: DictConfig, legal: Sequence[str]) -> None:
    """Raises Refused for a key that the verb reads, of those that are `legal`, and that was taken out."""
    for key in legal:
        if key not in cfg and key not in MAY_LACK:
            raise Refused(_unset(key))


def _unset(key: str) -> str:
    option = key.partition(".")[0]
    way = f"choose an option of {option} that has it, or add +{key}=<...>" if "." in key else f"give {key}=<...>"
    return f"{key} is not set, and this study reads it: {way}."


def unset(error: BaseException) -> Refused | None:
    """The refusal for a setting that is read and was not there, as behind ~optimizer.batch or an option that has none; None
    for another error."""
    if isinstance(error, InterpolationKeyError) and (found := re.search(r"key '(.+)' not found", str(error))):
        return Refused(_unset(found[1]))
    if not isinstance(error, ConfigAttributeError | ConfigKeyError) or "is not in struct" not in str(error):
        return None
    return Refused(_unset(str(error.full_key)))


def _describes_objects(value: Any) -> bool:
    """True for a value that describes an object, or a list or mapping of objects."""
    if isinstance(value, Mapping):
        return "_target_" in value or (bool(value) and all(map(_describes_objects, value.values())))
    return isinstance(value, list) and bool(value) and all(map(_describes_objects, value))


def _takes_mappings(hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(map(_takes_mappings, typing.get_args(hint)))
    kind = typing.get_origin(hint) or hint
    return kind in (Any, object) or not isinstance(kind, type) or issubclass(kind, Mapping)


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("NoneType", "null")


def build(node: Any, **extra: Any) -> Any:
    """The object that a checked node describes. A refusal inside comes out as it was written. Raises Refused for one value
    where an object belongs."""
    if node is not None and not isinstance(node, Mapping) and not OmegaConf.is_dict(node):
        raise Refused(
            f"{node!s:.60} stands where an object is described, by its class and its settings: {{_target_: ...}}."
        )
    if node is not None and "_target_" not in node:
        raise Refused(f"The settings {', '.join(map(str, node))} name no class: _target_=<a class> beside them.")
    try:
        return hydra.utils.instantiate(node, _convert_="all", **extra)
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, Refused):
            raise error.__cause__ from None
        raise


def plain(node: Any) -> Any:
    """A config node as Python's own lists and dictionaries, resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
