"""The command line: `entangle` or `python -m entangle`.

`clean` needs nothing but the core. The other commands need the extra `cli` (typer and rich);
without it they say so.

What the exit status means, for every command:

    0    done
    1    the program or task that was run has failed; `doctor` has found something broken;
         `clean` had to leave something; records cannot be read, or output cannot be written
    2    wrong usage
    3    what was asked for does not exist: a run, a file, a name
    4    a package that the command needs is not installed
    5    a server cannot be reached
    130  interrupted

With --json, which may stand before the command or anywhere behind it, a command that cannot do what
was asked says so on stdout: {"status": 3, "error": {"type": "NotFound", "message": "…"}}.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from entangle.cli.exit_status import DONE, FAILED, KINDS, Refused
from entangle.cli.json_lines import print_refusal
from entangle.cli.terminal_text import plain
from entangle.cli.words import asks_for_json, in_order
from entangle.errors import EntangleError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status, as the top of this module explains it.

    main(["clean"])
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    status = DONE
    for_programs = "--json" in given
    try:
        words = in_order(given)
        for_programs = asks_for_json(words)
        status = _run(words, for_programs)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure to write can still be reported
        return status
    except Refused as refused:
        _refuse(KINDS.get(refused.status, "Failed"), str(refused), refused.status, for_programs)
        return refused.status
    except EntangleError as error:
        _refuse(f"{type(error).__module__}.{type(error).__qualname__}", str(error), FAILED, for_programs)
        return FAILED
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stdout = None  # or the interpreter reports an error when it flushes it at exit
        return status
    except OSError as error:  # a full disk behind stdout, a file that may not be read
        _refuse(type(error).__name__, str(error), FAILED, for_programs)
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):
            sys.stdout = None
        return FAILED


def _refuse(kind: str, message: str, status: int, for_programs: bool) -> None:
    """Say why a command cannot do what was asked."""
    if for_programs:
        try:
            print_refusal(kind, message, status)
            return
        except (OSError, ValueError, AttributeError):  # stdout is full, or closed
            sys.stdout = None
    print(f"entangle: {plain(message, lines=True)}", file=sys.stderr)


def _run(words: list[str], for_programs: bool) -> int:
    try:
        import typer  # noqa: F401
    except ImportError:
        from entangle.cli.bare import run_bare

        return run_bare(words)
    from entangle.cli.app import run_app

    return run_app(words, for_programs)
