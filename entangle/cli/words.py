"""The words of a command line, put in the order in which the commands take them.

Global options may stand before the command or behind it, as with git and docker; options of a
command, before or behind its arguments. Words behind a `--` are arguments, whatever they look like.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from entangle.cli.exit_status import USAGE, Refused

#: Options that every command takes, and commands that have commands of their own.
_GLOBAL, _GROUPS = ("--json",), ("aws", "cache", "graph", "hosts", "image", "places")
#: The options of `run`, and whether a value follows each.
_RUN_OPTIONS = {"--json": False, "--progress": False, "--start": True, "--help": False, "-h": False}


def in_order(words: Sequence[str]) -> list[str]:
    """The words, with global options behind the command. Raises Refused for a word that looks like
    an option of `run` and is none."""
    ahead: list[str] = []
    moved: list[str] = []
    command = ""
    rest = iter(words)
    for word in rest:
        if word in _GLOBAL:
            moved.append(word)
            continue
        ahead.append(word)
        if not word.startswith("-"):
            command = f"{command} {word}".strip()
            if command not in _GROUPS:
                break
    moved += rest
    if moved and not ahead:
        raise Refused("name a command; entangle --help lists them", USAGE)
    return [*ahead, *_options_first(moved)] if command == "run" else [*ahead, *moved]


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether words, in order, ask for JSON."""
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


def names_a_task(target: str) -> bool:
    """Whether this is FILE:NAME. If not, it is a program, and the words behind it belong to the
    program."""
    return ":" in target and not os.path.exists(target)


def _options_first(words: Sequence[str]) -> list[str]:
    """The words of `run`, with its options before the target, wherever they stood, and `--` behind
    them. A program gets all words behind its file, as from python. A task gets all words behind a
    `--`.

    Raises Refused for a word that looks like an option and is none: a task must not get what was
    meant for us.
    """
    options: list[str] = []
    rest: list[str] = []
    ahead = iter(words)
    for word in ahead:
        if word == "--":
            rest += ahead
        elif word.partition("=")[0] in _RUN_OPTIONS:
            options.append(word)
            if _RUN_OPTIONS.get(word):
                options += [value for value in [next(ahead, None)] if value is not None]
        elif word.startswith("--") and rest:
            raise Refused(f"run has no option {word.partition('=')[0]}; to pass it to the task, write -- before it: -- {word}", USAGE)
        elif word.startswith("-") and not rest:
            options.append(word)  # typer will say that there is no such option
        else:
            rest.append(word)
            if len(rest) == 1 and not names_a_task(word):
                rest += ahead
    return [*options, "--", *rest]
