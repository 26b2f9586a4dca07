"""The page's door is the server's: other names, other sites and large bodies stay outside."""

import re
import signal
import socket
import threading
import time

import pytest
from starlette.testclient import TestClient

from znatok.config import ServeOptions, WebOptions
from znatok.errors import SystemFault, UsageError
from znatok.serve.run import allowed_hosts
from znatok.web.run import UPLOAD, build_app, web

PATHS = ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data", "/health", "/nothing")


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    app, studio = build_app(tmp_path_factory.mktemp("page"), None, allowed_hosts(ServeOptions()))
    yield TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
    studio.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "localhost/evil"}, 400),
        ({"Host": "localhost:80@evil.example"}, 400),
        ({"Host": ""}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
    ids=str,
)
def test_the_page_is_told_to_nobody_else(door, path, headers, status):
    for method in ("GET", "OPTIONS"):  # a preflight; Gradio would allow it to any site on this computer
        more = {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
        answer = door.request(method, path, headers={**headers, **more})
        assert answer.status_code == status
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_page_is_there_for_this_computer(door):
    for name in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        answer = door.get("/", headers={"Host": name})
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_upload_has_an_end(door):
    def endless():
        for _number in range(UPLOAD // (1 << 20) + 1):
            yield b" " * (1 << 20)

    assert door.post("/gradio_api/upload", headers={"Content-Length": str(UPLOAD + 1)}).status_code == 413
    assert door.post("/gradio_api/upload", content=endless()).status_code == 413


def test_an_open_page_does_not_keep_the_server_from_stopping(tmp_path, monkeypatch, capfd):
    """A page always has a request that is never answered to its end: Gradio's heartbeat."""
    monkeypatch.setattr("znatok.web.run.PATIENCE", 0.2)
    monkeypatch.setattr("znatok.serve.server.FAREWELL", 0.2)
    monkeypatch.chdir(tmp_path)
    pages, said = [], []

    def open_page():
        while not (url := re.search(r"http://127.0.0.1:(\d+) in", "".join(said))):
            time.sleep(0.01)
            said.append(capfd.readouterr().err)
        pages.append(socket.create_connection(("127.0.0.1", int(url[1])), timeout=20))
        pages[0].sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert pages[0].recv(100).startswith(b"HTTP/1.1 200 OK")
        signal.raise_signal(signal.SIGINT)

    page = threading.Thread(target=open_page)
    page.start()
    web(WebOptions(port=0))
    page.join()
    pages[0].close()
    assert capfd.readouterr().err == "stopped\n"


def test_a_page_that_can_not_be_served_is_told_in_a_line(monkeypatch):
    monkeypatch.delenv("ZNATOK_API_KEY", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemFault, match=r"can't listen there .Address already in use"):
            web(WebOptions(port=taken.getsockname()[1]))
    with pytest.raises(UsageError, match="others can reach it, so a key is needed"):
        web(WebOptions(host="192.0.2.1", port=0))
    monkeypatch.setenv("ZNATOK_API_KEY", "correct horse battery")
    with pytest.raises(SystemFault, match=r"192.0.2.1:0: can't listen there .Cannot assign requested address"):
        web(WebOptions(host="192.0.2.1", port=0))
