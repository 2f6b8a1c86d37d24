"""Whose account it is: profile, region, keys, role, endpoint and bucket; and clients for it.

Keys never travel. An account has a name for them alone; the process keeps them, and workers of
this machine have them as a context variable, like the rest of their caller's state.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from entangle._remote.agent import imports
from entangle.errors import EntangleError, ImageError, OptionError, UnreachableError

#: Keys of accounts by their names: id, secret, and perhaps a token.
KEYS: contextvars.ContextVar[dict[str, tuple[str, ...]]] = contextvars.ContextVar("KEYS")
_here: dict[str, tuple[str, ...]] = {}

#: The longest that AWS lets a signed address last (seconds).
LONGEST = 7 * 86400
#: How buckets are named. Source: "Bucket naming rules" of the S3 user guide.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
#: Error codes of AWS: the caller may not do this; asks too often or too much.
_FORBIDDEN = frozenset(
    ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError", "403", "Forbidden", "NotAuthorized")
)
_EXPIRED = frozenset(("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"))
_UNKNOWN = frozenset(("InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidAccessKeyId", "AuthFailure"))


@dataclass(frozen=True)
class Account:
    """An account, as a layer says it. What is not said is found as boto3 finds it."""

    profile: str | None = None
    region: str | None = None
    #: The name of the keys, where they were given; the keys themselves are in no field.
    keys: str = ""
    role: str | None = None
    endpoint: str | None = None
    bucket: str | None = None

    def client(self, service: str) -> Any:
        """A client of boto3, one for each service in a process. Raises OptionError."""
        return _client(self, service, os.getpid())

    def client_of_its_own(self, service: str, **settings: Any) -> Any:
        """A client of boto3 that nobody else has, with settings of botocore's Config. Close it."""
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        pid = os.getpid()
        try:
            with _making:
                config = Config(user_agent_extra="entangle", **settings)
                return _session(self, pid).client(service, endpoint_url=self.endpoint, config=config)
        except BotoCoreError as error:
            raise told(error, self, service) from None

    def signed(self, service: str, region: str, method: str, url: str, headers: Mapping[str, str], data: bytes) -> dict[str, str]:
        """The headers of a request to AWS, with its signature (version 4) as of now."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import NoCredentialsError

        found = _session(self, os.getpid()).get_credentials()
        if found is None:
            raise told(NoCredentialsError(), self, service)
        request: Any = AWSRequest(method, url, dict(headers), data)
        SigV4Auth(found.get_frozen_credentials(), service, region).add_auth(request)
        return dict(request.headers.items())

    def waits_to_sign(self) -> bool:
        """Whether `signed` may have to ask a server first: credentials were not looked up yet, or
        must be renewed."""
        from botocore.credentials import RefreshableCredentials

        # `get_credentials` would look for them.
        found = getattr(_session(self, os.getpid())._session, "_credentials", None)
        return found is None or (isinstance(found, RefreshableCredentials) and found.refresh_needed())

    def expires(self) -> float | None:
        """How long its credentials last (seconds); None: for ever."""
        found = _session(self, os.getpid()).get_credentials()
        if not hasattr(found, "_expiry_time"):
            return None
        with asking(self, "sts"):
            found.get_frozen_credentials()  # this renews those that can be renewed, before they expire
        ends = found._expiry_time
        return (ends - datetime.now(timezone.utc)).total_seconds() if isinstance(ends, datetime) else None

    def lasts(self) -> int:
        """How long an address lasts that is signed now (seconds): as the credentials, and as long
        as AWS lets any."""
        left = self.expires()
        return LONGEST if left is None else int(min(left, LONGEST))

    def address(self, method: str, key: str, **more: Any) -> str:
        """An address that is signed for one method ("put_object") and one object of the bucket."""
        given = {"Bucket": self.bucket_name(), "Key": key, **more}
        found: str = self.client("s3").generate_presigned_url(method, Params=given, ExpiresIn=self.lasts())
        return found

    def bucket_name(self) -> str:
        """The bucket. Raises OptionError where none is named."""
        found = self.bucket or os.environ.get("ENTANGLE_BUCKET")
        if not found:
            raise OptionError("values go through a bucket of S3: name one, @aws(bucket='…') or ENTANGLE_BUCKET")
        check_bucket(found)
        return found

    @property
    def place(self) -> str:
        """What errors call it."""
        return f"aws ({self.profile or self.region})" if self.profile or self.region else "aws"


def check_bucket(name: str) -> None:
    """Raise OptionError unless this may be the name of a bucket."""
    if not _BUCKET.fullmatch(name):
        raise OptionError(
            f"{name!r} is no name of a bucket; write the name alone, without s3:// and folders: small letters, digits, - and ."
        )


def keep_keys(keys: tuple[str, ...]) -> str:
    """Keep keys in this process, and give the name that an account has for them."""
    name = hashlib.sha256("\0".join(keys).encode()).hexdigest()[:16]
    _here[name] = keys
    KEYS.set({**KEYS.get({}), **_here})  # for workers of this machine, however they are started
    return name


_making = threading.Lock()


def _after_fork() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _client(account: Account, service: str, pid: int) -> Any:
    with _making:  # sessions of boto3 are for one thread
        return _known_client(account, service, pid)


@functools.lru_cache(maxsize=64)
def _known_client(account: Account, service: str, pid: int) -> Any:
    session = _session(account, pid)
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 5},
        user_agent_extra="entangle",
        max_pool_connections=16,
        signature_version="s3v4" if service == "s3" else None,
        s3={"addressing_style": "path"} if account.endpoint or os.environ.get("AWS_ENDPOINT_URL") else None,
    )
    try:
        return session.client(service, endpoint_url=account.endpoint, config=config)
    except BotoCoreError as error:
        raise told(error, account, service) from None


@functools.lru_cache(maxsize=16)
def _session(account: Account, pid: int) -> Any:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session
    except ImportError as error:
        where = os.uname().nodename
        if imports.finders:
            raise OptionError(
                f"a task that runs in AWS cannot be called on {where}: there are neither boto3 nor your credentials; call it where the "
                "others are called, as an argument of a call or in a @workflow"
            ) from None
        raise OptionError(f"AWS needs the extra aws on {where}: python -m pip install 'py-entangle[aws]' ({error})") from None
    given: dict[str, Any] = {}
    if account.keys:
        keys = _here.get(account.keys) or KEYS.get({}).get(account.keys)
        if keys is None:
            raise OptionError(
                "@aws: keys= stay in the process that was given them, and do not travel; in another place name a profile, "
                "or let boto3 find credentials there: @aws()"
            )
        given = dict(zip(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), keys, strict=False))
    try:
        session = boto3.Session(profile_name=account.profile, region_name=account.region, **given)
        if account.role is None:
            return session
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

        core = get_session()
        source = session._session
        fetcher = AssumeRoleCredentialFetcher(
            functools.partial(source.create_client, endpoint_url=account.endpoint),
            source.get_credentials(),
            account.role,
            extra_args={"RoleSessionName": f"entangle-{pid}"},
        )
        refreshed: Any = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        vars(core)["_credentials"] = refreshed  # there is no public way to give a session credentials that renew themselves
        return boto3.Session(botocore_session=core, region_name=account.region or session.region_name)
    except BotoCoreError as error:
        raise told(error, account, "") from None


def told(error: Exception, account: Account, doing: str) -> EntangleError:
    """The error of ours for one of boto3's: what was refused, and what to do."""
    from botocore import exceptions

    text = str(error)
    if isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError)):
        return UnreachableError(
            f"{account.place}: there are no credentials ({text}); name them, @aws(profile='…') or @aws(keys=[id, secret]), "
            "or set AWS_PROFILE"
        )
    if "SSO" in type(error).__name__ or isinstance(error, exceptions.TokenRetrievalError):
        return UnreachableError(f"{account.place}: you are not logged in ({text}); log in: aws sso login")
    if isinstance(error, RuntimeError):
        return UnreachableError(f"{account.place}: the credentials have expired, and were not renewed ({text}); log in anew")
    if isinstance(error, exceptions.ProfileNotFound):
        return OptionError(f"@aws: {text}; name one that stands in ~/.aws/config, or make it: aws configure --profile NAME")
    if isinstance(error, exceptions.NoRegionError):
        return OptionError("@aws: no region is known; name one, @aws(region='eu-central-1'), or set AWS_DEFAULT_REGION")
    if isinstance(error, exceptions.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        said = error.response.get("Error", {}).get("Message", "") or text
        what = f"{doing or 'aws'}:{error.operation_name}"
        if code in _UNKNOWN:
            return UnreachableError(
                f"{account.place}: AWS does not know these credentials ({what}: {code}: {said}); name others, @aws(profile='…'), "
                "or log in anew"
            )
        if code in _FORBIDDEN:
            return UnreachableError(
                f"{account.place}: you may not {what}: {said}. The policies that each decorator needs are in deploy/aws; "
                "entangle doctor --aws says what is missing"
            )
        if code in _EXPIRED:
            return UnreachableError(f"{account.place}: the credentials have expired ({what}: {said}); log in anew")
        if code.startswith("InvalidAMIID"):
            return ImageError(f"{account.place}: {said}; images are of one region: name one of this region, or leave ami= out")
        if code == "NoSuchBucket":
            return UnreachableError(f"{account.place}: there is no bucket {account.bucket_name()!r} ({said}); make it, or name another one")
        if "Throttl" in code or "TooMany" in code or "LimitExceeded" in code or "Quota" in code:
            return UnreachableError(
                f"{account.place}: a quota of the account is used up ({what}: {code}: {said}); limit how many calls run at once, "
                "@limit('aws', at_once=…), or ask for more: Service Quotas"
            )
        return UnreachableError(f"{account.place}: {what} was refused: {code}: {said}")
    return UnreachableError(
        f"{account.place}: {doing or 'aws'} cannot be reached: {text}. Look at the network and the proxy here, and at region= and endpoint="
    )


@contextlib.contextmanager
def asking(account: Account, service: str) -> Iterator[None]:
    """A block in which errors of boto3 become ours."""
    try:
        yield
    except EntangleError:
        raise
    except Exception as error:
        if not _is_botocores(error):
            raise
        raise told(error, account, service) from None


def _is_botocores(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    if isinstance(error, RuntimeError):  # it has no class for credentials that expire as they are renewed
        return "expired" in str(error)
    return isinstance(error, (BotoCoreError, ClientError, ResponseParserError))
