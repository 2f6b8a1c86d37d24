"""What Lambda calls for a function of `@lmbda(role=…)`: it runs a message in a process of its own.

It stands alone, in a zip file with nothing else or in an image, and has the standard library. Each
call is a fork, so the next one in the same sandbox finds this process as it was, with all that was
imported, and nothing that the body has started. The code of the engine is kept in the temporary
directory from one call to the next.

An event has the `command` of a message, and the signed addresses that say how it is: `began` is put
again and again while it runs, `ended` once if it has ended in another way than with an outcome.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import urllib.request
from typing import Any

#: How much is kept of the code that earlier calls have fetched (bytes).
MOST = 64 << 20
#: It says for the first time that it runs after so long, and then so often (seconds).
FIRST, BEATS = 1.0, 10.0
#: So long before Lambda ends the sandbox the program is told to end, and has this time to do so.
LEFT, GRACE = 4.0, 2.0
#: How long an answer of the bucket may take (seconds).
PATIENCE = 10.0

# What the program needs of the standard library is loaded before the forks.
for _name in (
    "dataclasses",
    "hashlib",
    "inspect",
    "pickle",
    "sqlite3",
    "ssl",
    "subprocess",
    "threading",
    "traceback",
    "unicodedata",
    "zlib",
):
    with contextlib.suppress(ImportError):  # a Python may lack some
        importlib.import_module(_name)

_HEADERS = {"Content-Type": "application/octet-stream", "x-amz-tagging": "entangle=call"}
_PR_SET_CHILD_SUBREAPER = 36


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Run one message; or tell of this Python."""
    if "about" in event:
        import importlib.util

        magic = importlib.util.MAGIC_NUMBER.hex()
        return {"python": list(sys.version_info[:3]), "implementation": sys.implementation.name, "magic": magic}
    if "command" not in event:
        raise ValueError("this function runs calls of entangle, and nothing else: it is made by @lmbda(role=…)")
    _bound_what_is_kept()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the body leaves becomes a child of this process
    how = _look_after(_start(event["command"]), event, context)
    _end_the_rest()
    if how:
        sys.stderr.write(f"entangle: the process of the call {event.get('name', '')!r} {how}\n")
        sys.stderr.flush()
        _put(event["ended"], {"how": how, **_where(context)})
    return {"ended": how or "well"}


# The process --------------------------------------------------------------------------------------


def _start(command: list[str]) -> int:
    """Start the program of a message; gives its process number."""
    sys.stdout.flush()
    sys.stderr.flush()
    if "entangle" in sys.modules:  # of the image: what comes with the message may be another version
        import subprocess

        return subprocess.Popen([sys.executable, *command[1:]], stdin=subprocess.DEVNULL).pid
    pid = os.fork()
    if pid:
        return pid
    try:
        if "logging" in sys.modules:
            sys.modules["logging"].getLogger().handlers.clear()  # those of Lambda; the caller gets what is logged
        sys.argv = ["-c", *command[3:]]
        exec(command[2], {"__name__": "__main__"})
    except SystemExit as left:
        os._exit(left.code if isinstance(left.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def _look_after(pid: int, event: dict[str, Any], context: Any) -> str:
    """Wait for its end, and say meanwhile that it runs; gives how it has ended, "" if well."""
    now = time.monotonic()
    over = now + min(event.get("seconds", 900), context.get_remaining_time_in_millis() / 1000 - LEFT)
    next_beat, late = now + FIRST, False
    fd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    try:
        while True:
            now = time.monotonic()
            if now >= over:
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                late, over = True, now + GRACE
            elif now >= next_beat:
                _put(event["began"], {"beat": now, **_where(context)})
                next_beat = time.monotonic() + BEATS
            status = _status_within(pid, fd, max(0.0, min(over, next_beat) - time.monotonic()))
            if status is not None:
                break
    finally:
        if fd >= 0:
            os.close(fd)
    if late:
        return "was ended: its time was over"
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    code = os.WEXITSTATUS(status)
    return f"ended with exit status {code}" if code else ""


def _status_within(pid: int, fd: int, seconds: float) -> int | None:
    """How it has ended, if it does so in this time."""
    until = time.monotonic() + seconds
    if fd >= 0:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if fd >= 0 or time.monotonic() >= until:
            return None
        time.sleep(0.01)


def _end_the_rest() -> None:
    """End what the program has left; what cleans up after it has a moment to do so."""
    for seconds in (1.0, 1.0):
        until = time.monotonic() + seconds
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        for pid in _below():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def _below() -> list[int]:
    """The processes below this one, at any depth."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            below.setdefault(parent, []).append(int(name))
    found = list(below.get(os.getpid(), ()))
    for pid in found:
        found += below.get(pid, ())
    return found


# The bucket, and the temporary directory ----------------------------------------------------------


def _put(address: str, told: dict[str, Any]) -> None:
    request = urllib.request.Request(address, json.dumps(told).encode(), _HEADERS, method="PUT")
    for _ in range(2):
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                answer.read()
            return
        except OSError as error:
            if getattr(error, "code", 500) < 500:
                return


def _where(context: Any) -> dict[str, Any]:
    """Where the log of this call is."""
    names = {"request": "aws_request_id", "group": "log_group_name", "stream": "log_stream_name"}
    return {name: getattr(context, attribute, "") or "" for name, attribute in names.items()}


def _bound_what_is_kept() -> None:
    """Remove the code of earlier calls, which is kept by its hash, where there is much of it."""
    folder = os.environ["ENTANGLE_CODE"] = os.path.join(tempfile.gettempdir(), "entangle-code")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        files = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
        if sum(entry.stat().st_size for entry in files) > MOST:
            for entry in files:
                os.unlink(entry.path)
    except OSError:
        pass
