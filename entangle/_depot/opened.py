"""Which depot is meant: `where`, else ENTANGLE_DEPOT, else `depot` beside the records."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from entangle._depot.bounds import bounds
from entangle._depot.directory_depot import DirectoryDepot
from entangle._shared.state_directory import find_directory
from entangle._shared.summaries import value_in_short
from entangle.errors import OptionError

_opened: dict[tuple[str | None, ...], Any] = {}
_MOST = 64


def check_place(where: str | os.PathLike[str]) -> str:
    """A directory or URL as it was given, as a text. Raises OptionError for what can be neither."""
    try:
        place = os.fspath(where)
    except TypeError:
        place = ""
    if not isinstance(place, str) or not place:
        raise OptionError(f"Cache: where={value_in_short(where)}; it must be a directory or a URL")
    scheme = place.partition("://")[0] if "://" in place else "file"
    if scheme in ("s3", "s3a"):
        if not place.partition("://")[2].partition("/")[0]:
            raise OptionError(f"Cache: where={place!r}; it must name a bucket, as s3://bucket/path")
        if importlib.util.find_spec("boto3") is None:
            raise OptionError(f"Cache: where={place!r} needs the package boto3: pip install 'py-entangle[aws]'")
    elif scheme != "file":
        try:
            from fsspec.registry import known_implementations, registry
        except ImportError:
            raise OptionError(f"Cache: where={place!r} needs the package fsspec: pip install 'py-entangle[depot]'") from None
        if scheme not in known_implementations and scheme not in registry:
            raise OptionError(
                f"Cache: where={place!r}: fsspec knows nothing of {scheme}://; name a directory, or a URL as s3://bucket/path"
            )
    return place


def place_of(where: str | None = None) -> str:
    """The path or URL of the depot that is meant."""
    chosen = where or os.environ.get("ENTANGLE_DEPOT") or os.path.join(find_directory(), "depot")
    if chosen.startswith("file://"):
        chosen = chosen[len("file://") :]
    return chosen if "://" in chosen else os.path.abspath(os.path.expanduser(chosen))


def depot(where: str | None = None) -> Any:
    """The depot that is meant. Raises DepotError for a URL that nothing is known of, and for
    bounds that cannot be read: before a body has run for a value that cannot be kept."""
    place, key = place_of(where), os.environ.get("ENTANGLE_KEY", "")
    meant = (place, key, os.environ.get("ENTANGLE_DEPOT_SIZE"), os.environ.get("ENTANGLE_DEPOT_AGE"))
    found = _opened.get(meant)
    if found is None:
        bounds()
        if len(_opened) >= _MOST:
            _opened.clear()
        if "://" in place:
            from entangle._depot.remote_depot import RemoteDepot

            found = RemoteDepot(place, key.encode())
        else:
            found = DirectoryDepot(place, key.encode())
        _opened[meant] = found
    return found
