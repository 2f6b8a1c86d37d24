"""The endpoint that gives a container of Batch or ECS the credentials of its role."""

from __future__ import annotations

import asyncio
import json
import time

from .scripted_server import ScriptedServer

TOKEN = "token-of-the-container"


class CredentialsEndpoint(ScriptedServer):
    """Returns new keys for each request, valid for `lasts` seconds."""

    def __init__(self, lasts: float = 3600.0) -> None:
        self.lasts = lasts
        #: Replies to send in place of keys, in order: status and body; "" closes the connection.
        self.instead: list[tuple[int, str]] = []
        #: Keys to return in place of generated ones, in order: id, secret, token.
        self.keys: list[tuple[str, str, str]] = []
        #: The key ids that it has returned.
        self.given: list[str] = []
        super().__init__()

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables with which a container finds it."""
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.url}/role", "AWS_CONTAINER_AUTHORIZATION_TOKEN": TOKEN}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        status, body = self.instead.pop(0) if self.instead else (200, "")
        if f"authorization: {TOKEN}" not in head.lower().replace(TOKEN.lower(), TOKEN):
            status, body = 403, "the token is wrong"
        elif status == 200 and not body:
            body = self._keys()
        if body:
            writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
            await writer.drain()
        return False

    def _keys(self) -> str:
        key, secret, token = self.keys.pop(0) if self.keys else (f"ASIAROLE{len(self.given) + 1:012}", "secret", "session/token+==")
        self.given.append(key)
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.lasts))
        return json.dumps({"RoleArn": "arn", "AccessKeyId": key, "SecretAccessKey": secret, "Token": token, "Expiration": ends})
