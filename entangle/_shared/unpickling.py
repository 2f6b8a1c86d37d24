"""Which part of a value cannot be unpickled, for the message of the error.

There is no value to look into, only the pickle. It is read a second time, step by step, to find the
step that fails. How the parts hang together follows from the steps alone, without running any code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any, NamedTuple

from entangle._shared.documentation import more
from entangle._shared.summaries import cut, value_in_short
from entangle.errors import EntangleError, UnpicklableError, add_note

#: Pickles larger than this many bytes are not searched: it takes a hundred times as long as to
#: load.
_MOST = 1 << 20


class BrokenPart(NamedTuple):
    """A part that cannot be unpickled: the steps from the value to it, and its type name."""

    steps: tuple[str, ...]
    kind: str


def unpickling_error(problem: BaseException, what: str, part: BrokenPart | None) -> EntangleError:
    """The error for a value that cannot be unpickled.

    `what` names it and the place: `the value of task 'load' cannot be unpickled in the process of
    task 'use'`.
    """
    why = f"{type(problem).__name__}: {problem}"
    if part is None:
        return EntangleError(f"{what}: {why}")
    path = cut("".join(part.steps), 200)
    named = f"{part.kind} at {path}" if path else part.kind
    if isinstance(problem, ImportError):
        advice = "The module must be there for every process, by the same name"
    else:
        advice = "Send plain data instead, or let a @thread do it"
    refused = UnpicklableError(f"{what}: {named} raises {why}. {advice}")
    add_note(refused, more("how_to/errors"))
    return refused


def failing_part(pickled: Any, buffers: Iterable[Any] = ()) -> BrokenPart | None:
    """The part of a value at which unpickling fails; None if unknown, or if it now succeeds."""
    try:
        body = bytes(pickled)
        if len(body) > _MOST:
            return None
        step = _failing_step(body, buffers)
        return None if step is None else _part_at(body, step)
    except Exception:  # not a pickle, or one of an unknown kind
        return None


# The step that fails ----------------------------------------------------------------------------


class _Counting(dict[int, Any]):
    """Counts the steps of an unpickler that uses it as its dispatch table."""

    steps = -1

    def __getitem__(self, key: int) -> Any:
        self.steps += 1
        return super().__getitem__(key)


def _failing_step(body: bytes, buffers: Iterable[Any]) -> int | None:
    # The unpickler written in Python: the one in C does not say how far it has come.
    kind: Any = getattr(pickle, "_Unpickler", None)
    if kind is None:
        return None
    unpickler = kind(io.BytesIO(body), buffers=buffers)
    unpickler.dispatch = counting = _Counting(kind.dispatch)
    try:
        unpickler.load()
    except KeyboardInterrupt:
        raise
    except BaseException:  # loading a class or a module may raise anything
        return counting.steps
    return None


# How parts hang together ------------------------------------------------------------------------


class _Piece:
    """What a step leaves on the stack: a constant, a container, an object, a class."""

    __slots__ = ("arguments", "around", "count", "key", "kind", "state", "value")

    def __init__(self, kind: str, value: Any = None) -> None:
        self.kind = kind
        self.value = value
        self.around: _Piece | None = None
        #: Its key or index in its container.
        self.key: Any = None
        self.count = 0
        #: Whether it is the state of an object, whose keys are attributes; or an object's
        #: arguments.
        self.state = self.arguments = False

    def put_into(self, around: _Piece, key: Any) -> None:
        if self.around is None and around is not self:
            self.around, self.key = around, key

    def step(self) -> str:
        around = self.around
        if around is None or self.key is None:
            return ""
        if around.state and isinstance(self.key, str):
            return f".{self.key}"
        if around.arguments and around.kind == "tuple":
            return f" → argument {self.key + 1}"
        return f"[{value_in_short(self.key)}]"


_MARK = _Piece("mark")
_SEQUENCES = {"LIST": "list", "TUPLE": "tuple", "FROZENSET": "frozenset"}
_FEW = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set", "EMPTY_TUPLE": "tuple"}


def _part_at(body: bytes, wanted: int) -> BrokenPart | None:
    """The part that step number `wanted` makes or adds to."""
    import pickletools

    stack: list[_Piece] = []
    memo: dict[int, _Piece] = {}
    found: _Piece | None = None
    for number, (code, argument, _) in enumerate(pickletools.genops(body)):
        touched = _apply(code.name, argument, stack, memo)
        if number == wanted:
            found = touched
    if found is None:
        return None
    kind = found.kind
    steps: list[str] = []
    at: _Piece | None = found
    while at is not None and len(steps) < 1000:
        steps.append(at.step())
        at = at.around
    return BrokenPart(tuple(step for step in reversed(steps) if step), kind)


def _apply(name: str, argument: Any, stack: list[_Piece], memo: dict[int, _Piece]) -> _Piece | None:
    """Apply a step to pieces, as unpickling does to values; gives the piece that it changes."""
    if name in ("PROTO", "FRAME", "STOP", "READONLY_BUFFER"):
        return stack[-1] if stack else None
    if name == "MARK":
        stack.append(_MARK)
    elif name in _EMPTY:
        stack.append(_Piece(_EMPTY[name]))
    elif name in _SEQUENCES or name in _FEW:
        items = _take(stack, _FEW[name]) if name in _FEW else _to_mark(stack)
        made = _Piece(_SEQUENCES.get(name, "tuple"), items)
        for index, item in enumerate(items):
            item.put_into(made, index)
        stack.append(made)
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        items = _take(stack, 1) if name == "APPEND" else _to_mark(stack)
        around = stack[-1]
        for item in items:
            item.put_into(around, around.count if name != "ADDITEMS" else None)
            around.count += 1
    elif name in ("SETITEM", "SETITEMS", "DICT"):
        items = _take(stack, 2) if name == "SETITEM" else _to_mark(stack)
        if name == "DICT":
            stack.append(_Piece("dict"))
        for key, item in zip(items[::2], items[1::2], strict=True):
            key.put_into(stack[-1], None)
            item.put_into(stack[-1], key.value if key.kind == "constant" else f"<{key.kind}>")
    elif name == "BUILD":
        (state,) = _take(stack, 1)
        state.put_into(stack[-1], None)
        state.state = True
        if state.kind == "tuple":  # of a class with slots: two dicts
            for piece in state.value:
                piece.state, piece.key = True, None
    elif name in ("NEWOBJ", "NEWOBJ_EX", "REDUCE"):
        kind, *arguments = _take(stack, 3 if name == "NEWOBJ_EX" else 2)
        made = _Piece(_made_by(kind, arguments[0]))
        for piece in (kind, *arguments):
            piece.put_into(made, None)
            piece.arguments = True
        stack.append(made)
    elif name in ("OBJ", "INST"):
        items = _to_mark(stack)
        stack.append(_Piece(argument.replace(" ", ".") if name == "INST" else items[0].kind))
    elif name == "GLOBAL":
        stack.append(_Piece(_named(*argument.split(" ", 1))))
    elif name == "STACK_GLOBAL":
        module, qualified = _take(stack, 2)
        stack.append(_Piece(_named(module.value, qualified.value)))
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "POP":
        stack.pop()
    elif name == "POP_MARK":
        _to_mark(stack)
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name.endswith("PUT"):
        memo[argument] = stack[-1]
    elif name.endswith("GET"):
        stack.append(memo[argument])
    elif name in ("BINPERSID", "EXT1", "EXT2", "EXT4"):
        if name == "BINPERSID":
            stack.pop()
        stack.append(_Piece("object"))
    else:
        stack.append(_Piece("constant", argument if name not in ("NEWTRUE", "NEWFALSE") else name == "NEWTRUE"))
    return stack[-1] if stack else None


def _take(stack: list[_Piece], count: int) -> list[_Piece]:
    taken = stack[-count:]
    del stack[-count:]
    return taken


def _to_mark(stack: list[_Piece]) -> list[_Piece]:
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
    taken = stack[at + 1 :]
    del stack[at:]
    return taken


def _named(module: str, name: str) -> str:
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def _made_by(kind: _Piece, arguments: _Piece) -> str:
    """The name of the object that a class or a function makes."""
    if kind.kind in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"):
        return str(arguments.value[0].kind)
    # A definition sent by value: its name is among the arguments.
    if kind.kind.startswith("cloudpickle."):
        names = [piece.value for piece in arguments.value or () if piece.kind == "constant" and isinstance(piece.value, str)]
        return names[0] if names else "a function"
    return kind.kind
