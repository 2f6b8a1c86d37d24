"""Secrets by their look, whatever their name: keys, web tokens, `user:password@` in an address.

Each look begins with something rare, a needle. Needles are searched for, and what follows one is
read once, from left to right. So the time is linear in the length of any text. A pattern that
backtracks is not: "eyJ-" 16,000 times took seconds.
"""

from __future__ import annotations

import re
from functools import lru_cache

from entangle._shared.spans import Span, places

#: How keys begin, and how many letters, digits, _ and - must follow at least.
_BEGINNINGS = {
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "dckr_pat_", "dckr_oat_", "hf_", "npm_", "pypi-"), 16),
    **dict.fromkeys(("glpat-", "gldt-", "glrt-", "glsoat-", "glcbt-", "gloas-", "glptt-", "glagent-", "glft-"), 16),
    **dict.fromkeys(("xoxa-", "xoxb-", "xoxc-", "xoxd-", "xoxe-", "xoxe.", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"), 10),
    **dict.fromkeys(("sk_live_", "sk_test_", "rk_live_", "rk_test_", "pk_live_", "whsec_"), 8),
    **dict.fromkeys(("shpat_", "shpca_", "shppa_", "shpss_"), 16),
    **dict.fromkeys(("AIza", "ya29.", "GOCSPX-", "EAACE", "1//0"), 16),
    **dict.fromkeys(("dop_v1_", "doo_v1_", "dor_v1_", "lin_api_", "ntn_", "figd_", "glsa_", "sntrys_", "sntryu_", "rubygems_"), 16),
    **dict.fromkeys(("hvs.", "hvb.", "atlasv1.", "dp.pt.", "dp.st.", "nvapi-", "gsk_", "pplx-", "r8_", "xai-", "PMAK-"), 16),
    **dict.fromkeys(("ATATT3", "ATCTT3", "tskey-", "CFPAT-", "nfp_", "pscale_tkn_", "pscale_pw_", "sbp_", "sb_secret_"), 16),
    **dict.fromkeys(("lsv2_pt_", "lsv2_sk_", "sq0atp-", "sq0csp-", "xkeysib-", "AGE-SECRET-KEY-1", "amzn.mws.", "EZAK", "shippo_"), 16),
    "SG.": 16,
    "sk-": 16,
    "eyJ": 10,
    "AKIA": 16,
    "ASIA": 16,
}
#: The shortest word that a key has: "eyJ" and ten more.
_SHORTEST = 13
_CAPITALS = ("AKIA", "ASIA")
#: Beginnings that other names have too.
_AMBIGUOUS = ("sk-", "pypi-", "npm_", "hf_", "xai-", "gsk_", "r8_", "nvapi-", "sbp_", "nfp_", "ntn_", "shippo_", "tskey-", "pplx-")
#: Addresses whose rest is a secret.
_PLACES = (
    "hooks.slack.com/services/",
    "hooks.slack.com/workflows/",
    "discord.com/api/webhooks/",
    "discordapp.com/api/webhooks/",
    "api.telegram.org/bot",
    "webhook.office.com/",
)
_BEGIN, _END, _SCHEME = "-----begin ", "-----end ", "://"
_SAYING = ("bearer ", "basic ")

#: A secret has one of these, in lower case.
NEEDLES = tuple(dict.fromkeys((_SCHEME, _BEGIN, *_SAYING, *_PLACES, *(beginning.lower() for beginning in _BEGINNINGS))))
_BY_NEEDLE = {beginning.lower(): (beginning, least) for beginning, least in _BEGINNINGS.items()}


@lru_cache(maxsize=1)
def _patterns() -> dict[str, re.Pattern[str]]:
    """Each pattern takes one class of characters as far as it goes, so none backtracks."""
    return {
        "long": re.compile(rf"[A-Za-z0-9_-]{{{_SHORTEST}}}|[/-]{{5}}"),
        "run": re.compile(r"[A-Za-z0-9_-]*"),
        "capitals": re.compile(r"[A-Z0-9]*"),
        "dotted": re.compile(r"[\w.~+/=-]*"),
        "base64": re.compile(r"[A-Za-z0-9+/=_-]*"),
        "authority": re.compile(r"[^\s/?#'\"<>`]*"),
        "word": re.compile(r"[^\s'\"<>`]*"),
        "blanks": re.compile(r" *"),
    }


def possible(text: str, low: str) -> bool:
    """Whether the text holds a needle. Tests first for a long word: few texts have one."""
    if _SCHEME in low or "basic " in low or "bearer " in low:
        return True
    if len(text) < _SHORTEST or _patterns()["long"].search(text) is None:
        return False
    return any(needle in low for needle in NEEDLES)


def spans(text: str, low: str) -> list[Span]:
    """Where something in the text looks like a secret, from left to right.

    `low` is the text in lower case, of the same length.
    """
    hits = [(at, needle) for needle in [needle for needle in NEEDLES if needle in low] for at in places(low, needle)]
    if not hits:
        return []
    found: list[Span] = []
    seen = _Seen()
    done = 0
    for at, needle in sorted(hits):
        if at < done:
            continue
        span = _look(text, low, at, needle, seen)
        if span is not None and span[0] >= done:
            found.append(span)
            done = span[1]
    return found


class _Seen:
    """The ends of runs read so far: a run is read once, however many needles lie in it."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}

    def end(self, kind: str, text: str, at: int) -> int:
        """The end of the run of that kind around `at`."""
        known = self.ends.get(kind, -1)
        if known < at:
            known = self.ends[kind] = _patterns()[kind].match(text, at).end()  # type: ignore[union-attr]
        return known


def _look(text: str, low: str, at: int, needle: str, seen: _Seen) -> Span | None:
    if needle == _SCHEME:
        return _user(text, at + len(_SCHEME))
    if needle == _BEGIN:
        return _private_key(low, at)
    if needle in _SAYING:
        return _said(text, at + len(needle), needle, seen)
    if needle in _PLACES:
        start = at + len(needle)
        end = seen.end("word", text, start)
        return (start, end) if end > start else None
    beginning, least = _BY_NEEDLE[needle]
    if not text.startswith(beginning, at) or (at and text[at - 1].isalnum()):
        return None
    after = at + len(beginning)
    end = seen.end("capitals" if beginning in _CAPITALS else "run", text, after)
    if beginning in _CAPITALS:
        return (at, end) if end - after == least else None
    if end - after < least or (beginning in _AMBIGUOUS and not _random(text[after : after + 64])):
        return None
    # A web token and some other keys have further parts after dots.
    while end < len(text) and text[end] == "." and (further := seen.end("run", text, end + 1)) > end + 1:
        end = further
    return at, end


def _random(text: str) -> bool:
    """Whether this is not a text in words."""
    return any(letter.isdigit() for letter in text) or any(len(part) >= 16 for part in re.split("[-_]", text))


def _user(text: str, at: int) -> Span | None:
    """`user:password`, or a token in its place, in the address whose `://` ends at `at`."""
    end = _patterns()["authority"].match(text, at).end()  # type: ignore[union-attr]
    last = text.rfind("@", at, end)
    if last > at:
        named = ":" in text[at:last]
        return (at, last) if named or last - at >= 20 else None
    name, colon, port = text[at:end].partition(":")
    if not colon or not name or port.isdigit() or text[end : end + 1] not in ("/", "?", "#"):
        return None
    # The password may hold a slash.
    last = text.find("@", end, end + 200)
    within = text[end:last]
    if last < 0 or _SCHEME in within or any(letter.isspace() or letter in "'\"<>" for letter in within):
        return None
    return at, last


def _private_key(low: str, at: int) -> Span | None:
    header = low.find("-----", at + len(_BEGIN), at + len(_BEGIN) + 60)
    if header < 0 or "private key" not in low[at:header]:
        return None
    end = low.find(_END, header)
    if end < 0:
        return at, len(low)
    last = low.find("-----", end + len(_END), end + len(_END) + 60)
    return at, last + 5 if last >= 0 else len(low)


def _said(text: str, at: int, needle: str, seen: _Seen) -> Span | None:
    """What follows `Bearer` or `Basic`, unless it is a word of a sentence."""
    start = seen.end("blanks", text, at)
    end = seen.end("dotted" if needle == "bearer " else "base64", text, start)
    if end - start < 8:
        return None
    said = text[start:end]
    if needle == "bearer ":
        return (start, end) if end - start >= 20 or any(letter.isdigit() for letter in said[:20]) else None
    import base64
    import binascii

    whole = said[: len(said) // 4 * 4][:4096]
    try:
        plain = base64.b64decode(whole, validate=True)
    except binascii.Error:
        return None
    return (start, end) if b":" in plain else None
