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

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import transformers.utils.chat_template_utils as theirs
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Macro, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tunediff.text.metering import BITS, METER, ROOM, TIMES, Exceeded, charge, check_format, counting, foresee, size

LONGEST = 200_000  # characters of a template
FILTERS = frozenset(
    "abs attr capitalize count d default dictsort e escape first float format groupby indent int items join last length list "
    "lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson trim truncate "
    "unique upper urlencode wordcount".split()
)
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
# no template can name them
EACH, WRITTEN, COUNTED, JOINED, TOLD = ("<each>", "<written>", "<counted>", "<joined>", "<told>")


class Counting(ImmutableSandboxedEnvironment):
    """transformers' environment of chat templates that counts."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
        sizes = size(left, meter.room), size(right, meter.room)
        if operator == "*":
            if _is_whole(left, right):
                if left.bit_length() + right.bit_length() > BITS:
                    raise Exceeded("its numbers have too many digits")
            elif _is_whole(right):
                meter.check((sizes[0] + 1) * max(right, 0))
            elif _is_whole(left):
                meter.check((sizes[1] + 1) * max(left, 0))
        elif operator == "**" and _is_whole(left, right) and abs(left) > 1 and left.bit_length() * right > BITS:
            raise Exceeded("its numbers have too many digits")
        elif operator == "%" and isinstance(left, str):
            check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+":
            meter.check(sum(sizes))
        return charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        name, of = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        METER.get().charge(1)
        if isinstance(of, str):  # its methods take what filters of their names do
            first = (args[0], of) if name == "join" and args else (of, *args)
            first = foresee(name, first, kwargs)
            args = (first[0],) if name == "join" and args else args
        elif not isinstance(__obj, Macro):
            foresee("", args, kwargs)
        return charge(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made, text = super().wrap_str_format(value), getattr(value, "__self__", "")
        if made is None:
            return None

        @functools.wraps(made)
        def formatted(*args: Any, **kwargs: Any) -> str:
            check_format(text, [*args, *kwargs.values()])
            return made(*args, **kwargs)

        return formatted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = next((methods for kind, methods in METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (known is None or attr in known)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST:
            raise Exceeded(f"it has more than {LONGEST:,} characters itself")
        return Handed().visit(super()._parse(source, name, filename))


def _is_whole(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


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


def _by(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context  # so that none is computed once for all, when the template is compiled
def _counted(context: Any, value: Any) -> Any:
    return charge(value)


@jinja2.pass_context
def _goes_over(context: Any, items: Any) -> Iterator[Any]:
    for item in items:
        METER.get().charge(1)
        yield item


@jinja2.pass_context
def _told(context: Any, much: int) -> str:
    METER.get().charge(much)
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
        own = foresee(name, arguments[1:] if passed else arguments, named)
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
        with counting(ROOM + TIMES * given):
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
        with counting(ROOM):
            return environment().from_string(chat_template)

    return compiled


UNLIMITED = theirs._compile_jinja_template
theirs._compile_jinja_template = _limited(UNLIMITED)
