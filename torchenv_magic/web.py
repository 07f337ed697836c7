"""Asking a server, by the proxy and the certificates that uv would take.

Importing this takes urllib and ssl along: who only may have to ask imports it when it does.
"""

from __future__ import annotations

import base64
import logging
import netrc
import os
import re
import ssl
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from http.client import (
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
)
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from torchenv_magic import __version__

__all__ = [
    "REQUEST_ERRORS",
    "AnswerError",
    "keep_login",
    "kept_login",
    "open_address",
    "read_body",
    "reason_words",
    "trusted_certificates",
    "without_login",
]

logger = logging.getLogger(__name__)

# A server that speaks no HTTP, a proxy's address with a port that is no number.
REQUEST_ERRORS = (OSError, HTTPException, ValueError)

_SECONDS = 5.0


# Not in any record: those are printed, turned into JSON and kept on disk. What was told once in
# this process, by the address of a mirror, is known to whatever asks that server later.
_logins: dict[tuple[str, str | None, int | None], tuple[str, str]] = {}

_USERINFO = re.compile(r"(?<=://)[^/\s?#@]*(?:@[^/\s?#@]*)*@")


# Up to the last @: a password there may hold what is no part of a login in an address.
_MIRROR = re.compile(r"(--index-base(?:=|\s+)[\"']?[A-Za-z][\w+.-]*://)\S*@")
_SECRET = re.compile(
    r"([?&](?:X-Amz-[\w-]+|sig|signature|[\w-]*token|[\w-]*key[\w-]*)=)[^&#\s\"'`<>]+",
    re.IGNORECASE,
)


def without_login(text: str) -> str:
    """Return the text with every address in it shorn of its login, and of what signs it.

    >>> without_login("see https://ada:secret@mirror.example/whl for more")
    'see https://mirror.example/whl for more'
    >>> without_login("https://bucket.example/whl?sig=secret&part=1")
    'https://bucket.example/whl?sig=…&part=1'
    """
    return _SECRET.sub(r"\1…", _USERINFO.sub("", _MIRROR.sub(r"\1", text)))


def keep_login(address: str, login: tuple[str, str] | None = None) -> str:
    """Keep the login for the server of `address`, or the one in it; return it without one."""
    parts = urlsplit(address)
    if login is None and parts.username is not None:
        login = unquote(parts.username), unquote(parts.password or "")
    bare = _USERINFO.sub("", address)
    if login is not None:
        _logins[_origin(bare)] = login
    return bare


def kept_login(address: str) -> tuple[str, str] | None:
    """Return the user and password that were kept for the server of `address`."""
    return _logins.get(_origin(address))


def _login(address: str) -> tuple[str, str] | None:
    """Return what to log in with: what was kept, else what the person's netrc has, as uv does."""
    if (kept := kept_login(address)) is not None:
        return kept
    host = urlsplit(address).hostname
    if host is None:
        return None
    try:
        named = os.environ.get("NETRC")
        name = "_netrc" if sys.platform == "win32" else ".netrc"
        file = Path(named) if named else Path.home() / name
        # Not its entry for all others: that one would go to servers nobody thought of.
        found = netrc.netrc(str(file)).hosts.get(host) if file.is_file() else None
    except (OSError, RuntimeError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        # Its words quote the file, which is made of secrets.
        logger.info("netrc is not read: %s", type(error).__name__)
        return None
    return (found[0], found[2] or "") if found is not None else None


class AnswerError(ValueError):
    """An answer whose body is not to be used; the message is ours, and may be shown."""


def open_address(
    address: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = _SECONDS,
) -> AbstractContextManager[HTTPResponse]:
    """Ask an http or https address; `timeout_seconds` is that of each wait, not of all of them.

    Not by `urlopen`: what the person's session has installed there is not for us.

    Raises
    ------
    urllib.error.HTTPError
        The server answers with an error, or with 304 to a conditional request.
    OSError, HTTPException, ValueError
        `REQUEST_ERRORS`: it is not reached, or speaks no HTTP.
    """
    parts = urlsplit(address)
    sent = {"User-Agent": f"torchenv_magic/{__version__}", **(headers or {})}
    login = _login(address)
    if parts.username is not None:
        login = unquote(parts.username), unquote(parts.password or "")
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if login is not None:
        sent["Authorization"] = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
    request = urllib.request.Request(address, method=method, headers=sent)  # noqa: S310
    response: AbstractContextManager[HTTPResponse] = _opener().open(
        request, timeout=timeout_seconds
    )
    return response


def _opener() -> urllib.request.OpenerDirector:
    proxies = urllib.request.getproxies()
    if "all" in proxies:
        # uv's word, and curl's; urllib reads it and does nothing with it.
        proxies = {"http": proxies["all"], "https": proxies["all"], **proxies}
    opener = urllib.request.OpenerDirector()
    # Those of `build_opener` without the ones for files, ftp and data: it lets a server redirect to
    # ftp, and since Python 3.12 it reads the machine's certificates even where none is needed.
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        _EncryptedHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _RedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _EncryptedHandler(urllib.request.AbstractHTTPHandler):
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        context = _trust(*trusted_certificates(os.environ))
        return self.do_open(HTTPSConnection, request, context=context)


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Take no login to another server."""

    def redirect_request(  # noqa: PLR0917  (urllib's)
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(newurl) != _origin(req.full_url):
            request.remove_header("Authorization")
        if request is not None:
            # The login for the proxy: put on anew where the new address goes through it too.
            request.remove_header("Proxy-authorization")
        return request


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


def trusted_certificates(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the file and the folder of certificates that are trusted here; empty for none.

    A site that inspects TLS tells its own to pip and requests as a rule, by the variables that uv
    does not read.
    """
    file, directory = environ.get("SSL_CERT_FILE", ""), environ.get("SSL_CERT_DIR", "")
    if file or directory or "UV_SYSTEM_CERTS" in environ:
        return file, directory
    for name in ("REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE"):
        named = environ.get(name, "")
        if named and Path(named).is_file():
            return named, ""
        if named and Path(named).is_dir():
            return "", named
    return "", ""


_reading_certificates = threading.Lock()


def _trust(file: str, directory: str) -> ssl.SSLContext:
    # One thread reads, the others wait for what it read.
    with _reading_certificates:
        return _read_trust(file, directory)


@lru_cache(maxsize=2)
def _read_trust(file: str, directory: str) -> ssl.SSLContext:
    # Kept, since reading a machine's certificates takes 30 ms, for each of thirty files.
    context = ssl.create_default_context()
    # uv reads these too; OpenSSL reads them only where it was not built with other paths.
    if file and Path(file).exists():
        context.load_verify_locations(cafile=file)
    if directory and Path(directory).exists():
        context.load_verify_locations(capath=directory)
    return context


def reason_words(reason: object) -> str:
    """Return why a request failed, in the system's own words where it has some."""
    return (reason.strerror or str(reason)) if isinstance(reason, OSError) else str(reason)


def read_body(response: HTTPResponse, *, limit: int, deadline: float) -> bytes:
    """Return the whole body, unpacked where it came packed.

    Parameters
    ----------
    limit
        In bytes, packed and unpacked.
    deadline
        On the monotonic clock: a server may send a byte now and then for ever.

    Raises
    ------
    AnswerError
        It is longer, later, or ends early.
    OSError, HTTPException
        The connection broke.
    """
    parts: list[bytes] = []
    length = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        length += len(part)
        if length > limit:
            raise _too_long(limit)
        if time.monotonic() > deadline:
            message = "the answer takes too long"
            raise AnswerError(message)
    # `read1` takes the end of the connection for the end of the body.
    announced = response.headers["Content-Length"]
    if announced is not None and announced.isdecimal() and length != int(announced):
        raise _ends_early()
    body = b"".join(parts)
    if response.headers["Content-Encoding"] != "gzip":
        return body
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        message = "the answer is not packed as it says"
        raise AnswerError(message) from error
    if len(plain) > limit:
        raise _too_long(limit)
    if not unpacker.eof:
        raise _ends_early()
    return plain


def _too_long(limit: int) -> AnswerError:
    return AnswerError(f"the answer is longer than {limit:,} bytes")


def _ends_early() -> AnswerError:
    return AnswerError("the answer ends early")
