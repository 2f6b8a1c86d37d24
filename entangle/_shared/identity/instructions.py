"""What a code object does: its instructions as a graph, without where they stand.

A line break, a comment or a docstring moves instructions, merges two into one, or turns a jump
around. So jumps are edges of the graph, instructions that do nothing are left out, and merged ones
are taken apart.
"""

from __future__ import annotations

import dis
import types
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

#: They do nothing: a line of its own may have one, and a wide argument another.
_IDLE = frozenset(("NOP", "CACHE", "EXTENDED_ARG", "NOT_TAKEN"))
_CONDITIONAL = frozenset((*dis.hasjrel, *dis.hasjabs))
_ALWAYS = frozenset(("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP", "JUMP_NO_INTERRUPT"))
_LAST = frozenset(("RETURN_VALUE", "RAISE_VARARGS", "RERAISE", "INTERPRETER_EXIT"))
_CONSTANTS, _NAMES, _VARIABLES = frozenset(dis.hasconst), frozenset(dis.hasname), frozenset((*dis.haslocal, *dis.hasfree))
#: Two instructions in one, where both stand in one line.
_MERGED = {
    "LOAD_FAST_LOAD_FAST": ("LOAD_FAST", "LOAD_FAST"),
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW": ("LOAD_FAST_BORROW", "LOAD_FAST_BORROW"),
    "STORE_FAST_LOAD_FAST": ("STORE_FAST", "LOAD_FAST"),
    "STORE_FAST_STORE_FAST": ("STORE_FAST", "STORE_FAST"),
}
#: Jumps the other way round.
_TURNED = {"POP_JUMP_IF_TRUE": "POP_JUMP_IF_FALSE", "POP_JUMP_IF_NOT_NONE": "POP_JUMP_IF_NONE"}
#: What a class body says of itself: where it stands, its docstring.
_OF_CLASS = frozenset(("__firstlineno__", "__static_attributes__", "__doc__"))


class Step(NamedTuple):
    """An instruction: its name and argument, whether that is a constant, and the offset to which it
    may jump."""

    offset: int
    name: str
    argument: Any
    is_constant: bool = False
    jump: int | None = None


def steps_of(code: types.CodeType) -> list[Step]:
    """The instructions that do something, in the order of the code."""
    steps: list[Step] = []
    for found in dis.get_instructions(code):
        name, offset, argument = found.opname, found.offset, found.argval
        if name in _IDLE:
            continue
        if name == "STORE_NAME" and argument in _OF_CLASS and steps[-1].is_constant:
            steps.pop()
        elif name in _MERGED:
            steps += [Step(offset, one, variable) for one, variable in zip(_MERGED[name], argument, strict=True)]
        elif name == "RETURN_CONST":
            steps += (Step(offset, "LOAD_CONST", argument, True), Step(offset, "RETURN_VALUE", None))
        elif found.opcode in _CONDITIONAL:
            steps.append(Step(offset, name.replace("_FORWARD_IF", "_IF").replace("_BACKWARD_IF", "_IF"), None, jump=argument))
        elif found.opcode in _CONSTANTS:
            steps.append(Step(offset, name, argument, True))
        elif found.opcode in _NAMES:
            steps.append(Step(offset, name, found.argrepr))  # which says more than the name, and no position
        else:
            steps.append(Step(offset, name, argument if found.opcode in _VARIABLES else found.arg))
    return steps


def graph_of(code: types.CodeType, steps: list[Step]) -> Iterator[tuple[Step, str, list[int]]]:
    """The instructions in the order in which they can be reached, with their names, and the numbers
    of those that may be next: the following one, that of a jump, those that handle exceptions."""
    offsets = [step.offset for step in steps]
    handlers = _handlers(code, offsets)
    numbers: dict[int, int] = {}

    def number(place: int) -> int:
        """The number of an instruction, or of where an unconditional jump leads."""
        passed = set()
        while place < len(steps) and (jump := steps[place].jump) is not None and steps[place].name in _ALWAYS and place not in passed:
            passed.add(place)
            place = bisect_left(offsets, jump)
        if place not in numbers:
            numbers[place] = len(numbers)
            waiting.append(place)
        return numbers[place]

    waiting: list[int] = []
    number(0)
    done = 0
    while done < len(waiting):
        place = waiting[done]
        done += 1
        if place >= len(steps):
            continue
        step = steps[place]
        name = step.name
        following = [] if name in _LAST else [number(place + 1)]
        if step.jump is not None:
            following.append(number(bisect_left(offsets, step.jump)))
        if name in _TURNED:
            name = _TURNED[name]
            following.reverse()
        for target, depth in handlers.get(place, ()):
            following += (-1 - depth, number(target))
        yield step, name, following


def _handlers(code: types.CodeType, offsets: list[int]) -> dict[int, list[tuple[int, int]]]:
    """The handlers of exceptions, with the depths of the stack there, by the places they are for
    (the format is told in CPython's `Objects/exception_handling_notes.txt`)."""
    table = iter(getattr(code, "co_exceptiontable", b""))
    found: dict[int, list[tuple[int, int]]] = {}

    def number(byte: int) -> int:
        value = byte & 63
        while byte & 64:
            byte = next(table)
            value = value << 6 | byte & 63
        return value

    for first in table:
        start = number(first) * 2
        end = start + number(next(table)) * 2
        target, depth = number(next(table)) * 2, number(next(table))
        for place in range(bisect_left(offsets, start), bisect_left(offsets, end)):
            found.setdefault(place, []).append((bisect_left(offsets, target), depth))
    return found
