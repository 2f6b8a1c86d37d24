"""Makes a task that has come as source, with this version of Python."""

from __future__ import annotations
import __future__

import ast
import collections
import linecache
import os
import sys
import types
from collections.abc import Iterable
from typing import Any

from entangle._remote.wire.source_format import CALL, FUNCTION, Unpickler, functions_of, given, parse
from entangle.errors import UnfitPythonError, UnpicklableError
from entangle.task import Task


class SourceReader:
    """Reads what `SourceWriter` has written. `call` is the task with its arguments."""

    def __init__(self, data: Any, buffers: Iterable[Any] | None = None) -> None:
        self._made: dict[int, Any] = {}
        self._cells: dict[int, dict[str, types.CellType]] = {}
        self.call: tuple[Task[..., Any], tuple[Any, ...], dict[str, Any]]
        self._unpickler = Unpickler(data, self.given, buffers)
        version, self._definitions, spaces = self._unpickler.load()
        self._version = tuple(version)
        self._spaces: list[dict[str, Any]] = [{"__builtins__": __builtins__, **space} for space in spaces]
        for number, definition in enumerate(self._definitions):
            if "text" in definition:
                _remember_lines(definition)
                self._cells[number] = {name: types.CellType() for name in definition["free"]}
            if definition["kind"] == FUNCTION:
                self._made[number] = self._function(number, definition)
        step: Any = ("",)
        while step[0] != CALL:
            step = self._unpickler.load()
            getattr(self, f"_take_{step[0]}")(*step[1:])

    def given(self, number: int) -> Any:
        """The function or class with this number."""
        if number not in self._made:  # a member of a class that was made before
            definition = self._definitions[number]
            found = vars(self._made[definition["owner"]])[definition["name"]]
            self._made[number] = found if definition["index"] is None else list(functions_of(found))[definition["index"]]
        return self._made[number]

    def reduced(self, value: Any) -> Any:
        """How to write what was made here for the caller, which then gets its own object."""
        if isinstance(value, (type, types.FunctionType)):
            for number, made in self._made.items():
                if made is value:
                    return given, (number,)
            around, _, name = value.__qualname__.rpartition(".")
            for made in self._made.values():  # a member that nothing has asked for yet
                if isinstance(made, type) and made.__qualname__ == around and vars(made).get(name) is value:
                    return getattr, (made, name)
        return NotImplemented

    def _take_global(self, space: int, name: str, value: Any) -> None:
        self._spaces[space][name] = value

    def _take_cell(self, number: int, name: str, value: Any) -> None:
        self._cells[number][name].cell_contents = value

    def _take_function(self, number: int, defaults: Any, keywords: Any, attributes: dict[str, Any]) -> None:
        function = self._made[number]
        function.__defaults__, function.__kwdefaults__ = defaults, keywords
        function.__dict__.update(attributes)

    def _take_attribute(self, number: int, name: str, value: Any) -> None:
        type.__setattr__(self._made[number], name, value)

    def _take_call(self, function: Any, layers: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = Task(function, layers), args, kwargs

    def _compile(self, definition: dict[str, Any], body: list[ast.stmt]) -> types.CodeType:
        """The code of a function with these statements, inside one that has the free variables."""
        free = definition["free"]
        if free:
            body = [ast.Nonlocal(list(free)), *body]
        inner: Any = parse("def around(): pass").body[0]
        outer: Any = parse("def outermost(): pass")
        inner.body = body
        outer.body[0].body = [*(ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None)) for name in free), inner]
        ast.increment_lineno(outer, definition["line"] - 1)
        features = [*definition["future"]]
        if self._version >= (3, 14) > sys.version_info[:2]:
            features.append("annotations")  # evaluated lazily there, and may name what never exists
        flags = 0
        for feature in features:
            flags |= getattr(__future__, feature).compiler_flag if hasattr(__future__, feature) else 0
        code = compile(ast.fix_missing_locations(outer), definition["file"], "exec", flags=flags, dont_inherit=True)
        return _inner(_inner(code))

    def _parse(self, definition: dict[str, Any]) -> Any:
        """The statement of a definition."""
        try:
            node: Any = parse(str(definition["text"])).body[0]
        except SyntaxError as error:
            there, here = (".".join(map(str, version[:2])) for version in (self._version, sys.version_info))
            raise UnfitPythonError(
                f"{definition['name']!r} was written for Python {there}, and Python {here} cannot read it: {error.msg} in "
                f"{(error.text or '').strip()!r}. Write it as both can read it, or use the same version of Python there"
            ) from None
        return node.body[0] if isinstance(node, ast.If) else node

    def _function(self, number: int, definition: dict[str, Any]) -> types.FunctionType:
        node = self._parse(definition)
        body: list[ast.stmt] = [node]
        if isinstance(node, ast.Expr):  # a lambda
            _bare(node.value)
        else:
            node.decorator_list, node.returns = [], None
            if hasattr(node, "type_params"):
                node.type_params = []
            _bare(node)
            # Its own name may stand for a task or a decorated function: a recursion calls that.
            if node.name not in definition["free"]:
                body.insert(0, ast.Global([node.name]))
        code = _inner(self._compile(definition, body))
        cells = tuple(self._cells[number][name] for name in code.co_freevars)
        function = types.FunctionType(code, self._spaces[definition["space"]], definition["name"], None, cells)
        function.__qualname__, function.__module__ = definition["qualname"], definition["module"]
        function.__doc__ = definition["doc"]
        return function

    def _take_class(self, number: int, later: list[str], defaults: dict[str, Any] | None) -> None:
        definition = self._definitions[number]
        if "fields" in definition:
            make: Any = collections.namedtuple  # hides the fields from the type checker
            values = list((defaults or {}).values())
            self._made[number] = make(definition["name"], definition["fields"], defaults=values, module=definition["module"])
            return
        node = self._parse(definition)
        for part in node.body:
            if getattr(part, "name", None) in definition["bare"]:
                part.decorator_list = []
        space = self._spaces[definition["space"]]
        body: list[ast.stmt] = [node, ast.Return(ast.Name(node.name, ast.Load()))]
        if "<locals>" not in definition["qualname"]:
            body.insert(0, ast.Global([node.name]))
        code = self._compile(definition, body)
        around = types.FunctionType(code, space, "around", None, tuple(self._cells[number][key] for key in code.co_freevars))
        was = space.get(node.name, self)
        try:
            self._made[number] = made = around()
        except NameError as error:
            if error.name not in later:
                raise
            raise UnpicklableError(
                f"class {definition['qualname']!r} cannot be made by another version of Python: what runs with its statement uses "
                f"{error.name!r}, which holds that class itself. Put the class into a module, or use the same version of Python there"
            ) from None
        if isinstance(made, type):
            made.__qualname__ = definition["qualname"]
        if was is not self:  # the name stands for something else by now
            space[node.name] = was


def _inner(code: types.CodeType) -> types.CodeType:
    """The code of the only function that is defined in this code."""
    (found,) = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return found


def _remember_lines(definition: dict[str, Any]) -> None:
    """Show the source lines of a file that is not here to tracebacks and to `inspect`."""
    file, text = definition["file"], definition["text"].splitlines(keepends=True)
    first = definition["line"]
    if definition["text"].startswith("if True:\n"):
        text, first = text[1:], first + 1
    if os.path.exists(file):
        return
    _, _, lines, _ = linecache.cache.get(file, (0, None, [], file))
    lines = [*lines, *["\n"] * (first - 1 + len(text) - len(lines))]
    lines[first - 1 : first - 1 + len(text)] = text
    linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


def _bare(function: Any) -> None:
    """Remove annotations, which nothing needs, and default values, which come as values."""
    arguments = function.args
    arguments.defaults = []
    arguments.kw_defaults = [None] * len(arguments.kwonlyargs)
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
        if argument is not None:
            argument.annotation = None
