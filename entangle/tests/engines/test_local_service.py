"""The whole test kit with the service that docs/services.md shows, and more faults."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from entangle._services.caller import open_watchers
from entangle._testing import service_bodies as bodies
from entangle.errors import EntangleError, ProcessTerminatedException, StoreFullError
from entangle.process import process
from entangle.service import service
from entangle.testing import check_service

from .. import local_jobs
from ..evidence import wait_until
from ..local_jobs import LocalJobs
from ..places import far_pythons
from ..ways import missing


@pytest.mark.timeout(240)
def test_the_kit(tmp_path: Path) -> None:
    check_service(LocalJobs(str(tmp_path), jobs=8), mailbox=tmp_path)


def test_another_version_of_python(tmp_path: Path) -> None:
    """Functions are sent as source."""
    there = service(LocalJobs(str(tmp_path), interpreter=far_pythons(same=False)), mailbox=tmp_path)
    assert tuple(there(bodies.version)()()) != sys.version_info[:2]
    with pytest.raises(ValueError, match="from there"):
        there(bodies.failing)("from there")()
    open_watchers.close_all(str(tmp_path))


@pytest.mark.parametrize("retry", [0, 1])
def test_a_job_that_is_told_to_end_has_died(tmp_path: Path, retry: int) -> None:
    """As a platform does that reclaims the machine, or at the walltime. The call was not
    cancelled."""
    path = tmp_path / "began"

    def tell() -> None:
        wait_until(path.exists, 60, "the body never began")
        (job,) = (process for process in local_jobs._started.values() if process.poll() is None)
        job.terminate()

    telling = threading.Thread(target=tell)
    telling.start()
    call = service(LocalJobs(str(tmp_path)), mailbox=tmp_path)(process(retry=retry)(_for_long_at_first))(str(path))
    if retry:
        assert call() == "again"
    else:
        with pytest.raises(ProcessTerminatedException, match=r"its job .* at local is over and has given no outcome"):
            call()
    telling.join()
    open_watchers.close_all(str(tmp_path))


def _for_long_at_first(path: str) -> str:
    if not os.path.exists(path):
        Path(path).touch()
        time.sleep(600)
    return "again"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"a small file system, which only root can mount ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        open_watchers.close_all(str(folder))
        until = time.monotonic() + 30
        # Busy while jobs end.
        while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_full_mailbox_is_one_clear_error(small: Path, tmp_path: Path) -> None:
    """Either there is no room for the message, or none for the value."""
    there = service(LocalJobs(str(tmp_path)), mailbox=small)
    assert there(bodies.same)(1)() == 1
    with pytest.raises(StoreFullError, match=f"the mailbox {small}.* is full .No space left on device.; make room there"):
        there(bodies.same)(os.urandom(8 << 20))()
    with pytest.raises(EntangleError, match=r"the value of task 'large', of 8,388,6.. bytes, does not fit: the mailbox .* is full"):
        there(bodies.large)(8 << 20)()
    assert there(bodies.same)(2)() == 2
