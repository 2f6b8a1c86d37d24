"""One answer to "is this the same code, are these the same arguments".

`identify` gives the key of a call, and the digests of the parts it is made of; `difference` says in
words what has changed between two. The key is the same in every process, however it was started and
whatever its hash seed is. What cannot be told apart is an error that names it, never a weaker key.
"""

from __future__ import annotations

from entangle._shared.identity.arguments import check_ignored
from entangle._shared.identity.differences import Difference, difference, nearest_difference
from entangle._shared.identity.key import Identity, identify
from entangle._shared.identity.packages import check_packages

__all__ = ["Difference", "Identity", "check_ignored", "check_packages", "difference", "identify", "nearest_difference"]
