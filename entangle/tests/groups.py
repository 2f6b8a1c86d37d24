"""Control groups with limits, which processes of tests can join."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from .evidence import wait_until


@contextmanager
def control_group(limits: Mapping[str, Mapping[str, str]]) -> Iterator[Path]:
    """A control group of version 2 or 1, whichever this machine allows.

    `limits` maps each parent directory to be tried to what is written into the files of the group.
    The first file must exist. Where one of the others is missing, that limit is left out."""
    for top, files in limits.items():
        group = Path(top, f"entangle-test-{os.getpid()}")
        try:
            if not Path(top, "cgroup.procs").exists():
                continue
            group.mkdir()
        except OSError:
            continue
        try:
            for number, (name, text) in enumerate(files.items()):
                if not number or (group / name).exists():
                    (group / name).write_text(text)
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            wait_until(functools.partial(_is_empty, group))
            group.rmdir()
        return
    pytest.skip(f"no control group can be made in {', '.join(limits)}")


def _is_empty(group: Path) -> bool:
    return not (group / "cgroup.procs").read_text().split()
