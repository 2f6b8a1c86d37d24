"""Stands for Amazon Neptune: checks the signature of each handshake, and relays those that its key
has signed to a real Gremlin server.

It computes the signature from the specification of AWS (Signature Version 4), without botocore."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import socket
import ssl
import threading
import time
from calendar import timegm

KEY, SECRET, REGION = "AKIAENTANGLETESTS000", "entangle-tests-secret", "eu-west-3"
_AUTHORIZATION = re.compile(r"AWS4-HMAC-SHA256 Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})")


def verdict(handshake: str) -> str:
    """What is wrong with a signed handshake; empty if it is valid."""
    first, *lines = handshake.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if found is None:
        return "Missing Authentication Token"
    credential, signed, signature = found.groups()
    key, day, region, service, end = credential.split("/")
    if (key, region, service, end) != (KEY, REGION, "neptune-db", "aws4_request"):
        return f"Credential should be scoped to a known key, {REGION} and neptune-db: {credential}"
    when = headers.get("x-amz-date", "")
    if not {"host", "x-amz-date"} <= {*signed.split(";")} or not when.startswith(day):
        return "The host and the date must be signed"
    if abs(timegm(time.strptime(when, "%Y%m%dT%H%M%SZ")) - time.time()) > 300:
        return "Signature expired"
    path, _, query = target.partition("?")
    canonical = [method, path, query, *(f"{name}:{headers[name]}" for name in signed.split(";")), "", signed]
    canonical.append(hashlib.sha256(b"").hexdigest())
    text = "\n".join(["AWS4-HMAC-SHA256", when, f"{day}/{region}/{service}/{end}", _hash("\n".join(canonical))])
    secret = f"AWS4{SECRET}".encode()
    for part in (day, region, service, end):
        secret = hmac.digest(secret, part.encode(), "sha256")
    return "" if hmac.compare_digest(hmac.new(secret, text.encode(), "sha256").hexdigest(), signature) else "The signature does not match"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class SignedRelay:
    """Listens on the loopback interface, with TLS if given a file with a certificate and its
    key."""

    def __init__(self, gremlin: int, certificate: str | None = None) -> None:
        self._gremlin = gremlin
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        #: The verdict on each handshake.
        self.verdicts: list[str] = []
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._start(self._accept)

    def _start(self, *work: object) -> None:
        thread = threading.Thread(target=work[0], args=work[1:])  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, _ = self._server.accept()
                self._start(self._serve, wire)

    def _serve(self, wire: socket.socket) -> None:
        with contextlib.suppress(OSError), wire:
            wire.settimeout(60)
            if self._context is not None:
                wire = self._context.wrap_socket(wire, server_side=True)
            self._sockets.append(wire)
            with wire:
                head = b""
                while b"\r\n\r\n" not in head:
                    block = wire.recv(65536)
                    if not block:  # a client that only checked whether the port is open
                        return
                    head += block
                wrong = verdict(head.partition(b"\r\n\r\n")[0].decode("latin-1"))
                self.verdicts.append(wrong)
                if wrong:
                    body = f'{{"code":"AccessDeniedException","message":"{wrong}"}}'.encode()
                    wire.sendall(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    return
                with socket.create_connection(("127.0.0.1", self._gremlin), 20) as server:
                    server.settimeout(60)
                    self._sockets.append(server)
                    server.sendall(head)
                    back = threading.Thread(target=_pass_on, args=(server, wire))
                    back.start()
                    _pass_on(wire, server)
                    back.join()

    def close(self) -> None:
        """End all connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(20)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    with contextlib.suppress(OSError):
        socket.socket.shutdown(target, socket.SHUT_RDWR)
