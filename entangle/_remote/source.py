"""Tasks as source: how a function travels to another version of Python, whose compiled code is not ours.

A function that a module has under its name is imported there (the import hook brings the module). One of the script itself, a closure or
a lambda goes as the lines in which it was written, with what it uses: the values of its global and free variables, by the
same rules, and its default values. Its decorators are not sent as source: they are the layers of its task, and travel as such.
Annotations are left out, since nothing runs them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import linecache
import os
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

from entangle._remote.lines import NotWrittenError, lines_of
from entangle._run.pickling import MAIN, OF_MAIN
from entangle.errors import UnfitPythonError, UnpicklableError
from entangle.task import Layer, Task

# How a value is described: (MODULE, name), (FOUND, module, qualified name, whether the function of the task of that name is
# meant), (DEFINED, number) of a definition, (TASK, description of the function, layers), (METHOD, description of the function,
# what it is bound to) or (PLAIN, the value itself).
MODULE, FOUND, DEFINED, TASK, METHOD, PLAIN = "module", "found", "defined", "task", "method", "plain"

Described = tuple[Any, ...]


class _Book:
    """What is sent: definitions, and the namespaces in which they were made."""

    def __init__(self, task: str, where: str) -> None:
        self.task = task
        self.where = where
        self.definitions: list[dict[str, Any]] = []
        self.spaces: list[dict[str, Any]] = []
        self._defined: dict[int, int] = {}
        self._space_of: dict[int, int] = {}
        #: What is described by its identity must live as long as we look at it.
        self._alive: list[Any] = []

    def describe(self, value: Any, what: str) -> Described:
        """A value as data that any version of Python can read."""
        if isinstance(value, types.ModuleType):
            return MODULE, value.__name__
        if isinstance(value, Task):
            return self._task(value, what)
        if isinstance(value, types.MethodType) and isinstance(value.__func__, (types.FunctionType, Task)) and not _travels(value):
            return METHOD, self.describe(value.__func__, what), self.describe(value.__self__, what)
        if isinstance(value, (types.FunctionType, type)):
            found = _place_of(value)
            if found is not None:
                return found
            if isinstance(value, types.FunctionType) or value.__module__ in MAIN or "<locals>" in value.__qualname__:
                return DEFINED, self._define(value, what)
        if isinstance(value, (list, tuple, dict, set, frozenset)) and not _travels(value):
            self._refuse(value, what)
        if not _travels(value):
            self._refuse(value, what)
        return PLAIN, value

    def _task(self, value: Task[..., Any], what: str) -> Described:
        found = _place_of(value)
        if found is not None:
            return found
        for layer in value.layers:
            if not _travels(layer):
                self._refuse(layer, f"the layer {type(layer).__name__} of {what}")
        return TASK, self.describe(value.function, what), value.layers

    def _refuse(self, value: Any, what: str) -> None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise UnpicklableError(
            f"task {self.task!r} cannot travel as source ({self.where}, here is {sys.version_info[0]}.{sys.version_info[1]}): {what} is a "
            f"{kind} that cannot be pickled, or whose class is defined in the script itself. Put it into a module, or use the same "
            "version of Python there"
        )

    def _define(self, value: Any, what: str) -> int:
        number = self._defined.get(id(value))
        if number is not None:
            return number
        number = self._defined[id(value)] = len(self.definitions)
        self._alive.append(value)
        definition: dict[str, Any] = {}
        self.definitions.append(definition)
        if isinstance(value, types.FunctionType):
            self._define_function(value, definition, what)
        else:
            self._define_class(value, definition, what)
        return number

    def _define_function(self, function: types.FunctionType, definition: dict[str, Any], what: str) -> None:
        code = function.__code__
        names = _names_of(code)
        cells = {}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__":
                raise UnpicklableError(f"task {self.task!r} cannot travel as source ({self.where}): {what} uses super()")
            try:
                cells[name] = self.describe(cell.cell_contents, f"variable {name!r} of {what}")
            except ValueError:
                continue  # not bound yet
        definition.update(
            kind="function",
            name=function.__name__,
            qualname=function.__qualname__,
            space=self._space(function.__globals__, names, what),
            defaults=tuple(self.describe(value, f"a default value of {what}") for value in function.__defaults__ or ()),
            keywords={
                name: self.describe(value, f"default of {name!r} of {what}") for name, value in (function.__kwdefaults__ or {}).items()
            },
            free=list(code.co_freevars),
            cells=cells,
            doc=function.__doc__,
            **self._lines_of(function, what),
        )

    def _define_class(self, kind: type, definition: dict[str, Any], what: str) -> None:
        found = self._lines_of(kind, what)
        names = {node.id for node in ast.walk(ast.parse(found["text"])) if isinstance(node, ast.Name)}
        module = sys.modules.get(kind.__module__)
        space = self._space(vars(module) if module is not None else {}, names, what)
        definition.update(kind="class", name=kind.__name__, qualname=kind.__qualname__, space=space, **found)

    def _lines_of(self, value: Any, what: str) -> dict[str, Any]:
        """The lines in which it was written, and where."""
        try:
            return lines_of(value)
        except NotWrittenError as error:
            raise UnpicklableError(
                f"task {self.task!r} cannot travel: {self.where}, so it has to go as source, and the source of {what} {error}"
            ) from None

    def _space(self, names_here: dict[str, Any], names: set[str], what: str) -> int:
        """The number of the namespace that stands for these globals, with what is used of them."""
        number = self._space_of.get(id(names_here))
        if number is None:
            number = self._space_of[id(names_here)] = len(self.spaces)
            self.spaces.append({"__name__": (PLAIN, names_here.get("__name__", "__main__"))})
        space = self.spaces[number]
        for name in sorted(names - set(space)):
            if name in names_here and not name.startswith("__"):
                space[name] = (PLAIN, None)  # so that what refers to itself comes to an end
                space[name] = self.describe(names_here[name], f"{name!r}, which {what} uses,")
        return number


def _travels(value: Any) -> bool:
    """Whether plain pickle can send it, and what it is made of can be found on the other side."""
    try:
        pickled = pickle.dumps(value, 5)
    except Exception:
        return False
    return OF_MAIN not in pickled or not names_main(pickled)


def names_main(pickled: Any, buffers: Any = None) -> str:
    """What a pickle takes from the script, which is another module on the other side; "" for nothing."""
    import io

    class Look(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module in MAIN:
                raise _OfMainError(name)
            return super().find_class(module, name)

    try:
        Look(io.BytesIO(pickled), buffers=buffers).load()
    except _OfMainError as found:
        return str(found)
    except Exception:
        return ""
    return ""


class _OfMainError(Exception):
    pass


def _place_of(value: Any) -> Described | None:
    """Where the other side finds a function, a class or a task by its name; None where it has none in a module."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or module in MAIN or "<" in name:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None) if isinstance(found, type) else getattr(found, part, None)
    if found is value:
        return FOUND, module, name, False
    if isinstance(found, Task) and found.function is value:
        return FOUND, module, name, True
    return None


def _names_of(code: types.CodeType) -> set[str]:
    """The global names that code may use, with those of the functions inside."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names


def describe_call(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> tuple[dict[str, Any], Any, Any]:
    """A task as data that any version of Python can read, and its arguments, of which those that are functions, tasks or classes
    are described too. `where` says, for errors, which version is there. Raises UnpicklableError, which names what cannot travel.
    """
    book = _Book(task.__name__, where)
    function = book.describe(task.function, f"the function {task.__name__!r}")
    for layer in task.layers:
        if not _travels(layer):
            book._refuse(layer, f"the layer {type(layer).__name__}")
    code = (types.FunctionType, types.MethodType, type, Task)
    places: list[Any] = []
    given = list(args)
    named = dict(kwargs)
    for holder, keys in ((given, range(len(given))), (named, list(named))):
        for key in keys:
            value = holder[key]  # type: ignore[index]
            if isinstance(value, code):
                what = f"argument {key + 1 if isinstance(key, int) else repr(key)}"
                places.append((key, book.describe(value, what)))
                holder[key] = None  # type: ignore[index]
    described = {
        "function": function,
        "layers": task.layers,
        "arguments": places,
        "definitions": book.definitions,
        "spaces": book.spaces,
        "from": sys.version_info[:2],
    }
    return described, tuple(given), named


# The other side --------------------------------------------------------------------------------------------------------


class _Reader:
    """Makes again what a book describes."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._definitions = described["definitions"]
        self._from = ".".join(map(str, described["from"]))
        self._spaces: list[dict[str, Any]] = [{"__builtins__": __builtins__} for _ in described["spaces"]]
        self._made: dict[int, Any] = {}
        self._late: list[Callable[[], None]] = []
        for definition in self._definitions:
            _remember_lines(definition)
        for number, definition in enumerate(self._definitions):
            if definition["kind"] == "function":
                self._make_function(number, definition)
        # Classes after what they may use when they are made, and only then what functions use when they are called.
        for space, values in zip(self._spaces, described["spaces"], strict=True):
            for name, value in values.items():
                if not self._of_class(value):
                    space[name] = self.value(value)
        for number, definition in enumerate(self._definitions):
            if definition["kind"] == "class":
                self._class(number)
        for space, values in zip(self._spaces, described["spaces"], strict=True):
            for name, value in values.items():
                space[name] = self.value(value)
        for fill in self._late:
            fill()

    def _of_class(self, value: Described) -> bool:
        if value[0] == DEFINED:
            return bool(self._definitions[value[1]]["kind"] == "class")
        return value[0] in (METHOD, TASK)

    def value(self, described: Described) -> Any:
        """The value that is described."""
        kind = described[0]
        if kind == MODULE:
            return importlib.import_module(described[1])
        if kind == FOUND:
            found: Any = importlib.import_module(described[1])
            for name in described[2].split("."):
                found = getattr(found, name)
            return found.function if described[3] else found
        if kind == DEFINED:
            return self._made[described[1]] if described[1] in self._made else self._class(described[1])
        if kind == TASK:
            return Task(self.value(described[1]), described[2])
        if kind == METHOD:
            return types.MethodType(self.value(described[1]), self.value(described[2]))
        return described[1]

    def _compile(self, definition: dict[str, Any], tree: ast.Module) -> types.CodeType:
        ast.increment_lineno(tree, definition["line"] - 1)
        return compile(ast.fix_missing_locations(tree), definition["file"], "exec", dont_inherit=True)

    def _parse(self, definition: dict[str, Any]) -> ast.Module:
        try:
            return ast.parse(str(definition["text"]))
        except SyntaxError as error:
            here = ".".join(map(str, sys.version_info[:2]))
            raise UnfitPythonError(
                f"{definition['name']!r} was written for Python {self._from} and cannot be read by {here}, which is here: {error.msg} in "
                f"{(error.text or '').strip()!r}"
            ) from None

    def _make_function(self, number: int, definition: dict[str, Any]) -> None:
        tree = self._parse(definition)
        node: Any = tree.body[0]
        if isinstance(node, ast.If):
            node = node.body[0]
        made: ast.stmt
        if isinstance(node, ast.Expr):  # a lambda
            _bare(node.value)
            made = node
        else:
            node.decorator_list, node.returns = [], None
            if hasattr(node, "type_params"):
                node.type_params = []
            _bare(node)
            made = node
        # The free variables are those of a function around it, whose cells are filled in later. The function's own name is none of
        # them unless it was: it may stand for a task, or for what a decorator has made of it, which is what a recursion is to call.
        free = definition["free"]
        body: list[ast.stmt] = [ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None)) for name in free]
        if isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef) and made.name not in free:
            body.insert(0, ast.Global([made.name]))
        around = ast.parse("def around(): pass")
        around.body[0].body = [*body, made]  # type: ignore[attr-defined]
        code = _inner(_inner(self._compile(definition, around)))
        cells = tuple(types.CellType() for _ in code.co_freevars)
        function = types.FunctionType(code, self._spaces[definition["space"]], definition["name"], None, cells)
        function.__qualname__ = definition["qualname"]
        self._made[number] = function

        def fill() -> None:
            function.__defaults__ = tuple(self.value(value) for value in definition["defaults"]) or None
            function.__kwdefaults__ = {name: self.value(value) for name, value in definition["keywords"].items()} or None
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                if name in definition["cells"]:
                    cell.cell_contents = self.value(definition["cells"][name])

        self._late.append(fill)

    def _class(self, number: int) -> Any:
        definition = self._definitions[number]
        if number not in self._made:
            space = self._spaces[definition["space"]]
            exec(self._compile(definition, self._parse(definition)), space)
            self._made[number] = space[definition["name"]]
        return self._made[number]


def _remember_lines(definition: dict[str, Any]) -> None:
    """Let tracebacks here, and `inspect` for those who ship it on, find the lines of a file that is not here."""
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


def _inner(code: types.CodeType) -> types.CodeType:
    """The code of the only function that is defined in this code."""
    (found,) = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return found


def _bare(function: Any) -> None:
    """Take annotations and default values from a function's tree: the ones are not wanted, the others are sent as values."""
    arguments = function.args
    arguments.defaults = []
    arguments.kw_defaults = [None] * len(arguments.kwonlyargs)
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
        if argument is not None:
            argument.annotation = None


def revive_call(described: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Task[..., Any], Any, Any]:
    """What was described on the other side. Raises UnfitPythonError where this version cannot read its source."""
    reader = _Reader(described)
    given = list(args)
    for key, value in described["arguments"]:
        if isinstance(key, int):
            given[key] = reader.value(value)
        else:
            kwargs[key] = reader.value(value)
    layers: tuple[Layer, ...] = described["layers"]
    return Task(reader.value(described["function"]), layers), tuple(given), kwargs
