"""The command line of an installation without the extra `cli`: `clean`, and a hint on how to get
the rest."""

from __future__ import annotations

import argparse

from entangle import __version__
from entangle._shared.documentation import more
from entangle.cli.clean import clean
from entangle.cli.exit_status import UNINSTALLED, Refused

#: Commands that need typer and rich.
OTHERS = ("run", "runs", "show", "replay", "resume", "top", "doctor", "ui", "aws", "cache", "graph", "hosts", "image", "places")


def run_bare(arguments: list[str]) -> int:
    """Run a command; gives the exit status."""
    for argument in arguments:
        if argument in (*OTHERS, "web"):
            raise Refused(f"the command {argument!r} needs typer and rich: pip install 'py-entangle[cli]'", UNINSTALLED)
        if not argument.startswith("-"):
            break
    parser = argparse.ArgumentParser(
        prog="entangle",
        description="Run Python functions in parallel, without a server.",
        epilog=f"pip install 'py-entangle[cli]' adds these commands: {', '.join(OTHERS)}. {more('index')}",
    )
    parser.add_argument("--version", action="version", version=f"entangle {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    cleaning = commands.add_parser("clean", help="remove what runs of killed processes have left behind", epilog=more("faq"))
    cleaning.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    return clean(chosen.json)
