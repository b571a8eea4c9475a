"""The first step of a study, rehearsed before a model is loaded: one token through the models without weights, and a step of
the dictionary on a few random rows of small vectors. What would end the run there, ends it here, in a sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunediff import randomness
from tunediff.dictionary import Pass
from tunediff.models import ModelPair, check_widths
from tunediff.settings import build
from tunediff.shapes import Refused, Rows, Stream
from tunediff.study.parts import build_dictionary, inside, learns, smaller
from tunediff.study.run import Run
from tunediff.study.trainer import check_trainer
from tunediff.training import UNKNOWN, Learner, TranscoderLearner

ROWS, DEAD = 64, 8  # of the random sample; latents that are taken for dead
LOGGER = ("log_hyperparams", "log_metrics", "finalize")


def rehearse(run: Run, pair: ModelPair, *, here: bool = True) -> None:
    """Raises Refused where the first step of a run that was built would fail, on this machine or on another."""
    check_trainer(run.cfg, here=here)
    for logger in run.loggers:
        if missing := [name for name in LOGGER if not callable(getattr(logger, name, None))]:
            raise Refused(
                f"logger: {type(logger).__name__} has no {', '.join(missing)}, by which a run tells it of itself."
            )
    if not learns(run.cfg):
        return
    check_widths(pair, run.streams)
    if not inside(run.cfg) and not callable(getattr(build(run.cfg.activations), "source", None)):
        raise Refused(f"activations={run.cfg.activations._target_} has no `source`, which gives a stream of rows.")
    with in_a_sentence(run.cfg.dictionary._target_), torch.random.fork_rng(devices=[]):
        (adapt_one_layer if inside(run.cfg) else take_a_step)(run)


def take_a_step(run: Run) -> None:
    """One step and one encoding of the dictionary that a run was built with."""
    learner, length = run.learner, run.length
    assert isinstance(learner, Learner) and length is not None
    dictionary = learner.dictionary
    rows = random_rows(dictionary.streams, moments=learner.reader().moments)
    dictionary.fit(rows)
    settings = learner.settings(0, length)
    dead = torch.arange(min(dictionary.latents, DEAD))
    losses = learner.objective(dictionary, rows, dead=dead, settings=settings)
    losses.total.backward()
    with torch.no_grad():
        dictionary.decode(dictionary.encode(rows), rows.moments)


def adapt_one_layer(run: Run) -> None:
    """The same of the first layer of an adapter, alone."""
    learner = run.learner
    assert isinstance(learner, TranscoderLearner)
    learner.learning_rate_schedule(0, UNKNOWN)
    settings = {"l1": learner.l1_schedule(0, UNKNOWN), **learner.dictionary.sparsity.scheduled(0, UNKNOWN)}
    adapter = build_dictionary(*smaller(run.cfg, run.streams[:1]))
    rows, layer = random_rows(adapter.streams, moments=False).values[None], adapter.layers[0]
    layer.training_pass = Pass(settings, None)
    layer(rows).sum().backward()
    layer.training_pass = None
    layer.encode(rows)


def random_rows(streams: Sequence[Stream], *, moments: bool) -> Rows:
    """A few rows [token, width] of standard normal numbers, with the moments of their sequences where they are asked for."""
    values = torch.randn(
        ROWS, sum(stream.width for stream in streams), generator=randomness.generator(0, "rows of a rehearsal")
    )
    return Rows(values, torch.tensor([0.0, 1.0]).expand(ROWS, len(streams), 2) if moments else None)


@contextlib.contextmanager
def in_a_sentence(what: Any) -> Iterator[None]:
    """Context in which any error is a refusal that names the class and what went wrong."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else "nothing was said"
        raise Refused(f"{what} cannot take a first step: {type(error).__name__}, {said}.") from error
