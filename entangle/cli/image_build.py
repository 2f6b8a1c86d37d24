"""`entangle image build TAG`: an image with the packages that functions need."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entangle.cli.exit_status import ABSENT, UNREACHABLE, USAGE, Refused, need
from entangle.cli.json_lines import print_json
from entangle.cli.printing import console, size, text
from entangle.cli.run_program import find_in, load_file
from entangle.errors import OptionError, UnreachableError

if TYPE_CHECKING:
    from entangle.images import BuiltImage

#: How an image is used, by what it is for.
_USES = {
    "docker": '@docker(image="{}")',
    "batch": '@batch(image="{}")',
    "fargate": '@fargate(image="{}")',
    "lambda": '@lmbda(role="arn:…", image="{}")',
}


def build(tag: str, sources: list[str], as_json: bool, **options: Any) -> None:
    """Build it, and say what it is. `sources` name functions: MODULE, FILE or either with :NAME.

    Raises Refused for wrong options, names that are none, and a docker daemon that is not there.
    """
    need("docker", "docker", "entangle image build")
    from entangle.images import build_image

    found = [function for source in sources for function in functions_of(source)]
    try:
        with _told() as told:
            made = build_image(tag, functions=found, told=told, **options)
    except OptionError as error:
        raise Refused(str(error), USAGE) from None
    except UnreachableError as error:
        raise Refused(str(error), UNREACHABLE) from None
    if as_json:
        print_json(asdict(made))
    else:
        _show(made)


@contextlib.contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """What takes a line for each step: shows the last one on a terminal, and none elsewhere."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield lambda line: None
        return
    with out.status("") as status:
        yield lambda line: status.update(text(line, style="dim"))


def _show(made: BuiltImage) -> None:
    out = console()
    told = "was there already" if made.reused else "built"
    lines = [
        ("image", f"{made.tag} ({told})"),
        ("id", made.id),
        ("digest", made.digest and f"{made.tag.rpartition(':')[0]}@{made.digest}"),
        ("size", size(made.size)),
        ("python", f"{made.python}, linux/{made.arch}, on {made.base}"),
        ("packages", ", ".join(made.packages) or "none"),
        ("use", _USES[made.service].format(made.tag)),
    ]
    for head, said in lines:
        if said:
            out.print(text((f"{head:<10}", "dim"), said), soft_wrap=True)
    notes = []
    if made.left_out:
        left = ", ".join(made.left_out)
        notes.append(f"Not in the image, as it is not installed here: {left}. Where functions need it: --package NAME")
    if made.python.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
        notes.append(f"The functions will run with Python {made.python}; here is {sys.version.split()[0]}.")
    for note in notes:
        console(stderr=True).print(text(note, style="yellow"), soft_wrap=True)


def functions_of(source: str) -> list[Callable[..., Any]]:
    """The functions that a word names: those of a module or a file, or one of them, or all in a
    call. Raises Refused."""
    where, colon, name = source.rpartition(":")
    if not colon or os.path.exists(source):
        where, name = source, ""
    is_file = where.endswith(".py") or os.sep in where or os.path.exists(where)
    if is_file and not os.path.isfile(where):
        raise Refused(f"there is no file {where}", ABSENT)
    module = load_file(where) if is_file else _imported(where)
    if not name:
        return [one for value in vars(module).values() for one in _functions(value, module.__name__)]
    found = _functions(find_in(module, where, name), None)
    if not found:
        raise Refused(f"{name} in {where} is no task, call or function", USAGE)
    return found


def _imported(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise Refused(f"{name} cannot be imported: {error}", ABSENT) from None
        raise Refused(f"there is no module {name!r}; write MODULE, or the path of a FILE, with :NAME or without", ABSENT) from None
    except Exception as error:
        raise Refused(f"{name} cannot be imported: {type(error).__name__}: {error}", ABSENT) from None


def _functions(value: Any, module: str | None) -> list[Callable[..., Any]]:
    """The functions in a value; with a module, only those that are defined in it."""
    from entangle.task import Call, Task

    if isinstance(value, Call):
        parts = [value.task, *_parts(value.args), *_parts(value.kwargs)]
        return [one for part in parts for one in _functions(part, module)]
    if not isinstance(value, Task) and (isinstance(value, type) or not hasattr(value, "__code__")):
        return []
    if module is not None and getattr(value, "__module__", None) != module:
        return []
    return [value]


def _parts(value: Any) -> Iterator[Any]:
    """The calls in arguments, in containers as well."""
    from entangle.task import Call

    if isinstance(value, Call):
        yield value
    elif isinstance(value, dict):
        yield from _parts(list(value.values()))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from _parts(one)
