"""`entangle hosts check`: what the hosts have, and what is missing."""

from __future__ import annotations

import json
import platform
import re
from typing import Any

import pytest

from entangle._remote.caller.check import _missing, transport_to
from entangle.cli import main

from .services import given
from .services.hosts import Hosts


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """The three hosts, shared by all tests that need one."""
    return given.shared_hosts()


def words(hosts: Hosts, *names: str) -> list[str]:
    options = hosts.options(names[0])
    found = [f"{hosts.user}@{hosts[name].address}:{hosts[name].port}" for name in names]
    return ["hosts", "check", *found, "--key", options["key"], "--known-hosts", options["known_hosts"], "--python", options["python"]]


def test_hosts_that_are_there(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(hosts, "alpha", "bravo")) == 0
    told = capsys.readouterr().out
    for name in ("alpha", "bravo"):
        line = next(line for line in told.splitlines() if hosts[name].address in line)
        assert f"Python {platform.python_version()} " in line
        assert re.search(r"\d+ CPUs, [\d.]+ GiB of memory; connected in \d+ ms, round trip [\d.]+ ms", line)


def test_a_host_that_is_not_there_is_told_apart(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    there = words(hosts, "alpha")
    there.insert(3, "nobody@127.0.0.1:1")
    assert main(there) == 5
    told = capsys.readouterr()
    assert hosts["alpha"].address in told.out
    assert "nobody@127.0.0.1:1: no ssh server answers" in told.err


def test_the_parts_of_a_host() -> None:
    for word, user, host, port in (
        ("miko", None, "miko", None),
        ("me@miko", "me", "miko", None),
        ("me@miko:2222", "me", "miko", 2222),
        ("fe80::1", None, "fe80::1", None),
        ("[fe80::1]", None, "fe80::1", None),
        ("me@[::1]:42422", "me", "::1", 42422),
    ):
        found = transport_to(word)
        assert (found.user, found.host, found.port) == (user, host, port)


@pytest.mark.parametrize("wrong", ["", "-oProxyCommand=touch x", "me@", "@miko", "me@-oX", "miko:0", "miko:123456", "[]:22"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_is_no_host_is_refused(wrong: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hosts", "check", *options, "--", wrong]) == 2
    told = capsys.readouterr()
    as_json = "--json" in options
    assert (told.err if as_json else told.out) == ""
    assert re.search("it must be a name|a port is", json.loads(told.out)["error"]["message"] if as_json else told.err)


def test_what_would_be_missing_is_said() -> None:
    about: dict[str, Any] = {"python": "3.0.1", "lacks": ["venv", "ctypes"], "shared": 1 << 20, "disk": 1 << 20}
    told = "\n".join(_missing(about))
    for part in ("functions travel as source", "python3-venv", "shared memory", "temporary directory", "ctypes"):
        assert part in told
    assert _missing({"python": platform.python_version(), "lacks": [], "shared": 1 << 40, "disk": 1 << 40}) == []
