"""Names of secrets: of a parameter, a key, a field, a variable, a header, a task.

A name is split into words, whatever its style (`db_pass`, `DB-PASS`, `dbPass`, `DBPass`). Some
words mark a secret alone, some in pairs; the last word may take it back: a `token_count` is a
number. `ENTANGLE_SECRETS` adds names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: A word marks a secret if it contains one of `_INSIDE`, ends with one of `_ENDINGS`, or is one of
#: `_WORDS`.
_INSIDE = ("password", "passwd", "passphrase", "passwort", "kennwort", "connectionstring")
_ENDINGS = ("secret", "secrets", "token", "credential", "credentials", "pwd", "passcode", "sessionid", "sessid")
_WORDS = _words("authorization bearer creds cred dsn jwt jwts otp otps totp hotp psk csrf xsrf pw cvv cvc passkey privkey pincode connstr ")
#: Words that mark a secret at the end of a name, or before one of `_HOLDING`: `auth`,
#: `auth_header`, but not `auth_method`.
_LAST = ("auth", "auths", "cookie", "cookies", "oauth")
_HOLDING = _words("header headers data info string str value values tuple pair code codes details config jar")
#: Words that end with `pass` and mark nothing.
_PASSING = ("compass", "bypass", "surpass", "trespass", "encompass", "underpass", "overpass", "lowpass", "highpass", "bandpass", "allpass")
_PASSES = _words(
    "first second third last next low high band one two single multi full n num max min by this each per pre forward backward fast "
    "slow final render depth shadow compiler all any did must should can will "
)
_KEYS_OF = _words(
    "api access secret private priv auth encryption encrypt decryption decrypt signing sign signature ssh account storage master "
    "shared service subscription license licence activation deploy deployment client server session crypto crypt cipher aes rsa "
    "dsa hmac fernet jwt webhook gpg pgp pem tls ssl app application admin root consumer preshared symmetric wrapping vault unseal "
    "recovery write ingest instrumentation function functions integration wifi wpa wep wallet stripe openai anthropic aws azure "
    "gcp google github gitlab sendgrid twilio mailgun datadog algolia cosmos mapbox huggingface wandb "
)
_PAIRS = frozenset(
    {(word, key) for word in _KEYS_OF for key in ("key", "keys")}
    | {(word, kind) for word in ("connection", "conn", "connect") for kind in ("string", "str", "strings")}
    | {(word, "phrase") for word in ("pass", "seed", "recovery", "backup", "secret")}
    | {(word, code) for word in ("mfa", "pin", "access", "recovery", "backup") for code in ("code", "codes")}
    | {(word, "pin") for word in ("card", "user")}
    | {(word, "tokens") for word in ("access", "auth", "api", "refresh", "session", "bearer")}
    | {(word, "signature") for word in ("access", "amz", "goog")}
    | {(word, "pat") for word in ("github", "gitlab", "azure", "devops", "bitbucket", "gh", "gl")}
    | {("session", "id"), ("sess", "id"), ("pass", "word"), ("pass", "words"), ("pass", "code"), ("pass", "key")}
)
#: Pairs written as one word, as in `APIKEY`.
_JOINED = frozenset("".join(pair) for pair in _PAIRS) - {"passkeys"}
#: Last words that say that the value is not the secret itself.
_ABOUT = _words(
    "count counts size sizes length len limit limits type types kind kinds url urls uri uris endpoint endpoints expiry expires "
    "expiration ttl age lifetime policy policies required enabled disabled allowed valid index idx indices position positions ids "
    "budget usage used rate rates name names path paths file files filename dir directory field fields column columns label labels "
    "prompt hint manager store provider providers class method methods scheme version format encoding algorithm alg strength rule "
    "rules error errors status domain samesite secure httponly consent banner counter "
)
_UNTIL = _words("expires expiration expiry valid max min")
#: First words of names of booleans.
_WHETHER = _words("is has have needs need requires require use uses no without enable disable allow skip")
#: Kinds of tokens of language models.
_PARTS_OF_SPEECH = _words("pad eos bos unk mask cls sep special")

#: Each name of a secret holds one of these, in lower case, unless the user has added it.
NEEDLES = tuple(
    _words(
        "pass secret token cred pwd key auth bearer cookie jwt otp dsn psk csrf xsrf pw cvv cvc sess conn phrase mfa pin_code pincode "
        "pin-code _pin -pin cardpin userpin access recovery backup signature _pat -pat ghpat glpat kennwort "
    )
)
#: This many names are searched together first.
_MANY = 1000


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a value with this name (of a parameter, a key, a task) is a secret."""
    return tells(name)


def any_secret(names: Sequence[str]) -> bool:
    """Whether one of these names is that of a secret. Most of many names lack what each secret must
    have."""
    if len(names) > _MANY:
        low = "\n".join(names).lower()
        joined = low.replace(" ", "_")
        if not any(needle in joined for needle in NEEDLES) and not any(name in low for name in further()):
            return False
    return any(map(is_secret, names))


def further() -> frozenset[str]:
    """The names that the user has added, in lower case."""
    names = os.environ.get("ENTANGLE_SECRETS")
    return _further(names) if names else frozenset()


@lru_cache(maxsize=4)
def _further(names: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in names.split(",") if name.strip())


def tells(name: str) -> bool:
    """As `is_secret`, without a cache: for names in texts, which may be very long."""
    low = name.lower()
    if low in further():
        return True
    joined = low.replace(" ", "_")
    if not any(needle in joined for needle in NEEDLES):
        return False
    # Split before a capital that follows a lower-case letter, and before the last of several
    # capitals if a lower-case letter follows it.
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
    words = [word for word in (word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", spaced)) if word]
    if not words or (words[0] in _WHETHER and len(words) > 1):
        return False
    last = words[-1]
    if len(words) > 1 and (last in _ABOUT or words[-2] in _UNTIL):
        return False
    if any(second == "token" and first in _PARTS_OF_SPEECH for first, second in pairwise(words)):
        return False
    if any(word.endswith(_ENDINGS) or word in _WORDS or word in _JOINED for word in words):
        return True
    if any(inside in word for word in words for inside in _INSIDE) or not _PAIRS.isdisjoint(pairwise(words)):
        return True
    if last.endswith("pass") and not last.endswith(_PASSING):
        return not (last == "pass" and len(words) > 1 and words[-2] in _PASSES)
    return last.endswith(_LAST) or (last in _HOLDING and any(word.endswith(_LAST) for word in words[:-1]))
