"""Loggers take curves and findings to places besides the run folder. A logger has three verbs: log_hyperparams,
log_metrics, finalize.

Nothing is opened or written before the first of them, so a sweep can make its loggers to check them. `starts_anew` says
that a logger begins with nothing when a run goes on after an interruption, and wants to be told what happened before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tunediff.shapes import Refused, flat

logging.getLogger("wandb").setLevel(logging.WARNING)


class Csv(CSVLogger):
    """<folder>/csv/metrics.csv, a column for every name."""

    starts_anew = True

    def __init__(self, folder: str):
        super().__init__(folder, name="csv", version="")

    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        shutil.rmtree(self.log_dir, ignore_errors=True)
        super().log_hyperparams(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Names that a spreadsheet would compute are marked as text."""
        super().log_metrics({f"'{n}" if n[:1] in "=+-@\t\r" else n: v for n, v in metrics.items()}, step)


class TensorBoard(TensorBoardLogger):
    """<folder>/tensorboard; after an interruption the events of one more file join in."""

    def __init__(self, folder: str):
        super().__init__(folder, name="tensorboard", version="")

    def log_hyperparams(self, *params: Any, **more: Any) -> None:
        with _of_the_disk():
            super().log_hyperparams(*params, **more)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with _of_the_disk():
            super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        with _of_the_disk():
            super().finalize(status)


@contextlib.contextmanager
def _of_the_disk() -> Iterator[None]:
    """Context that raises the system's own error where Lightning calls it one of the numbers."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise


class Wandb:
    """One run in Weights & Biases. Offline it lies in <folder>/wandb until `wandb sync`; after an interruption the same
    id is taken up again. It never asks for a key. Several may be open in one process.

    id       the run's identity              group   the sweep
    config   every setting under its name on the command line, so that each swept key is a column; under `study.` what
             they came to
    tags     the hookpoint and the layers that were read, where there are any, and those given
    """

    def __init__(
        self,
        folder: str,
        *,
        id: str,
        group: str,
        project: str = "tunediff",
        entity: str | None = None,
        name: str | None = None,
        job_type: str = "train",
        tags: Sequence[str] = (),
        offline: bool = True,
    ):
        server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        known = os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(server)
        if not offline and not known:
            raise Refused(
                f"logger.wandb.offline=false sends the run to {server}, but there is no key: run `wandb login` first, set "
                "WANDB_API_KEY, or leave the run offline and `wandb sync` it later."
            )
        self.place = {"dir": folder, "id": id, "group": group, "project": project, "entity": entity, "name": name}
        self.kind: dict[str, Any] = {"job_type": job_type, "mode": "offline" if offline else "online"}
        self.tags = list(tags)
        self.run: Any = None

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        import wandb

        Path(self.place["dir"]).mkdir(parents=True, exist_ok=True)
        study = params.get("study", {})
        read = [study["hookpoint"], f"layer {study['layer']}"] if "hookpoint" in study else []
        settings = wandb.Settings(x_disable_stats=True, console="off", silent=True)
        self.run = wandb.init(
            **self.place,
            **self.kind,
            tags=[*read, *self.tags],
            config=flat(params),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self.run.define_metric("*", step_metric="step")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({"step": step, **metrics})

    def finalize(self, status: str) -> None:
        """Raises OSError where the file of a run that is offline was not written whole: W&B's own process does not say so."""
        if self.run is None:
            return
        self.run.finish(exit_code=0 if status == "success" else 1)
        file = Path(self.run.settings.sync_file)
        if self.kind["mode"] == "offline" and not is_whole(file):
            raise OSError(f"{file} is cut, as where a disk is full, and `wandb sync` sends what is before the cut")


def is_whole(file: Path) -> bool:
    """True for a file of W&B that ends with a whole record: blocks of 32 KiB of pieces, each with a checksum [4 bytes], its
    length [2] and its kind [1], where 1 is a whole record and 4 the last piece of one."""
    data, at, kind = file.read_bytes() if file.exists() else b"", 7, 0  # behind the file's own header
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        kind = data[at + 6]
        at += 7 + int.from_bytes(data[at + 4 : at + 6], "little")
    return at == len(data) and kind in (1, 4)
