"""The lines in which a function or a class was written, to be sent to another version of Python.

A file may have been edited since it was loaded. So its code is compiled and compared with the code
that runs here: another Python must not do what this one would not.
"""

from __future__ import annotations
import __future__

import ast
import functools
import importlib.machinery
import inspect
import linecache
import os
import sys
import types
import zipimport
from collections.abc import Iterator
from typing import Any

from entangle._remote.wire.source_format import functions_of, parse


class NotWrittenError(Exception):
    """The lines are not available. The text continues "the source of …"."""


def lines_of(value: Any) -> dict[str, Any]:
    """The lines of a function or class, the first one's number, the file and future imports."""
    try:
        file, lines = _file_of(value)
        tree = _parsed("".join(lines))
        at = _loaded_class_at(value, tree) if isinstance(value, type) else _loaded_at(value, "".join(lines))
    except (OSError, TypeError, SyntaxError) as error:
        raise NotWrittenError(f"is not available ({error}). Write it in a file, or use the same version of Python there") from None
    if not at:
        raise NotWrittenError(f"is no longer there: {file} has changed since it was loaded. Start the program again")
    node = _node_of(value, at, tree)
    if node is None:
        raise NotWrittenError("cannot be told from others in its line. Write it with def, in lines of its own")
    if isinstance(value, type):
        future = [
            alias.name for part in tree.body if isinstance(part, ast.ImportFrom) and part.module == "__future__" for alias in part.names
        ]
    else:
        future = [name for name in __future__.all_feature_names if value.__code__.co_flags & getattr(__future__, name).compiler_flag]
    if isinstance(node, ast.Lambda):
        text = ast.get_source_segment("".join(lines), node) or ""
        return {"text": f"({text})", "line": node.lineno, "file": file, "future": future}
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) if isinstance(node, ast.ClassDef) else node.lineno
    text = "".join(lines[first - 1 : node.end_lineno])
    if node.col_offset:
        text, first = "if True:\n" + text, first - 1
    return {"text": text, "line": first, "file": file, "future": future}


def _file_of(value: Any) -> tuple[str, list[str]]:
    """The file in which it was written, and the lines that the file has now."""
    file = inspect.getsourcefile(value) or inspect.getfile(value)
    linecache.checkcache(file)
    module = inspect.getmodule(value, file)
    lines = linecache.getlines(file, vars(module) if module is not None else None)
    if not lines and not os.path.exists(file):
        raise OSError(f"there is no {file}")
    return file, lines


def _node_of(value: Any, line: int, tree: ast.Module) -> Any:
    """The node of a class, or of a function that begins in this line."""
    if isinstance(value, type):
        found = [node for name, node in _named(tree, "") if isinstance(node, ast.ClassDef) and name == value.__qualname__]
        return found[0] if len(found) == 1 else None
    code = value.__code__
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
    """The tree of a file. Each call of a function in it asks again. Must not be changed."""
    return parse(text)


def _same_code(node: ast.Lambda, code: types.CodeType) -> bool:
    """Whether a lambda of the tree has this code: the same names, variables and constants."""
    made = compile(ast.Expression(node), "<lambda>", "eval").co_consts
    return any(
        isinstance(other, types.CodeType)
        and (other.co_varnames, set(other.co_names) | set(other.co_freevars))
        == (code.co_varnames, set(code.co_names) | set(code.co_freevars))
        and [c for c in other.co_consts if not isinstance(c, types.CodeType)]
        == [c for c in code.co_consts if not isinstance(c, types.CodeType)]
        for other in made
    )


# Whether it is still what was loaded ------------------------------------------------------------

#: Flags that say what code is, and not where it was found.
_KIND = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
#: Flags of `from __future__ import …`, which hold for a file or for all cells of a notebook.
_FUTURE = functools.reduce(lambda flags, name: flags | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0)
_PLAIN_LOADERS = (importlib.machinery.SourceFileLoader, importlib.machinery.SourcelessFileLoader, zipimport.zipimporter)


def _loaded_at(function: types.FunctionType, text: str) -> int:
    """The line where the function begins that compiles to this one's code; 0 if there is none."""
    code = function.__code__
    spec = function.__globals__.get("__spec__")
    rewritten = spec is not None and type(spec.loader) not in _PLAIN_LOADERS
    found = [
        other.co_firstlineno
        for other in _codes_of(text, code.co_flags & _FUTURE)
        if other.co_name == code.co_name and (_holds(code, other) if rewritten else _told(other) == _told(code))
    ]
    return min(found, key=lambda line: abs(line - code.co_firstlineno), default=0)


def _loaded_class_at(value: type, tree: ast.Module) -> int:
    """The line of the class statement with this class's functions and annotated fields; 0 if none.

    Its other attributes travel as values.
    """
    file, lines = _file_of(value)
    nodes = [node for name, node in _named(tree, "") if isinstance(node, ast.ClassDef) and name == value.__qualname__]
    loaded = _annotated(value) if len(nodes) == 1 else None
    if loaded is not None and loaded != [name for name in _fields(nodes[0]) if not name.startswith("_")]:
        return 0
    for name, attribute in vars(value).items():
        for function in functions_of(attribute):
            here = function.__qualname__ == f"{value.__qualname__}.{name}" and function.__code__.co_name == name
            if here and inspect.getsourcefile(function) == file and not _loaded_at(function, "".join(lines)):
                return 0
    if not nodes:
        raise OSError(f"{file} has no class statement of that name, or no longer has it")
    return nodes[0].lineno


def _annotated(value: type) -> list[str] | None:
    """The names that a class annotates; None if that is unknown.

    From 3.14 on annotations are evaluated on demand, which may fail. As text they hardly do.
    """
    if sys.version_info < (3, 14):
        annotations = vars(value).get("__annotations__", {})
    else:
        import annotationlib

        try:
            annotations = annotationlib.get_annotations(value, format=annotationlib.Format.STRING)
        except Exception:  # any __annotate__ may run
            return None
    return [name for name in annotations if not name.startswith("_")]


def _fields(node: ast.ClassDef) -> list[str]:
    """The names that the statements of a class annotate, each once."""
    found: list[str] = []

    def look(statements: list[ast.stmt]) -> None:
        for part in statements:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.simple:
                found.append(part.target.id)
            elif not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                for block in ("body", "orelse", "finalbody"):
                    look(getattr(part, block, []))

    look(node.body)
    return list(dict.fromkeys(found))


@functools.lru_cache(maxsize=16)
def _codes_of(text: str, flags: int) -> list[types.CodeType]:
    """All code in a file."""
    found: list[types.CodeType] = []
    more = [compile(text, "<source>", "exec", flags=flags, dont_inherit=True)]
    while more:
        code = more.pop()
        found.append(code)
        more += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return found


def _told(code: types.CodeType) -> tuple[Any, ...]:
    """All of some code but where it was written, so that it can be compared."""
    sizes = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _KIND
    names = code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return sizes, names, code.co_code, tuple(map(_told_constant, code.co_consts))


def _told_constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _told(value)
    if isinstance(value, (tuple, frozenset)):
        return type(value)(map(_told_constant, value))
    return type(value), repr(value)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0


def _holds(code: types.CodeType, written: types.CodeType) -> bool:
    """Whether an import hook may have made this code from what was written.

    A test runner does so to explain assertions. It adds to the code and takes nothing away.
    """
    mine, other = (
        ({*c.co_names, *c.co_varnames, *c.co_freevars}, {_told_constant(v) for v in c.co_consts if not isinstance(v, types.CodeType)})
        for c in (code, written)
    )
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return (
        code.co_varnames[: code.co_argcount] == written.co_varnames[: written.co_argcount]
        and mine[0] >= other[0]
        and mine[1] >= other[1] - {_told_constant(None)}
        and all(
            any(part.co_name == constant.co_name and _holds(part, constant) for part in inner)
            for constant in written.co_consts
            if isinstance(constant, types.CodeType)
        )
    )
