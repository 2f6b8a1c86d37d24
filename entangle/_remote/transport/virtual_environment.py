"""A virtual environment in another place: made on first use, once, whoever else wants it then.

The Python over there first runs a short program. It makes the environment if that is missing, and
then becomes the environment's Python. The program runs on any Python 3 and knows nothing of
entangle.
"""

from __future__ import annotations

import shlex

from entangle.errors import FarError, UnfitPythonError

#: The program's exit status when it cannot make the environment.
FAILED = 71

# A marker file tells an environment that was left half-made from a whole one. It is made only in an
# empty directory: a directory with the marker is removed, and must hold no files of the user's.
_PROGRAM = """
import errno, fcntl, os, shutil, subprocess, sys
name, rest = sys.argv[1], sys.argv[2:]
if '/' in name or name.startswith('~'):
    place = os.path.abspath(os.path.expanduser(name))
else:
    data = os.environ.get('XDG_DATA_HOME') or os.path.expanduser('~/.local/share')
    place = os.path.join(data, 'entangle', 'envs', name)
python, unfinished = os.path.join(place, 'bin', 'python'), os.path.join(place, '.unfinished')
try:
    os.makedirs(os.path.dirname(place), exist_ok=True)
    lock = open(place + '.lock', 'a')
    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.isfile(unfinished) and not os.path.islink(place):
        shutil.rmtree(place)
    if not os.path.exists(python):
        if os.path.isdir(place) and os.listdir(place):
            raise OSError(errno.ENOTEMPTY, 'there are files in it, and it is no virtual environment; name an empty directory')
        os.makedirs(place, exist_ok=True)
        open(unfinished, 'w').close()
        subprocess.check_call([sys.executable, '-m', 'venv', place], stdin=subprocess.DEVNULL, stdout=2)
        os.remove(unfinished)
    lock.close()
    os.execv(python, [python] + rest)
except (OSError, subprocess.CalledProcessError) as error:
    sys.stderr.write('%s: %s\\n' % (place, error))
    sys.exit(71)
"""


def words(env: str | None) -> list[str]:
    """What a Python gets before its arguments to become the environment's; quoted for a shell."""
    return [] if env is None else ["-c", shlex.quote(_PROGRAM), shlex.quote(env)]


def trouble(place: str, env: str | None, status: int | None, said: str) -> FarError | None:
    """The error where the environment could not be made, else None."""
    if env is None or status != FAILED:
        return None
    end = "\n".join(f"  {line}" for line in said.strip().splitlines()[-6:])
    hint = " (on Debian and Ubuntu: apt install python3-venv)" if "ensurepip" in said else ""
    return UnfitPythonError(f"{place}: the virtual environment {env!r} cannot be made there{hint}\n{end}")
