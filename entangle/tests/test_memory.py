"""Memory, shared memory or the disk is full."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle.process import ProcessTerminatedException, process

from . import bodies
from .callers import Caller, output_of
from .evidence import text_of
from .groups import control_group
from .ways import missing

add = process(bodies.add)


def test_a_body_that_may_have_no_more_memory(start: str) -> None:
    @process(fresh=True)
    def eat() -> int:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
        eaten = []
        while True:
            eaten.append(bytearray(8 << 20))

    with pytest.raises(MemoryError) as caught:
        add(eat(), 1)()
    assert "add(eat(), 1) → eat" in text_of(caught.value)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group with 100 MB of memory and no swap."""
    most = str(100 << 20)
    version_2 = {"memory.max": most, "memory.swap.max": "0"}
    version_1 = {"memory.limit_in_bytes": most, "memory.memsw.limit_in_bytes": most}
    places = {"/sys/fs/cgroup": version_2, "/sys/fs/cgroup/unified": version_2, "/sys/fs/cgroup/memory": version_1}
    with control_group(places) as group:
        yield group


def test_a_body_that_the_kernel_kills_for_its_memory(memory_group: Path) -> None:
    @process(fresh=True)
    def eat(group: str) -> None:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
        eaten = []
        for _ in range(100):
            eaten.append(bytearray(os.urandom(1 << 20) * 8))

    with pytest.raises(ProcessTerminatedException, match="SIGKILL") as caught:
        add(eat(str(memory_group)), 1)()
    assert "add(eat(…), 1) → eat" in text_of(caught.value)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory that is full after 256 kB."""
    with Mounted(tmp_path / "tiny", "256k") as place:
        yield place


class Mounted:
    """A small tmpfs, for the length of a `with`."""

    def __init__(self, place: Path, size: str) -> None:
        self.place, self.size = place, size

    def __enter__(self) -> Path:
        if os.getuid() != 0:
            pytest.skip("only root can mount a file system")
        self.place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self.size},mode=700", "tmpfs", str(self.place)], capture_output=True, text=True
        )
        if done.returncode:
            missing(f"mount says: {done.stderr.strip()}")
        return self.place

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)


SPILLING = """
    import hashlib, sys
    from entangle.process import process

    @process
    def make(n, kind):
        return (kind * n)[:n] if isinstance(kind, bytes) else [kind] * n

    @process
    def both(a, b):
        return a + b

    @process
    def digest(*values):
        return [hashlib.sha256(repr(v).encode()).hexdigest() for v in values]

    def expect(*values):
        return [hashlib.sha256(repr(v).encode()).hexdigest() for v in values]

    # One large value, larger than the file system.
    assert digest(make(4_000_000, b"abc"))() == expect((b"abc" * 4_000_000)[:4_000_000])
    assert make(4_000_000, b"x")() == b"x" * 4_000_000
    # Several that together are too large, and are read by several.
    parts = [make(100_000, bytes([65 + i])) for i in range(12)]
    result = digest(*parts, both(parts[0], parts[1]))()
    assert result == expect(*(bytes([65 + i]) * 100_000 for i in range(12)), b"A" * 100_000 + b"B" * 100_000)
    # Many small ones.
    result = digest(*(make(3_000, i) for i in range(200)))()
    assert result == expect(*([i] * 3_000 for i in range(200)))
    # An argument that is too large, and a graph whose table is.
    assert digest(b"y" * 2_000_000)() == expect(b"y" * 2_000_000)
    leaves = [make(1, i) for i in range(4_000)]
    assert len(digest(*leaves)()) == 4_000
    print("all right")
"""


def test_values_larger_than_shared_memory_spill(tiny: Path, tmp_path: Path, start: str) -> None:
    assert output_of(tmp_path, SPILLING, ENTANGLE_RUN_DIR=str(tiny), ENTANGLE_START=start) == "all right\n"


def test_shared_memory_that_is_full_from_the_start(tiny: Path, tmp_path: Path) -> None:
    with open(tiny / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    caller = Caller(tmp_path, SPILLING, ENTANGLE_RUN_DIR=str(tiny)).start()
    try:
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert (status, out) == (0, "all right\n"), err


def test_neither_memory_nor_disk_has_room(tiny: Path, tmp_path: Path) -> None:
    """The error names the value that did not fit. The process does not die of a bus error."""
    with Mounted(tmp_path / "small", "512k") as small:
        out = output_of(
            tmp_path,
            """
            from entangle.errors import StoreFullError
            from entangle.process import process

            @process
            def make(n):
                return b"x" * n

            @process
            def length(value):
                return len(value)

            @process
            def both(a, b):
                return len(a) + len(b)

            try:
                both(make(3_000_000), make(3_000_000))()
            except StoreFullError as error:
                assert isinstance(error, OSError)
                print("full:", "make" in str(error) + "".join(getattr(error, "__notes__", ())))
            print(length(make(1000))())
            """,
            ENTANGLE_RUN_DIR=str(tiny),
            TMPDIR=str(small),
        )
    assert out == "full: True\n1000\n"


def test_an_error_for_which_there_is_no_room(tiny: Path, tmp_path: Path) -> None:
    """The run still reports which call failed, and why the error itself is missing."""
    with Mounted(tmp_path / "small", "512k") as small:
        out = output_of(
            tmp_path,
            """
            from entangle import gather
            from entangle.errors import StoreFullError
            from entangle.process import process

            @process
            def fails(n):
                raise ValueError("x" * n)

            def told(error):
                assert type(error) is StoreFullError, error
                print("task 'fails' failed with ValueError: xxx" in str(error), "no room" in str(error), len(str(error)) < 2000)

            try:
                fails(3_000_000)()
            except StoreFullError as error:
                told(error)
            large, small, skipped = gather(fails(3_000_000), fails(3), fails(fails(2_000_000)), return_exceptions=True)()
            told(large)
            told(skipped)
            print(repr(small))
            """,
            ENTANGLE_RUN_DIR=str(tiny),
            TMPDIR=str(small),
        )
    assert out == "True True True\n" * 3 + "ValueError('xxx')\n"


CHAIN = """
    import os
    import numpy
    from entangle.process import process

    def held():
        # Somebody may be removing what the last step left, even while it is looked for.
        for folder, _, names in os.walk(os.environ["ENTANGLE_RUN_DIR"]):
            for name in names:
                try:
                    yield os.stat(os.path.join(folder, name)).st_blocks * 512
                except FileNotFoundError:
                    pass

    @process
    def ones(n):
        return numpy.ones(n)

    @process
    def length(array):
        return len(array)

    @process
    def step(array, length):
        with open("held", "a") as file:
            print(sum(held()), file=file)
        return array + 1

    array = ones(500_000)
    for _ in range(20):
        array = step(array, length(array))  # two consumers, so that every array lies in the store
    print(array()[0])
    seen = [int(line) for line in open("held")]
    array = 500_000 * 8
    assert len(seen) == 20 and max(seen) >= array, seen  # the check sees what it looks for
    print(max(seen) // array)
"""


def test_arrays_are_not_kept_after_their_last_consumer(tmp_path: Path) -> None:
    """While a long chain of large values runs, only a few of them exist at a time: consumed values
    are freed."""
    result, most = output_of(tmp_path, CHAIN).split()
    assert float(result) == 21
    assert int(most) < 4
