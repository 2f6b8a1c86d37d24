"""A depot behind a URL: `s3://bucket/path` by boto3, `memory://` and others by fsspec.

::

    values/<aa>/<key>     a value, as `entry.py` says, signed with ENTANGLE_KEY
    locks/<key>/<n>       a lease of the process that computes it; the highest number counts
    quarantine/           values that were damaged
    waits/<any>           said by one that computes a key and waits for another; it names both
    pins/<owner>/<any>    keys that an owner needs, as `pins.py` says

There is no kernel that drops the lock of a process that dies, so the right to compute a key is a
lease: its holder renews it, and it ends a minute after the last time. A lease is made under a name
that must not exist (If-None-Match: the first writer wins). A process that finds one that has ended
makes the next number, so two that find it cannot both get it. Clocks that differ by more than half
a minute can let two processes compute one key. In S3 the first value put is then the one that
stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from entangle._depot.bounds import bounds
from entangle._depot.circles import Wait, read_wait
from entangle._depot.entry import About, BadlySigned, Damaged, Kept, pack, refused, unpack
from entangle._depot.pins import Owner, head_of, lives, name_of, read_head
from entangle._depot.s3_objects import Changed, S3Objects
from entangle._depot.trimming import File, tell_if_pins_fill, too_much
from entangle._depot.warned_once import warn_once
from entangle.errors import DepotError

T = TypeVar("T")

#: A lease lasts so long unless it is renewed, which is done so often (seconds).
_LASTS, _RENEWED = 60.0, 15.0
#: Stores in which a whole object appears at once. In others a value is written aside, and moved.
_AT_ONCE = frozenset(("memory", "s3", "s3a", "gs", "gcs", "abfs", "az"))


class RemoteDepot:
    """Values behind a URL. Its methods raise OSError where that cannot be used."""

    #: Whoever waits for a value looks again this often (seconds): requests to S3 cost money.
    looks_again = 0.02

    def __init__(self, url: str, secret: bytes) -> None:
        self.name = url
        scheme = url.partition("://")[0]
        if scheme != "memory" and not secret:
            raise DepotError(
                f"others may write to the depot {url}, and what it holds are pickles, which are code. Set ENTANGLE_KEY to a secret that "
                f"all who share it have"
            )
        self._conditional = scheme in ("s3", "s3a")
        if self._conditional:
            self.looks_again = 1.0
        self._files: Any
        self._files, root = (S3Objects(url), url.partition("://")[2]) if self._conditional else _by_fsspec(url)
        self._root = root.rstrip("/")
        if not self._root.partition("/")[0] and self._conditional:
            raise DepotError(f"the depot {url} names no bucket: it is written as s3://bucket/path")
        self._secret = secret
        self._at_once = scheme in _AT_ONCE
        self._put = 0

    def _path(self, *names: str) -> str:
        return "/".join((self._root, *names))

    def _value(self, key: str) -> str:
        return self._path("values", key[:2], key)

    def find(self, key: str) -> Kept | None:
        """The value under a key. One that is damaged goes to quarantine.

        Raises DepotError where it is not signed as it has to be.
        """
        try:
            whole = _asked(lambda: self._files.cat_file(self._value(key)))
        except FileNotFoundError:
            return None
        try:
            return unpack(key, memoryview(bytearray(whole)), self._secret)
        except BadlySigned as error:
            raise refused(self.name, key, error) from None
        except Damaged as error:
            to = self._path("quarantine", f"{key}.{time.time_ns()}")
            _asked(lambda: self._files.pipe_file(to, bytes(whole)))
            self.remove(key)
            warn_once(f"a value in the depot {self.name} is damaged ({error}): it is now {to}, and is computed again", to)
            return None

    def put(self, key: str, about: About, body: bytes, buffers: Sequence[memoryview]) -> None:
        """Keep a value under a key, in place of one that is there. Applies the bounds."""
        parts, size = pack(key, about, body, buffers, self._secret)
        limit = bounds().size
        if limit and size > limit:
            raise DepotError(f"a value of {size:,} bytes is more than the depot {self.name} may hold ({limit:,}): set ENTANGLE_DEPOT_SIZE")
        whole = bytearray(size)
        for part, at in parts:
            whole[at : at + part.nbytes] = part
        if self._conditional:
            self._put_first(key, about, bytes(whole))
        else:
            self._write(self._value(key), bytes(whole))
        self._put += size
        if limit and self._put > limit / 16:
            self._put = 0
            self.trim()

    def _put_first(self, key: str, about: About, whole: bytes) -> None:
        """Put a value unless another was made since this one was begun. An older one is replaced:
        it has expired, or could not be read."""
        path = self._value(key)
        for _ in range(5):
            try:
                _asked(lambda: self._files.pipe_file(path, whole, mode="create"))
                return
            except FileExistsError:
                pass
            try:
                there, tag = _asked(lambda: self._files.cat_with_tag(path))
                with contextlib.suppress(Damaged, BadlySigned):
                    if unpack(key, memoryview(there), self._secret).about.made > about.made - about.seconds:
                        return
                _asked(partial(self._files.pipe_file, path, whole, instead_of=tag))
                return
            except (FileNotFoundError, Changed):
                continue
        raise OSError(5, f"{path}: others put this value over and over")

    def _write(self, path: str, whole: bytes) -> None:
        if self._at_once:
            _asked(lambda: self._files.pipe_file(path, whole))
            return
        draft = self._path("drafts", f"{os.getpid()}-{os.urandom(6).hex()}")
        for name in (draft, path):
            _asked(partial(self._files.makedirs, name.rpartition("/")[0], exist_ok=True))
        _asked(lambda: self._files.pipe_file(draft, whole))
        _asked(lambda: self._files.mv(draft, path))

    def try_alone(self, key: str) -> KeyLease | None:
        """The right to compute a key, until it is given back; None where another has it."""
        folder = self._path("locks", key)
        numbers = sorted(int(name) for path in self._listed(folder) if (name := path.rpartition("/")[2]).isdigit())
        if numbers and self._until(f"{folder}/{numbers[-1]}") > time.time():
            return None
        number = numbers[-1] + 1 if numbers else 1
        lease = KeyLease(self._files, f"{folder}/{number}", [f"{folder}/{old}" for old in numbers])
        return lease if lease.begin() else None

    def _listed(self, folder: str) -> list[str]:
        self._files.invalidate_cache(folder)
        with contextlib.suppress(FileNotFoundError):
            return [str(path) for path in _asked(lambda: self._files.ls(folder, detail=False))]
        return []

    def _until(self, path: str) -> float:
        try:
            return float(json.loads(_asked(lambda: self._files.cat_file(path)))["until"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0.0

    def say_waiting(self, wait: Wait) -> Said:
        """Let others read what this process waits for, until what is given is given back."""
        path = self._path("waits", f"{time.time() + _LASTS:.0f}-{os.urandom(8).hex()}")
        self._write(path, wait.written())
        return Said(self._files, path)

    def waits(self) -> list[Wait]:
        """What others that compute a key wait for. What they have said ends after a minute."""
        found = []
        for path in self._listed(self._path("waits")):
            until = path.rpartition("/")[2].partition("-")[0]
            with contextlib.suppress(FileNotFoundError):
                if not until.isdigit() or int(until) < time.time():
                    self._remove(path)
                elif (wait := read_wait(_asked(partial(self._files.cat_file, path)))) is not None:
                    found.append(wait)
        return found

    # Pins ----------------------------------------------------------------------------------------

    def pin(self, owner: Owner, keys: Sequence[str]) -> None:
        """Keep the values of keys from eviction and removal, as long as `owner.path` is there.

        A key may be pinned before it has a value. A process that is trimming at this moment may
        still remove a value that was not pinned when it looked.
        """
        whole = json.dumps({**head_of(owner), "keys": list(keys)}).encode()
        self._write(self._path("pins", name_of(owner), f"{time.time_ns()}-{os.urandom(4).hex()}"), whole)

    def unpin(self, owner: Owner) -> None:
        """End all pins of an owner."""
        for path in self._listed(self._path("pins", name_of(owner))):
            self._remove(path)

    def pinned(self) -> dict[str, list[str]]:
        """The keys that are pinned, with the names of their owners."""
        found: dict[str, set[str]] = {}
        for _, owner, keys, live in self._all_pins():
            for key in keys if live else ():
                found.setdefault(key, set()).add(owner)
        return {key: sorted(owners) for key, owners in found.items()}

    def _all_pins(self) -> Iterator[tuple[str, str, list[str], bool]]:
        """The objects of all owners: path, name of the owner, keys, whether the owner is there."""
        for folder in self._listed(self._path("pins")):
            for path in self._listed(folder):
                try:
                    text = bytes(_asked(partial(self._files.cat_file, path))).decode(errors="replace")
                except FileNotFoundError:
                    continue
                head = read_head(text)
                if head is None:
                    yield path, "", [], False
                    continue
                keys, pinned = json.loads(text).get("keys"), path.rpartition("/")[2].partition("-")[0]
                live = lives(head, int(pinned) / 1e9 if pinned.isdigit() else 0.0)
                yield path, head["owner"], [str(key) for key in keys] if isinstance(keys, list) else [], live

    # For people ----------------------------------------------------------------------------------

    def entries(self) -> Iterator[File]:
        """All values, in no order. When they were last used is not known: their age is that since
        they were made."""
        self._files.invalidate_cache()
        try:
            found = _asked(lambda: self._files.find(self._path("values"), detail=True))
        except FileNotFoundError:
            return
        for path, told in found.items():
            made = next((told[name] for name in ("LastModified", "mtime", "created", "last_modified") if told.get(name)), time.time())
            yield File(
                path.rpartition("/")[2], path, int(told["size"] or 0), made.timestamp() if hasattr(made, "timestamp") else float(made)
            )

    def about(self, key: str) -> About | None:
        """What is known of a value; None where it is gone, damaged, or signed otherwise."""
        with contextlib.suppress(DepotError):
            kept = self.find(key)
            return kept.about if kept is not None else None
        return None

    def verify(self, key: str) -> bool:
        """Compare the checksum of a value; False where it was damaged. Raises DepotError where it
        is not signed as it has to be."""
        return self.find(key) is not None

    def remove(self, key: str) -> bool:
        """Remove a value, pinned or not. Gives whether it was there."""
        return self._remove(self._value(key))

    def _remove(self, path: str) -> bool:
        try:
            _asked(lambda: self._files.rm_file(path))
        except FileNotFoundError:
            return False
        return True

    def remove_all(self, keys: Iterable[str]) -> list[str]:
        """Remove values that are not pinned. Gives the keys of those that were removed."""
        pinned = self.pinned()
        return [key for key in keys if key not in pinned and self.remove(key)]

    def trim(self) -> list[File]:
        """Apply the bounds now, the oldest first. Gives what was removed."""
        for path, _, _, live in self._all_pins():
            if not live:
                self._remove(path)
        found, limits, pinned = [*self.entries()], bounds(), self.pinned()
        removed = [file for file in too_much(found, limits, pinned) if self.remove(file.key)]
        tell_if_pins_fill(self.name, found, limits, pinned)
        return removed


def _by_fsspec(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise DepotError(f"the depot {url} needs the package fsspec: pip install 'py-entangle[depot]'") from None
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DepotError(f"the depot {url} cannot be used: {error}") from None
    return files, str(root)


class Said:
    """What was said to others, until it is given back."""

    def __init__(self, files: Any, path: str) -> None:
        self._files, self._path = files, path

    def give(self) -> None:
        """Take it back."""
        with contextlib.suppress(OSError):
            _asked(lambda: self._files.rm_file(self._path))


class KeyLease:
    """The right to compute a key; a thread renews it until it is given back."""

    def __init__(self, files: Any, path: str, old: list[str]) -> None:
        self._files, self._path, self._old = files, path, old
        self._pid = os.getpid()
        self._name = os.urandom(8).hex()
        self._conditional = isinstance(files, S3Objects)
        self._tag: Any = None
        self._lost = False
        self._given = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="entangle-lease", daemon=True)

    def begin(self) -> bool:
        """Take it, unless another was first."""
        try:
            self._tag = _asked(lambda: self._files.pipe_file(self._path, self._until(), mode="create"))
        except FileExistsError:
            # It may be our own: the answer to a first request was lost, and it was sent again.
            if not self._is_ours():
                return False
        self._renewer.start()
        return True

    def _renew(self) -> None:
        while not self._given.wait(_RENEWED):
            try:
                if self._conditional:  # unless it has ended, and another has made it anew
                    self._tag = _asked(lambda: self._files.pipe_file(self._path, self._until(), instead_of=self._tag))
                else:
                    _asked(lambda: self._files.pipe_file(self._path, self._until()))
            except Changed:
                if not self._is_ours():
                    self._lost = True
                    return
            except OSError:  # once more, when it is time
                pass

    def _is_ours(self) -> bool:
        """Whether the lease is this one. Takes its tag."""
        try:
            there, self._tag = _asked(lambda: self._files.cat_with_tag(self._path)) if self._conditional else (b"", None)
        except FileNotFoundError:
            return False
        return self._name.encode() in there

    def _until(self) -> bytes:
        return json.dumps({"until": time.time() + _LASTS, "holder": self._name}).encode()

    def give(self) -> None:
        """Let others have it. In a child that was forked meanwhile, does nothing."""
        if self._pid != os.getpid():
            return
        self._given.set()
        self._renewer.join()
        if self._lost:
            return
        for path in (*self._old, self._path):  # this one last: until then, others find it
            with contextlib.suppress(OSError):
                _asked(partial(self._files.rm_file, path))


def _asked(ask: Callable[[], T]) -> T:
    """What a store answers. Errors of its own library are told as OSError."""
    try:
        return ask()
    except OSError:
        raise
    except Exception as error:
        raise OSError(5, f"{type(error).__name__}: {error}") from error
