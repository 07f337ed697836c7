"""Whether torch can be imported and is the one that is installed: paths, libraries, the session."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from torchenv_magic.doctor.case import Case, Remarks, listed
from torchenv_magic.doctor.examination import ForeignLibrary
from torchenv_magic.doctor.problem import Problem, install_cure
from torchenv_magic.environment import shown_path
from torchenv_magic.verification.judgement import DOCTOR_HINT, self_test_checks
from torchenv_magic.verification.report import Check

__all__ = ["import_problems", "path_problems", "session_problems", "shown_file"]

_RESTART = "restart the kernel"


# ------------------------------------------------------------------------------------- which torch


def path_problems(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge whether another `torch` is found before the installed one."""
    origin, torch = case.examination.origin, case.torch
    if origin is None:
        remarks.unchecked.append("which `torch` is found first: the interpreter gave no answer")
        return
    if origin.path is None or torch is None:
        return
    owns = any(check.owns_module for check in case.examination.files if check.package == "torch")
    if not owns:
        remarks.notes.append(f"`import torch` takes `{shown_file(origin.path)}`")
        return
    remarks.checked.append("which `torch` is found first")
    if origin.is_installed:
        return
    found = Path(origin.path)
    via = f" through {origin.via}" if origin.via else ""
    meaning = "another module is used in place of PyTorch"
    if origin.namespace:
        meaning = "a folder without code is used in place of PyTorch"
    elif origin.version is not None:
        # On purpose, maybe: a cluster's module, `pip install --user` over what all share.
        meaning = f"torch {_plain(origin.version)} is used, and only the other one was examined"
    yield Problem(
        name="shadowed",
        severity="error" if origin.version is None else "warning",
        found=f"`import torch` takes `{shown_file(origin.path)}`, found{via} before the installed "
        f"{case.shown}",
        meaning=meaning,
        cure=_shadow_cure(origin.via, found),
    )


def _shadow_cure(via: str, found: Path) -> str:
    folder = found.parent if found.stem == "__init__" else found
    if via == "PYTHONPATH":
        return f"take `{shown_file(folder.parent)}` out of `PYTHONPATH`, and {_RESTART}"
    if via == "the user site":
        return f"set `PYTHONNOUSERSITE=1`, and {_RESTART}"
    return f"give `{shown_file(folder)}` another name, and {_RESTART}"


def shown_file(path: str | Path) -> str:
    """Return a path from outside as one line that code can quote."""
    text = "".join(c if c.isprintable() else "?" for c in shown_path(Path(path)))
    return text.replace("`", "'")


# ------------------------------------------------------------------------------------ this session


def session_problems(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge what the kernel's own process holds."""
    seen, held = case.examination, case.examination.loaded_torch
    if seen.failed_import_left:
        yield Problem(
            name="session-stale",
            severity="error",
            found="this session holds parts of a torch whose import failed",
            meaning="another import here builds on them, and fails as well",
            cure=_RESTART,
        )
    if held is None:
        return
    # What an import would take now, which need not be what is installed here. And the file, not the
    # metadata: their spelling differs (`nv25.04`, `nv25.4`), and a build in place leaves it behind.
    origin = seen.origin
    if origin is None or (origin.path is not None and origin.version is None):
        remarks.unchecked.append("the torch that this session holds: no file says its version")
        return
    remarks.checked.append("the torch that this session holds")
    if held != origin.version:
        now = f"{origin.version} is installed" if origin.version else "it is no longer installed"
        yield Problem(
            name="session-stale",
            severity="error",
            found=f"this session holds torch {_plain(held)}, and {now}",
            meaning="old code runs with new libraries, which can crash",
            cure=_RESTART,
        )


# -------------------------------------------------------------------------------------- the import


def import_problems(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge how the try in a process of its own went, and what it loaded."""
    run, seen = case.examination.run, case.findings
    foreign = list(_foreign(case, remarks))
    if run is None:
        return
    if run.ended is not None:
        yield _ended(case)
    elif seen is not None and seen.import_failure is not None:
        yield _failed(case, seen.import_failure)
    elif seen is not None and seen.torch_version is not None:
        remarks.checked.append(f"an import, and a self-test on {seen.device}, in its own process")
        for check in self_test_checks(seen, ended=False):
            if check.passed is False:
                said = _plain(check.message)
                yield Problem(
                    name="compute-fails",
                    severity="error",
                    found=f"PyTorch fails its self-test: {said}",
                    meaning="this build can't be relied on here",
                    cure=_compute_cure(case, check),
                )
    yield from foreign


def _compute_cure(case: Case, check: Check) -> str:
    if check.name == "product":
        return install_cure()
    # Libraries that stand in the way are a problem of their own; what is left are damaged files.
    return case.anew_cure() if check.hint == DOCTOR_HINT else check.hint


def _ended(case: Case) -> Problem:
    run = case.examination.run
    ended = run.ended if run and run.ended else ""
    at = f" at `{run.stage}`" if run and run.stage not in ("", "done") else ""
    meaning, cure = "the crash is in compiled code", case.anew_cure()
    if "SIGKILL" in ended:
        meaning = "the system ended it, as it does when memory runs out"
        cure = "free memory: restart kernels that you don't need"
    elif "SIGILL" in ended or "ILLEGAL_INSTRUCTION" in ended:
        meaning = "the build uses an instruction that this processor doesn't have"
        cure = install_cure("cpu")
    elif "did not finish" in ended:
        meaning = "it hangs, or the disk is very slow"
        cure = "`%torchenv verify` waits longer"
    elif case.examination.foreign_libraries:
        variable = case.examination.foreign_libraries[0].variable
        meaning = f"libraries from `{variable}` may be mixed with the build's own"
        cure = f"unset `{variable}`, and {_RESTART}"
    return Problem(
        name="import-fails",
        severity="error",
        found=f"the process that tried {case.shown} {ended}{at}",
        meaning=meaning,
        cure=cure,
    )


def _failed(case: Case, words: str) -> Problem:
    meaning, cure = _reason(case, words)
    return Problem(
        name="import-fails",
        severity="error",
        found=f"{case.shown} can't be imported: {_plain(words)}",
        meaning=meaning,
        cure=cure,
    )


def _reason(case: Case, words: str) -> tuple[str, str]:
    """Return the most probable reason for what Python said, and its cure."""
    foreign = case.examination.foreign_libraries
    if re.search(r"libcuda\.so(\.1)?: cannot open", words):
        return (
            "the library of NVIDIA's driver is missing: there is none, or a container hides it",
            install_cure("cpu"),
        )
    if match := re.search(r"(lib[\w.+-]*\.so[\w.]*): cannot open shared object", words):
        return f"the library `{match[1]}` is missing", _library_cure(case)
    if match := re.search(r"GLIBCXX_[\d.]+|CXXABI_[\d.]+", words):
        return (
            f"the C++ library that is loaded is too old (`{match[0]}` is missing)",
            "`conda install --channel conda-forge libstdcxx-ng`"
            if case.examination.environment.kind == "conda"
            else f"unset `{foreign[0].variable if foreign else 'LD_LIBRARY_PATH'}`, and {_RESTART}",
        )
    if match := re.search(r"GLIBC_[\d.]+", words):
        return (
            f"this system is older than the build (`{match[0]}` is missing)",
            install_cure("torch<2.7"),
        )
    if re.search(r"static TLS", words):
        return "another library was loaded first and took its place", "import torch first"
    if "iJIT_NotifyEvent" in words:
        return "conda's newer MKL does not fit this torch", '`conda install "mkl<2024.1"`'
    if re.search(r"undefined symbol|symbol .* version|DLL load failed.*procedure", words):
        if foreign:
            variable = foreign[0].variable
            return (
                f"a library of another version is loaded, probably from `{variable}`",
                f"unset `{variable}`, and {_RESTART}",
            )
        return "a library of another version is loaded than torch was built with", _library_cure(
            case
        )
    if re.search(r"WinError (126|1114)|DLL load failed", words):
        return (
            "a library is missing, mostly Microsoft's Visual C++ runtime",
            "`winget install Microsoft.VCRedist.2015+.x64`",
        )
    if re.search(r"MemoryError|[Cc]annot allocate memory|WinError 1455|paging file", words):
        return "memory has run out", "free memory: restart kernels that you don't need"
    if match := re.search(r"No module named '([\w.]+)'", words):
        if match[1].partition(".")[0] == "torch":
            return "its files are missing in part", case.anew_cure()
        return f"`{match[1]}`, which torch needs, is missing", case.same_build_cure()
    return "its files are damaged or mixed with another build's", case.anew_cure()


def _library_cure(case: Case) -> str:
    """Return the install of what torch requires; where all of that is there, of its files."""
    there = {package.name for package in case.examination.environment.packages}
    names = [
        re.split(r"[^A-Za-z0-9._-]", text)[0].lower() for _, text in case.examination.requirements
    ]
    return case.same_build_cure() if set(names) - there else case.anew_cure()


# --------------------------------------------------------------------------------------- libraries


def _foreign(case: Case, remarks: Remarks) -> Iterator[Problem]:
    if case.examination.searched_folders:
        remarks.checked.append(
            f"{case.examination.searched_folders} folders that are searched for libraries first"
        )
    for folder in case.examination.foreign_libraries:
        loaded = _loaded_from(case, folder)
        # Windows looks into the build's own folders first, and PATH is its last resort.
        if folder.variable == "PATH" and case.imports:
            continue
        if case.imports and case.findings and case.findings.libraries and not loaded:
            remarks.notes.append(
                f"`{folder.variable}` names `{shown_file(folder.folder)}`, which holds "
                f"{listed(list(folder.names))}: torch loads its own instead"
            )
            continue
        names = listed([f"`{name}`" for name in loaded or folder.names])
        verb = "is loaded from" if len(loaded) == 1 else "are loaded from"
        yield Problem(
            name="library-path",
            severity="warning" if case.imports else "error",
            found=f"{names} {verb if loaded else 'may come from'} "
            f"`{shown_file(folder.folder)}`, which `{folder.variable}` names",
            meaning="torch brings its own: another version can fail at the import, or in the "
            "middle of a computation",
            cure=f"take `{shown_file(folder.folder)}` out of `{folder.variable}`, and {_RESTART}",
        )


def _loaded_from(case: Case, folder: ForeignLibrary) -> list[str]:
    """Return which of them the child had loaded, as Linux tells."""
    if case.findings is None:
        return []
    # What is mapped is named by its real path: libcublas.so.12 is libcublas.so.12.4.5.8 there.
    real = {path: name for name, path in folder.libraries}
    return [real[path] for path in case.findings.libraries if path in real]


def _plain(text: str) -> str:
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return shown if len(shown) <= 240 else f"{shown[:239]}…"
