"""Graded samples of problems, several each -> accuracy and pass@k, with intervals and tests over problems. The samples of one
problem are answers to one question: they make its share surer, and no more problems of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunediff import randomness
from tunediff.measures.clustered import Bounded
from tunediff.measures.shares import mean_of, share
from tunediff.shapes import Refused

# of a problem that one model always solves and the other never, each way: the rare one that decides a difference and was not
# drawn. Half a one each way is for one answer a problem (Agresti and Min 2005, Statistics in Medicine 24:729), and too wide for
# the mean of many
UNSEEN = 0.2


def share_by_problem(right: ArrayLike) -> Bounded:
    """The mean over problems of the share of their samples [problem, sample] that are right, avg@n. Wilson's interval for
    one sample a problem, else that of `mean`."""
    graded = _graded(right)
    return share(int(graded.sum()), len(graded)) if graded.shape[1] == 1 else mean(graded.mean(1))


def pass_at(right: ArrayLike, k: int) -> NDArray[np.float64]:
    """The chance [problem] that of k of its n samples [problem, sample] at least one is right, without bias:
    1 - C(n - c, k) / C(n, k) for c right ones (Chen et al. 2021, arXiv 2107.03374, section 2.1). pass@1 is the share."""
    graded = _graded(right)
    samples, wrong = graded.shape[1], graded.shape[1] - graded.sum(1)
    if not 1 <= k <= samples:
        raise Refused(f"pass@{k} of {samples} samples a problem: k is 1 to {samples}.")
    # the product of (n - c - i) / (n - i): each is the chance that the next of the k is wrong as well
    drawn = np.arange(k)
    return 1 - ((wrong[:, None] - drawn).clip(min=0) / (samples - drawn)).prod(1)


def mean(values: ArrayLike) -> Bounded:
    """The mean of shares [problem], with its interval over problems."""
    return mean_of(values, least=0.0, most=1.0)


def change(first: ArrayLike, second: ArrayLike) -> Bounded:
    """The mean over problems of what the second has more than the first, shares [problem] of the same problems."""
    return mean_of(_changes(first, second), least=-1.0, most=1.0, unseen=UNSEEN)


def sign_test(first: ArrayLike, second: ArrayLike, *, draws: int = 10_000, seed: int = 0) -> float:
    """The two-sided chance of a mean change at least as large if each problem's were as likely the other way (Fisher 1935,
    The Design of Experiments, section 21), from random signs. For one sample a problem it is McNemar's test."""
    changes = _changes(first, second)
    signs = (
        randomness.numpy_generator(seed, "signs of changes").integers(0, 2, (draws, len(changes)), dtype=np.int8) * 2
        - 1
    )
    as_large = np.abs(signs @ changes) >= abs(changes.sum()) * (1 - 1e-12)
    return float((1 + as_large.sum()) / (1 + draws))


def _graded(right: ArrayLike) -> NDArray[np.bool_]:
    graded = np.asarray(right, bool)
    if graded.ndim != 2 or not graded.size:
        raise Refused(f"Grades of shape {graded.shape} are not [problem, sample]: ask every problem equally often.")
    return graded


def _changes(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise Refused(f"Shares of {one.shape} and {other.shape} problems cannot be paired: give both the same ones.")
    return other - one
