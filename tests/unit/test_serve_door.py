"""The server's door: names, keys and origins; headers, bodies and pauses that never end."""

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import serving
from serving import Paced, asked, open_service, raw, running, served, wait_until
from znatok.serve.guard import LARGEST

KEY = "correct horse battery"
ORDER = {"model": "base", "messages": [{"role": "user", "content": "Что такое PLA?"}]}
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return serving.write_world(tmp_path_factory.mktemp("door"), names=())[0]


@pytest.fixture(scope="module")
def door(base):
    with running(open_service(base, None)) as found:
        yield found


@pytest.fixture(scope="module")
def url(door):
    return door[1]


@pytest.fixture(scope="module")
def locked(base):
    with served(open_service(base, None), key=KEY) as address:
        yield address


def dialled(url):
    """Return a bare connection."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def exchanged(url, data):
    """Send bytes as they are; return all that comes back until the server closes the connection."""
    with dialled(url) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


# Keys


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", "Bearer ключ".encode(),
     "Bearer " + "x" * 60_000],
    ids=lambda given: repr(given)[:20],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/health/"), ("GET", "//health"),
     ("GET", "/health/../v1/models"), ("POST", "/v1/chat/completions")],
)  # fmt: skip
def test_without_the_key_nothing_but_health_is_told(locked, method, path, given):
    status, headers, body = raw(locked, method, path, **({} if given is None else {"Authorization": given}))
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    error = json.loads(body)["error"]
    assert error.pop("message").startswith("no valid API key")
    assert error == {"type": "authentication_error", "param": None, "code": "invalid_api_key"}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"Bearer {KEY[:3]}\r\n {KEY[3:]}", 401),  # a folded line, read with a space in it
        (f"Bearer x\r\nAuthorization: Bearer {KEY}", 401),  # the first one counts
        (f"Bearer \r{KEY}", 400),
        (f"Bearer {KEY}\0", 400),
        (f"Bearer {KEY}\r\nHost: localhost", 400),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_key_with_a_line_break_opens_nothing(locked, given, status):
    data = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {given}\r\n\r\n"
    assert exchanged(locked, data.encode()).startswith(b"HTTP/1.1 %d " % status)
    assert raw(locked, "GET", "/health")[0] == 200


def test_a_header_without_end_is_not_read_to_it(door):
    server, url = door
    with dialled(url) as endless, pytest.raises(ConnectionError):
        endless.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + b"x" * (64 << 20))
    assert raw(url, "GET", "/health")[0] == 200
    wait_until(lambda: not server.server_state.connections)


# Names and origins


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example/", "localhost/evil", "localhost?x", "localhost#x",
     "evil@localhost", "localhost:80@evil.example", "[::1]evil", "::1", ""],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/openapi.json", "/nothing"])
def test_by_another_name_nothing_is_told(url, path, host):
    status, _headers, body = raw(url, "GET", path, Host=host)
    assert (status, json.loads(body)["error"]["code"]) == (400, "host_not_allowed")


@pytest.mark.parametrize(
    ("request_line", "headers"),
    [
        (b"GET /health HTTP/1.0", b""),
        (b"GET /health HTTP/1.1", b""),
        (b"GET /health HTTP/1.1", b"Host: localhost\r\nHost: evil.example\r\n"),
        (b"GET http://localhost/health HTTP/1.1", b"Host: evil.example\r\nConnection: close\r\n"),
    ],
)
def test_without_a_name_or_with_two_nothing_is_told(url, request_line, headers):
    assert exchanged(url, request_line + b"\r\n" + headers + b"\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://evil.example", 403), ("null", 403), ("", 403), ("http://localhost.evil.example", 403), (None, 405)],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health"])
def test_a_preflight_of_another_site_allows_nothing(url, path, origin, status):
    headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    if origin is not None:
        headers["Origin"] = origin
    found, answered, _body = raw(url, "OPTIONS", path, **headers)
    assert found == status
    assert not [name for name in answered if name.lower().startswith("access-control")]


# What never ends


def test_of_a_body_without_end_no_more_is_kept_than_may_come(door):
    server, url = door
    chunk = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
    with dialled(url) as endless:
        endless.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _number in range(LARGEST // (1 << 16) + 1):
            endless.sendall(chunk)
        assert endless.recv(100).startswith(b"HTTP/1.1 413 ")
        for _number in range(LARGEST // (1 << 16)):  # it goes on all the same
            endless.sendall(chunk)
        (connection,) = [one for one in server.server_state.connections if one.client == endless.getsockname()]
        assert len(connection.cycle.body) < 1 << 18
        assert raw(url, "GET", "/health")[0] == 200


SLOW = {
    "nothing is said": b"",
    "headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "headers after an answer": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nX-Slow: ",
    "a body": POST + b"Content-Length: 9999\r\n\r\n{",
    "a body nobody reads": b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n",
}


@pytest.mark.parametrize("begun", SLOW.values(), ids=SLOW)
def test_whoever_speaks_a_letter_at_a_time_is_cut_off_and_others_are_answered_meanwhile(url, monkeypatch, begun):
    monkeypatch.setattr("znatok.serve.server.SLOWEST", 1.0)
    monkeypatch.setattr("znatok.serve.guard.SLOWEST", 1.0)
    ends, answered, heard, part = time.monotonic() + 60, [], False, b"?"
    with dialled(url) as slow:
        slow.sendall(begun)
        slow.settimeout(0.05)
        while part:
            assert time.monotonic() < ends, "it is still listened to"
            with contextlib.suppress(ConnectionError):  # a busy machine may be as slow to ask
                answered.append(raw(url, "GET", "/health")[0])
            with contextlib.suppress(ConnectionError):  # what came before the end can be read after it
                slow.sendall(b"x" if begun else b"")
            try:
                part = slow.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionError:  # how an end may look from here
                break
            heard = heard or part.startswith(b"HTTP/1.1 408 ")
    assert heard == (begun == SLOW["a body"])
    assert set(answered) == {200}


def test_an_answer_may_take_longer_than_a_request(base, monkeypatch):
    monkeypatch.setattr("znatok.serve.server.SLOWEST", 2.0)
    service = open_service(base, None)
    pace = Paced(service, monkeypatch)
    with served(service) as url, ThreadPoolExecutor(2) as pool:
        bodies = [json.dumps({**ORDER, "max_tokens": 8, "stream": stream}).encode() for stream in (False, True)]
        asking = [pool.submit(raw, url, body=body) for body in bodies]
        wait_until(lambda: service.dispatcher.running == 2)
        time.sleep(2.5)
        pace.go()
        for one in asking:
            status, _headers, body = one.result()
            assert status == 200
            assert b"finish_reason" in body


def test_a_connection_that_is_gone_is_forgotten(door):
    server, url = door
    for _number in range(20):
        with dialled(url) as brief:
            brief.sendall(b"GET /hea")
        assert asked(url, {**ORDER, "model": "none"})[0] == 404
    wait_until(lambda: not server.server_state.connections and not server.server_state.tasks)
