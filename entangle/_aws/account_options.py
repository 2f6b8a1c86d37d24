"""The options that say whose account it is, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entangle._aws.account import Account, check_bucket, keep_keys
from entangle._tasks.option_values import check_strings
from entangle.errors import OptionError


def account_from(who: str, keys: Sequence[str], stated: Mapping[str, Any]) -> Account:
    """The account of `profile`, `region`, `role`, `endpoint`, `bucket`, and of keys. `who` begins
    the errors. Raises OptionError."""
    check_strings(who, **stated)
    role, endpoint = stated.get("role"), stated.get("endpoint")
    if role is not None and not role.startswith("arn:"):
        raise OptionError(f"{who}: role={role!r}; it must be the ARN of a role, arn:aws:iam::ACCOUNT:role/NAME")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise OptionError(f"{who}: endpoint={endpoint!r}; it must be an address, http://… or https://…")
    if stated.get("bucket") is not None:
        check_bucket(stated["bucket"])
    if (
        isinstance(keys, str)
        or not isinstance(keys, Sequence)
        or len(keys) not in (0, 2, 3)
        or not all(isinstance(key, str) and key for key in keys)
    ):
        raise OptionError(
            f"{who}: keys= must be a list of an access key's id and its secret (and perhaps a session token), or []"
        )  # never shown
    if keys and stated.get("profile") is not None:
        raise OptionError(f"{who}: keys= and profile= both name credentials; write one of them")
    return Account(keys=keep_keys(tuple(keys)) if keys else "", **stated)
