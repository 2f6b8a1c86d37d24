"""The program that ends an instance of EC2, on that instance: nobody has used it for a while,
nobody has ever come, or AWS takes it back.

It goes there as text and needs Python 3.7 and its standard library. It runs as root::

    python3 instance_watch.py IDLE FIRST SPOT [FOLDER]

An agent there holds a lock (flock) on a file of `FOLDER`/agents that has its process number, so a
lease ends with its agent, however that ends. `FOLDER`/ending says that the instance ends, and why:
whoever comes then goes elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

FOLDER = "/run/entangle"
#: A file without a lock is removed after this time (seconds): its agent may be about to lock it.
_STALE = 60.0
#: How long agents may take to end their bodies (seconds); AWS gives two minutes.
_GRACE = 60.0
_ENDS = (("shutdown", "-h", "now"), ("poweroff",), ("poweroff", "-f"))


def leases(folder: str) -> list[str]:
    """The files of agents that are there."""
    found = []
    for name in os.listdir(os.path.join(folder, "agents")):
        path = os.path.join(folder, "agents", name)
        with contextlib.suppress(OSError), open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(path)
                continue
            if time.time() - os.stat(path).st_mtime > _STALE:
                os.unlink(path)
    return found


def end_agents(folder: str) -> None:
    """Tell the agents to end what they run, and wait until they have."""
    told: set[str] = set()
    until = time.monotonic() + _GRACE
    while time.monotonic() < until:
        there = leases(folder)
        if not there:
            return
        for path in there:
            with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
                pid = int(file.read())
                # A file is its owner's word; it says nothing of processes of others.
                if path not in told and os.stat(f"/proc/{pid}").st_uid == os.fstat(file.fileno()).st_uid:
                    os.kill(pid, signal.SIGTERM)
                    told.add(path)
        time.sleep(0.1)


def taken_back(metadata: str) -> str:
    """When AWS takes this spot instance back, as it says it; "" where it does not."""
    with contextlib.suppress(OSError, ValueError):
        words = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        request = urllib.request.Request(f"{metadata}/latest/api/token", method="PUT", headers=words)
        with urllib.request.urlopen(request, timeout=2) as answer:
            words = {"X-aws-ec2-metadata-token": answer.read().decode()}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{metadata}/latest/meta-data/spot/instance-action", headers=words), timeout=2
            ) as answer:
                return str(answer.read().decode(errors="replace")) or "soon"
        except urllib.error.HTTPError:  # 404: not now
            return ""
    return ""


def say(folder: str, why: str) -> None:
    """Say that the instance ends."""
    draft = os.path.join(folder, "ending.draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(why + "\n")
    os.replace(draft, os.path.join(folder, "ending"))


def watch(idle: float, first: float, spot: bool, folder: str) -> None:
    """Return when the instance is to end. It waits `first` seconds for the first agent, and `idle`
    seconds after the last one."""
    metadata = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    agents = os.path.join(folder, "agents")
    used, patience = time.monotonic(), first
    changed = os.stat(agents).st_mtime_ns
    while True:
        if spot and (when := taken_back(metadata)):
            say(folder, f"entangle: AWS takes this spot instance back: {when}")
            end_agents(folder)
            return
        there, now = leases(folder), os.stat(agents).st_mtime_ns
        if there or now != changed:  # one may have come and gone between two looks
            used, patience, changed = time.monotonic(), idle, os.stat(agents).st_mtime_ns
        elif time.monotonic() - used >= patience:
            say(folder, f"entangle: this instance ends: nobody has used it for {patience:g} s")
            if not leases(folder):  # whoever locks a file now sees what was said, and goes
                return
            os.unlink(os.path.join(folder, "ending"))
        time.sleep(min(5.0, idle / 10))


def main(words: list[str]) -> None:
    """Watch, then shut down."""
    idle, first, spot, folder = float(words[0]), float(words[1]), words[2] == "spot", (words[3:] or [FOLDER])[0]
    os.makedirs(os.path.join(folder, "agents"), exist_ok=True)
    os.chmod(os.path.join(folder, "agents"), 0o1777)
    alone = os.open(os.path.join(folder, "watch.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # there is one
    watch(idle, first, spot, folder)
    while True:
        for command in _ENDS:
            with contextlib.suppress(OSError):
                if subprocess.call(command, stdin=subprocess.DEVNULL) == 0:
                    return
        time.sleep(30)


if __name__ == "__main__":
    main(sys.argv[1:])
