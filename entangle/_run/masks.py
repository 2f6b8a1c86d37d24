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

_WORDS = frozenset(
    {"password", "passwd", "passphrase", "pwd", "secret", "secrets", "token", "credential", "credentials", "apikey", "authorization"}
    | {"bearer", "accesskey", "secretkey", "privatekey", "sessionid"}
)
_PAIRS = frozenset({("api", "key"), ("access", "key"), ("secret", "key"), ("private", "key"), ("auth", "key"), ("session", "id")})

_PATTERNS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,})",
    r"\bsk-[A-Za-z0-9_-]{16,}",
    r"\bhf_[A-Za-z0-9]{20,}",
    r"\bAIza[\w-]{30,}",
    r"\bxox[abeoprs]-[\w-]{10,}",
    r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*",
    r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)",
    r"(?i:(?<=bearer )[\w.~+/=-]{8,})",
)
# `name = value`, `"name": "value"`, `name: value`: the name stays, the value goes.
_ASSIGNED = (
    r"(?i:([\"']?[\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|credential|authorization|\bpwd)[\w-]*[\"']?\s*[:=]\s*)"
    r"(?:\"[^\"]*\"|'[^']*'|[^\s,;&)\]}\"']+))"
)


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether what goes by this name (of a parameter, a key, a task) is a secret."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spaced) if word]
    if not _WORDS.isdisjoint(words) or not _PAIRS.isdisjoint(pairwise(words)):
        return True
    return name.lower() in _further(os.environ.get("ENTANGLE_SECRETS", ""))


@lru_cache(maxsize=4)
def _further(names: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in names.split(",") if name.strip())


def suspicious(text: str) -> bool:
    """Whether a text may hold a secret: what a secret cannot be without is looked for first, since most texts have none of it, and the
    patterns take long to compile. Written out, since every text that is noted comes through here."""
    return (
        "assw" in text
        or "ecret" in text
        or "oken" in text
        or "://" in text
        or "eyJ" in text
        or "sk-" in text
        or "AKIA" in text
        or "ASIA" in text
        or "-----BEGIN" in text
        or "gh" in text
        or "glpat-" in text
        or "xox" in text
        or "AIza" in text
        or "hf_" in text
        or "pi_key" in text
        or "pi-key" in text
        or "pikey" in text
        or "redential" in text
        or "uthorization" in text
        or "earer" in text
        or "pwd" in text
        or "ASSW" in text
        or "ECRET" in text
        or "OKEN" in text
        or "PI_KEY" in text
        or "API" in text
    )


@lru_cache(maxsize=1)
def _compiled() -> tuple[re.Pattern[str], re.Pattern[str]]:
    return re.compile("|".join(_PATTERNS), re.DOTALL), re.compile(_ASSIGNED)


def masked(text: str) -> str:
    """The text without what looks like a secret."""
    if not suspicious(text):
        return text
    looks, assigned = _compiled()
    return assigned.sub(rf"\1{MASK}", looks.sub(MASK, text))
