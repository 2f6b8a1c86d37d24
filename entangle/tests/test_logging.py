"""`from entangle.logging.info import logging`: the only imports that are meant to do something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .callers import Caller, output_of

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} : %s : %s"

SAY = """
    from entangle.logging.%s import logging
    import logging as standard
    assert logging is standard
    logging.debug("quiet")
    logging.info("normal")
    logging.getLogger("mine").error("loud")
"""


@pytest.mark.parametrize(("name", "words"), [("info", ["normal", "loud"]), ("debug", ["quiet", "normal", "loud"])])
def test_to_stderr(tmp_path: Path, name: str, words: list[str]) -> None:
    caller = Caller(tmp_path, SAY % name).start()
    status, out, err = caller.finish()
    assert (status, out) == (0, "")
    lines = err.splitlines()
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        level = {"quiet": "DEBUG", "normal": "INFO", "loud": "ERROR"}[word]
        assert re.fullmatch(LINE % (level, word), line)


def test_to_a_file(tmp_path: Path) -> None:
    assert output_of(tmp_path, SAY % "file") == ""
    lines = (tmp_path / "entangle.log").read_text().splitlines()
    assert [line.rpartition(" : ")[2] for line in lines] == ["quiet", "normal", "loud"]


@pytest.mark.parametrize("start", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.drill)])
def test_bodies_log_as_well(tmp_path: Path, start: str) -> None:
    """The script configures logging at its top. This also takes effect where its functions run."""
    output_of(
        tmp_path,
        """
        from entangle.logging.file import logging
        from entangle.process import process

        @process
        def say(n):
            logging.info("said by a body")
            return n

        if __name__ == "__main__":
            assert say(3)() == 3
            logging.info("said by the caller")
        """,
        ENTANGLE_START=start,
    )
    text = (tmp_path / "entangle.log").read_text()
    assert "said by the caller" in text
    assert "said by a body" in text


def test_a_run_says_nothing_unless_something_is_wrong(tmp_path: Path) -> None:
    caller = Caller(
        tmp_path,
        """
        from entangle.logging.info import logging
        from entangle.process import process
        print(process(int)("3")())
        """,
    ).start()
    assert caller.finish() == (0, "3\n", "")
