"""Installs packages in the place where a function runs."""

from __future__ import annotations

import fcntl
import importlib
import subprocess
import sys
from importlib import metadata

from entangle.task import task


@task
def install(wanted: list[str]) -> str:
    """Install what is not installed yet; one process at a time. Gives pip's complaint, or ""."""

    def missing() -> list[str]:
        found = []
        for requirement in wanted:
            name, _, version = requirement.partition("==")
            try:
                here = metadata.version(name) == version
            except metadata.PackageNotFoundError:
                here = False
            if not here:
                found.append(requirement)
        return found

    if not missing():
        return ""
    with open(sys.prefix + ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        needed = missing()
        if not needed:
            return ""
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *needed]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    return (done.stderr.strip() or "pip failed")[-2000:] if done.returncode else ""
