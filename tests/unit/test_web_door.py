"""The page's door is the server's: other names, other sites and large bodies stay outside."""

import contextlib
import re
import signal
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from znatok.config import ServeOptions, WebOptions
from znatok.errors import SystemFault, UsageError
from znatok.serve.run import allowed_hosts
from znatok.web.run import UPLOAD, build_app, web

PATHS = ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data", "/health", "/nothing")


SCRIPT = b"<script>document.title = 'stolen'</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def door(folder):
    with opened(folder) as door:
        yield door


@contextlib.contextmanager
def opened(folder):
    """The page of a folder, as a browser on this computer reaches it."""
    app, studio = build_app(folder, None, allowed_hosts(ServeOptions()))
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


@pytest.mark.parametrize("name", ["evil/x.html", "mine/adapter_model.safetensors", ".web/train.log"])
def test_no_file_of_the_folder_is_told_by_its_path(door, folder, name):
    """All of runs was served, pages among it: their scripts ran as the page's own, with its rights."""
    path = folder / "runs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SCRIPT)
    for asked in (path, f"%2f{path}", f"/../..{path}", f"runs/{name}", path.as_uri()):
        for gate in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
            answer = door.get(f"{gate}{asked}", headers={"Accept": "text/html"})
            assert answer.status_code == 404, asked
            assert b"stolen" not in answer.content
            assert "sha256" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.js", "x.txt", "x.png"])
def test_an_uploaded_file_has_no_rights(door, name):
    """It is served, for pictures are; opened as a page, where a browser would, it runs nothing and is of no origin."""
    (path,) = door.post("/gradio_api/upload", files={"files": (name, SCRIPT)}).json()
    answer = door.get(f"/gradio_api/file={path}", headers={"Accept": "text/html"})
    assert answer.content == SCRIPT
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["content-type"].partition(";")[0] in {"application/octet-stream", "text/plain", "image/png"}


def test_uploads_lie_where_nobody_else_could_have_made_the_folder(tmp_path, monkeypatch):
    """Gradio serves all that lies in /tmp/gradio, and whoever made that first could have it mean somebody's home."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "key.txt").write_text("correct horse battery", encoding="utf-8")
    (tmp_path / "gradio").symlink_to(home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with opened(tmp_path / "page") as door:
        assert door.get(f"/gradio_api/file={home}/key.txt").status_code == 404
        (path,) = door.post("/gradio_api/upload", files={"files": ("x.txt", b"x")}).json()
    kept = Path(path).parents[1]
    assert kept.parent == tmp_path
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "asked",
    [
        "file=https://elsewhere.invalid/x.png",
        "file=HTTPS://elsewhere.invalid/x.png",
        "file=http%3A%2F%2Felsewhere.invalid/x.png",
        "file=%68ttps://elsewhere.invalid/x.png",
        "file=//elsewhere.invalid/x.png",
        "file%3Dhttps://elsewhere.invalid/x.png",
        "file/https://elsewhere.invalid/x.png",
        "proxy=https://elsewhere.hf.space/x.png",
    ],
)
def test_no_address_is_fetched_for_anybody(door, monkeypatch, asked):
    """Any page in the browser could have the server fetch what it named, by a picture of that address."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked for an address"))
    for method in ("GET", "HEAD"):
        answer = door.request(method, f"/gradio_api/{asked}")
        assert answer.status_code == 404
        assert answer.content in {b"Not Found", b""}


UNNEEDED = (
    *("api/typed", "call/typed", "call/v2/typed", "component_server", "custom_component/x/client/x/x.js", "deep_link"),
    *("file", "info", "login_check", "openapi.json", "process_recording", "profiling/traces", "run/typed"),
    *("queue/status", "run-history/records", "runs", "startup-events", "stream/x", "token", "user", "vibe-code/"),
    *("vibe-edit", "../logout", "../monitoring", "../monitoring/summary", "../robots.txt", "../svelte/x.js", "../docs"),
)


@pytest.mark.parametrize("asked", UNNEEDED)
def test_of_gradio_there_is_only_what_the_page_asks_for(door, asked):
    path = asked.removeprefix("..") if asked.startswith("..") else f"/gradio_api/{asked}"
    for method in ("GET", "POST"):
        answer = door.request(method, path)
        assert (answer.status_code, answer.content) == (404, b"Not Found")


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
        try:
            pages.append(socket.create_connection(("127.0.0.1", int(url[1])), timeout=20))
            pages[0].sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert pages[0].recv(100).startswith(b"HTTP/1.1 200 OK")
        finally:
            signal.raise_signal(signal.SIGINT)

    page = threading.Thread(target=open_page, daemon=True)  # where the page does not come, nobody waits for this
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
