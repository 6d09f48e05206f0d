"""Requests that reach the page, and those that do not; asked as a server asks, without Gradio."""

import asyncio
import json

import pytest

from inference import request_guard
from inference.request_guard import RequestGuard
from inference.upload_folder import UploadFolder


async def page(scope, receive, send):
    """Reads the whole request and answers with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("broken off")
        length, more = length + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"detail": str(length)}).encode()})


@pytest.fixture
def folder(tmp_path):
    with UploadFolder(10**6, tmp_path) as opened:
        yield opened


@pytest.fixture
def ask(folder):
    """A request, its body in parts; returns (status, what the answer says)."""

    def asked(*parts: bytes, path="/gradio_api/upload", method="POST", waits=False, **headers: str):
        sent = []
        given = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive():
            if waits:
                await asyncio.sleep(60)
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        pairs = [(name.encode(), value.encode()) for name, value in given.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs}
        guard = RequestGuard(page, host="vision.lab", allowed=["tunnel.example"], folder=folder, upload_bytes=500_000)
        asyncio.run(guard(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"])["detail"]

    return asked


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:7860", "origin": "http://localhost:7860"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "192.0.2.7", "origin": "http://192.0.2.7"},
        {"host": "VISION.lab:7860"},
        {"host": "tunnel.example", "origin": "https://tunnel.example"},
        {"origin": "https://tunnel.example"},  # a proxy names the host by the address that it asks
        {"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:7860"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},  # a link to the page
    ],
)
def test_requests_of_the_page_pass(ask, headers):
    assert ask(b"12345", **headers) == (200, "5")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": ""},
        {"host": "127.0.0.1.evil.example"},
        {"host": "[127.0.0.1"},
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "null"},
        {"host": "localhost:7860", "origin": "http://127.0.0.1:7860"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_of_other_sites_and_unknown_hosts_are_refused(ask, headers, method):
    assert ask(b"12345", method=method, **headers)[0] == 403


def test_bytes_are_bounded_whether_they_are_announced_or_not(ask, folder):
    assert ask(bytes(9), content_length="500001")[0] == 413
    assert ask(*[bytes(200_000)] * 3) == (413, "the request has too many bytes, or takes too long")
    assert ask(bytes(200_000), bytes(1), content_length="200000")[0] == 413
    assert ask(*[bytes(600_000)] * 2, path="/gradio_api/queue/join")[0] == 413
    assert ask(bytes(900_000), path="/gradio_api/queue/join") == (200, "900000")
    assert folder._reserved == 0


def test_uploads_beyond_the_quota_are_refused_until_there_is_space(ask, folder):
    assert folder.reserve(600_000)
    assert ask(b"x") == (507, "there is no space for more uploads at the moment; try again later")
    folder.release(600_000)
    assert ask(b"x") == (200, "1")


def test_an_upload_that_takes_too_long_ends(ask, folder, monkeypatch):
    monkeypatch.setattr(request_guard, "_LONGEST_UPLOAD", 0.05)
    assert ask(b"x", waits=True)[0] == 413 and folder._reserved == 0
