"""How much code there is: lines of src and of the page that are not blank, not a comment and not a docstring.

python bench/size.py
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src" / "tunediff"
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
    """One function, with the number of its lines of code."""

    lines: int
    place: str


def code_lines(text: str) -> set[int]:
    """Numbers of the lines of Python code: those on which a token stands that is no comment, less those of docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def functions(text: str, name: str) -> Iterator[Function]:
    """Every function of a file with its lines of code."""
    lines = code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = lines & set(range(node.lineno, node.end_lineno + 1))
            yield Function(len(own), f"{name}:{node.lineno} {node.name}")


def page_lines(text: str) -> int:
    """Lines of a script or a style sheet that are neither blank nor a comment."""
    text = re.sub(r"^[ \t]*/\*.*?\*/[ \t]*$", "", text, flags=re.S | re.M)
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("//"))


def main() -> None:
    files = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    counts = {name: len(code_lines(text)) for name, text in files.items()}
    print(f"Python        {sum(counts.values()):6,} lines of code in {len(counts)} files")
    for word, ending in (("page, scripts", "js"), ("page, style", "css")):
        some = {path.name: path.read_text(encoding="utf-8") for path in (SOURCE / "report" / "web").glob(f"*.{ending}")}
        long = sum(len(line) > 140 for text in some.values() for line in text.splitlines())
        lines = sum(map(page_lines, some.values()))
        print(f"{word:13} {lines:6,} lines of code in {len(some)} files, {long} longer than 140 letters")
    longest = max(one for name, text in files.items() for one in functions(text, name))
    name = max(counts, key=counts.get)
    print(f"longest function: {longest.lines} lines of code, {longest.place}")
    print(f"longest file: {counts[name]} lines of code, {len(files[name].splitlines())} in all, {name}")


if __name__ == "__main__":
    main()
