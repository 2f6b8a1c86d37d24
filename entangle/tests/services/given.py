"""Services that one test session shares: started when the first test wants them, ended with the
process."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from ..ways import missing
from . import hosts as _hosts

#: The image of `.ci/services`.
IMAGE = "entangle-tests:1"


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def ssh_programs() -> None:
    """See that there can be hosts with ssh servers; without the programs for it, the test is
    skipped, or in CI fails."""
    lacking = _hosts.what_is_missing()
    if lacking:
        missing(lacking)


@functools.lru_cache(maxsize=1)
def shared_hosts() -> _hosts.Hosts:
    """Three hosts with ssh servers, which stay. Ask in a fixture of the session: in a test, they
    would count as left behind by it. Without the programs for it, the test is skipped, or in CI
    fails."""
    ssh_programs()
    stack = contextlib.ExitStack()
    folder = Path(tempfile.mkdtemp(prefix="entangle-hosts-"))
    stack.callback(_remove, folder, os.getpid())
    atexit.register(stack.close)
    return stack.enter_context(_hosts.three_hosts(folder))


@functools.lru_cache(maxsize=1)
def _trouble_with_docker() -> str:
    if shutil.which("docker") is None:
        return "no docker here: make services"
    try:
        done = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "the docker daemon does not answer: make services"
    if done.returncode:
        return f"{done.stderr.strip()}: make services"
    return ""


def image() -> str:
    """The name of the image for tests; without a docker daemon that has it, the test is skipped, or
    in CI fails."""
    trouble = _trouble_with_docker()
    if trouble:
        missing(trouble)
    return IMAGE


@functools.lru_cache(maxsize=1)
def _trouble_with_packages() -> str:
    """Why a container cannot install packages here, '' where it can: it asks the index, or the
    proxy, that pip is told of."""
    from entangle._remote.transport.derived_images import settings_of_pip

    settings, _ = settings_of_pip()
    proxy = next((value for name, value in settings.items() if name.lower() in ("https_proxy", "pip_proxy") and value), "")
    asked = urllib.parse.urlsplit(proxy or settings.get("PIP_INDEX_URL") or "https://pypi.org/simple")
    host, port = asked.hostname or "pypi.org", asked.port or (443 if asked.scheme == "https" else 80)
    look = f"import socket; socket.create_connection(({host!r}, {port}), 20).close()"
    command = ["docker", "run", "--rm", "--entrypoint", "python3", IMAGE, "-c", look]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return f"containers do not reach {host}:{port} within a minute"
    said = done.stderr.strip().splitlines()
    return f"containers do not reach {host}:{port} ({said[-1] if said else done.returncode})" if done.returncode else ""


def packages() -> None:
    """See that a container can install packages from an index. Where containers have no way out,
    the test is skipped, or in CI fails, with that as the reason: what was to be tested is not
    broken."""
    image()
    trouble = _trouble_with_packages()
    if trouble:
        missing(f"{trouble}, and packages come from there: give docker a network that leads out, or pip an index that it reaches")


def containers() -> list[str]:
    """The containers of entangle that there are, running or not, but for those of tests that run
    beside these."""
    command = ["docker", "ps", "--all", "--no-trunc", "--filter", "label=entangle", "--format", '{{.ID}} {{.Label "entangle.home"}}']
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [one for one, _, home in (line.partition(" ") for line in listed.splitlines()) if not _of_tests_beside(home)]


def _of_tests_beside(home: str) -> bool:
    """Whether a run directory is of other tests: that of their process, or one in a folder that
    pytest has made for theirs."""
    if home.startswith(os.environ["ENTANGLE_RUN_DIR"]):
        return False
    worker = re.search(r"/popen-(\w+)/", home)
    return "/entangle-tests-" in home or (worker is not None and worker[1] != os.environ.get("PYTEST_XDIST_WORKER"))
