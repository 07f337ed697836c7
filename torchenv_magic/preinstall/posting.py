"""Tell the hub what a person waits for, by the one address that each spawner's server can reach."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from torchenv_magic.preinstall.record import Record

if TYPE_CHECKING:
    import ssl

__all__ = ["Poster"]

_LONGEST = 200
_EACH_SECONDS = 1.2
_APART_SECONDS = 0.6
_LAST_SECONDS = 1.5
_TIMEOUT_SECONDS = 3.0
_MOST_FAILURES = 3


class Poster:
    """Posts what is new once a second, in a thread that nobody waits for.

    The first answer that says that nobody listens there ends it: an older hub, or one that was not
    set up for it.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._latest: tuple[str, float | None] | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        address = environ.get("JUPYTERHUB_API_URL", "")
        self._is_asked = address.startswith(("http://", "https://")) and bool(
            environ.get("JUPYTERHUB_API_TOKEN")
        )

    def tell(self, record: Record) -> None:
        """Take what is to be posted next."""
        if not self._is_asked or not record.message:
            return
        hint = f" (hint: {record.hint})" if record.hint else ""
        self._latest = f"{record.message}{hint}"[:_LONGEST], record.fraction
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._post_all, name="torchenv-post", daemon=True
            )
            self._thread.start()

    def finish(self, record: Record | None) -> None:
        """Post how it ended, where it has: for a moment, since the server waits now."""
        if record is not None and record.status != "running":
            self.tell(record)
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)

    def _post_all(self) -> None:
        told = None
        failures = 0
        while failures < _MOST_FAILURES:
            is_last = self._stopped.is_set()
            latest = self._latest
            if latest is not None and latest != told:
                status = self._post(*latest)
                if status in (403, 404):
                    return
                failures = 0 if status else failures + 1
                told = latest
            if is_last:
                return
            # The hub takes no more than two a second, and the last one is to be among them.
            self._stopped.wait(_EACH_SECONDS - _APART_SECONDS)
            time.sleep(_APART_SECONDS)

    def _post(self, message: str, fraction: float | None) -> int:
        """Return the status of the answer; 0 where there was none. Asks no proxy."""
        import http.client

        parts = urlsplit(self._environ["JUPYTERHUB_API_URL"].rstrip("/") + "/torchenv/progress")
        connection: http.client.HTTPConnection | None = None
        try:
            if parts.scheme == "https":
                connection = http.client.HTTPSConnection(
                    parts.hostname or "",
                    parts.port,
                    timeout=_TIMEOUT_SECONDS,
                    context=self._context(),
                )
            else:
                connection = http.client.HTTPConnection(
                    parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS
                )
            connection.request(
                "POST",
                parts.path,
                body=json.dumps({"message": message, "fraction": fraction}),
                headers={
                    "Authorization": f"token {self._environ['JUPYTERHUB_API_TOKEN']}",
                    "Content-Type": "application/json",
                },
            )
            return connection.getresponse().status
        except (OSError, ValueError, http.client.HTTPException):
            return 0
        finally:
            if connection is not None:
                connection.close()

    def _context(self) -> ssl.SSLContext:
        """Return who is trusted, and who we are, where the hub encrypts within its own house."""
        import ssl

        authority = self._environ.get("JUPYTERHUB_SSL_CLIENT_CA") or None
        context = ssl.create_default_context(cafile=authority)
        certificate = self._environ.get("JUPYTERHUB_SSL_CERTFILE")
        key = self._environ.get("JUPYTERHUB_SSL_KEYFILE")
        if certificate and key:
            context.load_cert_chain(certificate, key)
        return context
