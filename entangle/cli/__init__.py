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
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from entangle.cli.exit_status import DONE, FAILED, Refused
from entangle.cli.terminal_text import plain
from entangle.errors import EntangleError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status, as the top of this module explains it.

    main(["clean"])
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    status = DONE
    try:
        status = _run(given)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure to write can still be reported
        return status
    except Refused as refused:
        print(f"entangle: {plain(str(refused), lines=True)}", file=sys.stderr)
        return refused.status
    except EntangleError as error:
        print(f"entangle: {plain(str(error), lines=True)}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stdout = None  # or the interpreter reports an error when it flushes it at exit
        return status
    except OSError as error:  # a full disk behind stdout, a file that may not be read
        print(f"entangle: {plain(str(error))}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):
            sys.stdout = None
        return FAILED


def _run(given: list[str]) -> int:
    try:
        import typer  # noqa: F401
    except ImportError:
        from entangle.cli.bare import run_bare

        return run_bare(given)
    from entangle.cli.app import run_app

    return run_app(given)
