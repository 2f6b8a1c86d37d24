"""Our directories: opened without following links, and removed through their descriptors.

Other users may be able to write where runs keep their files. They may put a link where our
directory is expected, or swap it in between a check and a removal. So a directory is opened once,
without following a link, and checked through its descriptor. Its contents are listed, opened and
removed relative to that descriptor. No path is resolved a second time.
"""

from __future__ import annotations

import contextlib
import os
import stat

#: Opens a directory only, never the target of a link, and never waits for a FIFO.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotOurs(OSError):
    """The path is not a directory that only this user can use."""


def open_ours(path: str, within: int | None = None) -> int:
    """Open a directory that only this user can use; gives the descriptor.

    `within` is the descriptor of the directory around it. Raises FileNotFoundError if there is
    none; NotOurs, with the reason, if it is a link, a file, or open to other users.
    """
    try:
        fd = os.open(path, DIRECTORY, dir_fd=within)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotOurs(error.errno, _what_it_is(path, within) or error.strerror or str(error)) from None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.getuid():
            raise NotOurs(f"it belongs to user {found.st_uid}")
        if found.st_mode & 0o077:
            raise NotOurs(f"others may use it (its mode is {stat.S_IMODE(found.st_mode):o})")
    except BaseException:
        os.close(fd)
        raise
    return fd


def why(error: OSError) -> str:
    """The reason, without the path."""
    return str(error.strerror or error)


def _what_it_is(path: str, within: int | None) -> str:
    with contextlib.suppress(OSError):
        mode = os.stat(path, dir_fd=within, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            return "it is a symbolic link"
        if not stat.S_ISDIR(mode):
            return "it is not a directory"
    return ""


def is_named(fd: int, name: str, within: int) -> bool:
    """Whether the open directory `fd` still has this name in `within`, not replaced by another."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=within, follow_symlinks=False))
    except OSError:
        return False


def remove_tree(name: str, fd: int, within: int) -> bool:
    """Remove the open directory `fd`, named so in `within`; gives whether it is gone.

    Its contents go as well. Links are removed, not followed; mounts stay. `shutil.rmtree` will not
    do: importing it while a program ends evaluates code, after which Python forgets that Ctrl-C
    ended the program.
    """
    mount = _mount(fd)
    if mount == _mount(within) and is_named(fd, name, within):  # else it is somebody else's by now
        while _thin_out(fd, mount):
            pass
        if is_named(fd, name, within):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=within)
    return not is_named(fd, name, within)


def _thin_out(fd: int, mount: tuple[int, str]) -> bool:
    """Empty a directory by one level: deeper contents move up, for another pass.

    Gives whether any did. So two descriptors suffice, at any depth.
    """
    came_up = False
    for name in os.listdir(fd):
        if _remove(name, fd):
            continue
        try:
            inner = os.open(name, DIRECTORY, dir_fd=fd)
        except OSError:
            continue
        try:
            if _mount(inner) != mount:
                continue
            for below in os.listdir(inner):
                if not _remove(below, inner):
                    with contextlib.suppress(OSError):  # a mount, or not allowed to move
                        os.rename(below, f".{os.urandom(8).hex()}", src_dir_fd=inner, dst_dir_fd=fd)
                        came_up = True
        except OSError:
            continue
        finally:
            os.close(inner)
        _remove(name, fd)
    return came_up


def _remove(name: str, within: int) -> bool:
    """Remove a file, a link or an empty directory; gives whether it is gone."""
    try:
        os.unlink(name, dir_fd=within)
    except FileNotFoundError:
        return True
    except OSError:  # EISDIR on Linux, EPERM on macOS
        try:
            os.rmdir(name, dir_fd=within)
        except OSError:
            return False
    return True


def _mount(fd: int) -> tuple[int, str]:
    """The file system of an open directory, and on Linux its mount."""
    device = os.fstat(fd).st_dev
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return device, next((line for line in file if line.startswith("mnt_id:")), "")
    except OSError:
        return device, ""
