"""Build small valid wheels for tests: single ones, and whole PyTorch families.

What is named `torch` here is made: a pure-Python package (`made_torch`) that computes on the
CPU and says in its docstring that it is no PyTorch. Its metadata, its relations to torchvision,
torchaudio and triton, and its file names follow the real ones, so that uv decides on them as it
decides on those. Equal arguments give equal bytes, in every session.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import os
import platform
import random
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

TORCH = "2.13.0"
OLDER_TORCH = "2.12.0"
PYTHON_TAGS = ("cp310", "cp311", "cp312", "cp313")
BACKENDS = ("cpu", "cu126", "cu128", "cu129", "cu130", "cu132", "rocm7.2", "xpu")

PAD_BYTES = 1_500_000
"""Size of the incompressible file in a made torch: uv announces downloads of over 1 MiB only."""

_MADE_TORCH = Path(__file__).with_name("made_torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Name the companions of one torch release, as the real wheels' metadata names them."""

    torchvision: str
    torchaudio: str
    triton: str
    triton_xpu: str | None = None


# torchaudio ended with 2.11.0, which asks for no torch. The metadata on PyPI says the rest, and
# intel/intel-xpu-backend-for-triton#7363 and pytorch/helion#3449 say triton-xpu's version.
RELEASES: Mapping[str, Release] = {
    "2.13.0": Release(
        torchvision="0.28.0", torchaudio="2.11.0", triton="3.7.1", triton_xpu="3.7.2"
    ),
    "2.12.0": Release(torchvision="0.27.0", torchaudio="2.11.0", triton="3.7.0"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """Hold what an index page tells about one wheel file."""

    path: Path
    name: str
    """The project's name, normalized."""
    size: int
    """Bytes."""
    modified: int
    """Seconds since the epoch."""
    metadata: bytes

    @property
    def backend(self) -> str | None:
        """Return the local label of the version, uv's word for the build."""
        return parse_wheel_filename(self.path.name)[1].local

    @property
    def sha256(self) -> str:
        """Return the file's hash; it is read once for each path, size and time."""
        return _file_sha256(self.path)

    @property
    def metadata_sha256(self) -> str:
        """Return the hash of the metadata."""
        return hashlib.sha256(self.metadata).hexdigest()


_known_hashes: dict[tuple[str, int, int], str] = {}
_hashing = threading.Lock()


def _hash_key(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _file_sha256(path: Path) -> str:
    key = _hash_key(path)
    # Held while reading: two requests for the page of a 192 MB wheel must not hash it twice.
    with _hashing:
        if key not in _known_hashes:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            _known_hashes[key] = digest.hexdigest()
        return _known_hashes[key]


def read_wheel(path: Path) -> Wheel:
    """Return what an index tells about the wheel at `path`.

    Raises `InvalidWheelFilename` or `zipfile.BadZipFile` where it is none.
    """
    name = parse_wheel_filename(path.name)[0]
    distribution, version = path.name.split("-")[:2]
    with zipfile.ZipFile(path) as archive:
        metadata = archive.read(f"{distribution}-{version}.dist-info/METADATA")
    status = path.stat()
    return Wheel(
        path=path,
        name=name,
        size=status.st_size,
        modified=int(status.st_mtime),
        metadata=metadata,
    )


def find_real_wheels(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the real torch wheels with a build label in the folders that PIP_FIND_LINKS names."""
    folders = [Path(entry) for entry in environment.get("PIP_FIND_LINKS", "").split()]
    return tuple(
        path for folder in folders if folder.is_dir() for path in folder.glob("torch-*+*.whl")
    )


def machine_platform_tag() -> str:
    """Return a platform tag that uv accepts on the running machine, like the real wheels' one."""
    machine = platform.machine().lower()
    if sys.platform == "linux":
        # musl systems accept `linux_*`, glibc systems older than 2.28 would refuse this tag.
        glibc = platform.libc_ver()[0] == "glibc"
        return f"manylinux_2_28_{machine}" if glibc else f"linux_{machine}"
    if sys.platform == "darwin":
        # Not from sysconfig: a universal2 interpreter names no single machine there.
        return f"macosx_11_0_{machine}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def make_wheel(
    directory: Path,
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    files: Mapping[str, str | bytes] | None = None,
    scripts: Mapping[str, str] | None = None,
    python_tag: str = "py3",
    abi_tag: str = "none",
    platform_tag: str = "any",
    pad_bytes: int = 0,
) -> Path:
    """Write a wheel into `directory` and return its path; one that is there already is kept.

    `files` maps paths in the wheel to contents; without it the wheel holds one importable
    package of the project's name with `__version__`. `scripts` maps commands to entry points.
    `pad_bytes` adds an incompressible file of that many bytes to the package.
    """
    distribution = canonicalize_name(name).replace("-", "_")
    path = directory / f"{distribution}-{version}-{python_tag}-{abi_tag}-{platform_tag}.whl"
    if path.exists():
        return path
    if files is None:
        files = {f"{distribution}/__init__.py": _made_package(name, version)}
    contents = {
        member: content.encode() if isinstance(content, str) else content
        for member, content in files.items()
    }
    if pad_bytes:
        package = min(contents, key=len).partition("/")[0]
        contents[f"{package}/lib/made_for_tests.bin"] = _pad(pad_bytes)
    info = f"{distribution}-{version}.dist-info"
    contents[f"{info}/METADATA"] = _metadata(name, version, requires).encode()
    contents[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\n"
        "Generator: tests.standin\n"
        f"Root-Is-Purelib: {'true' if platform_tag == 'any' else 'false'}\n"
        f"Tag: {python_tag}-{abi_tag}-{platform_tag}\n"
    ).encode()
    if scripts:
        lines = [f"{command} = {target}" for command, target in scripts.items()]
        contents[f"{info}/entry_points.txt"] = "\n".join(["[console_scripts]", *lines, ""]).encode()
    record = [
        f"{member},sha256={_record_hash(content)},{len(content)}"
        for member, content in contents.items()
    ]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    return _write(path, contents)


def _write(path: Path, contents: Mapping[str, bytes]) -> Path:
    buffer = io.BytesIO()
    # Stored, not deflated: nothing here is worth the time, and the pad cannot shrink anyway.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for member, content in contents.items():
            entry = zipfile.ZipInfo(member)  # its date is 1980-01-01, so that bytes repeat
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getbuffer())
    with _hashing:
        _known_hashes[_hash_key(path)] = hashlib.sha256(buffer.getbuffer()).hexdigest()
    return path


def _made_package(name: str, version: str) -> str:
    return f'"""Stand in for {name}: a made package for tests."""\n\n__version__ = "{version}"\n'


def _metadata(name: str, version: str, requires: Iterable[str]) -> str:
    return "\n".join(
        [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            f"Version: {version}",
            "Summary: A made wheel for tests",
            "Requires-Python: >=3.10",
            *(f"Requires-Dist: {requirement}" for requirement in requires),
            "",
        ]
    )


@cache
def _pad(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311 - noise, no secret


@cache
def _record_hash(content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def make_family(
    directory: Path,
    *,
    backend: str | None,
    torch: str = TORCH,
    python_tags: Iterable[str] = PYTHON_TAGS,
    pad_bytes: int = PAD_BYTES,
) -> tuple[Path, ...]:
    """Write torch, torchvision, torchaudio and triton of one backend; return their paths.

    `backend` is uv's word (`cpu`, `cu126`, `rocm7.2`, `xpu`). `None` gives the wheels that PyPI
    has: no local label in their names, CUDA 13.0 inside on Linux and the CPU elsewhere.
    Raises `ValueError` for a release whose companions are not known (`RELEASES`).
    """
    if torch not in RELEASES:
        message = f"torch {torch} is not one of {', '.join(RELEASES)}"
        raise ValueError(message)
    release = RELEASES[torch]
    build = backend or ("cu130" if sys.platform == "linux" else "cpu")
    local = "" if backend is None else f"+{backend}"
    triton = _triton(build, release)
    triton_pins = [f'{name}=={version}; sys_platform == "linux"' for name, version in triton]
    paths: list[Path] = []
    for python_tag in python_tags:
        make = partial(
            make_wheel,
            directory,
            python_tag=python_tag,
            abi_tag=python_tag,
            platform_tag=machine_platform_tag(),
        )
        paths += [
            make(
                "torch",
                f"{torch}{local}",
                requires=["filelock", "typing-extensions>=4.10.0", *triton_pins],
                files=_torch_files(torch, build),
                scripts={"torchrun": "torch.distributed.run:main"},
                pad_bytes=pad_bytes,
            ),
            make(
                "torchvision",
                f"{release.torchvision}{local}",
                requires=["numpy", f"torch=={torch}", "pillow>=5.3.0,!=8.3.*"],
                files={
                    "torchvision/__init__.py": _companion(
                        "torchvision", release.torchvision, build
                    ),
                    "torchvision.libs/made_for_tests.txt": "made for tests\n",
                },
            ),
            make(
                "torchaudio",
                f"{release.torchaudio}{local}",
                files={
                    "torchaudio/__init__.py": _companion("torchaudio", release.torchaudio, build)
                },
            ),
            *(
                make(name, version, files={"triton/__init__.py": _made_package(name, version)})
                for name, version in triton
            ),
        ]
    return tuple(paths)


def _triton(build: str, release: Release) -> tuple[tuple[str, str], ...]:
    if build.startswith("cu"):
        return (("triton", release.triton),)
    if build.startswith("rocm"):
        return (("triton-rocm", release.triton),)
    if build == "xpu" and release.triton_xpu:
        return (("triton-xpu", release.triton_xpu),)
    return ()


@cache
def _made_sources() -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"torch/{source.relative_to(_MADE_TORCH).as_posix()}", source.read_text("utf-8"))
        for source in sorted(_MADE_TORCH.rglob("*.py"))
    )


def _torch_files(torch: str, build: str) -> dict[str, str | bytes]:
    cuda = f"{build[2:-1]}.{build[-1]}" if build.startswith("cu") else None
    rocm = build.removeprefix("rocm") if build.startswith("rocm") else None
    lines = [
        f"__version__ = {f'{torch}+{build}'!r}",
        "debug = False",
        f"cuda = {cuda!r}",
        "git_version = 'made for tests'",
        f"hip = {rocm!r}",
        f"rocm = {rocm!r}",
        f"xpu = {'made for tests' if build == 'xpu' else None!r}",
        "",
    ]
    return {
        **dict(_made_sources()),
        "torch/version.py": "\n".join(lines),
        # The real wheel owns these top-level packages too: who removes torch must know of them.
        "functorch/__init__.py": _made_package("functorch", torch),
        "torchgen/__init__.py": _made_package("torchgen", torch),
    }


def _companion(name: str, version: str, build: str) -> str:
    # The real companions fail to import beside a torch of another build, in many ways; the made
    # ones do it in one clear way, so that a half-done switch cannot pass unseen.
    return f'''"""Stand in for {name}: a made package for tests."""

import torch

__version__ = "{version}+{build}"

if torch.__version__.partition("+")[2] != "{build}":
    raise RuntimeError(f"made {name} {{__version__}} beside torch {{torch.__version__}}")
'''


def repack_installed(directory: Path, name: str) -> Path:
    """Write a wheel of a pure-Python project that is installed beside the tests; return its path.

    Raises `PackageNotFoundError` where it is not installed.
    """
    distribution = importlib.metadata.distribution(name)
    files = {
        file.as_posix(): Path(os.fspath(file.locate())).read_bytes()
        for file in distribution.files or ()
        if file.suffix == ".py" and ".." not in file.parts
    }
    return make_wheel(directory, name, distribution.version, files=files)
