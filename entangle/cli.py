"""The command line: `python -m entangle` or `entangle`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from entangle import __version__
from entangle._run.home import sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status: 0 done, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="entangle", description="Run Python functions in parallel, without a server.")
    parser.add_argument("--version", action="version", version=f"entangle {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    clean = commands.add_parser("clean", help="remove what runs of killed processes have left behind")
    clean.set_defaults(run=_clean)
    chosen = parser.parse_args(arguments)
    result: int = chosen.run()
    return result


def _clean() -> int:
    removed = sweep()
    for path in removed:
        print(f"removed {path}")
    print(f"{len(removed)} stale director{'y' if len(removed) == 1 else 'ies'} removed", file=sys.stderr)
    return 0
