"""Overrides put together at random, checked as a dry run checks them: python bench/campaigns/overrides.py --count 5000

Each is one to three keys of the composed config with values that somebody might type, or without it. The config of the chosen options
is composed once and kept; the values go through Hydra's own parser. Wanted: an estimate, or a sentence.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no case waits for a network

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from campaigns.told import main, outcome
from tunediff import randomness
from tunediff.settings import within
from tunediff.shapes import flat
from tunediff.study.train import study

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
VALUES = (
    "0", "-1", "1", "2", "3.5", "1e9", "1e30", "nan", "inf", "-inf", "null", "true", "false", "abc", "''", "[]", "[1]", "[a,b]",
    "{}", "{a:1}", "[[1]]", "0.5", "12.0", "99999999999999999999", "'1000 steps'", "'-1 tokens'", "8x", "0x", "all", "both",
    "../x", "/dev/null", "/dev/zero", "/", "~", "a.b.c", "'a b'", "ünïcode", "'\\t'", "1_000", "[null]", "[0,1,2]", "-0.0", "1e-320",
)  # fmt: skip
GROUPS = (
    "dictionary",
    "optimizer",
    "l1_schedule",
    "text",
    "activations",
    "evaluation",
    "trainer",
    "logger",
    "model_pair",
)
DELETED = 0.1  # of the keys
LOCAL = {
    "text": ("toy", "toy_traces"),
    "model_pair": ("toy", "toy_self", "toy_lora"),
    "trainer": ("auto", "cpu", "bf16"),
}


def options(draw: random.Random) -> tuple[str, ...]:
    """A few options of groups, of those that need no network."""
    words = ["scale=smoke"]
    for group in draw.sample(GROUPS, draw.randrange(3)):
        there = LOCAL.get(group) or tuple(path.stem for path in sorted((CONF / group).glob("*.yaml")))
        words.append(f"{group}={draw.choice(there)}")
    return tuple(words)


def cases(count: int, seed: int) -> Iterator[dict]:
    draw, parser = randomness.chance(seed, "campaign of random overrides"), OverridesParser.create()
    composed: dict[tuple[str, ...], DictConfig] = {}
    chosen = [options(draw) for _ in range(max(1, count // 50))]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as made:
        for number in range(count):
            words = draw.choice(chosen)
            if words not in composed:
                with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
                    composed[words] = hydra.compose("train", [*words])
            cfg = composed[words].copy()
            keys = [key for key in flat(OmegaConf.to_container(cfg, resolve=False)) if not key.endswith("_target_")]
            given = [
                f"~{key}" if draw.random() < DELETED else f"{key}={draw.choice(VALUES)}"
                for key in draw.sample(keys, draw.choice([1, 1, 2, 3]))
            ]
            try:
                read = parser.parse_overrides(given)
            except HydraException as error:  # of which Hydra says what it is
                yield {"done": f"overrides: {number} {' '.join(given)}", "outcome": "refused", "sentence": str(error)}
                continue

            def case(cfg=cfg, read=read) -> None:
                with open_dict(cfg):
                    for override in read:
                        if override.is_delete():
                            parent, _, last = override.key_or_group.rpartition(".")
                            (OmegaConf.select(cfg, parent) if parent else cfg).pop(last, None)
                        else:
                            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=False)
                    cfg.dry_run = True
                said = io.StringIO()
                with within(Path(made)), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    study(cfg, Path(made))

            became, said = outcome(case, seconds=60)
            if any(Path(made).iterdir()):
                became, said = "silent", f"a dry run wrote {[path.name for path in Path(made).iterdir()]}"
            yield {"done": f"overrides: {number} {' '.join([*words, *given])}", "outcome": became, "sentence": said}


if __name__ == "__main__":
    main(cases, __doc__ or "", count=5000)
