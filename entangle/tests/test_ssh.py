"""`@ssh`: calls on other hosts. The hosts are real ssh servers on this machine."""

# Decorators are passed as values here, and are untyped.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle._remote.transport.openssh import arguments
from entangle._remote.transport.ssh import SSHTransport
from entangle.errors import (
    EntangleError,
    HostKeyError,
    LoginRefusedError,
    OptionError,
    UnfitPythonError,
    UnreachableError,
)
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.ssh import ssh
from entangle.thread import thread
from entangle.workflow import workflow

from .evidence import most_at_once, notes, span, wait_until
from .far_bodies import add, where
from .services import given
from .services.hosts import Hosts, make_key, three_hosts
from .shown_programs import run_shown
from .ways import installed


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """The three hosts."""
    return given.shared_hosts()


@pytest.fixture(params=["openssh", "paramiko"])
def carrier(request: pytest.FixtureRequest) -> str:
    """The transports that can carry the bytes."""
    if request.param == "paramiko":
        installed("paramiko")
    return str(request.param)


# --- a call ---------------------------------------------------------------------------------------


def test_a_function_runs_on_the_host_and_its_value_comes_back(hosts: Hosts, carrier: str) -> None:
    there = ssh(**hosts.options("alpha", transport=carrier))
    assert there(where)()() == hosts["alpha"].address
    assert there(add)([1], [2])() == [1, 2]


def test_each_host_is_itself(hosts: Hosts) -> None:
    calls = [ssh(**hosts.options(name))(where)() for name in hosts.hosts]
    assert thread(lambda *found: list(found))(*calls)() == [host.address for host in hosts.hosts.values()]


def test_calls_at_once_share_one_login(hosts: Hosts, carrier: str) -> None:
    before = hosts["alpha"].handshakes()
    square = ssh(**hosts.options("alpha", transport=carrier))(lambda x: x * x)
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda n: square(n)(), range(100))) == [n * n for n in range(100)]
    assert hosts["alpha"].handshakes() == before + 1


def test_two_pythons_of_one_host_share_one_login(hosts: Hosts) -> None:
    before = hosts["bravo"].handshakes()
    for python in (hosts.options("bravo")["python"], "/usr/bin/env"):
        options = hosts.options("bravo", python=python)
        if python == "/usr/bin/env":
            with pytest.raises(EntangleError):
                ssh(**options)(where)()()
        else:
            assert ssh(**options)(where)()() == hosts["bravo"].address
    assert hosts["bravo"].handshakes() == before + 1


def test_workers_use_the_login_that_is_there(hosts: Hosts) -> None:
    there = ssh(**hosts.options("bravo"))
    assert there(where)()() == hosts["bravo"].address
    before = hosts["bravo"].handshakes()
    remote = process(there(where))
    assert thread(lambda *found: set(found))(*[remote() for _ in range(4)])() == {hosts["bravo"].address}
    assert hosts["bravo"].handshakes() == before


def test_an_error_there_is_raised_here(hosts: Hosts, carrier: str) -> None:
    def fail() -> None:
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here"):
        ssh(**hosts.options("alpha", transport=carrier))(fail)()()


def test_what_is_printed_there_is_shown_here(hosts: Hosts, capfd: pytest.CaptureFixture[str]) -> None:
    @ssh(**hosts.options("alpha"))
    def speak() -> None:
        print("hello")

    speak()()
    assert "hello" in capfd.readouterr().out


def test_large_values_travel(hosts: Hosts, carrier: str) -> None:
    data = os.urandom(5 << 20) * 4
    assert ssh(**hosts.options("alpha", transport=carrier))(lambda x: x[::-1])(data)() == data[::-1]


# --- flows over several hosts ---------------------------------------------------------------------


def test_a_workflow_there_calls_tasks_on_a_second_and_a_third_host(hosts: Hosts, tmp_path: Path) -> None:
    log = str(tmp_path / "spans")

    @ssh(**hosts.options("bravo"))
    @scheduler(cpus=1)
    @process
    def two() -> tuple[int, list[str]]:
        with span(log, "bravo"):
            return 2, [where()]

    @ssh(**hosts.options("carol"))
    @scheduler(cpus=1)
    @process
    def three() -> tuple[int, list[str]]:
        with span(log, "carol"):
            return 3, [where()]

    @scheduler(cpus=1)
    @process
    def total(*parts: tuple[int, list[str]]) -> tuple[int, list[str]]:
        with span(log, "alpha"):
            return sum(part[0] for part in parts), [address for part in parts for address in part[1]] + [where()]

    @ssh(**hosts.options("alpha"))
    @scheduler(cpus=1)
    @workflow
    def whole() -> Any:
        parts = [total(three(), two()) for _ in range(3)]
        return total(*parts)

    value, found = whole()()
    assert value == 15
    alpha, bravo, carol = (hosts[name].address for name in ("alpha", "bravo", "carol"))
    assert found == [carol, bravo, alpha] * 3 + [alpha]
    for name, times in (("alpha", 4), ("bravo", 3), ("carol", 3)):
        assert len([line for line in notes(log) if line[0] == name]) == times
        assert most_at_once(log, name) == 1


def test_the_host_name_is_that_of_the_host(hosts: Hosts) -> None:
    if not hosts.namespaces:
        pytest.skip("hosts have names of their own only as network namespaces: run the tests as root")
    assert ssh(**hosts.options("carol"))(socket.gethostname)()() == "carol"


# --- keys -----------------------------------------------------------------------------------------


def test_a_public_key_means_the_private_one_beside_it(hosts: Hosts, carrier: str) -> None:
    options = hosts.options("alpha", key=f"{hosts.key}.pub", transport=carrier)
    assert ssh(**options)(where)()() == hosts["alpha"].address


def test_a_key_that_is_not_there_is_an_error_before_anything_runs(hosts: Hosts, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    first = thread(ran.touch)
    task = ssh(**hosts.options("alpha", key=str(tmp_path / "id_rsa")))(lambda x: x)
    call = task(first())
    with pytest.raises(OptionError, match=r"id_rsa.*no such file"):
        call()
    assert not ran.exists()


def test_a_public_key_alone_is_an_error(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    alone = tmp_path / "id.pub"
    alone.write_bytes(Path(f"{hosts.key}.pub").read_bytes())
    with pytest.raises(OptionError, match="private one"):
        ssh(**hosts.options("alpha", key=str(alone)))(where)()()


def test_the_wrong_key_is_refused(hosts: Hosts, carrier: str, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    with pytest.raises(LoginRefusedError, match="authorized_keys"):
        ssh(**hosts.options("alpha", key=str(tmp_path / "other"), transport=carrier))(where)()()


def test_a_file_that_is_no_key_is_named(hosts: Hosts, carrier: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key\n")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(LoginRefusedError, match="text"):
        ssh(**hosts.options("alpha", key=str(tmp_path / "text"), transport=carrier))(where)()()


def test_an_unknown_host_key_is_refused_and_the_error_says_what_to_do(hosts: Hosts, carrier: str, tmp_path: Path) -> None:
    (tmp_path / "known").touch()
    advice = r"ssh-keyscan .*known" if carrier == "paramiko" else r"Log in once.* ssh -o UserKnownHostsFile=\S+known "
    with pytest.raises(HostKeyError, match=advice):
        ssh(**hosts.options("alpha", known_hosts=str(tmp_path / "known"), transport=carrier))(where)()()


def test_a_changed_host_key_is_refused(hosts: Hosts, carrier: str, tmp_path: Path) -> None:
    changed = tmp_path / "known"
    make_key(tmp_path / "imposter")
    kind, key = (tmp_path / "imposter.pub").read_text().split()[:2]
    lines = [line.split() for line in hosts.known_hosts.read_text().splitlines()]
    changed.write_text("".join(f"{line[0]} {kind} {key}\n" for line in lines))
    with pytest.raises(HostKeyError, match=r"ssh-keygen .*-R"):
        ssh(**hosts.options("alpha", known_hosts=str(changed), transport=carrier))(where)()()


def test_whoever_opts_in_is_let_through_unchecked(hosts: Hosts, carrier: str) -> None:
    assert ssh(**hosts.options("alpha", known_hosts=False, transport=carrier))(where)()() == hosts["alpha"].address


# --- hosts and Pythons that are missing -----------------------------------------------------------


@pytest.mark.parametrize("host", ["there.is.no.such.host.invalid", "127.0.0.1"])
def test_a_host_that_is_not_there(hosts: Hosts, carrier: str, host: str) -> None:
    port = {"port": 1} if host == "127.0.0.1" else {}
    with pytest.raises(UnreachableError, match=host):
        ssh(**{**hosts.options("alpha", host=host, transport=carrier), **port})(where)()()


@pytest.mark.parametrize(("host", "meant"), [("127.0.0.1:42422", "host='127.0.0.1', port=42422"), ("[::1]", "host='::1'")])
def test_a_port_in_the_name_of_a_host_is_told(hosts: Hosts, carrier: str, host: str, meant: str) -> None:
    with pytest.raises(UnreachableError, match=re.escape(f"@ssh({meant})")):
        ssh(**hosts.options("alpha", host=host, port=None, transport=carrier))(where)()()


def test_a_python_that_is_not_there(hosts: Hosts, carrier: str) -> None:
    with pytest.raises(UnfitPythonError, match="/opt/no/python"):
        ssh(**hosts.options("alpha", python="/opt/no/python", transport=carrier))(where)()()


def test_a_python_that_is_too_old(hosts: Hosts, tmp_path: Path) -> None:
    old = next(
        (path for version in ("3.9", "3.8", "3.7", "3.6") for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), None
    )
    if old is None:  # then a program that claims to be one
        old = tmp_path / "python"
        old.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = (3, 8, 0); exec(sys.argv[2])' \"$@\"\n")
        old.chmod(0o755)
    with pytest.raises(UnfitPythonError, match=r"3\.[6-9].*3\.10"):
        ssh(**hosts.options("alpha", python=str(old)))(where)()()


def test_a_shell_that_talks_does_no_harm(hosts: Hosts, tmp_path: Path) -> None:
    talking = tmp_path / "python"
    talking.write_text(f'#!/bin/sh\necho "Welcome! $(seq 200)"\nexec {hosts.options("alpha")["python"]} "$@"\n')
    talking.chmod(0o755)
    assert ssh(**hosts.options("alpha", python=str(talking)))(where)()() == hosts["alpha"].address


# --- the user's own configuration -----------------------------------------------------------------


@pytest.fixture
def configured(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's configuration that defines the hosts' names."""
    path = hosts.client_configuration()
    monkeypatch.setenv("ENTANGLE_SSH_COMMAND", f"ssh -F {path}")
    return path


def test_names_of_the_configuration_work(hosts: Hosts, configured: Path) -> None:
    python = hosts.options("alpha")["python"]
    assert ssh(host="bravo", python=python)(where)()() == hosts["bravo"].address
    assert ssh(host=f"{hosts.user}@carol", python=python)(where)()() == hosts["carol"].address


def test_the_page_on_ssh_shows_what_runs(hosts: Hosts, configured: Path, tmp_path: Path) -> None:
    configured.write_text(configured.read_text().replace("Host alpha\n", "Host alpha miko\n"))
    replaced = {'user="me"': f"user={hosts.user!r}, python={hosts.options('alpha')['python']!r}"}
    name = "alpha" if hosts.namespaces else platform.node()
    run_shown("how_to/ssh.md", "far.py", tmp_path, {**replaced, "('miko', 3)": f"({name!r}, 3)"})


def test_the_login_that_is_advised_for_an_unknown_key_of_an_alias_lets_calls_through(
    hosts: Hosts, configured: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    configured.write_text(f"UserKnownHostsFile {known}\nStrictHostKeyChecking ask\n" + configured.read_text())
    task = ssh(host="bravo", python=hosts.options("alpha")["python"])(where)
    with pytest.raises(HostKeyError) as caught:
        task()()
    advised = re.search(r"Log in once, .*: (ssh .* bravo) , or", str(caught.value))
    assert advised is not None
    assert "keyscan" not in str(caught.value)
    # What a user does who accepts the fingerprint.
    words = shlex.split(advised[1])
    accepting = [*words[:-1], "-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes", words[-1], "true"]
    subprocess.run(accepting, check=True, stdin=subprocess.DEVNULL, timeout=30)
    assert task()() == hosts["bravo"].address


def test_a_changed_key_of_an_alias_names_the_entry_and_its_file(hosts: Hosts, configured: Path, tmp_path: Path) -> None:
    known = tmp_path / "known"
    make_key(tmp_path / "imposter")
    kind, key = (tmp_path / "imposter.pub").read_text().split()[:2]
    known.write_text("".join(f"{line.split()[0]} {kind} {key}\n" for line in hosts.known_hosts.read_text().splitlines()))
    configured.write_text(f"UserKnownHostsFile {known}\n" + configured.read_text())
    task = ssh(host="bravo", python=hosts.options("alpha")["python"])(where)
    with pytest.raises(HostKeyError) as caught:
        task()()
    advised = re.search(r"remove the old one: (ssh-keygen .*)", str(caught.value))
    assert advised is not None
    before = known.read_text()
    subprocess.run(shlex.split(advised[1]), check=True, capture_output=True, timeout=30)
    assert len(known.read_text().splitlines()) < len(before.splitlines())
    with pytest.raises(HostKeyError, match="Log in once"):
        task()()


def test_a_host_behind_another_one(hosts: Hosts, configured: Path) -> None:
    configured.write_text(configured.read_text() + "Host hidden\n  HostName " + hosts["carol"].address + "\n  ProxyJump alpha\n")
    configured.write_text(configured.read_text().replace("Host hidden\n", f"Host hidden\n  Port {hosts['carol'].port}\n"))
    before = hosts["alpha"].handshakes()
    assert ssh(host="hidden", python=hosts.options("alpha")["python"])(where)()() == hosts["carol"].address
    assert hosts["alpha"].handshakes() == before + 1


def test_a_connection_of_the_users_own_is_used(hosts: Hosts, configured: Path, tmp_path: Path) -> None:
    control = hosts.folder / "own"
    configured.write_text(f"ControlPath {control}\n" + configured.read_text())
    own = subprocess.Popen(["ssh", "-F", str(configured), "-N", "-M", "alpha"], stdin=subprocess.DEVNULL)
    try:
        wait_until(control.exists, what="the user's connection")
        before = hosts["alpha"].handshakes()
        assert ssh(host="alpha", python=hosts.options("alpha")["python"])(where)()() == hosts["alpha"].address
        assert hosts["alpha"].handshakes() == before
        assert own.poll() is None
    finally:
        own.terminate()
        own.wait()


# --- environments ---------------------------------------------------------------------------------


def test_an_environment_is_made_once_with_what_the_function_imports(hosts: Hosts, tmp_path: Path) -> None:
    @ssh(**hosts.options("alpha", env=str(tmp_path / "env")))
    def inside() -> tuple[str, bool]:
        return sys.prefix, "pip" in sys.modules

    assert inside()() == (str(tmp_path / "env"), False)
    made = (tmp_path / "env" / "pyvenv.cfg").stat().st_mtime_ns
    assert inside()()[0] == str(tmp_path / "env")
    assert (tmp_path / "env" / "pyvenv.cfg").stat().st_mtime_ns == made
    assert not (tmp_path / "env" / ".unfinished").exists()


@pytest.mark.drill
def test_a_half_made_environment_is_made_anew(hosts: Hosts, tmp_path: Path) -> None:
    place = tmp_path / "env"
    (place / "bin").mkdir(parents=True)
    (place / ".unfinished").touch()
    (place / "bin" / "python").write_text("not yet")
    assert ssh(**hosts.options("alpha", env=str(place)))(lambda: sys.prefix)()() == str(place)


def test_what_the_modules_of_a_project_import_is_installed_too(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function refers to its helper, and the helper imports a package. The package is installed
    here; on the other side, pip has only a directory to install from."""
    installed, wheels, project = tmp_path / "site-packages", tmp_path / "wheels", tmp_path / "project"
    about = "greetings_of_tests-1.5.dist-info"
    files = {
        "greetings_of_tests.py": "def hello(): return __file__",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: greetings-of-tests\nVersion: 1.5\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/top_level.txt": "greetings_of_tests\n",
        f"{about}/RECORD": "",
    }
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "greetings_of_tests-1.5-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            (installed / name).parent.mkdir(parents=True, exist_ok=True)
            (installed / name).write_text(text)
            wheel.writestr(name, text)
    package = project / "helpers_of_tests"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from . import inner")
    (package / "inner.py").write_text("import greetings_of_tests\ndef greet(): return greetings_of_tests.hello()\n")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.syspath_prepend(str(project))

    env = tmp_path / "env"
    options = hosts.options("alpha", env=str(env))
    assert ssh(**options)(lambda: sys.prefix)()() == str(env)
    (env / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")

    @ssh(**options)
    def greet() -> str:
        import helpers_of_tests  # type: ignore[import-not-found, unused-ignore]

        return str(helpers_of_tests.inner.greet())

    for found in thread(lambda *found: found)(greet(), greet(), greet())():
        assert found.startswith(str(env))
    assert greet()().startswith(str(env))


def test_no_environment_is_made_among_files_of_the_users(hosts: Hosts, tmp_path: Path) -> None:
    """If making an environment fails, the whole directory is removed, so it must not contain other
    files."""
    (tmp_path / "thesis").write_text("mine", encoding="utf-8")
    with pytest.raises(UnfitPythonError, match="there are files in it, and it is no virtual environment"):
        ssh(**hosts.options("alpha", env=str(tmp_path)))(where)()()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_an_environment_that_cannot_be_made(hosts: Hosts) -> None:
    with pytest.raises(UnfitPythonError, match="/proc/nowhere/env"):
        ssh(**hosts.options("alpha", env="/proc/nowhere/env"))(where)()()


def test_what_a_function_needs_is_found_in_its_imports() -> None:
    from importlib.metadata import version

    from entangle._remote.caller.requirements import requirements

    def function() -> int:
        import json

        import psutil

        return len(f"{psutil}{json}")

    def outer() -> Any:
        return function(), pytest, os

    found = requirements(outer)
    assert f"psutil=={version('psutil')}" in found
    assert f"pytest=={version('pytest')}" in found
    assert not [name for name in found if name.startswith(("json", "py-entangle", "entangle"))]
    assert requirements(process(where)) == []


def test_what_a_module_of_the_project_does_not_import_at_once_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entangle._remote.caller.requirements import requirements

    (tmp_path / "lazy_of_tests.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pytest\nelse:\n    import cloudpickle\n"
        "def called():\n    import psutil\ndef other():\n    import hypothesis\n"
    )
    (tmp_path / "broken_of_tests.py").write_text("import pytest\nthis is no Python")
    monkeypatch.syspath_prepend(str(tmp_path))
    import lazy_of_tests  # type: ignore[import-not-found, unused-ignore]

    def function() -> None:
        import broken_of_tests  # type: ignore[import-not-found, unused-ignore] # noqa: F401

        lazy_of_tests.called()

    assert [found.partition("==")[0] for found in requirements(function)] == ["psutil"]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "needs a host"),
        ({"host": ""}, "host"),
        ({"host": "-oProxyCommand=x"}, "host"),
        ({"host": "a\nb"}, "host"),
        ({"host": "me@-oProxyCommand=x"}, "host"),
        ({"host": "me@"}, "host"),
        ({"host": "@miko"}, "user"),
        ({"host": 5}, "host"),
        ({"host": "a", "user": "-x"}, "user"),
        ({"host": "a", "port": 0}, "port"),
        ({"host": "a", "port": True}, "port"),
        ({"host": "a", "python": ""}, "python"),
        ({"host": "a", "key": 7}, "key"),
        ({"host": "a", "known_hosts": True}, "known_hosts"),
        ({"host": "a", "transport": "telnet"}, "transport"),
        ({"host": "a", "hots": "b"}, "'host'"),
    ],
)
def test_bad_options_are_refused_when_decorated(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        ssh(**options)(where)


def test_bare_it_lacks_a_host() -> None:
    with pytest.raises(OptionError, match="needs a host"):
        ssh(where)  # type: ignore[call-overload]


def test_options_become_words_for_the_ssh_program(tmp_path: Path) -> None:
    key = tmp_path / "my key"
    key.touch()
    words = arguments(SSHTransport("h", user="me", key_file=f"{key}", port=2222, known_hosts=f"{tmp_path}/50% known"), {})
    assert words[-8:] == ["-i", f"{key}", "-o", "IdentitiesOnly=yes", "-l", "me", "-p", "2222"]
    assert f'UserKnownHostsFile="{tmp_path}/50%% known"' in words
    assert "StrictHostKeyChecking=yes" in words
    assert "BatchMode=yes" in words
    assert "StrictHostKeyChecking=accept-new" in arguments(SSHTransport("h", known_hosts="accept-new"), {})
    assert not [word for word in arguments(SSHTransport("h"), {}) if "HostKey" in word or "KnownHosts" in word]
    given = arguments(SSHTransport("h"), {"connecttimeout": "3", "serveraliveinterval": "60"})
    assert not [word for word in given if "ConnectTimeout" in word or "ServerAlive" in word]


def test_the_far_shell_gets_each_word_whole() -> None:
    told = SSHTransport("h", python="~/my env/bin/python").command(["-c", "print('a b')"])
    assert told.startswith("echo; exec ~/'my env/bin/python' -c ")
    home = subprocess.run(["sh", "-c", told.replace("~/'my env/bin/python'", sys.executable)], capture_output=True, text=True, check=True)
    assert home.stdout == "\na b\n"


def test_options_travel() -> None:
    import pickle

    transport = SSHTransport("h", user="me", key_file="/k")
    assert pickle.loads(pickle.dumps(transport)) == transport
    assert transport.key == SSHTransport("h", user="me", key_file="/k").key
    assert transport.key != SSHTransport("h", user="you", key_file="/k").key


def test_without_any_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_SSH_COMMAND", "/nonexistent/ssh")
    with pytest.raises(UnreachableError, match="OpenSSH"):
        ssh(host="h", transport="openssh")(where)()()


# --- three servers without namespaces -------------------------------------------------------------


def test_hosts_on_loopback_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the tests cannot make network namespaces, hosts are addresses and ports on loopback. That
    must work on this machine, too."""
    given.ssh_programs()
    monkeypatch.setattr("entangle.tests.services.hosts.can_have_namespaces", lambda: False)
    with three_hosts(tmp_path) as simple:
        assert not simple.namespaces
        assert ssh(**simple.options("bravo"))(where)()() == simple["bravo"].address
        from entangle._remote.caller.open_channels import close_all

        close_all()
