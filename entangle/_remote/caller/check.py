"""Checks hosts: can they be reached, what is there, and what is missing."""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from entangle._remote.caller.open_channels import channel_to, close_all
from entangle._remote.transport import Transport
from entangle._remote.transport.ssh import SSHTransport
from entangle._remote.transport.ssh_options import check_word
from entangle.errors import EntangleError, OptionError
from entangle.task import task

#: The round trip is the median of this many calls.
_CALLS = 20
#: With less shared memory, large values go through files (bytes).
_LITTLE = 256 << 20


@dataclass
class Report:
    """What was found at one host. `trouble` says why nothing could be found."""

    host: str
    trouble: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    connected: float = 0.0
    round_trip: float = 0.0
    missing: list[str] = field(default_factory=list)
    #: Packages that were asked for, and their versions there; None for one that is not there.
    packages: dict[str, str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        """The report as it is printed."""
        if self.trouble:
            return self.trouble if self.trouble.startswith(f"{self.host}: ") else f"{self.host}: {self.trouble}"
        about = self.about
        lines = [
            f"{self.host}: Python {about['python']} ({about['executable']}), {about['system']}, {about['cpus']} CPUs, "
            f"{about['memory'] / 2**30:.1f} GiB of memory; {self._entangle()}connected in {self.connected * 1e3:.0f} ms, "
            f"round trip {self.round_trip * 1e3:.2f} ms",
            *([f"  packages: {', '.join(f'{name} {version}' for name, version in there.items())}"] if (there := self._there()) else []),
            *(f"  missing: the package {name}" for name, version in self.packages.items() if version is None),
            *(f"  {line}" for line in self.missing),
        ]
        return "\n".join(lines)

    def _entangle(self) -> str:
        here, there = sys.modules["entangle"].__version__, self.about["entangle"]
        return f"entangle {there} is installed, and {here} of here is used; " if there not in (None, here) else ""

    def _there(self) -> dict[str, str]:
        return {name: version for name, version in self.packages.items() if version is not None}


@task
def _versions(names: list[str]) -> dict[str, str | None]:
    """The versions of packages where this runs; None for one that is not installed."""
    from importlib import metadata

    found: dict[str, str | None] = dict.fromkeys(names)
    for name in names:
        try:
            found[name] = metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError):
            pass
    return found


@task
def _look() -> dict[str, Any]:
    """What there is in the place where this runs."""
    import importlib.util
    import os
    import platform
    import shutil
    import sys
    import tempfile
    from importlib import metadata

    installed: str | None = None
    try:
        installed = metadata.version("py-entangle")
    except metadata.PackageNotFoundError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = shutil.disk_usage("/dev/shm").total if os.access("/dev/shm", os.W_OK) else 0
    modules = ("ctypes", "fcntl", "ssl", "venv", "ensurepip")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.machine()}",
        "entangle": installed,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": memory,
        "shared": shared,
        "disk": shutil.disk_usage(tempfile.gettempdir()).free,
        "lacks": [name for name in modules if importlib.util.find_spec(name) is None],
    }


@task
def _nothing() -> None:
    """Does nothing, for the round trip."""


def look_at(transport: Transport, packages: Sequence[str] = ()) -> Report:
    """Connect to a place, and report what is there, also which of these packages."""
    return look_by(lambda task, *args: channel_to(transport).call(task, args, {}), transport.place, packages)


def look_by(call: Callable[..., Any], host: str, packages: Sequence[str] = (), calls: int = _CALLS) -> Report:
    """The report of what `call(task, *args)` finds where it runs a task; `calls` are timed."""
    report = Report(host)
    began = time.perf_counter()
    try:
        call(_nothing)
        report.connected = time.perf_counter() - began
        report.about = call(_look)
        report.packages = call(_versions, list(packages)) if packages else {}
        trips = []
        for _ in range(calls):
            began = time.perf_counter()
            call(_nothing)
            trips.append(time.perf_counter() - began)
        report.round_trip = statistics.median(trips)
    except EntangleError as error:
        report.trouble = str(error)
        return report
    report.missing = _missing(report.about)
    return report


def _missing(about: dict[str, Any]) -> list[str]:
    told = []
    there, here = about["python"].rpartition(".")[0], f"{sys.version_info[0]}.{sys.version_info[1]}"
    if there != here:
        told.append(f"Python {here}, as here: functions travel as source, and what only Python {here} can pickle does not travel")
    if "ctypes" in about["lacks"]:
        told.append("the module ctypes: large values are copied")
    if {"venv", "ensurepip"} & set(about["lacks"]):
        told.append("the modules venv and ensurepip, for env=…: apt install python3-venv")
    if about["shared"] < _LITTLE:
        told.append(f"shared memory ({about['shared'] >> 20} MiB in /dev/shm): large values go through files")
    if about["disk"] < 1 << 30:
        told.append(f"room in its temporary directory ({about['disk'] >> 20} MiB)")
    return [f"missing: {line}" for line in told]


def transport_to(word: str, **options: Any) -> SSHTransport:
    """The transport for `[user@]host[:port]`. Raises OptionError.

    An address with colons stands in brackets if a port follows.
    """
    user, at, rest = word.rpartition("@")
    bracketed = re.fullmatch(r"\[([^]]*)\](?::([0-9]+))?", rest)
    if bracketed is not None:
        host, port = bracketed[1], bracketed[2]
    else:
        host, colon, port = rest.rpartition(":")
        if not colon or not port.isdigit() or ":" in host:
            host, port = rest, ""
    check_word("host", host)
    if at:
        check_word("user", user)
    if port and not 0 < int(port) < 65536:
        raise OptionError(f"{word}: a port is a whole number from 1 to 65535")
    return SSHTransport(host=host, user=user if at else None, port=int(port) if port else None, **options)


def check_hosts(hosts: Sequence[str], **options: Any) -> int:
    """Check hosts, all at once, and print the reports. Gives 0, or 1 if a host cannot be used.

    The options are those of @ssh.
    """
    transports = [transport_to(word, **options) for word in hosts]
    try:
        with ThreadPoolExecutor(max(1, min(len(transports), 16))) as pool:
            reports = list(pool.map(look_at, transports))
    finally:
        close_all()
    for report in reports:
        print(report, file=sys.stderr if report.trouble else sys.stdout)
    return 1 if any(report.trouble for report in reports) else 0
