"""Only the file that was meant gets its name, and only HTTPS brings it."""

import contextlib
import hashlib
import multiprocessing
import os
import socket
import threading
import time

import pytest
from https_server import redirect, send, serving

from resnet_jax import download as module
from resnet_jax.download import RemoteFile, download

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Starts TLS servers whose certificates this process trusts."""
    with contextlib.ExitStack() as stack:

        def start(answer, *, trusted=True):
            base = stack.enter_context(serving(answer, tmp_path))
            if trusted:
                monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            return f"{base}/weights.pth"

        yield start


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "folder" / "weights.pth"


def remote(url, **change):
    return RemoteFile(**{"url": url, "sha256": DIGEST, "size": len(CONTENT), **change})


def leaves_nothing(target):
    return not target.parent.exists() or list(target.parent.iterdir()) == []


@pytest.mark.parametrize("length", [True, False], ids=["announced", "until the end"])
def test_the_right_file_gets_its_name(serve, target, length):
    assert download(remote(serve(send(CONTENT, length=length))), target) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_downloaded_file_has_the_permissions_of_any_other(serve, target, tmp_path):
    download(remote(serve(send(CONTENT))), target)
    (tmp_path / "other").touch()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    "known", [{"sha256": DIGEST[:8]}, {"sha256": DIGEST[:8], "size": None, "max_size": len(CONTENT)}]
)
def test_what_is_known_of_a_file_may_be_less_than_all(serve, target, known):
    assert download(remote(serve(send(CONTENT)), **known), target).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "known, message",
    [
        ({"sha256": "0" * 64}, f"expected {len(CONTENT)} bytes with sha256 {'0' * 64}, found {len(CONTENT)} bytes"),
        ({"sha256": "0" * 8}, f"sha256 00000000..., found {len(CONTENT)} bytes with sha256 {DIGEST}"),
        ({"size": len(CONTENT) + 1}, f"expected {len(CONTENT) + 1} bytes .* found {len(CONTENT)} bytes with"),
        ({"size": 100}, f"expected 100 bytes .* found {len(CONTENT)} bytes announced"),
        ({"size": None, "max_size": 100}, f"expected at most 100 bytes .* found {len(CONTENT)} bytes announced"),
    ],
)
def test_a_wrong_file_is_refused_and_leaves_nothing(serve, target, known, message):
    with pytest.raises(ValueError, match=rf"^https://127.0.0.1:\d+/weights.pth: .*{message}"):
        download(remote(serve(send(CONTENT)), **known), target)
    assert leaves_nothing(target)


def test_an_endless_stream_is_cut_off(serve, target, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1000)
    synced = []
    monkeypatch.setattr(module.os, "fsync", synced.append)

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1000))

    with pytest.raises(ValueError, match=r"found more than 10240 bytes"):
        download(remote(serve(answer)), target)
    assert leaves_nothing(target) and synced == []


def test_a_transfer_that_breaks_off_is_no_download(serve, target):
    url = serve(send(CONTENT[:5000], announced=len(CONTENT)))
    with pytest.raises(ConnectionError, match="it broke off after 5000 of 10240 bytes; fetch it by other means"):
        download(remote(url, sha256=hashlib.sha256(CONTENT[:5000]).hexdigest(), size=None, max_size=20_000), target)
    assert leaves_nothing(target)


def test_a_missing_file_is_answered_with_the_way_around(serve, target):
    url = serve(lambda handler: handler.send_error(404))
    with pytest.raises(ConnectionError) as error:
        download(remote(url), target)
    assert url in str(error.value) and "404" in str(error.value)
    assert str(error.value).endswith(f"fetch it by other means and put it at {target}")
    with pytest.raises(ConnectionError, match="fetch it by other means and give it as --source=FILE$"):
        download(remote(url), target, by_hand="give it as --source=FILE")
    assert leaves_nothing(target)


def test_redirects_to_https_are_followed(serve, target):
    def answer(handler):
        (send(CONTENT) if handler.path == "/other" else redirect("/other"))(handler)

    assert download(remote(serve(answer)), target).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_to_http_are_refused(serve, target, code):
    asked = []

    def insecure(handler):
        asked.append(handler.path)
        send(CONTENT)(handler)

    with serving(insecure) as base:
        with pytest.raises(ConnectionError, match=f"it redirects to {base}/x, which is not https"):
            download(remote(serve(redirect(f"{base}/x", code))), target)
    assert asked == [] and leaves_nothing(target)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_to_anything_else_are_refused(serve, target, url):
    with pytest.raises(ConnectionError, match="cannot download https://127.0.0.1"):
        download(remote(serve(redirect(url))), target)
    assert leaves_nothing(target)


def test_a_certificate_of_nobody_known_is_refused(serve, target):
    with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        download(remote(serve(send(CONTENT), trusted=False)), target)
    assert leaves_nothing(target)


def test_a_certificate_for_another_name_is_refused(serve, target):
    url = serve(send(CONTENT)).replace("127.0.0.1", "localhost")
    with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        download(remote(url), target)


@pytest.mark.parametrize("sends", [b"", CONTENT[:3000]], ids=["nothing", "a part"])
def test_a_silent_server_is_left(serve, target, sends):
    done = threading.Event()

    def answer(handler):
        send(sends, announced=len(CONTENT))(handler)
        done.wait(20)

    started = time.monotonic()
    try:
        with pytest.raises(ConnectionError, match="timed out"):
            download(remote(serve(answer)), target, timeout_seconds=0.3)
    finally:
        done.set()
    assert time.monotonic() - started < 5 and leaves_nothing(target)


def test_a_server_that_drips_is_left(serve, target, monkeypatch):
    monkeypatch.setattr(module, "_SLOWEST_BYTES_PER_SECOND", 1000)

    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    started = time.monotonic()
    with pytest.raises(ConnectionError, match=r"\d+ bytes in \d+ s are too slow"):
        download(remote(serve(answer)), target, timeout_seconds=0.3)
    assert time.monotonic() - started < 5 and leaves_nothing(target)


def _drip(start, end):
    """An answer with a silence before every byte in the middle."""

    def answer(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + start)
        for _ in range(500):
            handler.wfile.write(b"x")
            time.sleep(0.02)
        handler.wfile.write(end)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        _drip(b"Name: ", b"\r\n\r\n"),
        _drip(b"Transfer-Encoding: chunked\r\n\r\n5;name=", b"\r\nhello\r\n0\r\n\r\n"),
        _drip(b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nName: ", b"\r\n\r\n"),
    ],
    ids=["header", "length of a chunk", "trailer"],
)
def test_a_server_that_drips_around_the_content_is_left(serve, target, answer):
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="timed out"):
        download(remote(serve(answer)), target, timeout_seconds=0.3)
    assert time.monotonic() - started < 5 and leaves_nothing(target)


def test_redirects_have_one_time_for_all_of_them(serve, target):
    def answer(handler):
        time.sleep(0.2)
        redirect(f"{handler.path}x")(handler)

    started = time.monotonic()
    with pytest.raises(ConnectionError, match="timed out"):
        download(remote(serve(answer)), target, timeout_seconds=0.3)
    assert time.monotonic() - started < 1.5 and leaves_nothing(target)


def test_a_handshake_after_a_redirect_has_the_time_that_is_left(serve, target):
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def answer(handler):
            time.sleep(0.9)
            redirect(f"https://127.0.0.1:{silent.getsockname()[1]}/x")(handler)

        started = time.monotonic()
        with pytest.raises(ConnectionError, match="timed out"):
            download(remote(serve(answer)), target, timeout_seconds=1.0)
        assert time.monotonic() - started < 1.6 and leaves_nothing(target)


def test_a_redirect_s_own_body_is_not_read(serve, target):
    def answer(handler):
        if handler.path == "/other":
            return send(CONTENT)(handler)
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n")
        while True:
            handler.wfile.write(bytes(1000))

    assert download(remote(serve(answer)), target, timeout_seconds=5.0).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "url",
    ["https://a..b/x", f"https://{'a' * 70}.org/x", "https://[::1/x", "https://ex\u00e4mple.invalid/x"],
    ids=["empty label", "long label", "bracket", "not ASCII"],
)
def test_redirects_to_what_is_no_address_are_refused(serve, target, url):
    base = serve(redirect(url))
    with pytest.raises(ConnectionError, match=f"cannot download {base}: .*fetch it by other means and put it at"):
        download(remote(base), target)
    assert leaves_nothing(target)


def test_a_length_of_thousands_of_digits_is_refused(serve, target):
    url = serve(send(b"", announced="9" * 5000))
    with pytest.raises(ConnectionError, match=f"cannot download {url}: it announces a length of 5000 characters"):
        download(remote(url), target)
    assert leaves_nothing(target)


def test_nobody_there_is_a_connection_error(target):
    with pytest.raises(ConnectionError, match="cannot download https://127.0.0.1:9/weights.pth: .*refused"):
        download(remote("https://127.0.0.1:9/weights.pth"), target)
    assert leaves_nothing(target)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_download_leaves_nothing_and_hides_nothing(serve, target, monkeypatch, error):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1000)

    class Bar(module.tqdm):
        def update(self, n=1):
            if self.total and n:
                raise error

    monkeypatch.setattr(module, "tqdm", Bar)
    with pytest.raises(error if isinstance(error, type) else OSError) as found:
        download(remote(serve(send(CONTENT))), target)
    assert not isinstance(found.value, ConnectionError)
    assert leaves_nothing(target)


def test_a_file_that_is_there_is_checked_and_used_without_a_server(target):
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    nowhere = remote("https://127.0.0.1:9/weights.pth")
    assert download(nowhere, target) == target
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(
        ValueError, match=f"{target} is not weights.pth from .*expected 10240 bytes .*found 10239 bytes"
    ):
        download(nowhere, target)
    target.write_bytes(CONTENT)
    with pytest.raises(ValueError, match="expected at most 10239 bytes .*found 10240 bytes"):
        download(remote(nowhere.url, size=None, max_size=len(CONTENT) - 1), target)
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(ConnectionError):
        download(nowhere, target, replace=True)
    assert target.read_bytes() == CONTENT[:-1] and list(target.parent.iterdir()) == [target]


def test_a_wrong_file_is_replaced_when_that_is_asked_for(serve, target):
    target.parent.mkdir(parents=True)
    target.write_bytes(b"damaged")
    with target.open("rb") as reader:
        download(remote(serve(send(CONTENT))), target, replace=True)
        # Whoever reads the old one is not given a mixture.
        assert reader.read() == b"damaged"
    assert target.read_bytes() == CONTENT


def _download(url, certificates, target, results):
    os.environ["SSL_CERT_FILE"] = certificates
    results.put(download(remote(url), target).read_bytes() == CONTENT)


def test_two_processes_at_once_both_get_it(serve, target):
    both = threading.Barrier(2)

    def answer(handler):
        both.wait(30)
        send(CONTENT)(handler)

    url = serve(answer)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (url, os.environ["SSL_CERT_FILE"], target, results)
    processes = [context.Process(target=_download, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"url": "http://example.org/x.pth"}, "url='http://example.org/x.pth' must begin with https://"),
        ({"url": "file:///x.pth"}, "must begin with https://"),
        ({"url": "x.pth"}, "must begin with https://"),
        ({"url": "https://example.org/"}, "must end in a plain file name"),
        ({"url": "https://example.org/.."}, "must end in a plain file name"),
        ({"url": "https://example.org/a%2fb"}, "must end in a plain file name"),
        ({"sha256": DIGEST[:7]}, "must be 8 to 64 digits"),
        ({"sha256": DIGEST + "0"}, "must be 8 to 64 digits"),
        ({"sha256": DIGEST.upper()}, "must be 8 to 64 digits"),
        ({"size": None}, "size=None and max_size=None: one of the two must be given"),
        ({"max_size": 100}, "one of the two must be given"),
        ({"size": 0}, "at least 1"),
        ({"size": None, "max_size": -1}, "at least 1"),
    ],
)
def test_what_makes_no_remote_file_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        remote(**{"url": "https://example.org/x.pth?download=true", **change})


def test_the_file_name_is_the_last_part_of_the_path():
    assert remote("https://example.org/a/b-1.2_c.pth?download=true").file_name == "b-1.2_c.pth"
