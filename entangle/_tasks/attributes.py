"""What an author says about a task with `@task(attributes={...})`."""

from __future__ import annotations

from typing import Any

from entangle._tasks.call import in_short
from entangle._tasks.layer import Layer
from entangle.errors import OptionError


class Attributes(Layer):
    """What the author says about a task, for readers of its records."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        if not isinstance(attributes, dict) or not all(isinstance(name, str) for name in attributes):
            raise OptionError(f"@task: attributes={in_short(attributes)}; it is a dict whose keys are names")
        for name, value in attributes.items():
            if not _is_plain_data(value):
                raise OptionError(
                    f"@task: attributes[{name!r}] is of type {type(value).__name__}; it can be a string, a number, True, False, None, "
                    "and lists and dicts of these"
                )
        self.attributes = dict(attributes)


def _is_plain_data(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, (str, int, float, bool)):
        return True
    if depth > 20:
        return False
    if isinstance(value, (list, tuple)):
        return all(_is_plain_data(part, depth + 1) for part in value)
    return isinstance(value, dict) and all(isinstance(key, str) and _is_plain_data(part, depth + 1) for key, part in value.items())
