"""Measuring instruments that several evaluations share: intervals, comparisons, separation, matching. Know no dictionary.

clustered.py    interval of a ratio, documents as clusters     separation.py   AUROC and its interval
bootstrap.py    interval of a ratio by resampling documents    next_tokens.py  cross-entropy and KL of next tokens
paired.py       two conditions on the same problems            matching.py     latents of two runs, one to one
"""

from tunediff.measures.paired import (
    BudgetCurve,
    Interval,
    Paired,
    Recovered,
    difference,
    mcnemar,
    recovery,
    scaling,
    scaling_difference,
    wilson,
)

__all__ = [
    "BudgetCurve",
    "Interval",
    "Paired",
    "Recovered",
    "difference",
    "mcnemar",
    "recovery",
    "scaling",
    "scaling_difference",
    "wilson",
]
