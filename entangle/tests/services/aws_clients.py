"""The boto3 clients that entangle makes, so that a test can close their connections."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from entangle._aws import account


def listed_clients(patched: pytest.MonkeyPatch) -> list[Any]:
    """Make entangle create new clients from now on. They are in the returned list. A closed client
    opens new connections if it is used again."""
    clients, make = list[Any](), account._known_client.__wrapped__

    @functools.lru_cache
    def client(*key: Any) -> Any:
        clients.append(make(*key))
        return clients[-1]

    patched.setattr(account, "_known_client", client)
    return clients
