"""Which requests reach the web page: those of its own pages, from known hosts, of bounded size.

A browser sends requests for any page that its user visits. Without these checks another site could upload images
(cross-origin POST), or read answers under a name of its own that it points to this machine (DNS rebinding).
"""

import asyncio
import ipaddress
import json
import socket
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from inference.upload_folder import UploadFolder

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_UPLOAD = "/upload"  # how the path of an upload ends
_LONGEST_UPLOAD = 300  # seconds
_OTHER_BYTES = 1_000_000  # of a request that is no upload


class RequestGuard:
    """ASGI middleware around the page.

    Args:
        app: what answers the requests that pass.
        host: that the server listens on.
        allowed: names under which the page is reached besides, as through a proxy.
        folder: where uploads go; each reserves its bytes there.
        upload_bytes: most of one request.
    """

    def __init__(self, app: App, host: str, allowed: Collection[str], folder: UploadFolder, upload_bytes: int):
        self._app, self._folder, self._upload_bytes = app, folder, upload_bytes
        self._allowed = {name.lower() for name in allowed}
        own = ("localhost", host, socket.gethostname(), socket.getfqdn())
        self._hosts = self._allowed | {name.lower() for name in own}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if reason := self._refusal(headers):
            await _refuse(scope, send, 403, reason)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"].rstrip("/").endswith(_UPLOAD):
            await self._upload(scope, receive, send, headers)
        elif _length(headers) > _OTHER_BYTES:
            await _refuse(scope, send, 413, f"a request has at most {_OTHER_BYTES} bytes")
        else:
            await self._answer(scope, _Bounded(receive, _OTHER_BYTES), send)

    def _refusal(self, headers: dict[str, str]) -> str | None:
        """Why a request is refused for what its headers say; None where it is not."""
        host = headers.get("host", "")
        name = _host_name(f"//{host}")
        if not (_is_address(name) or name in self._hosts):
            return f"unknown host name '{name}'; app.py --allow_host NAME allows it"
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"
            return "requests of other sites are refused" if foreign else None
        same = urlsplit(origin).netloc.lower() == host.lower() or _host_name(origin) in self._allowed
        return None if same else f"requests of other sites are refused; this one comes from {origin[:100]}"

    async def _upload(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, headers: dict[str, str]
    ) -> None:
        size = _length(headers)
        if size > self._upload_bytes:
            await _refuse(scope, send, 413, f"an upload has at most {self._upload_bytes / 1e6:.0f} MB")
            return
        size = size or self._upload_bytes  # the sender need not say
        if not self._folder.reserve(size):
            await _refuse(scope, send, 507, "there is no space for more uploads at the moment; try again later")
            return
        try:
            await self._answer(scope, _Bounded(receive, size, time.monotonic() + _LONGEST_UPLOAD), send)
        finally:
            self._folder.release(size)

    async def _answer(self, scope: MutableMapping[str, Any], receive: "_Bounded", send: Send) -> None:
        """Let the page answer; a request that breaks off, or is made to, is no error of the page."""
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception:
            if not receive.ended:
                raise
        if receive.exceeded and not started:
            await _refuse(scope, send, 413, "the request has too many bytes, or takes too long")


class _Bounded:
    """What a request sends, up to so many bytes and so long; then its connection counts as broken off."""

    def __init__(self, receive: Receive, most: int, end: float = float("inf")):
        self._receive, self._left, self._end = receive, most, end
        self.exceeded = False  # it was too long
        self.ended = False  # it broke off, or counts as broken off

    async def __call__(self) -> Message:
        timeout = None if self._end == float("inf") else max(0.0, self._end - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), timeout)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            message, self.exceeded = {"type": "http.disconnect"}, True
        self._left -= len(message.get("body", b""))
        self.exceeded = self.exceeded or self._left < 0
        self.ended = self.exceeded or message["type"] == "http.disconnect"
        return {"type": "http.disconnect"} if self.ended else message


async def _refuse(scope: MutableMapping[str, Any], send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:100]})
        return
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})


def _length(headers: dict[str, str]) -> int:
    """What a request says of its length; 0 where it says nothing."""
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 20 else 0


def _host_name(url: str) -> str:
    """The host of an address, in lower case, without port; "" where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """Whether a host is an address and no name: a name can be pointed anywhere, an address cannot."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
