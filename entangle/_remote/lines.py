"""Where a function or a class is written: its lines, as they are sent to a Python that cannot read our compiled code."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any


class NotWrittenError(Exception):
    """The lines are not to be had; the text goes on from "the source of …"."""


def lines_of(value: Any) -> dict[str, Any]:
    """The lines in which a function or a class was written, the number of the first, and the file."""
    try:
        lines, _ = inspect.findsource(value)
        tree = _parsed("".join(lines))
    except (OSError, TypeError, SyntaxError) as error:
        raise NotWrittenError(f"is not to be had ({error}). Write it in a file, or use the same version of Python there") from None
    node = _node_of(value, tree)
    if node is None:
        raise NotWrittenError("is not told from others in its line. Write it with def, in lines of its own")
    file = inspect.getsourcefile(value) or "<source>"
    if isinstance(node, ast.Lambda):
        text = ast.get_source_segment("".join(lines), node) or ""
        return {"text": f"({text})", "line": node.lineno, "file": file}
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) if isinstance(node, ast.ClassDef) else node.lineno
    text = "".join(lines[first - 1 : node.end_lineno])
    if node.col_offset:
        text, first = "if True:\n" + text, first - 1
    return {"text": text, "line": first, "file": file}


def _node_of(value: Any, tree: ast.Module) -> Any:
    """The part of a file's tree in which a function or class was written."""
    if isinstance(value, type):
        found = [node for name, node in _named(tree, "") if isinstance(node, ast.ClassDef) and name == value.__qualname__]
        return found[0] if len(found) == 1 else None
    code = value.__code__
    line = code.co_firstlineno
    if code.co_name != "<lambda>":
        node: Any
        for node in ast.walk(tree):
            is_def = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == code.co_name
            if is_def and line in (node.lineno, *(decorator.lineno for decorator in node.decorator_list)):
                return node
        return None
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno <= line <= (node.end_lineno or 0)]
    if len(lambdas) > 1:
        lambdas = [node for node in lambdas if _same_code(node, code)]
    return lambdas[0] if len({ast.dump(node) for node in lambdas}) == 1 else None


def _named(tree: ast.AST, around: str) -> Iterator[tuple[str, ast.AST]]:
    """The functions and classes of a tree, with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield around + node.name, node
            yield from _named(node, f"{around}{node.name}." + ("" if isinstance(node, ast.ClassDef) else "<locals>."))
        else:
            yield from _named(node, around)


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> ast.Module:
    """The tree of a file; the same file is asked for at every call of its functions. Nobody changes it."""
    return ast.parse(text)


def _same_code(node: ast.Lambda, code: types.CodeType) -> bool:
    """Whether a lambda of the tree compiles to this code: by what it names and computes, its variables being where they may."""
    made = compile(ast.Expression(node), "<lambda>", "eval").co_consts
    return any(
        isinstance(other, types.CodeType)
        and (other.co_varnames, set(other.co_names) | set(other.co_freevars))
        == (code.co_varnames, set(code.co_names) | set(code.co_freevars))
        and [c for c in other.co_consts if not isinstance(c, types.CodeType)]
        == [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        for other in made
    )
