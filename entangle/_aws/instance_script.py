"""What an instance is told: what it does when it has started, and how an agent begins there."""

from __future__ import annotations

import inspect
import re
import shlex

from entangle._aws import instance_watch

#: How long an instance waits for the first agent (seconds), from when its script runs: its caller
#: reads the host keys on its console and logs in, or is gone. On Nitro AWS shows the console at
#: once; of older types, what it had posted of it some minutes later.
FIRST, FIRST_OF_OLD = 300.0, 900.0
#: Families of types older than Nitro. Source: "Instance types", hypervisor Xen, of the EC2 guide.
_OLD = re.compile(r"(t[12]|m[1-4]|c[134]|cc2|r[34]|cr1|x1e?|d2|h1|hs1|i[23]|f1|g2|g3s?|p[23])\.")
#: The exit status of a shell there that starts no agent: the instance ends; or nobody watches it.
ENDING, UNWATCHED = 75, 76


def user_data(idle: float, spot: bool, type: str) -> str:
    """The script that an instance of this type runs as root when it has started (cloud-init).

    Without a Python the instance ends at once: nobody would end it later. It prints its host keys
    on the console as cloud-init does, for images that keep that quiet; they come after the watch
    has begun, so whoever has seen them may log in.
    """
    folder, first = instance_watch.FOLDER, FIRST_OF_OLD if _OLD.match(type) else FIRST
    words = f"{idle:g} {max(first, idle):g} {'spot' if spot else '-'}"
    return f"""#!/bin/sh
mkdir -p {folder}/agents
chmod 1777 {folder}/agents
cat >{folder}/watch <<'ENTANGLE_WATCH'
{inspect.getsource(instance_watch)}ENTANGLE_WATCH
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 7))'; then
  echo 'entangle: this image has no python3 of 3.7 or newer; the instance ends' >/dev/console
  shutdown -h now
  exit 1
fi
systemd-run --unit=entangle-watch -p Restart=on-failure -p OOMScoreAdjust=-1000 python3 {folder}/watch {words} 2>/dev/null || {{
  setsid python3 {folder}/watch {words} </dev/null >/dev/null 2>&1 &
}}
{{
  echo
  echo '-----BEGIN SSH HOST KEY KEYS-----'
  cat /etc/ssh/ssh_host_*_key.pub
  echo '-----END SSH HOST KEY KEYS-----'
}} >/dev/console
"""


# The lock is flock's, not the agent's: what a body leaves running must not hold the instance.
_LEASED = f"""
d={instance_watch.FOLDER}
if [ ! -d $d/agents ]; then
  [ "$0" = strict ] || {{ echo; exec "$@"; }}
  exit {UNWATCHED}
fi
command -v flock >/dev/null || {{ echo 'entangle: there is no program flock there (util-linux)' >&2; exit {UNWATCHED}; }}
f=$(mktemp $d/agents/XXXXXXXXXX) || exit {UNWATCHED}
flock -o "$f" sh -c 'echo $$ >"$0"; [ ! -e {instance_watch.FOLDER}/ending ] || exit {ENDING}; echo; exec "$@"' "$f" "$@"
s=$?
rm -f "$f"
[ ! -e $d/ending ] || cat $d/ending >&2
exit $s
"""


def leased(program: str, strict: bool) -> str:
    """The command for the shell there: an agent that holds a lease. It prints an empty line first.
    `program` is quoted already. Where nobody watches the instance and `strict`, it ends with
    UNWATCHED."""
    return f"exec sh -c {shlex.quote(_LEASED)} {'strict' if strict else 'lax'} {program}"


def watched_first(command: str, script: str) -> str:
    """The same, where somebody must begin to watch first: an instance of the user's that was
    stopped. The user must be root there, or able to become root by sudo without a password."""
    root = '$([ "$(id -u)" = 0 ] || echo sudo -n)'
    begin = f"[ -d {instance_watch.FOLDER}/agents ] || {root} sh -c {shlex.quote(script)} </dev/null >/dev/null"
    return f"{{ {begin}; }} || exit {UNWATCHED}; {command}"
