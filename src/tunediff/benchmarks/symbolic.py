"""Two formulas -> equal or not, by math-verify's algebra (github.com/huggingface/Math-Verify); as a script, for many.

As a script it reads one pair a line from its input and answers one line each, until the input ends. It runs in a process
of its own because algebra can take for ever (9**9**9**9) or all memory: whoever started it may end it at any time, and
it ends itself after the time limit, even while it computes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import signal
import sys
from typing import Any

MEMORY = 4 * 2**30  # bytes a worker may map
EXACT, ROUNDED = 1e-15, 2e-6  # relative differences of values that count as none
MARGIN = 2  # seconds a worker lives on after the limit, so that its owner is the first to notice


@functools.lru_cache(maxsize=512)
def parsed(text: str) -> tuple:
    """The expressions that math-verify reads in a formula."""
    import math_verify

    # it warns once that it keeps no time: the owner of this process does
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # units are no part of a formula here: it would take the m of 6m for one
    spelling = math_verify.LatexExtractionConfig().normalization_config
    config = math_verify.LatexExtractionConfig(normalization_config=dataclasses.replace(spelling, units=False))
    options: dict[str, Any] = {"parsing_timeout": None}  # without a limit, which its types leave out
    return tuple(math_verify.parse(f"${text}$", [config], **options))


def same(answer: str, gold: str, tolerance: float | None) -> bool:
    """True where the two formulas are equal; two numbers may differ by the relative tolerance."""
    import math_verify

    given, asked = list(parsed(answer)), list(parsed(gold))
    if not given or not asked:
        return False
    apart = "%" not in answer + gold and _apart(given[0], asked[0])  # asked first, for it is fast
    if not apart and math_verify.verify(asked, given, allow_set_relation_comp=True, timeout_seconds=None):
        return True
    return tolerance is not None and _near(given[0], asked[0], tolerance)


def _apart(given, asked) -> bool:
    """True for two formulas of the same unknowns whose values are not one relatively: math-verify rounds to so many
    places, and 1/2^98 is not 1/2^99."""
    import sympy

    if not (
        isinstance(given, sympy.Expr) and isinstance(asked, sympy.Expr) and given.free_symbols == asked.free_symbols
    ):
        return False
    chosen = {symbol: sympy.Rational(7 + n, 5) for n, symbol in enumerate(sorted(given.free_symbols, key=str))}
    one, other = (sympy.N(each.doit().xreplace(chosen), 30) for each in (given, asked))
    if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
        return False
    rounded = given.has(sympy.Float) or asked.has(sympy.Float)
    size = max(abs(one), abs(other))
    return bool(size > 0 and abs(one - other) > size * sympy.Float(ROUNDED if rounded else EXACT))


def _near(given, asked, tolerance: float) -> bool:
    if not (getattr(given, "is_number", False) and getattr(asked, "is_number", False)):
        return False
    one, other = complex(given.evalf()), complex(asked.evalf())
    return abs(one - other) <= tolerance * abs(other)


def _serve(seconds: float) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except ImportError:  # there is none outside Unix; the limit on time remains
        pass
    same("1+x", "x+1", None)  # imports before the clock of the first pair
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds + MARGIN)  # unhandled, it ends the process
        try:
            verdict = same(*json.loads(line))
        except (MemoryError, RecursionError, OverflowError):
            verdict = None
        except Exception as unreadable:  # sympy raises whatever it likes; what it cannot read is not equal
            logging.getLogger(__name__).debug("%s: %s", line, unreadable)
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
