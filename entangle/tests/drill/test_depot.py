"""Eight processes share a depot, while some are killed, bytes flip, values are evicted and the disk
is full. There is never a wrong value or a hang, and no two processes compute one key at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.drill

KEYS, PROCESSES, KILLS = 10_000, 8, 40

_WORKER = """
import hashlib, json, logging, os, random, sys, time
from pathlib import Path
from entangle._depot.opened import depot
from entangle._depot.remembering import remembered

folder, seed, done, keys = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
logging.getLogger("entangle").addHandler(logging.FileHandler(folder / "warnings"))
logging.getLogger("entangle").propagate = False
order = list(range(keys))
random.Random(seed).shuffle(order)
events = os.open(folder / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def say(what, number):
    os.write(events, (json.dumps([what, number, os.getpid()]) + "\\n").encode())

def value_of(number):
    size = 300_000 if number % 500 == 0 else 20 + number % 3000
    return (hashlib.sha256(b"%d" % number).digest() * (size // 32 + 1))[:size]

def alive(mark):
    try:
        pid, born = mark.read_text().split()
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19] == born
    except (OSError, ValueError):
        return False

born = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
place = depot(str(folder / "disk" / "depot"))
for at in range(done, keys):
    number = order[at]
    def compute():
        mark = folder / "computing" / str(number)
        if mark.exists() and alive(mark):
            say("twice", number)
        mark.write_text(f"{os.getpid()} {born}")
        say("computed", number)
        value = value_of(number)
        if number % 50 == 0:
            time.sleep(0.005)
        mark.unlink(missing_ok=True)
        return value
    value = remembered(place, hashlib.sha256(b"key %d" % number).hexdigest(), "drill", {}, compute)
    if value != value_of(number):
        say("wrong", number)
    if at % 50 == 0:
        (folder / f"at-{seed}").write_text(str(at))
(folder / f"at-{seed}").write_text(str(keys))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory with a small disk, if this user may mount one."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "computing").mkdir()
    (tmp_path / "worker.py").write_text(_WORKER)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", str(tmp_path / "disk")], capture_output=True, check=False
    ).returncode
    yield tmp_path
    if not mounted:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def _flip(values: list[Path], chance: random.Random) -> int:
    """Damage a value as a disk does. Replace the file, since readers may have the old one
    mapped."""
    with contextlib.suppress(OSError, ValueError):
        value = chance.choice(values)
        body = bytearray(value.read_bytes())
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        times = value.stat()
        draft = value.parent / f".{value.name}"
        draft.write_bytes(body)
        os.utime(draft, ns=(times.st_atime_ns, times.st_mtime_ns))
        draft.rename(value)
        return 1
    return 0


def test_eight_processes_and_everything_that_goes_wrong(folder: Path) -> None:
    chance = random.Random(7)
    environment = {**os.environ, "ENTANGLE_DEPOT_SIZE": "16M"}

    def start(seed: int) -> subprocess.Popen[bytes]:
        at = folder / f"at-{seed}"
        done = at.read_text() if at.exists() else ""
        command = [sys.executable, str(folder / "worker.py"), str(folder), str(seed), done or "0", str(KEYS)]
        return subprocess.Popen(command, env=environment)

    running = {seed: start(seed) for seed in range(PROCESSES)}
    kills = flips = full = 0
    filler = folder / "disk" / "filler"
    while running:
        time.sleep(chance.uniform(0.05, 0.4))
        for seed, process in list(running.items()):
            if process.poll() is not None:
                assert process.returncode == 0
                del running[seed]
        values = list((folder / "disk" / "depot" / "values").glob("*/*"))
        flips += sum(_flip(values, chance) for _ in range(20)) if values else 0
        if running and kills < KILLS:
            seed = chance.choice(list(running))
            running[seed].kill()
            running[seed].wait()
            running[seed] = start(seed)
            kills += 1
        if os.path.ismount(folder / "disk"):
            if filler.exists():
                filler.unlink()
            elif chance.random() < 0.3:
                with contextlib.suppress(OSError), filler.open("wb") as file:
                    for _ in range(24):
                        file.write(bytes(1 << 20))
                full += 1
    said = Counter(json.loads(line)[0] for line in (folder / "events").read_text().splitlines())
    warned = (folder / "warnings").read_text() if (folder / "warnings").exists() else ""
    quarantined = warned.count("is damaged")
    told = {"kills": kills, "flips": flips, "full disks": full, "damaged, said": quarantined, **said}
    print(json.dumps(told))
    assert (said["wrong"], said["twice"]) == (0, 0), told
    assert said["computed"] >= KEYS
    assert not list((folder / "disk" / "depot" / "locks").iterdir()), told
