"""Programs that need the same value, whose body waits for a signal to continue."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .evidence import wait_until

#: Lines of a body that notes its pid when it begins, and then waits for a file.
BEGINS_AND_WAITS = """
    with open(os.environ["RAN"], "a") as file:
        print(os.getpid(), file=file, flush=True)
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.005)
"""


class WaitingPrograms:
    """Several processes that run one program."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        (folder / "program.py").write_text(program)

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        told = {**os.environ, "RAN": str(self.folder / "ran"), "GO": str(self.folder / "go"), **environment}
        command = [sys.executable, str(self.folder / "program.py"), *map(str, arguments)]
        return subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def go(self) -> None:
        """Let all bodies finish."""
        (self.folder / "go").touch()

    @property
    def ran(self) -> list[int]:
        """The pids in which the body has begun."""
        path = self.folder / "ran"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.ran) >= count, 50, f"the body has not begun {count} times")
