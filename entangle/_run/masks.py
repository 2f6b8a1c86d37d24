"""Secrets are told by the name they go by and by their look, and are not written down.

Who remembers something of a run asks here first. What is missed because it neither bears a telling name nor looks like a
secret is remembered; `ENTANGLE_SECRETS=pin,salt` adds names.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from itertools import pairwise

MASK = "***"

#: Words that a name may hold anywhere, those that a word of it may end with, and those that it may consist of or hold as two.
_INSIDE = ("password", "passwd", "passphrase")
_ENDINGS = ("secret", "secrets", "token", "credential", "credentials", "pwd")
_WORDS = frozenset({"authorization", "bearer", "apikey", "apikeys", "accesskey", "secretkey", "privatekey", "sessionid"})
_PAIRS = frozenset(
    {(word, keys) for word in ("api", "access", "secret", "private", "auth") for keys in ("key", "keys")} | {("session", "id")}
)

_PATTERNS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,})",
    r"\bsk-[A-Za-z0-9_-]{16,}",
    r"\bhf_[A-Za-z0-9]{20,}",
    r"\bAIza[\w-]{30,}",
    r"\bxox[abeoprs]-[\w-]{10,}",
    r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*",
    r"(?<=://)[^/\s:@'\"]*:[^/\s'\"]+(?=@)",
    r"(?i:(?<=bearer )[\w.~+/=-]{8,})",
)
# A header says how it authorizes, and then with what: all of it goes.
_HEADER = r"(?i)((?:proxy-)?authorization[\"']?\s*\]?\s*[:=]\s*)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\"'\n][^\n]*)"
# `name = value`, `"name": "value"`, `name: value`, `name: str = value`, `x["name"] = value`, `name == value`, `--name value`:
# the name stays, and where it is a secret's the value goes.
_NAME = r"(?<![\w-])(?:(--)|-*)([A-Za-z_][\w-]*)(?:[\"']?\s*(?:\]\s*)?(?:==|!=|:=|=>|[:=])|(?(1)(?=\s)|(?!)))\s*(?:\(\s*)?"
_VALUE = (
    r"(?:[A-Za-z_][\w.]*(?:\[[^\]\n]*\])?(?:\s*\|\s*[\w.]+(?:\[[^\]\n]*\])?)*\s*=\s*(?!=))?"  # what type it has
    r"(?:[rbfuRBFU]{0,2}(?:\"\"\"[\s\S]*?\"\"\"|'{3}[\s\S]*?'{3}|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|[\w.]+\([^()\n]*\)|[^\s,;&)\]}\"']+)"
)


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether what goes by this name (of a parameter, a key, a task) is a secret."""
    low = name.lower()
    if any(word in low for word in _INSIDE):
        return True
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    words = [word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", spaced)]
    words = [word for word in words if word]
    if any(word.endswith(_ENDINGS) for word in words) or not _WORDS.isdisjoint(words) or not _PAIRS.isdisjoint(pairwise(words)):
        return True
    return low in _further(os.environ.get("ENTANGLE_SECRETS", ""))


@lru_cache(maxsize=4)
def _further(names: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in names.split(",") if name.strip())


def suspicious(text: str) -> bool:
    """Whether a text may hold a secret: what a secret cannot be without is looked for first, since most texts have none of it, and the
    patterns take long to compile. Written out, since every text that is noted comes through here."""
    low = text.lower()
    return (
        "passw" in low
        or "passphrase" in low
        or "secret" in low
        or "token" in low
        or "://" in low
        or "pwd" in low
        or "api" in low
        or "auth" in low
        or "bearer" in low
        or "credential" in low
        or "access" in low
        or "private" in low
        or "session" in low
        or "eyj" in low
        or "sk-" in low
        or "akia" in low
        or "asia" in low
        or "ghp_" in low
        or "gho_" in low
        or "ghu_" in low
        or "ghs_" in low
        or "ghr_" in low
        or "github_pat_" in low
        or "glpat-" in low
        or "xox" in low
        or "hf_" in low
        or any(name in low for name in _named_by_user())
    )


def _named_by_user() -> frozenset[str]:
    names = os.environ.get("ENTANGLE_SECRETS")
    return _further(names) if names else frozenset()


@lru_cache(maxsize=1)
def _compiled() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    return re.compile("|".join(_PATTERNS), re.DOTALL), re.compile(_HEADER), re.compile(_NAME), re.compile(_VALUE)


def masked(text: str) -> str:
    """The text without what looks like a secret."""
    if not suspicious(text):
        return text
    looks, header, name, value = _compiled()
    text = header.sub(rf"\1{MASK}", looks.sub(MASK, text))
    left: list[str] = []
    done = at = 0
    # Of other names the value is looked at as well: it may be the next name.
    while (named := name.search(text, at)) is not None:
        at = named.end()
        if is_secret(named[2]) and (found := value.match(text, at)) is not None:
            left += (text[done:at], MASK)
            done = at = found.end()
    return "".join((*left, text[done:])) if left else text


def cleaned(value: object, name: str = "") -> object:
    """A value as JSON has them, without secrets: what goes by the name of one, at any depth, and what looks like one."""
    if name and is_secret(name):
        return MASK
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: cleaned(part, key if isinstance(key, str) else "") for key, part in value.items()}
    return [cleaned(part) for part in value] if isinstance(value, (list, tuple)) else value


def hides_one(pickled: bytes | memoryview) -> bool:
    """Whether there is something in a pickle that goes by the name of a secret or looks like one: keys, attributes and texts lie in
    it as they are, however deep in the value they are."""
    text = str(pickled, "latin-1")
    if not suspicious(text):
        return False
    return any(is_secret(name) for name in re.findall(r"[A-Za-z_][\w-]*", text)) or masked(text) != text
