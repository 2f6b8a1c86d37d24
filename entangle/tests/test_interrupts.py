"""Signals that arrive while the engine takes a step that must be completed."""

from __future__ import annotations

import os
import signal

import pytest

from entangle._shared.interrupts import Deferred, handler_of


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_step() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Deferred():  # noqa: PT012
        press()
        done.append("step")
    assert done == ["step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_each_signal_calls_its_own_handler_though_one_of_them_raises() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), Deferred():  # noqa: PT012
            press()
            signal.raise_signal(signal.SIGUSR1)
            assert handler_of(signal.SIGINT) is signal.default_int_handler
        assert heard == [signal.SIGUSR1]
        signal.raise_signal(signal.SIGUSR1)
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_it_is_lifted_for_what_may_take_long() -> None:
    with Deferred() as deferred:
        with pytest.raises(KeyboardInterrupt), deferred.lifted():
            press()
        press()
        with pytest.raises(KeyboardInterrupt), deferred.lifted():
            raise AssertionError("what came before is heard first")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_forked_child_has_the_handlers_of_the_program() -> None:
    with Deferred():
        pid = os.fork()
        if pid == 0:
            os._exit(int(signal.getsignal(signal.SIGINT) is not signal.default_int_handler))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
