"""Shares, and means of other numbers that have bounds -> intervals that stay within the bounds and are never empty. The units of
chance are independent: problems, latents, answers.

Wilson 1927 (JASA 22:209) for answers that are right or wrong. For other numbers his interval with the effective number of
units, their number over the design effect, and Student's t (Korn and Graubard 1998, Survey Methodology 24:193; with Wilson's
in place of the exact interval: Dean and Pagano 2015, Journal of Survey Statistics and Methodology 3:484). The resampling
bootstrap knows nothing beyond what it saw: of rare right answers it is too narrow (bench/coverage.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit  # scipy.stats takes 0.4 s to import

from tunediff.measures.clustered import Bounded
from tunediff.shapes import Refused

UNSEEN = 0.05  # of a unit at either bound, which the spread is measured with: the rare one that was not drawn


def wilson(successes: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    if not 0 <= successes <= trials or trials < 1:
        raise Refused(
            f"{successes} successes of {trials} trials are no share: give 0 to {max(trials, 1)} of at least 1."
        )
    return _score(successes / trials, trials, float(ndtri(0.5 + level / 2)))


def _score(share: float, trials: float, reach: float) -> tuple[float, float]:
    """Every share that lies within so many of its own standard errors of this one."""
    middle = share + reach * reach / (2 * trials)
    apart = reach * math.sqrt(share * (1 - share) / trials + reach * reach / (4 * trials * trials))
    low, high = ((middle + sign * apart) / (1 + reach * reach / trials) for sign in (-1, 1))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def share(successes: int, trials: int, level: float = 0.95) -> Bounded:
    """A share and its score interval; None without a trial."""
    return (successes / trials, *wilson(successes, trials, level)) if trials else (None, None, None)


def mean_of(
    values: ArrayLike,
    *,
    least: float,
    most: float,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    unseen: float = UNSEEN,
) -> Bounded:
    """Mean of independent values [n], each from `least` to `most`, with its confidence interval; None for no value. One value is
    taken for one answer that may be right or wrong. `weights` [n] are the numbers of answers that each is the mean of; `unseen` is
    as UNSEEN."""
    given, width = np.asarray(values, np.float64), most - least
    units = len(given)
    if not units:
        return None, None, None
    places = ((given - least) / width).clip(0, 1)
    share = np.ones(units) if weights is None else np.asarray(weights, np.float64)
    share = share / share.mean()
    mean = float((share * places).mean())
    trials, reach = 1.0, float(ndtri(0.5 + level / 2))
    if units > 1:
        weight = units + 2 * unseen
        shifted = ((share * places).sum() + unseen) / weight
        apart = np.append(share * (places - shifted), unseen**0.5 * np.array([shifted, 1 - shifted]))
        spread = (apart @ apart) / weight
        trials = float(
            (units - 1) * shifted * (1 - shifted) / spread
        )  # a spread of right and wrong answers counts each
        reach = float(stdtrit(units - 1, 0.5 + level / 2))
    low, high = (float(least + width * end) for end in _score(mean, trials, reach))
    return float((share * given).mean()), low, high


def share_by_group(flags: ArrayLike, groups: ArrayLike) -> Bounded:
    """The share of flags [n] that are true, where those of one group, groups [n], are one unit of chance; None for no flag."""
    true, group = np.asarray(flags, bool), np.asarray(groups)
    _, which, sizes = np.unique(group, return_inverse=True, return_counts=True)
    return mean_of(np.bincount(which, true, len(sizes)) / sizes, least=0.0, most=1.0, weights=sizes)
