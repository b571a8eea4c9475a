"""A chat template -> a program that ends, soon and small.

A template came with a tokenizer, and may be anybody's. transformers renders it in Jinja's sandbox, which keeps it from Python
and from files, and not from running for ever or filling the memory. Here the sandbox also counts: whatever a template makes or
goes over is charged before it is made, to a budget that grows with the conversation, and a clock is looked at each time. What
cannot be counted is not there: filters and methods are those that chat templates use.

1. Expressions that Jinja would compute by itself are handed to filters of ours when the template is parsed: what a loop goes
   over, what is written out, joined by ~, compared, cut, or put into a list.
2. Operators, calls, filters and tests are charged for what they are given and what they give back.

Importing this file puts the sandbox in the place of transformers' own, for every template of this process.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import transformers.utils.chat_template_utils as theirs
from jinja2 import nodes
from jinja2.runtime import Macro, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 10.0  # for one conversation
ROOM = 2_000_000  # characters and items that any template may make
TIMES = 50  # and as many more for each character of the conversation
LONGEST = 200_000  # characters of a template
BITS = 10_000  # of a whole number
FILTERS = frozenset(
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last length list "
    "lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim truncate "
    "unique upper urlencode wordcount".split()
)
# of these, filters whose work does not grow with what is within their argument
SHALLOW = frozenset("attr count d default first items last length list map reject rejectattr select selectattr".split())
METHODS = {
    str: frozenset(
        "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace "
        "istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip "
        "split splitlines startswith strip swapcase title upper".split()
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset[str](),
    float: frozenset(("is_integer",)),
    bytes: frozenset[str](),
}
EACH, WRITTEN, COUNTED, JOINED, TOLD = (
    "<each>",
    "<written>",
    "<counted>",
    "<joined>",
    "<told>",
)  # no template can name them


class Exceeded(SecurityError):
    """A template that takes more time or room than any needs."""


class Meter:
    """The budget of one conversation."""

    def __init__(self, room: int):
        self.room, self.until = room, time.monotonic() + SECONDS

    def check(self, much: int) -> None:
        """Raises Exceeded where so much is more than is left."""
        if much > self.room:
            raise Exceeded("it makes more text than a conversation needs")

    def charge(self, much: int) -> None:
        self.check(much)
        self.room -= much
        if time.monotonic() > self.until:
            raise Exceeded(f"it takes more than {SECONDS:g} seconds")


_METER: contextvars.ContextVar[Meter] = contextvars.ContextVar("meter")


@contextlib.contextmanager
def _counting(room: int) -> Iterator[None]:
    before = _METER.set(Meter(room))
    try:
        yield
    finally:
        _METER.reset(before)


def charge(value: Any, much: int = 1) -> Any:
    """The value, charged for; an iterator is charged item by item."""
    meter = _METER.get()
    if isinstance(value, Iterator):
        return _each(value, much)
    meter.charge(much + size(value, meter.room))
    return value


def _each(items: Iterable[Any], much: int) -> Iterator[Any]:
    for item in items:
        charge(item, much)
        yield item


def size(value: Any, room: int) -> int:
    """Characters and items of a value, and of all within it as often as it is there; counting ends above `room`."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 8
    if isinstance(value, dict):
        return _sizes((part for pair in value.items() for part in pair), room)
    if isinstance(value, list | tuple | set | frozenset):
        return _sizes(value, room)
    if isinstance(value, Namespace):
        return size(object.__getattribute__(value, "_Namespace__attrs"), room)
    return 0


def _sizes(parts: Iterable[Any], room: int) -> int:
    total = 0
    for part in parts:
        total += 1 + size(part, room - total)
        if total > room:
            raise Exceeded("it makes more text than a conversation needs")
    return total


# -- what is charged before it is made -------------------------------------------------------------------------------


def _foresee(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a filter or method of this name. Raises Exceeded where they ask for too much."""
    meter = _METER.get()
    given = [*arguments, *named.values()]
    for one in given if name not in SHALLOW else ():
        size(one, meter.room)
    if name == "join":
        separator, items = (arguments[1] if len(arguments) > 1 else named.get("d", "")), arguments[0]
        items = list(items) if isinstance(items, Iterator) else items
        if hasattr(items, "__len__"):
            meter.check(size(items, meter.room) + len(items) * len(str(separator)))
        return (items, *arguments[1:])
    if name == "replace" and len(given) > 2:
        text, old, new = (str(one) for one in given[:3])
        meter.check(len(text) + text.count(old) * len(new))
    elif name == "format" and isinstance(arguments[0], str):
        _check_format(arguments[0], given[1:])
    elif name == "indent":
        width = next((one for one in given[1:] if not isinstance(one, bool)), 4)
        meter.check((1 + str(arguments[0]).count("\n")) * (width if isinstance(width, int) else len(str(width))))
    elif name == "tojson":
        indent, separators = named.get("indent"), named.get("separators")
        wide = indent if isinstance(indent, int) else len(indent or "")
        each = 8 + max(wide, 0) * _depth(arguments[0]) + size(separators, meter.room)
        meter.check(size(arguments[0], meter.room) * each)
    elif name == "round" and any(isinstance(one, int) and one > 100 for one in given[1:]):
        raise Exceeded("it rounds to more than 100 digits")
    elif name == "sum" and any(not isinstance(one, int | float | str) for one in given[1:]):
        raise SecurityError("it sums what are no numbers")
    return arguments


def _check_format(text: str, given: Iterable[Any]) -> None:
    meter = _METER.get()
    if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{", text):
        raise SecurityError("it computes the width of what it writes")
    widths = sum(int(digits[:9]) for digits in re.findall(r"\d+", text))
    meter.check(len(text) + widths + (text.count("%") + text.count("{")) * size(list(given), meter.room))


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 1 + max(map(_depth, parts), default=0)


def _is_whole(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


# -- the sandbox -----------------------------------------------------------------------------------------------------


class Counting(ImmutableSandboxedEnvironment):
    """transformers' environment of chat templates that counts."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        sizes = size(left, meter.room), size(right, meter.room)
        if operator == "*":
            if _is_whole(left, right):
                many = left.bit_length() + right.bit_length() > BITS
                if many:
                    raise Exceeded("its numbers have too many digits")
            elif _is_whole(right):
                meter.check((sizes[0] + 1) * max(right, 0))
            elif _is_whole(left):
                meter.check((sizes[1] + 1) * max(left, 0))
        elif operator == "**" and _is_whole(left, right) and abs(left) > 1 and left.bit_length() * right > BITS:
            raise Exceeded("its numbers have too many digits")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+":
            meter.check(sum(sizes))
        return charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        name, of = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        _METER.get().charge(1)
        if isinstance(of, str):  # its methods take what filters of their names do
            first = (args[0], of) if name == "join" and args else (of, *args)
            first = _foresee(name, first, kwargs)
            args = (first[0],) if name == "join" and args else args
        elif not isinstance(__obj, Macro):
            _foresee("", args, kwargs)
        return charge(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made, text = super().wrap_str_format(value), getattr(value, "__self__", "")
        if made is None:
            return None

        @functools.wraps(made)
        def formatted(*args: Any, **kwargs: Any) -> str:
            _check_format(text, [*args, *kwargs.values()])
            return made(*args, **kwargs)

        return formatted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = next((methods for kind, methods in METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (known is None or attr in known)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST:
            raise Exceeded(f"it has more than {LONGEST:,} characters itself")
        return Handed().visit(super()._parse(source, name, filename))


class Handed(NodeTransformer):
    """Gives to filters of ours what Jinja would compute without asking."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise SecurityError("it has a loop that calls itself")
        self.generic_visit(node)
        node.iter = _by(EACH, node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        told = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        self.generic_visit(node)
        written = [child if isinstance(child, nodes.TemplateData) else _by(WRITTEN, child) for child in node.nodes]
        node.nodes = [_by(TOLD, nodes.Const(told, lineno=node.lineno)), *written]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _by(JOINED, nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def _counted(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _by(COUNTED, node)

    visit_Compare = visit_List = visit_Dict = _counted

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        if isinstance(node.arg, nodes.Slice):
            return self._counted(node)
        self.generic_visit(node)
        return node


def _by(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context  # so that none is computed once for all, when the template is compiled
def _counted(context: Any, value: Any) -> Any:
    return charge(value)


@jinja2.pass_context
def _goes_over(context: Any, items: Any) -> Iterator[Any]:
    for item in items:
        _METER.get().charge(1)
        yield item


@jinja2.pass_context
def _told(context: Any, much: int) -> str:
    _METER.get().charge(much)
    return ""


@jinja2.pass_context
def _joined(context: Any, parts: tuple[Any, ...]) -> str:
    charge(parts)
    return str_join(parts)


OURS = {EACH: _goes_over, WRITTEN: _counted, COUNTED: _counted, JOINED: _joined, TOLD: _told}


def _filter(name: str, of: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, charged for."""
    passed = hasattr(of, "jinja_pass_arg")

    @functools.wraps(of)
    def charged(*arguments: Any, **named: Any) -> Any:
        own = _foresee(name, arguments[1:] if passed else arguments, named)
        return charge(of(*arguments[:1], *own, **named) if passed else of(*own, **named))

    return charged


def _test(of: Callable[..., Any]) -> Callable[..., Any]:
    passed = hasattr(of, "jinja_pass_arg")

    @functools.wraps(of)
    def charged(*arguments: Any) -> Any:
        charge(arguments[2:] if passed else arguments[1:])
        return of(*arguments)

    return charged


class Counted(jinja2.Template):
    """A template that counts while it is rendered."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        given = size([list(args), kwargs], 10**12)
        with _counting(ROOM + TIMES * given):
            return super().render(*args, **kwargs)


def _environment(unlimited: Callable[[str], jinja2.Template]) -> Counting:
    """transformers' environment, with its tags and functions, that counts."""
    made: Any = unlimited("").environment.overlay()
    made.__class__ = Counting
    made.template_class = Counted
    made.globals = {name: value for name, value in made.globals.items() if name != "lipsum"}
    made.filters = {n: _filter(n, of) for n, of in made.filters.items() if n in FILTERS} | OURS
    made.tests = {name: _test(of) for name, of in made.tests.items()}
    return made


def _limited(unlimited: Callable[[str], jinja2.Template]) -> Callable[[str], jinja2.Template]:
    environment = functools.cache(lambda: _environment(unlimited))

    @functools.lru_cache(128)
    def compiled(chat_template: str) -> jinja2.Template:
        with _counting(ROOM):
            return environment().from_string(chat_template)

    return compiled


UNLIMITED = theirs._compile_jinja_template
theirs._compile_jinja_template = _limited(UNLIMITED)
