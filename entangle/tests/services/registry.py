"""An image registry on this machine: Debian's `docker-registry`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..evidence import wait_until
from ..ways import missing
from .hosts import program

#: A user and a password, and their line in an htpasswd file.
USER, PASSWORD = "painter", "word"
_KNOWN = f"{USER}:$2b$04$3qMlfraex7bZDwMFxbu3kuWIGpMNJFn.DaEscNXilqv/QMSxuRw6y\n"


@contextmanager
def registry(folder: Path, asks: bool = False) -> Iterator[str]:
    """A registry that keeps its images in a directory. Yields its address. With `asks`, it requires
    the password."""
    serve = program("docker-registry")
    if serve is None:
        missing("no docker-registry here: make services")
    folder.mkdir()
    told = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '127.0.0.1:0', secret: tests}}\n"
    if asks:
        (folder / "known").write_text(_KNOWN)
        told += f"auth: {{htpasswd: {{realm: tests, path: {folder}/known}}}}\n"
    (folder / "config.yml").write_text(told)
    log = folder / "log"
    with log.open("w") as file:
        running = subprocess.Popen([str(serve), "serve", str(folder / "config.yml")], stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: "listening on" in log.read_text() or running.poll() is not None, what="the registry")
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())
        assert found is not None, log.read_text()
        yield found[1]
    finally:
        running.terminate()
        running.wait()
