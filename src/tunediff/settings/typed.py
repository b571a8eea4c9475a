"""The words of a command line, as argparse and Hydra take them apart, before a config is composed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tunediff.settings.checked import nearest
from tunediff.shapes import Refused

READ = frozenset({"--help", "-h", "--version"})  # of which argparse makes an end at once
MODES = {"run": "--run", "multirun": "-m", "cfg": "--cfg", "info": "--info", "shell_completion": "--shell-completion"}


def flags_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line as Hydra reads them, and its settings as `overrides`."""
    return get_args_parser().parse_known_args(list(arguments))[0]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The same command line with its flags before its settings: argparse takes no setting behind a flag that stands behind
    others, as -m does in `seed=1 -m layer=1,2`."""
    if READ.intersection(arguments) or any(word.startswith(("--info", "-i")) for word in arguments):
        return list(arguments)
    flags, left = get_args_parser().parse_known_args(list(arguments))
    settings = {*flags.overrides, *(word for word in left if not word.startswith("-"))}
    return sorted(arguments, key=lambda word: word in settings)


def is_sweep(arguments: Sequence[str]) -> bool:
    """True for a command line of several studies, or of one where those would run."""
    mode = str(typed_keys(arguments).get("hydra.mode")).upper()
    return not READ.intersection(arguments) and (flags_of(arguments).multirun or mode == "MULTIRUN")


def overrides_in(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line, without Hydra's flags and what stands behind them, as Hydra takes it apart."""
    return [] if READ.intersection(arguments) else list(flags_of(arguments).overrides)


def parsed(arguments: Sequence[str]) -> list[Override] | None:
    """The overrides of a command line; None where Hydra cannot read one, see refuse_malformed."""
    try:
        return OverridesParser.create().parse_overrides(overrides_in(arguments))
    except HydraException:
        return None


def typed_keys(arguments: Sequence[str]) -> dict[str, Any]:
    """Key -> value of the overrides of a command line; nothing where Hydra cannot read one."""
    found = parsed(arguments) or []
    return {o.key_or_group: None if o.is_sweep_override() or o.is_delete() else o.value() for o in found}


def refuse_malformed(arguments: Sequence[str], folder: Path, name: str) -> None:
    """Raises Refused for words of the command line of conf/<name>.yaml that are neither flags nor settings, and for flags that
    exclude one another."""
    if READ.intersection(arguments):
        return
    flags, left = get_args_parser().parse_known_args(list(arguments))
    if left:
        raise Refused(
            f"{left[0]} is no flag here: a setting is key=value without dashes, -m before them makes a sweep, and --cfg job "
            "shows what a line comes to."
        )
    modes = [flag for key, flag in MODES.items() if getattr(flags, key)]
    if len(modes) > 1:
        raise Refused(f"{' and '.join(modes)} exclude one another: leave one out.")
    if flags.resolve and not flags.cfg:
        raise Refused("--resolve goes with --cfg: --cfg job --resolve.")
    parser = OverridesParser.create()
    for word in flags.overrides:
        try:
            parser.parse_override(word)
        except HydraException as error:
            raise Refused(_unread(word, folder, name, error)) from error


def _unread(word: str, folder: Path, name: str, error: HydraException) -> str:
    """A sentence for a word that Hydra's grammar does not have, with what may have been meant."""
    if "=" in word:
        why = str(error).splitlines()[-1 if len(str(error).splitlines()) < 2 else 1].partition(" expecting")[0]
        return (
            f"{word} cannot be read: {why}. A setting is key=value, a list [1,2]; a value with other marks stands in quotes "
            f"within quotes: \"key='...'\"."
        )
    asked = re.findall(r"^(\w+): *\?\?\?", (folder / f"{name}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    options = [str(path.parent.relative_to(folder)) for path in sorted(folder.rglob("*.yaml")) if path.stem == word]
    means = [f"{key}={word}" for key in (*asked, *options) if key != "."]
    return f"{word} is no setting, which is key=value. " + (
        f"Did you mean {means[0]}?" if means else f"python {name}.py --help lists what there is."
    )


def refuse_launcher(arguments: Sequence[str], folder: Path, name: str) -> None:
    """Raises Refused for a launcher, or a setting of one, where there is no sweep to launch, or of studies where there are
    none."""
    typed = typed_keys(arguments)
    said = [key for key in typed if key == "hydra/launcher" or key.startswith("hydra.launcher.")]
    if not said or flags_of(arguments).cfg:  # who asks for the config starts nothing
        return
    word, launcher = f"{said[0]}={typed[said[0]]}", typed.get("hydra/launcher")
    if name != "train" and (folder / "hydra" / "launcher" / f"{launcher}.yaml").is_file():
        raise Refused(
            f"{word} runs sweeps of studies, and python {name}.py runs where it is typed: leave it out, and have a cluster "
            f"run the line itself, sbatch --wrap 'python {name}.py ...'."
        )
    if not is_sweep(arguments):
        raise Refused(f"{word} is about a sweep, and without -m this would run here: add -m, also for one study.")


def refuse_nothing_there(key: str, value: Any, composed: DictConfig, legal: set[str]) -> None:
    """Raises Refused for a key of those to take away (~) that is not there, holds nothing, or another value than was typed."""
    there = OmegaConf.select(composed, key, throw_on_missing=False, throw_on_resolution_failure=False)
    if key not in legal:
        raise Refused(f"~{key}: {key} is not a setting here. {nearest(key, legal, 'settings')}")
    if there is None and ("." in key or key in composed):  # of a group that has no key of its own Hydra knows
        raise Refused(f"~{key}: nothing stands there that could be taken away: leave it out.")
    if value is not None and value != there and not OmegaConf.is_config(there):
        raise Refused(f"~{key}={value}: {key} is {there}. To take it away whatever it is: ~{key}.")
