"""The identity of a study: a digest of all that can change a number, of the files that it reads and of its commits on the Hub;
and the folder that stands for it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunediff import files, hub
from tunediff.settings.checked import plain
from tunediff.trusted import (
    VARIABLES,
    strings_in,
    unresolved,
    variables_of,
    with_references,
)

# what cannot change what a study means; a task or direction counts where an evaluation names it, as ${task}
IMMATERIAL = "logger trainer hydra trust sweep launcher dry_run checkpoint_every device memory_gb logits_mb optimized_metric task direction commits claims".split()


def material(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without what cannot change a number: logger, launcher, device. Paths stay as they were typed, and what
    is on the Hub has its commit for the branch that was typed. The precision of the trainer is kept, and `read` has the digests of
    the files that are read, as files.py takes them."""
    kept = {str(key): unresolved(cfg[key]) for key in cfg if key not in IMMATERIAL}
    read: dict[str, str] = {}
    with contextlib.suppress(OmegaConfBaseException):  # what is not set is said where the config is checked
        meant = {key: plain(cfg[key]) for key in kept}
        read = files.of_settings(meant)
        hub.pin(kept, meant, {}, ask="commits" not in cfg)
    kept.get("activations", {}).pop("folder", None)
    for step in (kept.get("text", {}).get("prepare") or {}).values():
        if isinstance(step, dict):  # that keeps answers somewhere
            step.pop("folder", None)
    for part in ("dictionary", "recipe"):  # which pass it on to their objective
        (kept.get(part, {}).get("objective") or {}).pop("logits_mb", None)
    return {**kept, "precision": str(OmegaConf.select(cfg, "trainer.precision")), "read": read}


def pinned(cfg: DictConfig, known: Mapping[str, Any] | None = None, *, ask: bool = True) -> DictConfig:
    """The config with the commits of what is on the Hub for the branches that were typed, and `commits`, which says what stood
    there: nothing is asked for it any more. Its identity is the same as before. `known` as in hub.pin."""
    made, found = cfg.copy(), dict(plain(cfg.get("commits")) or {})
    settings = {str(key): unresolved(cfg[key]) for key in cfg if key not in IMMATERIAL}
    for key, written in settings.items():
        if commits := hub.pin(written, plain(cfg[key]), known or {}, ask=ask):
            OmegaConf.update(made, key, written, merge=False, force_add=True)
            found |= commits
    if ask:
        hub.refuse_unanswered({str(key): plain(made[key]) for key in made if key not in IMMATERIAL})
    read = {
        value for _, value in strings_in(settings)
    }  # a config that was written names what was typed in its place since
    found = {name: commit for name, commit in found.items() if commit in read}
    OmegaConf.update(made, "commits", found, merge=False, force_add=True)
    return made


def identity(cfg: DictConfig) -> str:
    """A digest of twelve digits of every setting that matters, of the files that are read, and of what environment variables
    hold; any change changes it."""
    return digest([material(cfg), environment(cfg)])


def environment(cfg: DictConfig) -> dict[str, str | None]:
    """Digests of what the environment variables hold that material settings read, but for those that name a place alone. They
    stand in no file: a digest of a short secret can be guessed."""
    kept = {key: node for key, node in with_references(cfg).items() if key not in IMMATERIAL}
    names = [word.removeprefix("env:") for word in variables_of(kept)]
    return {name: _slow_digest(os.environ.get(name)) for name in sorted({*names} - {*VARIABLES})}


@functools.cache
def _slow_digest(held: str | None) -> str | None:
    return None if held is None else hashlib.pbkdf2_hmac("sha256", held.encode(), b"tunediff", 100_000).hex()


def stream_key(cfg: DictConfig) -> str:
    """A digest of all that decides which rows the dictionaries of a group are given, and how they are trained together:
    models, text, tokens, batch, buffer, and the trainer with its precision. What is read out of the models is free.
    Studies of a pair alone have neither batch nor buffer, so they share its models among themselves."""
    settings = material(cfg)
    parts = {key: settings.get(key) for key in ("model_pair", "text", "activations")}
    parts["read"] = read_by(settings, parts)
    size = {"tokens": settings["budget"]["tokens"], "batch": OmegaConf.select(cfg, "optimizer.batch")}
    size["environment"] = environment(cfg)
    return digest({**parts, **size, "trainer": unresolved(cfg.trainer)})


def read_by(settings: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
    """The digests, of material settings, of what some parts of a config read."""
    return {name: digest for name, digest in settings["read"].items() if name.partition(".")[0] in {*parts}}


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar("folder", default=None)


@contextlib.contextmanager
def within(folder: Path) -> Iterator[None]:
    """Context in which `${run_folder:}` is this folder: one process may hold several runs."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def run_folder() -> Path:
    return _folder.get() or Path(HydraConfig.get().runtime.output_dir)


def words_typed() -> list[str]:
    """The settings of the command line that this process was given, as they were typed and without those of Hydra itself; none
    outside of one."""
    return with_references(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def line(_root_: DictConfig) -> str:
    """A digest of the command line without what cannot change a number, whatever the order: the name of a sweep that was
    given none, so that the same line finds the same folder."""
    overrides = OmegaConf.select(_root_, "hydra.overrides.task")
    if overrides is None:
        overrides = words_typed()
    return digest_of_line(with_references(overrides))


def digest_of_line(overrides: Sequence[str]) -> str:
    dropped = {*IMMATERIAL} - {"task", "direction"}
    words = [word for word in overrides if word.partition("=")[0].lstrip("+").partition(".")[0] not in dropped]
    return digest(sorted(words))[:8]


OmegaConf.register_new_resolver("identity", lambda *, _root_: identity(_root_), replace=True)
OmegaConf.register_new_resolver("run_folder", lambda: str(run_folder()), replace=True)
OmegaConf.register_new_resolver("line", lambda *, _root_: line(_root_), replace=True)
