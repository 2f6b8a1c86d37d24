"""The git commit that code comes from, and whether files differ from it.

The commit is read from the files of the repository. Only git knows whether the working tree is
dirty, and takes some milliseconds to tell. So git is started when a run begins and works beside it.
Its answer is read when the run ends, and serves other runs for some seconds.
"""

from __future__ import annotations

import os
import posix
import select
import signal
import threading
import time
from typing import Any

#: Seconds for which an answer of git is reused, and for which a run waits for one.
SERVES, PATIENCE = 5.0, 0.05

_roots: dict[str, str | None] = {}
_asked: dict[str, _Question] = {}
#: Never wait for it: a fork may have left it locked, and a run can do without the answer.
_guard = threading.Lock()


def repository(directory: str) -> str | None:
    """The working tree around a directory, None where there is none."""
    if directory not in _roots:
        at, found = directory, None
        while True:
            if os.path.exists(os.path.join(at, ".git")):
                found = at
                break
            above = os.path.dirname(at)
            if above == at:
                break
            at = above
        if len(_roots) > 1000:
            _roots.clear()
        _roots[directory] = found
    return _roots[directory]


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _stamps(paths: list[str]) -> list[tuple[int, int, int] | None]:
    """Stamps of files, which differ once a file has changed: git writes a new file and renames
    it."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            found = os.stat(path)
            stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
        except OSError:
            stamps.append(None)
    return stamps


#: For each repository: the files that say what its head is, their stamps, and the head.
_heads: dict[str, tuple[list[str], list[tuple[int, int, int] | None], tuple[str | None, str | None]]] = {}


def head_of(root: str) -> tuple[str | None, str | None]:
    """The commit that is checked out, and its branch (None where it has none)."""
    known = _heads.get(root)
    if known is not None and _stamps(known[0]) == known[1]:
        return known[2]
    paths: list[str] = []
    head = _read_head(root, paths)
    stamps = _stamps(paths)
    # They may have changed while they were read.
    if _read_head(root, []) == head and len(_heads) < 1000:
        _heads[root] = paths, stamps, head
    return head


def _read_head(root: str, paths: list[str]) -> tuple[str | None, str | None]:
    """The head of a repository, as the files say whose `paths` are added, in a directory `.git` or
    elsewhere."""
    try:
        git = os.path.join(root, ".git")
        if os.path.isfile(git):  # a work tree or a submodule
            git = os.path.join(root, _text(git).partition("gitdir:")[2].strip())
            paths.append(os.path.join(root, ".git"))
        paths += os.path.join(git, "HEAD"), os.path.join(git, "commondir")
        head = _text(os.path.join(git, "HEAD")).strip()
        if not head.startswith("ref:"):
            return head or None, None
        name = head[4:].strip()
        common = git
        if os.path.exists(os.path.join(git, "commondir")):
            common = os.path.join(git, _text(os.path.join(git, "commondir")).strip())
        branch = name.removeprefix("refs/heads/")
        for base in (git, common):
            loose = os.path.join(base, name)
            paths.append(loose)
            if os.path.exists(loose):
                return _text(loose).strip(), branch
        paths.append(os.path.join(common, "packed-refs"))
        for line in _text(os.path.join(common, "packed-refs")).splitlines():
            if line.endswith(" " + name):
                return line.split()[0], branch
        return None, branch
    except OSError:
        return None, None


class _Question:
    """A `git status` that is running, or has answered."""

    def __init__(self, root: str) -> None:
        self.asked = time.monotonic()
        self.answer: bool | None = None
        self.pid = self.fd = -1
        self.owner = os.getpid()
        read, write = os.pipe()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.pid = posix.posix_spawnp(
                "git",
                ["git", "-C", root, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--ignore-submodules"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, write, 1),
                    (os.POSIX_SPAWN_DUP2, null, 2),
                ],
            )
            self.fd = read
        except OSError:  # git is not installed
            os.close(read)
        finally:
            posix.close(write)
            posix.close(null)

    def hear(self, seconds: float) -> None:
        """Wait so many seconds for the answer, then kill git."""
        if self.pid < 0 or self.owner != os.getpid():
            return
        said = b""
        until = time.monotonic() + seconds
        over = False
        while not over:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, until - time.monotonic())) if self.fd < 1024 else ([1], [], [])
            if not ready:
                break
            part = os.read(self.fd, 65536)
            said += part
            over = not part
        if not over:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        _, status = posix.waitpid(self.pid, 0)
        self.pid = self.fd = -1
        if said:
            self.answer = True  # even where git was killed before its end
        elif over and status == 0:
            self.answer = False


def ask(root: str) -> None:
    """Ask git whether the working tree is dirty, unless it has answered a moment ago."""
    if not _guard.acquire(blocking=False):
        return
    try:
        asked = _asked.get(root)
        if asked is None or asked.owner != os.getpid() or (asked.pid < 0 and time.monotonic() - asked.asked > SERVES):
            _asked[root] = _Question(root)
    finally:
        _guard.release()


def hear(root: str) -> bool | None:
    """Whether the working tree is dirty; None where that is not known."""
    if not _guard.acquire(blocking=False):
        return None
    try:
        asked = _asked.get(root)
        if asked is None:
            return None
        asked.hear(PATIENCE)
        return asked.answer
    finally:
        _guard.release()


def described(root: str) -> dict[str, Any]:
    """The repository, its commit and its branch."""
    commit, branch = head_of(root)
    return {"root": root, "commit": commit, "branch": branch}
