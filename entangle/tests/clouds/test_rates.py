"""How many requests a thousand calls make. The jobs are simulated: each uploads the outcome of a
real one. The bucket is moto's, and every request to AWS is counted."""

from __future__ import annotations

import collections
import json
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from entangle._aws.account import Account
from entangle._aws.bucket import Bucket
from entangle._services.caller import open_watchers
from entangle._services.far.addresses import FarAddresses
from entangle.aws import aws as in_account
from entangle.aws import batch

from ..services.emulators import Emulator, JobQueue
from . import bodies

CALLS = 1000


class PlayedBatch:
    """A simulated Batch client, whose jobs all have the same outcome."""

    def __init__(self, real: Any, outcome: bytes) -> None:
        self._real, self._outcome = real, outcome
        self.sizes: list[int] = []
        self.called: list[tuple[str, float]] = []
        self._done: dict[str, int] = {}
        self._threads: list[threading.Thread] = []

    def __getattr__(self, name: str) -> Any:
        def call(**given: Any) -> Any:
            self.called.append((name, time.monotonic()))
            played = getattr(self, f"_play_{name}", None)
            return played(**given) if played is not None else getattr(self._real, name)(**given)

        return call

    def _play_submit_job(self, containerOverrides: Any, arrayProperties: Any = None, **rest: Any) -> Any:  # noqa: N803
        size = (arrayProperties or {"size": 1})["size"]
        job = f"job-{len(self.sizes)}"
        self.sizes.append(size)
        self._done[job] = 0
        thread = threading.Thread(target=self._run, args=(job, containerOverrides["command"], size))
        self._threads.append(thread)
        thread.start()
        return {"jobId": job}

    def _run(self, job: str, command: list[str], size: int) -> None:
        if size == 1:
            commands = [command[2:]]
        else:
            with urllib.request.urlopen(command[-1], timeout=20) as file:
                commands = json.loads(zlib.decompress(file.read()))

        def one(words: list[str]) -> None:
            there = FarAddresses(words[2])
            assert there.claim(words[3], "played")
            assert there.put(words[3], [self._outcome])
            self._done[job] += 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, commands))

    def _play_describe_jobs(self, jobs: list[str]) -> Any:
        return {"jobs": [self._described(job) for job in jobs]}

    def _described(self, job: str) -> dict[str, Any]:
        size = self.sizes[int(job.rpartition("-")[2])]
        status = "SUCCEEDED" if self._done[job] == size else "RUNNING"
        counts = {"RUNNING": size - self._done[job], "SUCCEEDED": self._done[job]}
        return {"jobId": job, "status": status, **({"arrayProperties": {"size": size, "statusSummary": counts}} if size > 1 else {})}

    def get_paginator(self, name: str) -> Any:
        """The jobs of an array. No job has failed, and running ones are not listed."""
        self.called.append((name, time.monotonic()))

        class Pages:
            def paginate(self, **given: Any) -> Iterator[Any]:
                yield {"jobSummaryList": []}

        return Pages()

    def join(self) -> None:
        """Wait for all jobs."""
        for thread in self._threads:
            thread.join()


def busiest(moments: list[float]) -> int:
    """The most requests within any one second."""
    return max(sum(begin <= moment < begin + 1 for moment in moments) for begin in moments)


def test_a_thousand_calls_are_few_requests(
    aws_environment: Emulator, bucket: str, job_queue: JobQueue, test_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[bytes] = []
    get: Callable[..., Any] = Bucket._get

    def kept(self: Bucket, name: str) -> Any:
        body = get(self, name)
        if name.endswith(".outcome") and body is not None:
            outcomes.append(body)
        return body

    monkeypatch.setattr(Bucket, "_get", kept)
    square = in_account(bucket=bucket)(batch(queue=job_queue.name, image=test_image)(bodies.square))
    assert square(3)() == 9
    client = Account.client
    played = PlayedBatch(client(Account(bucket=bucket), "batch"), outcomes[0])
    monkeypatch.setattr(Account, "client", lambda self, name: played if name == "batch" else client(self, name))
    listed: list[float] = []
    list_box = Bucket._list

    def counted(self: Bucket, name: str) -> Any:
        listed.append(time.monotonic())
        return list_box(self, name)

    monkeypatch.setattr(Bucket, "_list", counted)
    assert square.map([3] * CALLS)() == [9] * CALLS
    played.join()
    open_watchers.close_all()
    by_name = collections.defaultdict(list)
    for name, moment in played.called:
        by_name[name].append(moment)
    counts = {name: len(moments) for name, moments in by_name.items()}
    print(f"{CALLS} calls: {counts} requests to Batch, {len(listed)} listings, arrays of {played.sizes}")
    assert max(played.sizes) > CALLS / 4
    assert counts["submit_job"] <= 20
    assert busiest([moment for _, moment in played.called]) <= 10
    assert busiest(listed) <= 11
