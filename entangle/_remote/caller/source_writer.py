"""Writes a task as source, for another version of Python, which cannot run our compiled code.

A function that a module has under its name is imported there; the import hook brings the module. A
function of the script, a closure or a lambda travels as the lines in which it was written, with
what it uses: its global and free variables, by the same rules, and its default values. Decorators
do not travel as source, but as the layers of the task. Annotations are left out, since nothing runs
them.

A class of the script travels as its lines as well. Its statement is run there; then its attributes
get the values that they have here. So its instances can be pickled: where a pickle would name such
a class or function, it has the number of a definition.
"""

from __future__ import annotations

import ast
import builtins
import copyreg
import dis
import enum
import functools
import importlib
import inspect
import pickle
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from entangle._remote.caller.source_lines import NotWrittenError, lines_of
from entangle._remote.wire.source_format import (
    ATTRIBUTE,
    CALL,
    CELL,
    CLASS,
    FUNCTION,
    GLOBAL,
    MEMBER,
    Pickler,
    bound,
    cached,
    functions_of,
    given,
    given_function,
    parse,
)
from entangle._shared.pickling import offending_part, travels_by_value
from entangle._tasks.layer import Decorated
from entangle.errors import EntangleError, UnpicklableError
from entangle.task import Task

#: Globals that each module has, and that hold for this process alone.
_OF_HERE = {"__builtins__", "__name__", "__package__", "__loader__", "__spec__"}
#: Attributes that `typing.NamedTuple` makes, there as here.
_GENERATED = {"_make", "_replace", "_asdict", "_fields", "_field_defaults"}
#: What evaluates annotations on demand (PEP 649). It travels as it is written.
_OF_ANNOTATIONS = {"__annotate__", "__annotate_func__"}
_COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


class SourceWriter:
    """A task and its arguments, as steps that make them again.

    `head` is written first, then `steps`, with values as `reduced` says. `where` tells errors which
    version is there. Raises UnpicklableError, which names what cannot travel.
    """

    def __init__(self, task: Decorated, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> None:
        self.steps: list[tuple[Any, ...]] = []
        #: What has been defined, by number. Keeps alive what `_numbers` knows by its identity.
        self.objects: list[Any] = []
        self._name = task.__name__
        self._where = where
        self._definitions: list[dict[str, Any]] = []
        self._spaces: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        self._space_of: dict[int, int] = {}
        self._globals: dict[tuple[int, str], bool] = {}
        self._needed: set[int] = set()
        self._made: set[int] = set()
        self._making = 0
        self._catching_up = False
        self._later: list[Callable[[], Any]] = []
        self._what = ""
        self._found: list[int] = []
        self._ready(task.function, f"the function {self._name!r}")
        for layer in task.layers:
            self._ready(layer, f"the layer {type(layer).__name__}")
        for index, value in enumerate(args, 1):
            self._ready(value, f"argument {index}")
        for name, value in kwargs.items():
            self._ready(value, f"argument {name!r}")
        self._catch_up()
        if self._later:
            raise self._error(
                "its classes need each other before they are made. Put them into a module, or use the same version of Python there"
            )
        self.steps.append((CALL, task.function, task.layers, args, kwargs))

    @property
    def head(self) -> tuple[Any, ...]:
        """What comes before the steps."""
        return sys.version_info[:2], self._definitions, self._spaces

    def given(self, number: int) -> Any:
        """The object with this number, for an answer."""
        return self.objects[number]

    def reduced(self, value: Any) -> Any:
        """How to write a function, a class, or what a plain pickle would only name."""
        if isinstance(value, (types.FunctionType, type)):
            found = _place_of(value)
            if found is not None:
                return (given_function, found[:2]) if found[2] else NotImplemented
            return (given, (self._number(value),)) if isinstance(value, types.FunctionType) or _is_of_script(value) else NotImplemented
        if type(value) is types.ModuleType:
            return importlib.import_module, (value.__name__,)
        if isinstance(value, types.MethodType):
            name = value.__func__.__name__
            if getattr(value.__self__, name, None) == value:
                return getattr, (value.__self__, name)
            return bound, (value.__func__, value.__self__)
        if isinstance(value, (staticmethod, classmethod)):
            return type(value), (value.__func__,)
        if isinstance(value, property):
            return property, (value.fget, value.fset, value.fdel, value.__doc__)
        if isinstance(value, functools._lru_cache_wrapper) and _place_of(value) is None:
            return cached, (value.__wrapped__, dict(value.cache_parameters()))
        if isinstance(value, typing.NewType) and _place_of(value) is None:
            return typing.NewType, (value.__name__, value.__supertype__)
        if type(value) is typing.TypeVar and _place_of(value) is None:
            return typing.TypeVar, (value.__name__, *value.__constraints__)
        if isinstance(value, Task):
            return value.for_others()
        kind = type(value)
        if kind in copyreg.dispatch_table or not (_is_of_script(kind) or _says_main(value)):
            return NotImplemented
        reduced = value.__reduce_ex__(5)
        if isinstance(reduced, str):
            raise pickle.PicklingError(f"it is known by its name in the script, {reduced!r}, alone")
        return reduced

    # What is needed, before what needs it -------------------------------------------------------

    def _ready(self, value: Any, what: str) -> bool:
        """Write what a value needs. False if that is a class that is not written yet."""
        found = self._look(value, what)
        for number in found:
            self._need(number, what)
        return all(self._is_made(number) for number in found)

    def _look(self, value: Any, what: str) -> list[int]:
        """The numbers of the definitions that a value refers to."""
        before = self._what, self._found
        self._what, self._found = what, []
        try:
            Pickler(_Nowhere(), self.reduced, lambda _: False).dump(value)
            return self._found
        except EntangleError:
            raise
        except Exception as error:
            raise self._refusal(value, what, error) from None
        finally:
            self._what, self._found = before

    def _refusal(self, value: Any, what: str, error: Exception) -> UnpicklableError:
        def refusal(part: Any) -> Exception | None:
            try:
                Pickler(_Nowhere(), self.reduced, lambda _: False).dump(part)
            except Exception as found:
                return found
            return None

        where, part, _ = offending_part(value, refusal)
        at = f" at {where}" if where else ""
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        return self._error(
            f"{kind}{at} cannot be pickled ({type(error).__name__}: {error}), and only a plain pickle can be read there. Make it in the "
            "body, or use the same version of Python",
            f"{what} of ",
        )

    def _error(self, why: str, what: str = "") -> UnpicklableError:
        here = ".".join(map(str, sys.version_info[:2]))
        return UnpicklableError(
            f"{what}task {self._name!r} cannot travel to another version of Python ({self._where}, here is {here}): {why}"
        )

    def _is_made(self, number: int) -> bool:
        definition = self._definitions[number]
        if definition["kind"] == MEMBER:
            return self._is_made(definition["owner"])
        return definition["kind"] == FUNCTION or number in self._made

    def _need(self, number: int, what: str) -> None:
        """Write the steps that make the definition with this number, unless they are written."""
        if number in self._needed:
            return
        self._needed.add(number)
        definition, value = self._definitions[number], self.objects[number]
        if definition["kind"] == MEMBER:
            self._need(definition["owner"], what)
        elif definition["kind"] == FUNCTION:
            self._need_function(number, value)
        else:
            self._making += 1
            self._need_class(number, value)
            self._making -= 1
            if not self._making:
                self._catch_up()

    def _step(self, step: tuple[Any, ...], what: str) -> bool:
        """Write a step, once what it needs is written. False if it must wait."""
        ready = self._ready(step[2:] if step[0] == FUNCTION else step[3], what)
        if ready:
            self.steps.append(step)
            if step[0] == GLOBAL:
                self._globals[step[1:3]] = True
        else:
            self._later.append(lambda: self._step(step, what))
        return ready

    def _catch_up(self) -> None:
        """Write steps that waited for a class, as far as they can be."""
        if self._catching_up:
            return
        self._catching_up = True
        known = -1
        while self._later and len(self.steps) > known:
            known = len(self.steps)
            waiting, self._later = self._later, []
            for again in waiting:
                again()
        self._catching_up = False

    def _need_function(self, number: int, function: types.FunctionType) -> None:
        what = f"function {function.__qualname__!r}"
        for name in sorted(_global_names(function.__code__)):
            self._global(function.__globals__, name, what)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._cell(number, name, cell, what)
        defaults, keywords, attributes = function.__defaults__, function.__kwdefaults__, dict(vars(function))
        if defaults or keywords or attributes:
            self._step((FUNCTION, number, defaults, keywords, attributes), f"the default values and attributes of {what}")

    def _need_class(self, number: int, kind: type) -> None:
        what = f"class {kind.__qualname__!r}"
        definition = self._definitions[number]
        if "fields" in definition:
            defaults = vars(kind)["_field_defaults"]
            if self._ready(defaults, f"the default values of {what}"):
                self.steps.append((CLASS, number, [], defaults))
                self._made.add(number)
            else:
                self._wait_for(number, what)
            return
        tree = parse(definition["text"])
        node: Any = tree.body[0]
        node = node if isinstance(node, ast.ClassDef) else node.body[0]
        for part in node.body:
            if getattr(part, "name", None) in definition["bare"]:
                part.decorator_list = []
        code = compile(tree, "<class>", "exec", dont_inherit=True, flags=_flags(definition["future"]))
        now = _global_names(code, False)
        space = vars(sys.modules[kind.__module__]) if kind.__module__ in sys.modules else {}
        cells = self._cells_of_class(kind, node, definition)
        stored = {name for one in _inner_codes(code) for name in _names(one, "STORE_NAME")}
        for name in sorted(now - set(cells) - set(space) - stored):
            if "<locals>" in kind.__qualname__ and not hasattr(builtins, name):
                raise self._error(f"{what} uses the variable {name!r} of the function around it. Define the class at the top of a file")
        own = {name for name, cell in cells.items() if _holds_itself(cell, kind)}
        waits = [name for name in sorted(now - set(cells)) if not self._global(space, name, what)]
        waits += [name for name in sorted(now & set(cells) - own) if not self._cell(number, name, cells[name], what)]
        if waits:
            self._wait_for(number, what)
            return
        self.steps.append((CLASS, number, [name for (_, name), sent in self._globals.items() if not sent], None))
        self._made.add(number)
        for name in sorted(_global_names(code) - now - set(cells)):
            self._global(space, name, what)
        for name in sorted(set(cells) - (now - own)):
            self._cell(number, name, cells[name], what)
        self._attributes(number, kind, node, what)

    def _wait_for(self, number: int, what: str) -> None:
        self._needed.discard(number)
        self._later.append(lambda: self._need(number, what))

    def _global(self, names_here: dict[str, Any], name: str, what: str) -> bool:
        """Write a global variable. False if it must wait."""
        if name not in names_here or name in _OF_HERE:
            return True
        key = self._space(names_here), name
        if key not in self._globals:
            self._globals[key] = False  # ends the recursion of what refers to itself
            self._step((GLOBAL, *key, names_here[name]), f"{name!r}, which {what} uses,")
        return self._globals[key]

    def _cell(self, number: int, name: str, cell: types.CellType, what: str) -> bool:
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            return True
        return self._step((CELL, number, name, value), f"variable {name!r} of {what}")

    def _space(self, names_here: dict[str, Any]) -> int:
        """The number of the namespace for these globals."""
        number = self._space_of.get(id(names_here))
        if number is None:
            number = self._space_of[id(names_here)] = len(self._spaces)
            self._spaces.append({"__name__": names_here.get("__name__", "__main__"), "__package__": names_here.get("__package__")})
        return number

    def _attributes(self, number: int, kind: type, node: ast.ClassDef, what: str) -> None:
        """Write the attributes of a class that its statement does not give: they were set later."""
        if isinstance(kind, enum.EnumMeta):
            return
        written = _assigned(node)
        for name, value in vars(kind).items():
            if name in self._definitions[number]["bare"]:
                self._step((ATTRIBUTE, number, name, value), f"attribute {name!r} of {what}")
                continue
            if (name.startswith("__") and name.endswith("__")) or (name in _GENERATED and issubclass(kind, tuple)):
                continue
            inside = f"{kind.__qualname__}.{name}"
            if (isinstance(value, type) and value.__qualname__ == inside) or any(f.__qualname__ == inside for f in functions_of(value)):
                continue
            if hasattr(type(value), "__get__") and not isinstance(
                value, (types.FunctionType, staticmethod, classmethod, property, Task, functools._lru_cache_wrapper)
            ):
                # Made by the statement, its decorators or its metaclass: slots, caches.
                continue
            if name in written and not written[name]:
                try:
                    self._look(value, what)
                except UnpicklableError:
                    continue  # made there as it was here, as a lock is
            elif name not in written and type(value).__module__ == "_abc":
                continue
            self._step((ATTRIBUTE, number, name, value), f"attribute {name!r} of {what}")

    # Definitions --------------------------------------------------------------------------------

    def _number(self, value: Any) -> int:
        """The number of a function or class that travels as source."""
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._definitions)
            self.objects.append(value)
            self._definitions.append({})
            try:
                self._definitions[number].update(self._definition(value))
            except EntangleError:
                self._forget(value)
                raise
            except NotWrittenError as error:
                self._forget(value)
                raise UnpicklableError(
                    f"task {self._name!r} cannot travel: {self._where}, so it has to go as source, and the source of "
                    f"{value.__qualname__!r} ({self._what.strip(',')}) {error}"
                ) from None
        self._found.append(number)
        return number

    def _forget(self, value: Any) -> None:
        """Forget what could not be defined: it may not be needed."""
        self._definitions[self._numbers.pop(id(value))]["kind"] = ""

    def _definition(self, value: Any) -> dict[str, Any]:
        owner = _owner_of(value)
        if owner is not None:
            return {"kind": MEMBER, "owner": self._number(owner[0]), "name": owner[1], "index": owner[2]}
        found = {"name": value.__name__, "qualname": value.__qualname__, "module": value.__module__}
        if isinstance(value, type) and _is_named_tuple(value):
            return {"kind": CLASS, "fields": vars(value)["_fields"], **found}
        found.update(lines_of(value))
        if isinstance(value, types.FunctionType):
            free = list(value.__code__.co_freevars)
            if "__class__" in free:
                raise self._error(
                    f"function {value.__qualname__!r} uses super(), and its class does not have it under its name. Define it in the class, "
                    "or use the same version of Python there"
                )
            return {"kind": FUNCTION, "space": self._space(value.__globals__), "free": free, "doc": value.__doc__, **found}
        module = sys.modules.get(value.__module__)
        bare = [name for name, attribute in vars(value).items() if _is_task_of(value, name, attribute)]
        definition = {"kind": CLASS, "space": self._space(vars(module) if module is not None else {}), "bare": bare, **found}
        node: Any = parse(found["text"]).body[0]
        node = node if isinstance(node, ast.ClassDef) else node.body[0]
        definition["free"] = sorted(self._cells_of_class(value, node, definition))
        return definition

    def _cells_of_class(self, kind: type, node: ast.ClassDef, definition: dict[str, Any]) -> dict[str, types.CellType]:
        """The variables of functions around a class: those its methods use, and its local bases."""
        found: dict[str, types.CellType] = {}
        for name, attribute in vars(kind).items():
            if name in _OF_ANNOTATIONS:
                continue
            if isinstance(attribute, type) and attribute.__qualname__.startswith(kind.__qualname__ + "."):
                found.update(self._cells_of_class(attribute, node, definition))
            for function in functions_of(attribute):
                if function.__qualname__.startswith(kind.__qualname__ + ".") and function.__code__.co_filename == definition["file"]:
                    found.update(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        bases = getattr(kind, "__orig_bases__", kind.__bases__)
        if "<locals>" in kind.__qualname__ and len(bases) == len(node.bases):
            for base, written in zip(bases, node.bases, strict=True):
                if isinstance(written, ast.Name):
                    found.setdefault(written.id, types.CellType(base))
        found.pop("__class__", None)
        return found


class _Nowhere:
    """A file that discards what is written."""

    def write(self, data: Any) -> int:
        """Discard it."""
        return len(data)


def _flags(future: list[str]) -> int:
    import __future__

    return functools.reduce(lambda flags, name: flags | int(getattr(__future__, name).compiler_flag), future, 0)


def _is_of_script(kind: type) -> bool:
    """Whether another process lacks this class."""
    return (travels_by_value(kind.__module__) or "<locals>" in kind.__qualname__) and _place_of(kind) is None


def _is_named_tuple(kind: type) -> bool:
    """Whether `collections.namedtuple` has made it, and no class statement."""
    return kind.__bases__ == (tuple,) and hasattr(kind, "_field_defaults") and "__orig_bases__" not in vars(kind)


def _says_main(value: Any) -> bool:
    try:
        return travels_by_value(str(getattr(value, "__module__", "")))
    except Exception:  # any __getattr__ may run
        return False


def _holds_itself(cell: types.CellType, kind: type) -> bool:
    try:
        return cell.cell_contents is kind
    except ValueError:
        return False


def _is_task_of(kind: type, name: str, attribute: Any) -> bool:
    """Whether an attribute is the task of the class's own method. It goes without decorators."""
    task = attribute.__func__ if isinstance(attribute, (staticmethod, classmethod)) else attribute
    function = task.function if isinstance(task, Task) else None
    if not isinstance(function, types.FunctionType):
        return False
    return function.__qualname__ == f"{kind.__qualname__}.{name}" and function.__code__.co_name == name


def _place_of(value: Any) -> tuple[str, str, bool] | None:
    """Where the other side finds a function, class or task: its module and name; None if nowhere.

    Also whether the value is the function of the task with that name.
    """
    module: str = str(getattr(value, "__module__", None) or "")
    name: str = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or ""
    if not module or travels_by_value(module) or "<" in name:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None) if isinstance(found, type) else getattr(found, part, None)
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    if found is value:
        return module, name, False
    if isinstance(found, Task) and found.function is value:
        return module, name, True
    return None


def _owner_of(value: Any) -> tuple[type, str, int | None] | None:
    """The class of the script that a method or an inner class belongs to, and its name there.

    Of a function also its position among those in that attribute.
    """
    around, _, name = value.__qualname__.rpartition(".")
    if not around or around.endswith("<locals>"):
        return None
    owner: Any = None
    if isinstance(value, types.FunctionType) and "__class__" in value.__code__.co_freevars and value.__closure__:
        try:
            owner = value.__closure__[value.__code__.co_freevars.index("__class__")].cell_contents
        except ValueError:
            return None
    elif "<" not in around:
        owner = sys.modules.get(value.__module__)
        for part in around.split("."):
            owner = getattr(owner, part, None)
    if not isinstance(owner, type) or not _is_of_script(owner):
        return None
    found = vars(owner).get(name)
    if found is value:
        return owner, name, 0 if isinstance(value, types.FunctionType) else None
    for index, function in enumerate(functions_of(found)):
        if function is value:
            return owner, name, index
    return None


def _inner_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _inner_codes(constant)


def _names(code: types.CodeType, *operations: str) -> set[str]:
    return {str(part.argval) for part in dis.get_instructions(code) if part.opname in operations}


def _global_names(code: types.CodeType, called: bool = True) -> set[str]:
    """The global names that code uses. Functions in it count only if they are `called`."""
    names = _names(code, "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF", "DELETE_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            at_once = not constant.co_flags & inspect.CO_OPTIMIZED or constant.co_name in _COMPREHENSIONS
            if called or at_once or constant.co_name.startswith("<generic"):
                names |= _global_names(constant, called)
    return names


def _assigned(node: ast.ClassDef) -> dict[str, bool]:
    """The names that the statements of a class assign, and whether to a constant."""
    found: dict[str, bool] = {}
    for part in node.body:
        value = getattr(part, "value", None)
        for name in ast.walk(part) if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else ():
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                found[name.id] = isinstance(part, (ast.Assign, ast.AnnAssign)) and isinstance(value, ast.Constant)
    return found
