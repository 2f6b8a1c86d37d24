"""Requests to S3 with the credentials of a job's own role, signed by version 4 of AWS's signatures.

It stands alone and has the standard library: the command of a job brings it (`_aws/bucket.py`), so
that it can fetch even the program. An address that nobody has signed ends with "#" and the region.

Sources: "Signature calculations for the Authorization header" of the S3 API reference; "Container
credential provider" of the AWS SDKs reference guide.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NoReturn

#: Credentials are had anew so long before they expire (seconds). AWS gives new ones by then.
EARLY = 300.0
#: How long their endpoint may take, and the pauses before the next attempts (seconds).
PATIENCE, PAUSES = 5.0, (0.2, 1.0, 3.0)
#: Where Batch and ECS answer, and who else may be asked without TLS: the container's own machine.
ENDPOINT = "http://169.254.170.2"
NEAR = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost", "127.0.0.1", "::1")
#: The program ends with these where it has no credentials, and where its role may not do something.
NONE, FORBIDDEN = 87, 88
#: What S3 says of credentials that are good no more.
OVER = (b"ExpiredToken", b"TokenRefreshRequired", b"InvalidToken", b"InvalidAccessKeyId")


class RoleError(OSError):
    """The job cannot use its mailbox as its role, and trying again is no use."""

    def __init__(self, exit_status: int, text: str) -> None:
        super().__init__(text)
        self.exit_status = exit_status


def opened(asked: str | urllib.request.Request, timeout: float = 60.0) -> Any:
    """The answer to a request; one whose address has a region is signed. Raises OSError."""
    request = urllib.request.Request(asked) if isinstance(asked, str) else asked
    if "#" in request.full_url:
        headers = headers_of(request.get_method(), request.full_url, request.data, dict(request.header_items()))
        request = urllib.request.Request(request.full_url, request.data, headers, method=request.get_method())
    return urllib.request.urlopen(request, timeout=timeout)


def headers_of(method: str, address: str, data: Any, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request, signed for the region at the end of the address. Raises
    RoleError."""
    request = urllib.request.Request(address, data, dict(headers), method=method)
    return signed(request, address.partition("#")[2], credentials(), time.gmtime())


def fetched(address: str) -> bytes:
    """What lies at the address of the program; else the process ends and says why."""
    for pause in (*PAUSES, None):
        try:
            with opened(address) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()
            if error.code == 404:
                end(1, "there is no program any more: the caller has ended")
            if pause is None or (error.code < 500 and not is_over(said)):
                end(FORBIDDEN, forbidden("GET", f"{error.code} {said[:600].decode('utf-8', 'replace')}"))
        except RoleError as error:
            end(error.exit_status, str(error))
        except OSError as error:
            if pause is None:
                end(1, f"the bucket cannot be reached: {error}")
        time.sleep(pause)
    raise AssertionError


def end(status: int, why: str) -> NoReturn:
    """End the process before its call."""
    sys.stderr.write(f"entangle: {why}\n")
    sys.exit(status)


def forbidden(method: str, said: str) -> str:
    """What is said of a request that S3 has refused."""
    what = {"GET": "read", "DELETE": "remove from"}.get(method, "write to")
    return f"the role of the job may not {what} its mailbox: {said}; deploy/aws/job-role.json is the policy that it needs"


# Credentials --------------------------------------------------------------------------------------

_guard = threading.Lock()
#: Those that were had last, and until when they are good (seconds of the Unix epoch).
_known: dict[str, str] = {}
_until = 0.0


def credentials() -> dict[str, str]:
    """The credentials of the role: AccessKeyId, SecretAccessKey, Token. Raises RoleError."""
    global _known, _until
    with _guard:
        if time.time() < _until - EARLY:
            return _known
        for pause in (*PAUSES, None):
            try:
                _known, _until = _asked()
                return _known
            except RoleError:
                raise
            except (OSError, ValueError, KeyError, TypeError) as error:
                if time.time() < _until:  # those that are there last for a while
                    return _known
                final = 400 <= getattr(error, "code", 0) < 429
                told = _told(error)
            if pause is None or final:
                raise RoleError(NONE, f"the credentials of the job's role cannot be had from {_endpoint()}: {told}")
            time.sleep(pause)
        raise AssertionError


def forget() -> None:
    """Have the next request ask for credentials anew: S3 does not take these any more."""
    global _until
    with _guard:
        _until = 0.0


def is_over(said: bytes) -> bool:
    """Whether S3 says that the credentials are good no more; then they are forgotten."""
    if any(word in said for word in OVER):
        forget()
        return True
    return False


def _endpoint() -> str:
    """The address that gives credentials to this container. Raises RoleError."""
    relative, full = (os.environ.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL"))
    address = ENDPOINT + relative if relative else full
    if not address:
        raise RoleError(NONE, "the job has no credentials of its role: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is not set there")
    split = urllib.parse.urlsplit(address)
    if split.scheme != "https" and split.hostname not in NEAR:
        raise RoleError(NONE, f"credentials of a role are not asked for without TLS at {split.hostname}")
    return address


def _asked() -> tuple[dict[str, str], float]:
    """Credentials as of now, and until when they are good."""
    token, file = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN"), os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    if file:
        with open(file) as text:
            token = text.read().strip()
    request = urllib.request.Request(_endpoint(), headers={"Authorization": token} if token else {})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine
    with direct.open(request, timeout=PATIENCE) as answer:
        found = json.loads(answer.read().decode())
    known = {name: str(found[name]) for name in ("AccessKeyId", "SecretAccessKey")}
    known["Token"] = found.get("Token") or ""
    until = calendar.timegm(time.strptime(found["Expiration"][:19], "%Y-%m-%dT%H:%M:%S"))
    return known, float(until)


def _told(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"{error.code} {error.read()[:300].decode('utf-8', 'replace')}"
    return f"{type(error).__name__}: {error}"


# The signature ------------------------------------------------------------------------------------


def signed(request: urllib.request.Request, region: str, found: dict[str, str], now: time.struct_time) -> dict[str, str]:
    """The headers of a request to S3 with its signature as of `now` (UTC)."""
    split, moment = urllib.parse.urlsplit(request.full_url), time.strftime("%Y%m%dT%H%M%SZ", now)
    content = hashlib.sha256(data if isinstance(data := request.data, (bytes, bytearray, memoryview)) else b"").hexdigest()
    headers = {name.lower(): " ".join(value.split()) for name, value in request.header_items()}
    headers.update({"host": split.netloc, "x-amz-content-sha256": content, "x-amz-date": moment})
    if found["Token"]:
        headers["x-amz-security-token"] = found["Token"]
    names = ";".join(sorted(headers))
    pairs = sorted(pair.partition("=")[::2] for pair in split.query.split("&") if pair)
    lines = [request.get_method(), split.path or "/", "&".join("=".join(pair) for pair in pairs)]
    lines += [*(f"{name}:{headers[name]}" for name in sorted(headers)), "", names, content]
    scope = "/".join((moment[:8], region, "s3", "aws4_request"))
    text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()))
    key = ("AWS4" + found["SecretAccessKey"]).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    said = f"AWS4-HMAC-SHA256 Credential={found['AccessKeyId']}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": said}
