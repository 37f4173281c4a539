"""Downloads of files known beforehand: by HTTPS alone, never more than expected, checked before they get a name."""

import contextlib
import hashlib
import http.client
import os
import re
import secrets
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import urlsplit

from tqdm import tqdm

from resnet_jax import __version__

_BLOCK_BYTES = 2**20
_SLOWEST_BYTES_PER_SECOND = 10_000
_LONGEST_LENGTH = 20  # digits of a Content-Length; int() refuses thousands


@dataclass(frozen=True)
class RemoteFile:
    """One published file, and how to know that it is the one.

    Attributes:
      url: where it is, https://.../NAME.
      sha256: its SHA-256 in hexadecimal, or the first 8 digits of it or more, where no more is known. Eight digits find
        a damaged file, but a wrong one that was made to have them passes.
      size: its bytes; None where they are not known.
      max_size: more bytes than it has for certain, where `size` is None.

    Raises:
      ValueError: one of them is not as said here.
    """

    url: str
    sha256: str
    size: int | None = None
    max_size: int | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme != "https":
            raise ValueError(f"url={self.url!r} must begin with https://")
        if not re.fullmatch(r"\w[\w.+-]*", self.file_name, re.ASCII):
            raise ValueError(f"url={self.url!r} must end in a plain file name")
        if not re.fullmatch(r"[0-9a-f]{8,64}", self.sha256):
            raise ValueError(f"sha256={self.sha256!r} must be 8 to 64 digits of 0123456789abcdef")
        if (self.size is None) == (self.max_size is None):
            raise ValueError(f"size={self.size!r} and max_size={self.max_size!r}: one of the two must be given")
        if self.most_bytes < 1:
            raise ValueError(f"a size of {self.most_bytes} bytes; at least 1 is allowed")

    @property
    def file_name(self) -> str:
        """The last part of the URL's path."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def most_bytes(self) -> int:
        """What it has at most."""
        return (self.max_size or 0) if self.size is None else self.size

    def check(self, path: Path) -> None:
        """Checks that a file on the disk is this one.

        Raises:
          OSError: it is not there or cannot be read.
          ValueError: its size or SHA-256 differs; the message gives both, expected and found.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not self._matches(path.stat().st_size, digest):
            where = f"{path} is not {self.file_name} from {self.url}"
            self._refuse(where, f"{path.stat().st_size} bytes with sha256 {digest}")

    def _matches(self, size: int, digest: str) -> bool:
        return size <= self.most_bytes and self.size in (None, size) and digest.startswith(self.sha256)

    def _refuse(self, where: str, found: str) -> NoReturn:
        size = f"at most {self.max_size}" if self.size is None else self.size
        digest = self.sha256 if len(self.sha256) == 64 else f"{self.sha256}..."
        raise ValueError(f"{where}: expected {size} bytes with sha256 {digest}, found {found}")


def download(
    remote: RemoteFile,
    target: Path,
    *,
    by_hand: str | None = None,
    replace: bool = False,
    timeout_seconds: float = 60.0,
) -> Path:
    """Downloads a file, unless it is there already, and shows how far it is.

    It gets its name when size and checksum were found right and it is on the disk; a failed or interrupted download
    leaves nothing. Any number of processes may download one file at once.

    Args:
      remote: the file.
      target: the path it gets; folders that are missing are made.
      by_hand: for the error, what to do with the file when it was fetched by other means; None is to put it at
        `target`.
      replace: whether a file that is there is replaced; otherwise it is checked, and used.
      timeout_seconds: how long connecting, or a silence of the server, may last. On the whole, from the first moment
        to the last, it has this time and a second for every 10 kB of the file that it has sent.

    Returns:
      `target`.

    Raises:
      ConnectionError: the server cannot be reached, is too slow, breaks off, or redirects to anything but HTTPS or to
        what is no address.
      ValueError: size or checksum is wrong, of the download or of the file already there.
      OSError: the file cannot be written.
    """
    if target.exists() and not replace:
        remote.check(target)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name is this download's own: two that run at once must not write to one file.
    part = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            _receive(remote, file, by_hand or f"put it at {target}", timeout_seconds)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _receive(remote: RemoteFile, file: BinaryIO, by_hand: str, seconds: float) -> None:
    digest, size = hashlib.sha256(), 0
    bar = tqdm(total=remote.size, unit="B", unit_scale=True, desc=remote.file_name, disable=None)
    with bar, contextlib.closing(_blocks(remote, by_hand, seconds)) as blocks:
        for block in blocks:
            size += len(block)
            if size > remote.most_bytes:
                remote._refuse(remote.url, f"more than {remote.most_bytes} bytes")
            file.write(block)
            digest.update(block)
            bar.update(len(block))
    if not remote._matches(size, digest.hexdigest()):
        remote._refuse(remote.url, f"{size} bytes with sha256 {digest.hexdigest()}")


def _blocks(remote: RemoteFile, by_hand: str, seconds: float) -> Generator[bytes, None, None]:
    """What the server sends; its failures, and no others, become a ConnectionError."""
    clock = _Clock(seconds)
    try:
        with _open(remote.url, clock) as response:
            announced = _announced_bytes(response)
            if announced is not None and announced > remote.most_bytes:
                remote._refuse(remote.url, f"{announced} bytes announced by the server")
            # `read` would wait for a whole block, however slowly it comes.
            while clock.received != announced and (block := response.read1(_BLOCK_BYTES)):
                clock.received += len(block)
                yield block
            if announced is not None and clock.received < announced:
                raise ConnectionError(f"it broke off after {clock.received} of {announced} bytes")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise ConnectionError(
            f"cannot download {remote.url}: {error}; fetch it by other means and {by_hand}"
        ) from error


def _announced_bytes(response: Any) -> int | None:
    length = response.headers.get("Content-Length") or ""
    if len(length) > _LONGEST_LENGTH:
        raise ConnectionError(f"it announces a length of {len(length)} characters")
    return int(length) if length.isdecimal() else None


class _Clock:
    """The time a transfer may take: some seconds, and more with every byte of the file that was received.

    Attributes:
      received: bytes of the file so far.
    """

    def __init__(self, seconds: float) -> None:
        self._started, self._seconds = time.monotonic(), seconds
        self.received = 0

    def left(self) -> float:
        """The seconds for what comes next; TimeoutError if there are none."""
        passed = time.monotonic() - self._started
        left = self._seconds + self.received / _SLOWEST_BYTES_PER_SECOND - passed
        if left <= 0:
            raise TimeoutError(f"timed out: {self.received} bytes in {passed:.0f} s are too slow")
        return min(self._seconds, left)


def _socket_class(clock: _Clock) -> type[ssl.SSLSocket]:
    """Sockets that keep to the clock in every single read.

    A server that drips would never run into a fixed limit for each, and what is read here alone sees no time pass in
    headers and the lengths of chunks.
    """

    class TimedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            self.settimeout(clock.left())
            super().do_handshake(block)

        def recv_into(self, *arguments: Any, **options: Any) -> int:
            self.settimeout(clock.left())
            try:
                return super().recv_into(*arguments, **options)
            except TimeoutError:
                clock.left()  # says that the whole time is over, if it is
                raise

    return TimedSocket


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, response: Any, code: Any, reason: Any, headers: Any, url: Any) -> Any:
        response.close()  # its body, which nobody needs, would be read whole
        if urlsplit(url).scheme != "https":
            raise ConnectionError(f"it redirects to {url}, which is not https")
        return super().redirect_request(request, response, code, reason, headers, url)


def _open(url: str, clock: _Clock) -> Any:
    context = ssl.create_default_context()
    context.sslsocket_class = _socket_class(clock)
    # Python's default opener also follows http, ftp and file.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=context),
        _HttpsRedirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", f"resnet-jax/{__version__}")]
    try:
        return opener.open(url, timeout=clock.left())
    except ValueError as error:  # also a UnicodeError, of a host name
        raise ConnectionError(f"it leads to what is no address: {error}") from error
