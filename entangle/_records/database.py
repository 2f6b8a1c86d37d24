"""The file of records: its tables, and how older tables become the present ones.

A connection is opened for one task and closed again: SQLite's locks do not survive a fork, and
processes that use entangle fork. In WAL mode, readers go on while one process writes; writers wait
for each other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator

from entangle.errors import RecordsError

#: The file, in the directory of records. The name stays: under another one, older records are lost.
NAME = "records.sqlite"
#: Seconds that a process waits for another one's lock; BEFORE_A_USER where a user is waiting, who
#: is told what is missing.
PATIENCE, BEFORE_A_USER = 60.0, 5.0
_patience = PATIENCE


def patience() -> float:
    """Seconds that this process waits for a lock of another one."""
    return _patience


def user_waits() -> None:
    """Have this process wait less for locks from now on: a user is waiting."""
    global _patience
    _patience = BEFORE_A_USER


#: Entry n brings a file from schema n to schema n + 1. Only ever add entries: older files need them
#: all.
MIGRATIONS = (
    """
    CREATE TABLE runs (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        parent TEXT, parent_node INTEGER,           -- the run and the node in whose body it was called
        name TEXT NOT NULL,                         -- of the call whose value it gives
        state TEXT NOT NULL,                        -- done, failed, cancelled, killed
        started INTEGER NOT NULL, ended INTEGER,    -- nanoseconds since 1970
        node_count INTEGER NOT NULL, done_count INTEGER, workers INTEGER,
        host TEXT, pid INTEGER, user TEXT, cwd TEXT, program TEXT, python TEXT, platform TEXT, entangle TEXT,
        way TEXT,                                   -- how workers were started
        git_root TEXT, git_commit TEXT, git_branch TEXT, git_dirty INTEGER,
        packages TEXT NOT NULL, tags TEXT NOT NULL, -- JSON
        error_type TEXT, error TEXT, traceback TEXT, notes TEXT, error_node INTEGER,
        tries TEXT,                                 -- JSON: attempts that failed and were followed by others
        graph TEXT                                  -- the Gremlin server that it is to be sent to
    );
    CREATE INDEX runs_by_start ON runs (started);
    CREATE INDEX runs_by_parent ON runs (parent) WHERE parent IS NOT NULL;
    CREATE TABLE tasks (
        key INTEGER PRIMARY KEY,
        identity TEXT NOT NULL UNIQUE,              -- version, terms and attributes together
        version TEXT NOT NULL,                      -- SHA-256 of name, layers and source
        name TEXT NOT NULL, module TEXT, qualified TEXT, file TEXT, line INTEGER, source TEXT,
        layers TEXT NOT NULL, terms TEXT NOT NULL, attributes TEXT NOT NULL  -- JSON
    );
    CREATE TABLE nodes (
        run INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        node INTEGER NOT NULL,
        task INTEGER NOT NULL REFERENCES tasks (key),
        state TEXT NOT NULL,                        -- done, failed, skipped, stopped, waiting, unknown
        attempts INTEGER, ready INTEGER, started INTEGER, ended INTEGER,  -- nanoseconds since 1970
        pid INTEGER, cpu INTEGER, worker INTEGER,
        memory INTEGER,                             -- bytes: the peak of its process so far
        cookie_wait INTEGER, moved INTEGER,         -- nanoseconds
        type TEXT, size INTEGER, hash BLOB, text TEXT, whole BLOB,        -- its value
        PRIMARY KEY (run, node)
    ) WITHOUT ROWID;
    CREATE INDEX nodes_by_hash ON nodes (hash) WHERE hash IS NOT NULL;
    CREATE TABLE inputs (
        run INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        node INTEGER NOT NULL, position INTEGER NOT NULL,
        argument TEXT NOT NULL,
        source INTEGER,                             -- the node whose value it is; NULL for a constant, and then:
        type TEXT, size INTEGER, hash BLOB, text TEXT,
        PRIMARY KEY (run, node, position)
    ) WITHOUT ROWID;
    CREATE VIEW edges AS SELECT run, source, node AS target, position, argument FROM inputs WHERE source IS NOT NULL;
    CREATE TABLE sent (
        run INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        graph TEXT NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY (run, graph)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE runs ADD COLUMN failed_count INTEGER;   -- nodes; of a stream, items with which one has failed
    ALTER TABLE runs ADD COLUMN skipped_count INTEGER;
    ALTER TABLE runs ADD COLUMN stream TEXT;            -- JSON: the history of a dataflow (_run/history.py)
    ALTER TABLE nodes ADD COLUMN named TEXT;            -- the name that its call was given
    ALTER TABLE nodes ADD COLUMN items INTEGER;         -- of a stage of a dataflow: with how many items it is done,
    ALTER TABLE nodes ADD COLUMN items_failed INTEGER;  -- with how many it has failed,
    ALTER TABLE nodes ADD COLUMN items_skipped INTEGER; -- and how many have not come to it, as a stage above had failed
    ALTER TABLE nodes ADD COLUMN spent INTEGER;         -- nanoseconds in its body, for all items together
    CREATE TABLE failures (
        run INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        node INTEGER NOT NULL,
        type TEXT, message TEXT, traceback TEXT, notes TEXT,  -- of a node that failed; notes: JSON
        cause INTEGER,                                        -- of a node that was skipped: the node that failed
        PRIMARY KEY (run, node)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE runs ADD COLUMN load TEXT;          -- JSON: seconds, CPUs, bytes, workers over time (`_records/load.py`)
    CREATE TABLE prints (
        run INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        node INTEGER NOT NULL,
        text TEXT NOT NULL,                         -- what its body printed, in short
        PRIMARY KEY (run, node)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE runs ADD COLUMN task TEXT;  -- of the call whose value it gives, where that was given a name, which is `name`
    """,
    """
    CREATE TABLE retirements (                      -- of warm workers whose last run it was
        run INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        pid INTEGER NOT NULL,
        at INTEGER NOT NULL,                        -- nanoseconds since 1970
        why TEXT NOT NULL,
        PRIMARY KEY (run, pid, at)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE nodes ADD COLUMN place TEXT;        -- where else its body ran; NULL: where its run did
    ALTER TABLE nodes ADD COLUMN ticket TEXT;       -- what that place calls it, as a job
    ALTER TABLE nodes ADD COLUMN queued INTEGER;    -- nanoseconds that it waited there until its body began
    """,
    """
    ALTER TABLE runs ADD COLUMN taken TEXT;         -- JSON: calls whose values a depot had, so that they are no nodes of it
    ALTER TABLE runs ADD COLUMN taken_count INTEGER;
    ALTER TABLE nodes ADD COLUMN made INTEGER;      -- nanoseconds since 1970 of the value that a depot had; 0: it had none
    ALTER TABLE nodes ADD COLUMN depot_key TEXT;    -- the start of the key under which it was looked up
    """,
)
VERSION = len(MIGRATIONS)


def is_there(directory: str) -> bool:
    """Whether anything has been ingested yet. Opening the file would make it."""
    return os.path.exists(os.path.join(directory, NAME))


@contextlib.contextmanager
def opened(directory: str, migrations: tuple[str, ...] = MIGRATIONS, patience: float | None = None) -> Iterator[sqlite3.Connection]:
    """A connection to the file, which is made if it is missing and brought to the present schema.
    Raises RecordsError where it cannot be used."""
    path = os.path.join(directory, NAME)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if not os.path.exists(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        elif not os.path.isfile(path):
            raise OSError(errno.EINVAL, f"{NAME} is no file; move it away")
        # isolation_level: the module begins no transactions of its own.
        connection = sqlite3.connect(path, timeout=_patience if patience is None else patience, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        told = error.strerror if isinstance(error, OSError) and error.errno == errno.EINVAL else f"{NAME}: {error}"
        raise RecordsError(f"records cannot be kept in {directory}: {told}; ENTANGLE_RECORD_DIR names another place") from error
    try:
        _prepare(connection, path, migrations)
        yield connection
    except sqlite3.ProgrammingError:  # a fault of this code, not of the file
        raise
    except sqlite3.DatabaseError as error:
        raise RecordsError(f"{path} cannot be used: {error}; {how_to_go_on(error)}") from error
    except UnicodeDecodeError as error:  # SQLite's message quotes bytes of the damaged file
        broken = sqlite3.DatabaseError("it is damaged")
        raise RecordsError(f"{path} cannot be used: {broken}; {how_to_go_on(broken)}") from error
    finally:
        connection.close()


def how_to_go_on(error: sqlite3.DatabaseError) -> str:
    """What a user can do about a file that cannot be used. We remove nothing that may still be
    read."""
    told = str(error)
    if isinstance(error, sqlite3.OperationalError):
        if "locked" in told or "busy" in told:
            return "another process uses it: try again when that is done, or name another place by ENTANGLE_RECORD_DIR"
        if "full" in told:
            return "make room there, or name another place by ENTANGLE_RECORD_DIR"
        if "readonly" in told or "unable to open" in told or "disk I/O" in told:
            return "try again once it can be read and written by you, or name another place by ENTANGLE_RECORD_DIR"
    return "move it away, with the files beside it that end in -wal and -shm; new runs are remembered in a new file"


def _prepare(connection: sqlite3.Connection, path: str, migrations: tuple[str, ...]) -> None:
    # One damaged text must not hide the rest of its row.
    connection.text_factory = _as_text
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == len(migrations):
        return
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _with_patience(connection, "PRAGMA journal_mode = WAL")
    with transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise RecordsError(
                f"{path} was written by a newer entangle (its schema is {version}, this version knows {len(migrations)}); "
                "use the newer one, or another ENTANGLE_RECORD_DIR"
            ) from ValueError(f"schema {version}")
        for step in migrations[version:]:
            for statement in _statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


def _as_text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _with_patience(connection: sqlite3.Connection, statement: str) -> None:
    """Execute, again and again while the file is busy. SQLite itself does not wait for a lock when
    it changes to WAL: of two processes that make the file at once, one would fail."""
    import time

    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.002)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would commit our transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextlib.contextmanager
def without_references(connection: sqlite3.Connection) -> Iterator[None]:
    """Have rows removed without a look for others that refer to them: no index leads there, and
    each would take a walk through all nodes."""
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. Waits for other writers."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
