"""What is recorded of a task: its layers, its code and the version of that, its attributes; and the
names of its arguments."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

from entangle._shared.masks import cleaned, is_secret, masked, masked_text
from entangle._tasks.parameters import code_of
from entangle.flow import Body, Like, Shape
from entangle.task import Attributes, Task

#: The most characters of source that are kept of one function.
LONGEST = 200_000

_files: dict[str, tuple[float, list[str]]] = {}


def described(body: Body) -> str:
    """A body as JSON. It is made once for each task: tasks are immutable."""
    task = task_of(body)
    if task is None:
        return json.dumps({"name": body.name, "version": hashlib.sha256(body.name.encode()).hexdigest()})
    known = task.__dict__
    if "_described" not in known:
        known["_described"] = json.dumps(_describe(task, body if hasattr(body, "task") else task.body), default=masked_text)
    text: str = known["_described"]
    return text


def task_of(body: Body) -> Task[..., Any] | None:
    """The task of a body: its own or, in a dataflow, that of the node whose stage it is."""
    task: Task[..., Any] | None = getattr(body, "task", None) or getattr(body.function, "task", None)
    return task if isinstance(task, Task) else None


def _describe(task: Task[..., Any], body: Body) -> dict[str, Any]:
    function = task.function
    code = code_of(function)
    source, file, line = source_of(code) if code is not None else ("", "", 0)
    layers = [_layer(layer) for layer in task.layers if not isinstance(layer, Attributes)]
    version = hashlib.sha256()
    version.update(f"{task.__module__}.{task.__qualname__}\n{layers}\n".encode())
    version.update(source.encode("utf-8", "replace") if source or code is None else _bytecode(code))
    attributes: dict[str, Any] = {}
    for layer in reversed(task.layers):
        if isinstance(layer, Attributes):
            attributes.update(layer.attributes)
    usual = Body._field_defaults
    terms = {
        name: getattr(body, name)
        for name in ("timeout", "wait", "retry", "sleep", "backoff", "jitter", "shared_memory", "idempotent")
        if getattr(body, name) != usual[name]
    }
    if body.pools:
        terms["pools"] = [str(pool) for pool in body.pools]
    return {
        "name": task.__name__,
        "qualified": task.__qualname__,
        "module": task.__module__,
        "file": file,
        "line": line,
        "version": version.hexdigest(),
        "source": masked(source[: LONGEST + 10_000])[:LONGEST],
        "layers": layers,
        "terms": terms,
        "attributes": cleaned(attributes),
        "parameters": parameters_of(body),
        "secret": is_secret(task.__name__),
    }


def _layer(layer: Any) -> str:
    return str(getattr(layer, "recorded_as", "")) or type(layer).__name__.lower()


def _bytecode(code: Any) -> bytes:
    """Bytes that are equal for equal functions, for functions without source."""
    inner = b"".join(_bytecode(part) if hasattr(part, "co_code") else repr(part).encode() for part in code.co_consts)
    return b"\0".join((code.co_code, repr((code.co_names, code.co_varnames)).encode(), inner))


def parameters_of(body: Body) -> dict[str, Any]:
    """The names of positional parameters, and the parameter that takes further arguments."""
    task = task_of(body)
    names, rest = (body if task is None or hasattr(body, "task") else task.body).parameters()
    return {"names": names, "rest": rest}


#: The argument that a flat input of a node is, or is a part of: `a`, `k`, `rest[2]`, `items[0]`. Or
#: many of one in a row: {"of": "items", "count": 100} for `items[0]` to `items[99]`.
Label = str | dict[str, Any]
#: How many in a row are one label.
_MANY = 64


def arguments_of(parameters: dict[str, Any], shape: Shape) -> list[Label]:
    """The labels of the flat inputs of a node of that shape."""
    names, rest = parameters.get("names", []), parameters.get("rest")
    labels: list[Label] = [*names[: shape.positional]]
    _add_row(rest or "arguments", shape.positional - len(names), labels, shape.templates is None)
    labels += shape.keywords
    if shape.templates is None:
        return labels
    flat: list[Label] = []
    for label, template in zip(labels, shape.templates, strict=True):
        assert isinstance(label, str)
        _spread(label, template, flat)
    return flat


def _add_row(of: str, count: int, labels: list[Label], together: bool) -> None:
    if together and count >= _MANY:
        labels.append({"of": of, "count": count})
    else:
        labels += [f"{of}[{index}]" for index in range(count)]


def each_of(labels: list[Label]) -> list[str]:
    """These labels, one for each input."""
    found: list[str] = []
    for label in labels:
        if isinstance(label, str):
            found.append(label)
        else:
            found += [f"{label['of']}[{index}]" for index in range(label["count"])]
    return found


def _spread(label: str, template: Any, flat: list[Label]) -> None:
    if not isinstance(template, tuple):
        flat.append(label)
        return
    kind, parts = template
    if kind is list and len(parts) >= _MANY and parts.count(None) == len(parts):
        _add_row(label, len(parts), flat, True)
        return
    if isinstance(kind, Like):
        kind = type(kind.container)
    fields = getattr(kind, "_fields", ())  # of a named tuple
    for index, part in enumerate(parts):
        if index < len(fields):
            _spread(f"{label}.{fields[index]}", part, flat)
        elif issubclass(kind, dict):
            _spread(f"{label}{{{'key' if index % 2 == 0 else 'value'} {index // 2}}}", part, flat)
        else:
            _spread(f"{label}[{index}]", part, flat)


def source_of(code: Any) -> tuple[str, str, int]:
    """The source of a function as its file has it now, the file, and the first line; an empty
    source where there is none.

    Not `inspect.getsource`, whose import and parsing take longer than many a run. The lines come
    from the code object. The block goes on while lines are indented deeper than its first, or close
    a bracket.
    """
    file, first = code.co_filename, code.co_firstlineno
    lines = _lines(file)
    if not 0 < first <= len(lines):
        return "", file, first
    last = min(len(lines), max(first, _last_line(code)))
    margin = _indent(lines[first - 1])
    end = last
    for number in range(last, len(lines)):
        line = lines[number]
        if not line.strip():
            continue
        if _indent(line) <= margin and line.lstrip()[0] not in ")]}":
            break
        end = number + 1
        if _indent(line) <= margin:
            break
    block = lines[first - 1 : end]
    text = "\n".join(line[margin:] if not line[:margin].strip() else line for line in block)
    return text.rstrip() + "\n", file, first


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _last_line(code: Any) -> int:
    last = max((line for _, _, line in code.co_lines() if line), default=0)
    for part in code.co_consts:
        if hasattr(part, "co_lines"):
            last = max(last, _last_line(part))
    return last


def _lines(file: str) -> list[str]:
    """The lines of a file, or of a cell of a notebook."""
    try:
        changed = os.stat(file).st_mtime
    except OSError:
        cache = getattr(sys.modules.get("linecache"), "cache", {})
        entry = cache.get(file)
        return [line.rstrip("\n") for line in entry[2]] if entry is not None and len(entry) == 4 else []
    known = _files.get(file)
    if known is None or known[0] != changed:
        try:
            with open(file, encoding="utf-8", errors="replace") as opened:
                known = changed, opened.read().splitlines()
        except OSError:
            return []
        if len(_files) > 200:
            _files.clear()
        _files[file] = known
    return known[1]
