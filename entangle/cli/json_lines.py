"""What commands say to programs: one line of JSON, and nothing else on that stream."""

from __future__ import annotations

import json
from typing import Any

from entangle.cli.terminal_text import plain_json, stdout


def as_json(value: Any, encoding: str = "utf-8") -> str:
    """A value as JSON that can be encoded so. What JSON does not know becomes its text."""
    said = plain_json(json.dumps(value, default=str, ensure_ascii=False))
    try:
        said.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, default=str)
    return said


def print_json(value: Any) -> None:
    """Print a value."""
    out = stdout()
    out.write(as_json(value, out.encoding or "utf-8") + "\n")
    out.flush()


def print_refusal(kind: str, message: str, status: int) -> None:
    """Print why a command cannot do what was asked, and the exit status."""
    print_json({"status": status, "error": {"type": kind, "message": message}})
