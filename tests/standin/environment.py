"""Say what a child process needs in its environment to meet the stand-in, and nothing else."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnvironment:
    """Hold the variables that lead a child to the stand-in, and those that would lead it away."""

    set: Mapping[str, str]
    unset: tuple[str, ...]

    def apply(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return a copy of `environment` in which these settings hold."""
        kept = {name: value for name, value in environment.items() if name not in self.unset}
        return {**kept, **self.set}


def child_environment(
    *, proxy: str, bundle: Path, cache: Path, default_index: str | None
) -> ChildEnvironment:
    """Return the settings for a child; with `default_index` they shut out every other source.

    What the person or the machine configured for uv goes; without `default_index` their index of
    ordinary packages stays, because a machine may reach no other.
    """
    settings = {
        # Names in small letters are what curl reads, and some programs prefer them.
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), proxy),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        "SSL_CERT_FILE": str(bundle),
        "TORCHENV_CACHE_DIR": str(cache / "torchenv"),
        "UV_CACHE_DIR": str(cache),
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    foreign = [name for name in os.environ if name.startswith("UV_")]
    # Both uv and Python would trust this folder beside the bundle: the bundle alone decides.
    foreign.append("SSL_CERT_DIR")
    if default_index is None:
        foreign = [name for name in foreign if name not in {"UV_DEFAULT_INDEX", "UV_INDEX_URL"}]
    else:
        settings["UV_DEFAULT_INDEX"] = default_index
        # The null device as configuration file is pip's documented way to read none.
        settings["PIP_CONFIG_FILE"] = os.devnull
        foreign += [name for name in os.environ if name.startswith("PIP_")]
    unset = tuple(sorted(name for name in foreign if name not in settings))
    return ChildEnvironment(set=settings, unset=unset)


def system_certificates() -> str:
    """Return the certificates that this machine trusts, as PEM text.

    Raises `LookupError` where none can be found.
    """
    # Read by hand, because the variable may name a bundle that this interpreter did not load.
    configured = os.environ.get("SSL_CERT_FILE")
    found = ssl.get_default_verify_paths()
    for candidate in (configured, found.cafile, found.openssl_cafile):
        if candidate and Path(candidate).is_file():
            return Path(candidate).read_text("utf-8")
    # Windows keeps them in a store; so does a folder of hashed names.
    stored = ssl.create_default_context().get_ca_certs(binary_form=True)
    if stored:
        return "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in stored)
    try:
        import certifi
    except ModuleNotFoundError:
        message = "no trusted certificates found; set SSL_CERT_FILE to a bundle"
        raise LookupError(message) from None
    return Path(certifi.where()).read_text("utf-8")
