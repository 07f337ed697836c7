"""The forms of an export that are lines: requirements.txt, a Dockerfile, a command.

In a file they stand between two marks, so that the next export finds what it wrote, and what
somebody else wrote stays.
"""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from torchenv_magic.builds.backend import Backend
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import FAMILY_MEMBERS
from torchenv_magic.errors import ExportError, RequestError
from torchenv_magic.project.export import Used, index_url, part_with_wheels, pinned, triton_of

__all__ = ["command_text", "dockerfile_text", "requirements_text", "with_block"]

_BEGIN = "# torchenv export: "
_END = f"{_BEGIN}end"

_DEVICES = {
    "cpu": "",
    "cuda": " The driver is the host's: `docker run --gpus all`.",
    "rocm": " The driver is the host's: `docker run --device /dev/kfd --device /dev/dri`.",
    "xpu": " The image needs Intel's libraries: `docker run --device /dev/dri`.",
}


def _block(title: str, *lines: str) -> str:
    return "\n".join([f"{_BEGIN}{title}", *lines, _END, ""])


def requirements_text(used: Used) -> str:
    """Return the lines of a requirements.txt, for pip and for uv.

    Named as an index, PyTorch's would stand in for the default one: uv takes a package from the
    first index that has it, and pip from any. A page of links to one package's wheels stands in for
    nothing else, and the local version is on no other page.

    Raises
    ------
    ExportError
        A member of the family is used whose version is not known.
    """
    part = part_with_wheels(used.backend, used.torch)
    links, lines = [], []
    for text in used.requirements:
        requirement = parse_requirement(text)
        name = canonicalize_name(requirement.name)
        if name not in FAMILY_MEMBERS:
            lines.append(text)
            continue
        release = used.members.get(name)
        if release is None:
            raise ExportError(
                f"Which {name} is used is not known, and `requirements.txt` has to name it",
                hint="lock the notebook first, or export from where it is installed",
            )
        if not part.has(name):
            lines.append(_required(requirement, str(release), None))
            continue
        links.append(f"--find-links {index_url(used.backend)}/{name}/")
        local = f"{release}+{used.backend}"
        lines.append(_required(requirement, local, part.inside_local))
        lines.append(_required(requirement, str(release), part.outside_local))
    if triton := triton_of(used.backend, used.torch):
        links.append(f"--find-links {index_url(used.backend)}/{triton}/")
    return _block(used.label, *links, *lines)


def _required(requirement: Requirement, release: str, where: str | None) -> str:
    """Return the requirement with that release, there alone."""
    marker = str(requirement.marker) if requirement.marker else ""
    texts = [f"({text})" for text in (marker, where) if text]
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    pin = f"{canonicalize_name(requirement.name)}{extras}=={release}"
    return f"{pin} ; {Marker(' and '.join(texts))}" if texts else pin


def dockerfile_text(used: Used) -> str:
    """Return the lines of a Dockerfile, below the `FROM` of an image with Python."""
    texts = [shlex.quote(text) for text in _exact(used, local=True)]
    lines = " \\\n    ".join(
        [f"RUN uv pip install --system --no-cache --torch-backend={used.backend}", *texts]
    )
    return _block(
        f"{used.label}.{_DEVICES[used.backend.kind]}",
        f"# It stands below the `FROM` of an image with Python {used.python}.",
        f"COPY --from=ghcr.io/astral-sh/uv:{version('uv')} /uv /usr/local/bin/uv",
        lines,
    )


def command_text(used: Used) -> str:
    """Return one line for a shell.

    With local versions: over another build of the same release, uv would find all satisfied.
    """
    local = not (used.on_macos and used.backend == Backend("cpu"))
    words = ["uv", "pip", "install", f"--torch-backend={used.backend}", *_exact(used, local=local)]
    return shlex.join(words) + "\n"


def _exact(used: Used, *, local: bool) -> list[str]:
    """Return the requirements with the exact build of each member of the family."""
    part = part_with_wheels(used.backend, used.torch)
    texts = []
    for text in used.requirements:
        requirement = parse_requirement(text)
        name = canonicalize_name(requirement.name)
        release = used.members.get(name)
        if release is None or name not in FAMILY_MEMBERS:
            texts.append(pinned(text, used))
            continue
        label = f"+{used.backend}" if local and part.has(name) else ""
        texts.append(_required(requirement, f"{release}{label}", None))
    return texts


# -------------------------------------------------------------------------------- what is there


def with_block(text: str, block: str, *, file: str, are_requirements: bool = False) -> str:
    """Return a file's text with the block in the place of an earlier one, or at its end.

    Raises
    ------
    ExportError
        Another line of the file asks for PyTorch too.
    """
    lines = text.splitlines(keepends=True)
    plain = [line.rstrip("\n") for line in lines]
    begin = next((i for i, line in enumerate(plain) if _is_begin(line)), len(plain))
    end = next((i for i in range(begin, len(plain)) if plain[i] == _END), None)
    before = "".join(lines[:begin])
    after = "" if end is None else "".join(lines[end + 1 :])
    if are_requirements:
        _check_rest(text if end is None else before + after, file)
    if end is not None:
        return f"{before}{block}{after}"
    if not text:
        return block
    return f"{text}{'' if text.endswith(chr(10)) else chr(10)}\n{block}"


def _is_begin(line: str) -> bool:
    return line.startswith(_BEGIN) and line != _END


def _check_rest(rest: str, file: str) -> None:
    for line in rest.splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).partition(" --hash")[0].strip().rstrip("\\").strip()
        if not text or text.startswith("-"):
            continue
        try:
            name = canonicalize_name(parse_requirement(text).name)
        except RequestError:
            continue
        if name in FAMILY_MEMBERS:
            raise ExportError(
                f"`{file}` asks for {name} in another line too, so nothing was written",
                hint=f"take that line out: the export pins {name}",
            )
