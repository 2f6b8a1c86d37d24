"""`entangle clean`, and the sweep at each run: they remove only what is ours by name, place and
owner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from entangle._shared import removal

from .callers import ROOT, Caller, output_of

#: The name of the home of a process that ended long ago.
STALE = "p1-0123456789ab"
CLEAN = (sys.executable, "-m", "entangle", "clean")


class Place:
    """A run directory, a temporary directory, and a user's directory in which nothing may be
    removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs, self.temporary, self.own = (folder / name for name in ("runs", "temporary", "own"))
        for path in (self.runs, self.temporary, self.own):
            path.mkdir()
        # Names that an earlier version took for its own, and one that this version would.
        for name in ("projects", "thesis", "photos", "p12", "t1", STALE):
            (self.own / name).mkdir(mode=0o700)
            (self.own / name / "file").write_text("mine", encoding="utf-8")

    def base(self, parent: Path | None = None) -> Path:
        return (parent or self.runs) / f"entangle-{os.getuid()}"

    def make_base(self) -> Path:
        self.base().mkdir(mode=0o700)
        return self.base()

    def untouched(self) -> bool:
        return all(
            (self.own / name / "file").read_text(encoding="utf-8") == "mine"
            for name in ("projects", "thesis", "photos", "p12", "t1", STALE)
        )

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(self.runs), "TMPDIR": str(self.temporary)}
        return subprocess.run(words, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=50)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def stale(base: Path, name: str = STALE) -> Path:
    """A home with content whose process is gone."""
    home = base / name
    home.mkdir(mode=0o700)
    (home / "budget").touch()
    (home / "r0123" / "r4567").mkdir(parents=True)
    (home / "r0123" / "r4567" / "table").touch()
    return home


@pytest.mark.parametrize("parent", ["runs", "temporary"])
def test_a_link_in_the_place_of_our_directory_is_not_followed(place: Place, parent: str) -> None:
    link = place.base(place.folder / parent)
    link.symlink_to(place.own)
    done = place(*CLEAN)
    assert done.returncode == 1
    assert f"{link}: it is a symbolic link" in done.stderr
    assert place.untouched()
    program = place.folder / "program.py"
    program.write_text("from entangle.process import process\nprint(process(int)('3')())", encoding="utf-8")
    ran = place(sys.executable, str(program))
    assert ran.returncode == 1
    assert "is not a directory that only this user can use: it is a symbolic link" in ran.stderr
    assert place.untouched()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.mkdir() or path.chmod(0o770), "others may use it (its mode is 770)"),
        (lambda path: path.touch(), "it is not a directory"),
        (lambda path: os.mkfifo(path), "it is not a directory"),
        (lambda path: path.symlink_to(path), "it is a symbolic link"),
    ],
    ids=["open to others", "a file", "a FIFO", "a link to itself"],
)
def test_what_is_not_ours_alone_is_left_and_said(place: Place, make: Callable[[Path], None], why: str) -> None:
    make(place.base())
    done = place(*CLEAN)
    assert done.returncode == 1
    assert f"{place.base()}: {why}" in done.stderr
    assert os.path.lexists(place.base())


def test_only_names_that_are_exactly_ours_are_removed(place: Place) -> None:
    base = place.make_base()
    others = ["projects", "t1", "p1", "p1-0123", f"{STALE}.old", f"x{STALE}", f"{STALE}\n", "p1-0123456789AB", f"t{STALE}", "r0123"]
    for name in others:
        stale(base, name)
    ours = [STALE, f"{STALE}.spill", f"t{STALE}-1"]
    for name in ours:
        stale(base, name)
    done = place(*CLEAN)
    assert (done.returncode, done.stderr) == (0, "3 stale directories removed\n")
    assert sorted(done.stdout.splitlines()) == sorted(f"removed {base / name}" for name in ours)
    assert sorted(os.listdir(base)) == sorted(others)


def test_a_link_or_a_file_of_such_a_name_is_left_and_said(place: Place) -> None:
    base = place.make_base()
    (base / STALE).symlink_to(place.own)
    (base / "p2-0123456789ab").touch()
    done = place(*CLEAN)
    assert done.returncode == 1
    assert f"{STALE}: it is a symbolic link, so it was not removed" in done.stderr
    assert "p2-0123456789ab: it is not a directory, so it was not removed" in done.stderr
    assert place.untouched()


def test_what_lies_in_it_goes_and_what_it_leads_to_stays(place: Place) -> None:
    home = stale(place.make_base())
    (home / "r0123" / "away").symlink_to(place.own)
    (home / "r0123" / "nowhere").symlink_to("nowhere")
    os.link(place.own / "projects" / "file", home / "hard")
    os.mkfifo(home / "r0123" / "fifo")
    deep = home
    for _ in range(300):  # longer than a path may be
        deep = deep / "r0123456789"
    deep.mkdir(parents=True)
    done = place(*CLEAN)
    assert (done.returncode, os.listdir(place.base())) == (0, [])
    assert place.untouched()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root on Linux can mount")
def test_what_is_mounted_in_it_is_left_and_said(place: Place) -> None:
    home = stale(place.make_base())
    for name in ("one", "deep/two"):
        (home / name).mkdir(parents=True)
    # In a mount namespace of its own, so that no mount can stay. A bind mount has the same device
    # number as its source, so that number does not tell it apart.
    bind = f"mount --bind {place.own} {home}"
    script = f"mount --make-rprivate / && {bind}/one && {bind}/deep/two && exec $0 -m entangle clean"
    done = place("unshare", "--mount", "sh", "-c", script, sys.executable)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"mounts are not allowed here: {done.stderr}")
    assert done.returncode == 1
    assert f"{home}: something in it cannot be removed" in done.stderr
    assert place.untouched()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of other users")
def test_a_directory_of_another_user_is_left_and_said(place: Place) -> None:
    base = place.make_base()
    home = stale(base)
    os.chown(home, 12345, -1)
    done = place(*CLEAN)
    assert (done.returncode, home.exists()) == (1, True)
    assert f"{home}: it belongs to user 12345" in done.stderr
    os.chown(base, 12345, -1)
    done = place(*CLEAN)
    assert (done.returncode, home.exists()) == (1, True)
    assert f"{base}: it belongs to user 12345" in done.stderr


def test_a_directory_that_is_swapped_for_a_link_at_any_moment_is_not_followed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step of the removal in turn, an attacker replaces our directory by a link."""
    calls = ["listdir", "open", "unlink", "rmdir", "rename", "stat"]
    step, at = 0, -1

    def swap() -> None:
        base.rename(place.folder / f"base{at}")
        base.symlink_to(place.own)

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal step
            step += 1
            if step == at:
                swap()
            return real(*args, **kwargs)

        return call

    for at in range(1, 200):
        base = place.make_base()
        home = stale(base)
        (home / "away").symlink_to(place.own)
        around = removal.open_ours(str(base))
        fd = removal.open_ours(STALE, around)
        step = 0
        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, counted(getattr(os, name)))
            assert removal.remove_tree(STALE, fd, around)
        os.close(fd)
        os.close(around)
        assert place.untouched()
        if step < at:
            base.rmdir()
            break
        base.unlink()
    assert at > 10


def test_a_program_whose_directory_was_swapped_for_a_link_removes_nothing_behind_it(place: Place) -> None:
    """The attack comes during the run, with the very names that the program uses."""
    source = f"""
        import glob, os, tempfile
        from entangle.process import process

        def swap():
            mine = f"entangle-{{os.getuid()}}/p{{os.getpid()}}-*"
            for path in [glob.glob(os.path.join(top, mine))[0] for top in (os.environ["ENTANGLE_RUN_DIR"], tempfile.gettempdir())]:
                base, name = os.path.split(path)
                inside = os.path.join({str(place.own)!r}, name)
                os.mkdir(inside, 0o700)
                open(os.path.join(inside, "file"), "w").close()
                os.rename(base, base + ".old")
                os.symlink({str(place.own)!r}, base)

        if __name__ == "__main__":
            process(int)("3")()
            swap()
    """
    caller_folder = place.folder / "caller"
    caller_folder.mkdir()
    caller = Caller(caller_folder, source).start()
    try:
        status, _, said = caller.finish()
    finally:
        caller.stop()
    assert (status, said) == (0, "")
    swapped = [path for path in place.own.iterdir() if path.name.startswith("p") and path.name not in ("projects", "photos", "p12", STALE)]
    assert len(swapped) == 2
    assert all((path / "file").exists() for path in swapped)
    assert place.untouched()


def test_a_live_home_is_not_removed(place: Path, tmp_path: Path) -> None:
    source = """
        import subprocess, sys
        from entangle.process import process

        process(int)("3")()
        done = subprocess.run([sys.executable, "-m", "entangle", "clean"], capture_output=True, text=True)
        print(done.returncode, repr(done.stdout), process(int)("3")())
    """
    folder = tmp_path / "caller"
    folder.mkdir()
    assert output_of(folder, source) == "0 '' 3\n"


def test_a_run_looks_into_the_homes_of_others_once_in_a_while(tmp_path: Path) -> None:
    """With many callers on one machine, the cost of a run does not grow with their number. Yet what
    one of them leaves is found at once."""
    source = """
        import fcntl, os, shutil, subprocess, sys, time
        from entangle._shared.home import Home, base_in
        from entangle.thread import thread
        from entangle.scheduler import scheduler

        @scheduler(cpus=1)
        @thread
        def same(value):
            return value

        looked = []
        base = base_in(os.environ["ENTANGLE_RUN_DIR"])
        sys.addaudithook(lambda event, about: looked.append(about[0]) if event == "open" and str(about[0]).startswith("p") else None)

        if __name__ == "__main__":
            same(0)()
            others = [f"p{os.getpid()}-{number:012x}" for number in range(50)]
            locks = []
            for name in others:
                os.mkdir(os.path.join(base, name), 0o700)
                locks.append(os.open(os.path.join(base, name), os.O_RDONLY))
                fcntl.flock(locks[-1], fcntl.LOCK_EX)
            began = time.monotonic()
            looked.clear()
            for number in range(200):
                same(number)()
            seconds = 2 + int(time.monotonic() - began)
            assert 50 <= len(looked) <= 60 * seconds < 200 * 50, (len(looked), seconds)
            # A process that has just died; its number is free.
            dead = subprocess.Popen(["true"])
            dead.wait()
            left = os.path.join(base, f"p{dead.pid}-{1:012x}")
            os.mkdir(left, 0o700)
            same(1)()
            assert not os.path.exists(left)
            # A home in use, whose process dies.
            script = "import fcntl, os, sys; os.mkdir(sys.argv[1], 0o700); fd = os.open(sys.argv[1], os.O_RDONLY)\\n"
            script += "fcntl.flock(fd, fcntl.LOCK_EX); print(os.getpid(), flush=True); sys.stdin.read()"
            child = f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {script!r}, f'{base}/p{{os.getpid()}}-{2:012x}'])"
            holder = subprocess.Popen([sys.executable, "-c", f"import os; {child}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            held = os.path.join(base, f"p{int(holder.stdout.readline())}-{2:012x}")
            for number in range(3):
                same(number)()
            assert os.path.exists(held)
            holder.stdin.close()
            holder.wait()
            holder.stdout.close()
            same(1)()
            assert not os.path.exists(held)
            for name in others:
                os.rmdir(os.path.join(base, name))
    """
    status, _, err = Caller(tmp_path, source).start().finish()
    assert (status, err) == (0, "")
