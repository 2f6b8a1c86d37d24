"""A plugin for dask's own tests: graphs run on the engine unless a test names another scheduler."""

from __future__ import annotations

import collections

import dask
import entangle.dask

calls = collections.Counter()


def counted(dsk, keys, **options):
    calls["in all"] += 1
    return entangle.dask.get(dsk, keys, **options)


def pytest_configure(config):
    dask.config.set(scheduler=counted)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{calls['in all']} graphs ran on entangle")
