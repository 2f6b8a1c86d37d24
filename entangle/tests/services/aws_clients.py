"""The clients of boto3 that entangle makes, so that a test can end their connections."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from entangle._aws import account


def listed_clients(patched: pytest.MonkeyPatch) -> list[Any]:
    """Have entangle make new clients from now on; they are in this list. One that is closed opens
    other connections when it is asked again."""
    clients, make = list[Any](), account._known_client.__wrapped__

    @functools.lru_cache
    def client(*key: Any) -> Any:
        clients.append(make(*key))
        return clients[-1]

    patched.setattr(account, "_known_client", client)
    return clients
