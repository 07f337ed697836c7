"""Whether what is installed is whole and belongs together: files, companions, libraries, conda."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from torchenv_magic.builds.backend import Backend
from torchenv_magic.doctor.case import Case, Remarks, listed
from torchenv_magic.doctor.examination import applies
from torchenv_magic.doctor.problem import Problem, Severity, install_cure, quoted
from torchenv_magic.environment import (
    FAMILY_MEMBERS,
    InstalledPackage,
    backend_of_torch_version,
    dependents,
    is_satellite,
)

__all__ = ["package_problems"]


def package_problems(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge files and metadata; nothing here needs the import."""
    yield from _copies(case)
    yield from _files(case, remarks)
    yield from _conda(case, remarks)
    yield from _requirements(case, remarks)
    yield from _companions(case, remarks)
    yield from _overwritten(case, remarks)
    yield from _others(case, remarks)
    yield from _stale(case)
    yield from _leftovers(case)


def _unless_proven(case: Case) -> Severity:
    """Return `warning` where the import was seen to work in spite of it."""
    return "warning" if case.imports else "error"


# -------------------------------------------------------------------------------------- the files


def _copies(case: Case) -> Iterator[Problem]:
    for name in FAMILY_MEMBERS:
        copies = [p for p in case.examination.environment.packages if p.name == name]
        if len(copies) > 1:
            known = listed([_copy(package) for package in copies])
            mixed = {package.installer for package in copies} > {"conda"}
            yield Problem(
                name="conda-mixed" if mixed else "installed-twice",
                severity="error",
                found=f"{name} is installed {len(copies)} times: {known}",
                meaning="the files of one lie over those of the other, so that parts of both run",
                cure=_fresh_environment(case) if mixed else case.same_build_cure(),
            )
        elif copies and not copies[0].complete and copies[0].installer in (None, "pip", "uv"):
            # conda, rpm and their like keep lists of their own (PEP 627), and `setup.py develop`
            # has an .egg-info: no list is no fault there.
            directory = copies[0].metadata_directory
            if directory is not None and directory.suffix == ".dist-info":
                yield Problem(
                    name="installed-in-part",
                    severity="error",
                    found=f"{name} {copies[0].version} lacks its METADATA or its RECORD",
                    meaning="an install was interrupted, or files were deleted by hand",
                    cure=case.same_build_cure(),
                )


def _copy(package: InstalledPackage) -> str:
    return f"{package.version} by {package.installer}" if package.installer else package.version


def _files(case: Case, remarks: Remarks) -> Iterator[Problem]:
    checks = [check for check in case.examination.files if check.listed]
    count = sum(check.looked_at for check in checks)
    if checks:
        remarks.checked.append(f"{count} files of {listed([check.package for check in checks])}")
    late = [check.package for check in checks if check.looked_at < check.listed]
    if late:
        remarks.unchecked.append(f"all files of {listed(late)}: the disk is too slow for that")
    editable = [
        check.package
        for check in checks
        if check.package in FAMILY_MEMBERS and not check.owns_module
    ]
    for name in editable:
        remarks.unchecked.append(f"the files of {name}: its metadata lists none of its module")
    broken = [
        check
        for check in checks
        if (check.missing_count or check.cut_off) and check.package not in editable
    ]
    if not broken:
        return
    texts = []
    for check in broken:
        if check.missing_count:
            plural = "" if check.missing_count == 1 else "s"
            texts.append(
                f"{check.missing_count} file{plural} of {check.package} missing, such as "
                f"`{check.missing[0]}`"
            )
        if check.cut_off:
            texts.append(f"`{check.cut_off[0]}` cut off")
    others = [check.package for check in broken if check.package != "torch"]
    torch_too = len(others) < len(broken)
    yield Problem(
        name="files-missing",
        severity=_unless_proven(case),
        found=listed(texts),
        meaning="an install or an uninstall was interrupted, the disk was full, or another package "
        "took the files along when it was removed",
        cure=_anew(case, [check.package for check in broken], torch_too=torch_too),
    )


def _anew(case: Case, names: list[str], *, torch_too: bool) -> str:
    """Return the run of uv that links the packages' files anew, each in the version it has."""
    if case.torch is not None and case.by_conda(case.torch) and torch_too:
        prefix = quoted(str(case.examination.environment.prefix))
        return f"`conda install --prefix {prefix} --force-reinstall pytorch`"
    environment = case.examination.environment
    packages = []
    for name in names:
        package = environment.installed(name)
        if package is not None:
            version = package.version.partition("+")[0]
            packages.append(f"{name}=={version}")
    if names == ["torch"]:
        return case.anew_cure()
    again = [f"--reinstall-package={name}" for name in names]
    of_family = any(name in FAMILY_MEMBERS for name in names)
    backend = [f"--torch-backend={case.words[0]}"] if of_family and case.words else []
    return case.uv(["install", *again, *backend], tuple(packages))


def _leftovers(case: Case) -> Iterator[Problem]:
    if case.examination.leftovers:
        site = case.examination.environment.site_packages
        yield Problem(
            name="leftovers",
            severity="warning",
            found=f"{listed([f'`{name}`' for name in case.examination.leftovers])} in `{site}`",
            meaning="pip was interrupted when it removed a PyTorch: this is never used, and can "
            "take gigabytes",
            cure=f"delete `{site / case.examination.leftovers[0]}`"
            + (" and the others" if len(case.examination.leftovers) > 1 else ""),
        )


# ------------------------------------------------------------------------------------------- conda


def _fresh_environment(case: Case) -> str:
    version = ".".join(case.examination.environment.interpreter.version.split(".")[:2])
    return (
        f"`conda create --name pytorch python={version} ipykernel` makes a fresh environment: "
        "install PyTorch there, in one way"
    )


def _conda(case: Case, remarks: Remarks) -> Iterator[Problem]:
    if case.examination.environment.kind != "conda":
        return
    remarks.checked.append("what conda has on its books")
    booked = {package.name: package for package in case.examination.conda}
    torch = case.torch
    conda_torch = booked.get("pytorch") or booked.get("libtorch")
    copies = [p for p in case.examination.environment.packages if p.name == "torch"]
    if torch is None or len(copies) > 1:
        return
    if not case.by_conda(torch) and conda_torch is not None:
        yield Problem(
            name="conda-mixed",
            severity="warning",
            found=f"{case.shown} is a wheel, and conda has {conda_torch.name} "
            f"{conda_torch.version} on its books",
            meaning="conda's files lie under the wheel's, and its next update writes over them",
            cure=_fresh_environment(case),
        )
    wheels = [
        package
        for name in FAMILY_MEMBERS[1:]
        if (package := case.examination.environment.installed(name)) is not None
        and not case.by_conda(package)
    ]
    if case.by_conda(torch) and conda_torch is not None and wheels:
        names = listed([f"{package.name} {package.version}" for package in wheels])
        yield Problem(
            name="conda-mixed",
            severity="warning",
            found=f"{case.shown} comes from conda, and {names} from a wheel",
            meaning="they are compiled against different builds of torch, and may crash together",
            cure=_fresh_environment(case),
        )


# ------------------------------------------------------------------------------------- requirements


def _parsed(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except (InvalidRequirement, RecursionError):
        return None


def _meets(text: str, requirement: Requirement) -> bool:
    """Return whether that version will do; what can't be compared is not accused."""
    if requirement.url is not None:
        return True
    try:
        version = Version(text)
    except InvalidVersion:
        return True
    # NVIDIA's `2.9.0a0+nv25.10` and what is built from a checkout count up to the release.
    return any(
        requirement.specifier.contains(each, prereleases=True)
        for each in (version, Version(version.base_version))
    )


def _requirements(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge what torch itself needs: NVIDIA's libraries, and plain Python packages."""
    missing: list[str] = []
    wrong: list[str] = []
    texts: list[str] = []
    for _, text in case.examination.requirements:
        requirement = _parsed(text)
        if requirement is None:
            continue
        name = canonicalize_name(requirement.name)
        version = case.version_of(name)
        plain = f"{requirement.name}{requirement.specifier}"
        if version is None:
            missing.append(plain)
            texts.append(plain)
        elif not _meets(version, requirement):
            wrong.append(f"{name} is {version} where it needs {requirement.specifier}")
            texts.append(plain)
    if case.examination.requirements:
        remarks.checked.append(
            f"the {len(case.examination.requirements)} packages that torch requires"
        )
    cure = (
        case.same_build_cure() if case.words else case.uv(["install"], tuple(dict.fromkeys(texts)))
    )
    if missing:
        yield Problem(
            name="requirement-missing",
            severity=_unless_proven(case),
            found=f"{case.shown} requires {listed(missing)}, and that is not installed",
            meaning="the import, or what needs it later, fails",
            cure=cure,
        )
    if wrong:
        yield Problem(
            name="requirement-version",
            severity="warning",
            found=f"{case.shown} is not beside what it was built with: {listed(wrong)}",
            meaning="libraries of another version can fail in the middle of a computation",
            cure=cure,
        )


def _others(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge what other packages require of PyTorch."""
    environment = case.examination.environment
    found = dependents(environment)
    if found:
        remarks.checked.append(
            f"what {listed([package.name for package, _ in found])} "
            f"{'requires' if len(found) == 1 else 'require'}"
        )
    for package, requirements in found:
        for text in requirements:
            requirement = _parsed(text)
            if requirement is None:
                continue
            name = canonicalize_name(requirement.name)
            there = case.version_of(name)
            if there is not None and _meets(there, requirement):
                continue
            plain = f"{name}{requirement.specifier}"
            state = f"{name} is {there}" if there else f"{name} is not installed"
            yield Problem(
                name="requirement-of-another",
                severity="warning",
                found=f"{package.name} {package.version} requires {plain}, and {state}",
                meaning=f"{package.name} may fail",
                cure=install_cure(plain)
                if name in FAMILY_MEMBERS
                else case.uv(["install", "--upgrade"], (package.name,)),
            )


# --------------------------------------------------------------------------------------- companions


def _companions(case: Case, remarks: Remarks) -> Iterator[Problem]:
    torch = case.torch
    if torch is None:
        return
    there = [
        package
        for name in FAMILY_MEMBERS[1:]
        if (package := case.examination.environment.installed(name)) is not None
    ]
    if there:
        remarks.checked.append(f"{listed([package.name for package in there])} beside torch")
    seen = {
        extension.name: extension for extension in case.findings.extensions
    } if case.findings else {}  # fmt: skip
    wrong: list[tuple[InstalledPackage, str]] = []
    for package in there:
        fault = _companion_fault(case, package, torch)
        failure = seen[package.name].failure if package.name in seen else None
        if fault is None and failure is not None:
            fault = f"{package.name} {package.version} can't be imported: {failure}"
        if fault is not None:
            wrong.append((package, fault))
    if not wrong:
        return
    works = all(package.name in seen and seen[package.name].failure is None for package, _ in wrong)
    yield Problem(
        name="companion-mismatch",
        severity="warning" if works else "error",
        found="; ".join(fault for _, fault in wrong),
        meaning="they are compiled for one torch, and fail or crash beside another",
        cure=case.same_build_cure(*(package.name for package, _ in wrong)),
    )


def _companion_fault(case: Case, package: InstalledPackage, torch: InstalledPackage) -> str | None:
    for text in package.requires:
        requirement = _parsed(text)
        if (
            requirement is not None
            and canonicalize_name(requirement.name) == "torch"
            and applies(requirement, case.examination.environment.interpreter)
            and not _meets(torch.version, requirement)
        ):
            return (
                f"{package.name} {package.version} needs torch{requirement.specifier}, and torch "
                f"is {torch.version}"
            )
    # By the label alone: PyPI's wheels have none, and say nothing about their build.
    ours = backend_of_torch_version(package.version)
    theirs = backend_of_torch_version(torch.version) or (
        case.backend if case.stock is not None else None
    )
    if ours is not None and theirs is not None and not _alike(ours, theirs):
        called = f"{package.name} {package.version}"
        return f"{called} is built for {ours.label}, and {case.shown} for {theirs.label}"
    return None


def _alike(one: Backend, other: Backend) -> bool:
    # HIP has no number for the third of `rocm6.2.4`.
    return (one.kind, one.version[:2]) == (other.kind, other.version[:2])


# ------------------------------------------------------------------------------- NVIDIA's libraries


def _required_names(case: Case) -> set[str]:
    names: set[str] = set()
    for _, text in case.examination.requirements:
        if (requirement := _parsed(text)) is not None:
            names.add(canonicalize_name(requirement.name))
    return names


def _overwritten(case: Case, remarks: Remarks) -> Iterator[Problem]:
    """Judge the paths that two packages share: NVIDIA's for CUDA 12 and 13 lie in one folder."""
    needed = _required_names(case)
    lost: dict[str, str] = {}
    shared: dict[str, str] = {}
    for library in case.examination.shared:
        sizes = dict(library.owners)
        owners = [name for name in sizes if name in needed]
        others = [name for name in sizes if name not in needed]
        if not owners or not others:
            continue
        shared[others[0]] = owners[0]
        # Equal sizes say nothing about whose file it is.
        if library.size_bytes in {sizes[name] for name in others} - {sizes[owners[0]]}:
            lost[owners[0]] = others[0]
    if lost:
        pairs = listed([f"{other} over {owner}" for owner, other in lost.items()])
        yield Problem(
            name="library-overwritten",
            severity=_unless_proven(case),
            found=f"two packages install the same files, and the wrong one's are there: {pairs}",
            meaning="torch loads a library of another CUDA than it was built for",
            cure=_anew(case, list(lost), torch_too=False),
        )
    for other, owner in shared.items():
        if owner not in lost:
            remarks.notes.append(
                f"{other} and {owner} have files at the same place, and those of {owner} are "
                f"there: removing {other} would take them along"
            )


_CUDA_SUFFIX = re.compile(r"-cu(\d\d)$")


def _cuda_major(name: str) -> int | None:
    """Return which CUDA one of NVIDIA's packages is for: from 13 on, most carry no number."""
    if not name.startswith("nvidia-") or not is_satellite(name):
        return None
    match = _CUDA_SUFFIX.search(name)
    return int(match[1]) if match else 13


def _stale(case: Case) -> Iterator[Problem]:
    """Judge libraries of another CUDA than torch's that no other package needs."""
    backend = case.backend
    if backend is None or case.torch is None or case.by_conda(case.torch):
        return
    major = backend.version[0] if backend.kind == "cuda" else None
    packages = case.examination.environment.packages
    candidates = {
        package.name: package
        for package in packages
        if (number := _cuda_major(package.name)) is not None
        and (major is None or (number != major and not (number == 13 <= major)))
    }
    needed = _needed_by_others(candidates, packages, case.examination.named_by_others)
    needed |= _required_names(case)
    sharing = {
        name
        for library in case.examination.shared
        for name, _ in library.owners
        if len({owner for owner, _ in library.owners} - candidates.keys())
    }
    unused = tuple(name for name in candidates if name not in needed | sharing)
    if not unused:
        return
    size = sum(c.size_bytes for c in case.examination.files if c.package in unused)
    weight = f" of {size / 1e9:.1f} GB" if size > 10**8 else ""
    yield Problem(
        name="library-stale",
        severity="warning",
        found=f"{listed(list(unused))} belong to another build of PyTorch than {case.shown}",
        meaning=f"a rest{weight} of an earlier install that no package here asks for",
        cure=case.uv(["uninstall"], unused),
    )


def _needed_by_others(
    candidates: Iterable[str], packages: Iterable[InstalledPackage], named: Iterable[str]
) -> set[str]:
    """Return the candidates that a package needs which is none, or which is needed itself.

    `named` are needed whatever the packages say.
    """
    pending = set(candidates)
    by_name = {package.name: package for package in packages}
    needed = pending & set(named)
    roots = [package for name, package in by_name.items() if name not in pending or name in needed]
    while roots:
        package = roots.pop()
        for text in package.requires:
            match = re.match(r"[A-Za-z0-9._-]+", text)
            name = canonicalize_name(match[0]) if match else ""
            if name in pending and name not in needed:
                needed.add(name)
                roots.append(by_name[name])
    return needed
