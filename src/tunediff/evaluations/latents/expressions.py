"""An expression over columns of latents -> the latents that it chooses, such as

    relative_norm < .1 and auroc.hesitation > .9         top(20, auroc.hesitation) and rate < .1
    layer >= 10 and not (abs(cosine) > .5)               bottom(10, relative_norm)

Python's grammar, of which comparisons, and, or, not, + - * /, abs(), top(n, column) and bottom(n, column) are kept; it is
read and never run. Dead latents are never chosen. top() is among all that live, not among those that the rest leaves. A
value that is missing meets no comparison. Knows no model and no text: columns are handed in by their names.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from tunediff.shapes import Refused

Path = tuple[str, ...]  # auroc.hesitation is ("auroc", "hesitation")
Column = Callable[[Path], Tensor]  # [latent] float64, NaN where a value is missing

COMPARISONS = {
    ast.Lt: torch.lt,
    ast.LtE: torch.le,
    ast.Gt: torch.gt,
    ast.GtE: torch.ge,
    ast.Eq: torch.eq,
    ast.NotEq: torch.ne,
}
ARITHMETIC = {ast.Add: torch.add, ast.Sub: torch.sub, ast.Mult: torch.mul, ast.Div: torch.div}
RANKED = ("top", "bottom")
GRAMMAR = "comparisons, and, or, not, + - * /, abs(column), top(20, column) and bottom(20, column)"


class Expression:
    """text   the expression as it was written      names   names that columns without a dot may have

    Raises Refused for a text that is no such expression, before any column is asked for."""

    def __init__(self, text: str, names: Collection[str]):
        self.text, self.names = text, names
        try:
            self.tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise Refused(f"latents='{text}' cannot be read: {error.args[0]}. It may have {GRAMMAR}.") from error
        self._check(self.tree, chooses=True)

    def chosen(self, column: Column, alive: Tensor) -> list[int]:
        """Indices of the latents that are chosen of those alive [latent, bool]: in the order of the first top() or bottom(),
        the others by index. Raises Refused where there is none, with how many met each part of an `and`."""
        reading = Evaluated(self, column, alive)
        kept = reading.value(self.tree) & alive
        if not kept.any():
            parts = "; ".join(f"{said}: {count}" for said, count in reading.parts)
            among = f"of {int(alive.sum())} latents that fire on held-out text"
            raise Refused(
                f"latents='{self.text}' chooses none {among}." + (f" Alone they meet {parts}." if parts else "")
            )
        first = [latent for latent in reading.order if kept[latent]]
        return list(dict.fromkeys([*first, *kept.nonzero()[:, 0].tolist()]))

    def said(self, node: ast.expr) -> str:
        return ast.get_source_segment(self.text.strip(), node) or ast.unparse(node)

    def _check(self, node: ast.expr, *, chooses: bool) -> None:
        """Checks that a part is of the grammar, and chooses latents or has a value for each, as its place asks."""
        is_choice, choices, values = True, [], []  # and the parts of either kind that it must have
        match node:
            case ast.BoolOp(values=choices):
                pass
            case ast.UnaryOp(op=ast.Not(), operand=part):
                choices = [part]
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in COMPARISONS for op in ops):
                values = [left, *others]
            case ast.Call(func=ast.Name(id=("top" | "bottom") as name), args=args, keywords=[]):
                match args:
                    case [ast.Constant(value=int() as count), part] if count > 0 and not isinstance(count, bool):
                        values = [part]
                    case _:
                        raise self._refusal(node, f"{name}() takes a number above 0 and a column, {name}(20, norm)")
            case ast.Call(func=ast.Name(id="abs"), args=[part], keywords=[]):
                is_choice, values = False, [part]
            case ast.Call(func=ast.Name(id=name)) if name not in ("abs", *RANKED):
                raise self._refusal(node, f"there is no function {name}(), only {GRAMMAR}")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                is_choice, values = False, [left, right]
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=part):
                is_choice, values = False, [part]
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                is_choice = False
            case ast.Name() | ast.Attribute() | ast.Subscript():
                is_choice = False
                self._check_name(node)
            case ast.List() | ast.Tuple():
                raise self._refusal(node, "numbers of latents are given without quotes, latents=[3,17]")
            case _:
                raise self._refusal(node, f"an expression may have {GRAMMAR}")
        for parts, choosing in ((choices, True), (values, False)):
            for part in parts:
                self._check(part, chooses=choosing)
        if chooses and not is_choice:
            said = self.said(node)
            raise self._refusal(node, f"that is a value and chooses nothing: compare it, or take top(20, {said})")
        if is_choice and not chooses:
            raise self._refusal(node, "that chooses latents and has no value to compare or to count with")

    def _check_name(self, node: ast.expr) -> None:
        path = path_of(node)
        if path is None:
            raise self._refusal(node, 'a column is a name, table.column or table["column"]')
        if len(path) == 1 and path[0] not in self.names:
            raise self._refusal(node, f"there is no column '{path[0]}'. {nearest(path[0], self.names)}")

    def _refusal(self, node: ast.expr, why: str) -> Refused:
        return Refused(f"latents='{self.text}', at '{self.said(node)}': {why.rstrip('.')}.")


class Evaluated:
    """One evaluation of an expression.

    parts   the text of each part of every `and`, with the number of living latents that meet it
    order   latents of the first top() or bottom(), best first
    """

    def __init__(self, expression: Expression, column: Column, alive: Tensor):
        self.expression, self.column, self.alive = expression, column, alive
        self.parts: list[tuple[str, int]] = []
        self.order: list[int] = []

    def value(self, node: ast.expr) -> Tensor:
        """The value [latent] of a part: bool for one that chooses latents, float64 for one that has a number for each."""
        match node:
            case ast.BoolOp(op=op, values=parts):
                met = [self.value(part) for part in parts]
                if isinstance(op, ast.Or):
                    return torch.stack(met).any(0)
                counts = (int((one & self.alive).sum()) for one in met)
                self.parts += zip(map(self.expression.said, parts), counts, strict=True)
                return torch.stack(met).all(0)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return ~self.value(part)
            case ast.Compare(left=left, ops=ops, comparators=others):
                values = [self.value(part) for part in (left, *others)]
                pairs = zip(ops, values, values[1:], strict=False)
                return torch.stack([COMPARISONS[type(op)](one, other) for op, one, other in pairs]).all(0)
            case ast.Call(func=ast.Name(id="abs"), args=[part]):
                return self.value(part).abs()
            case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=int() as count), part]):
                return self._ranked(self.value(part), count, largest=name == "top")
            case ast.BinOp(left=left, op=op, right=right):
                return ARITHMETIC[type(op)](self.value(left), self.value(right))
            case ast.UnaryOp(op=op, operand=part):
                return -self.value(part) if isinstance(op, ast.USub) else self.value(part)
            case ast.Constant(value=int() | float() as number):
                return torch.full(self.alive.shape, float(number), dtype=torch.float64)
            case _:
                path = path_of(node)
                assert path is not None, "names are checked when the expression is made"
                return self.column(path)

    def _ranked(self, values: Tensor, count: int, *, largest: bool) -> Tensor:
        order = values.argsort(descending=largest, stable=True)
        order = order[(self.alive & ~values.isnan())[order]][:count]
        self.order = self.order or order.tolist()
        return torch.zeros_like(self.alive).index_fill_(0, order, True)


def path_of(node: ast.expr) -> Path | None:
    """The names of a column, from the table on; None for another part."""
    match node:
        case ast.Name(id=name):
            return (name,)
        case (
            ast.Attribute(value=whole, attr=name) | ast.Subscript(value=whole, slice=ast.Constant(value=str() as name))
        ):
            before = path_of(whole)
            return None if before is None else (*before, name)
    return None


def nearest(word: str, legal: Iterable[str]) -> str:
    """A sentence with the legal names that are nearest to it; with all of them where none is near."""
    legal = sorted(legal)
    close = difflib.get_close_matches(word, legal, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(legal) or 'none'}."
