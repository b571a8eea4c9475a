"""Published claims -> verdicts: what somebody reported, held against what a run found.

A claim is of one number, its effect: a finding, less another one or a number that it is held against. Its interval decides, as in
tests of minimal effects and of equivalence (Lakens, Scheel and Isager 2018, AMPPS 1:259), by one rule:

    above   the effect is larger than `least`            reproduced     the whole interval lies where the claim says
    below   it is smaller than -`least`                  contradicted   the whole interval lies elsewhere
    near    it is within `least` of `expected`           underpowered   it reaches into both, or there is none

Not applicable is a claim whose finding is not there, whose models or budget are not those it was made of (`only`), or whose control
does not hold: whatever its number, it then says nothing. What is claimed has a digest, which is written before anything is measured.

claim.py     the claims of a config, and claims.json
verdict.py   the rule
runs.py      of one run by its findings, of runs side by side by their keys and seeds
"""

from tunediff.claims.claim import (
    CONTRADICTED,
    NOT_APPLICABLE,
    REPRODUCED,
    UNDERPOWERED,
    VERDICTS,
    Claim,
    Condition,
    claims_in,
    kept_in,
    read,
    written,
)
from tunediff.claims.runs import found_in, in_words, of_members, of_run
from tunediff.claims.verdict import Number, Verdict, asked_in_words, judge, over_seeds

__all__ = [
    "CONTRADICTED",
    "NOT_APPLICABLE",
    "REPRODUCED",
    "UNDERPOWERED",
    "VERDICTS",
    "Claim",
    "Condition",
    "Number",
    "Verdict",
    "asked_in_words",
    "claims_in",
    "found_in",
    "in_words",
    "judge",
    "kept_in",
    "of_members",
    "of_run",
    "over_seeds",
    "read",
    "written",
]
