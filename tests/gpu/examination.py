"""Look at this machine as the product does and as PyTorch does, and compare the two.

Needs PyTorch and the product's own dependencies; no network, no pytest, nothing installed. Every
word of the product runs as a process of its own, as in a terminal.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Check", "Examination", "examine"]

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 300
_LONGEST_FILE = 20_000

# Files whose text tells of a device, as far as they are there: the texts of the fleet come from
# such records.
_FILES = (
    "etc/nv_tegra_release",
    "proc/device-tree/compatible",
    "proc/device-tree/model",
    "proc/driver/nvidia/gpus/*/information",
    "proc/driver/nvidia/version",
    "proc/sys/kernel/osrelease",
    "sys/bus/pci/devices/*/class",
    "sys/bus/pci/devices/*/device",
    "sys/bus/pci/devices/*/vendor",
    "sys/class/kfd/kfd/topology/nodes/*/mem_banks/*/properties",
    "sys/class/kfd/kfd/topology/nodes/*/properties",
    "sys/module/amdgpu/version",
    "sys/module/nvidia/version",
)
_NODES = ("dev/dri/*", "dev/dxg", "dev/kfd", "dev/nvidia*")
_PROGRAMS = (
    ("nvidia-smi",),
    ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap",
     "--format=csv,noheader,nounits"),
    ("nvidia-smi", "--query-gpu=no_such_field", "--format=csv"),
    ("rocm_agent_enumerator",),
    ("amd-smi", "static", "--asic", "--vram", "--json"),
)  # fmt: skip
# What PyTorch itself says of the devices; the driver's own numbers come from the product.
_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "hip": torch.version.hip,
    "xpu": bool(getattr(torch, "xpu", None) and torch.xpu.is_available()),
    "architectures": torch.cuda.get_arch_list() if cuda else [],
    "devices": [
        {
            "name": torch.cuda.get_device_name(index),
            "capability": list(torch.cuda.get_device_capability(index)),
            "gfx": getattr(torch.cuda.get_device_properties(index), "gcnArchName", None),
            "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
        }
        for index in range(torch.cuda.device_count() if cuda else 0)
    ],
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    passed: bool
    message: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    record: Mapping[str, Any]
    checks: tuple[Check, ...]

    @property
    def has_accelerator(self) -> bool:
        return bool((self.record["detect"]["data"] or {}).get("accelerators"))

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        checks = [
            {"name": check.name, "passed": check.passed, "message": check.message}
            for check in self.checks
        ]
        text = json.dumps({"schema": 1, **self.record, "checks": checks})
        # A record is kept in the repository, where this machine's folders have no business.
        for folder, name in ((sys.prefix, "<prefix>"), (str(_ROOT), "<checkout>")):
            text = text.replace(json.dumps(folder)[1:-1], name)
        record: dict[str, Any] = json.loads(text)
        return record


def examine() -> Examination:
    """Return what this machine, its PyTorch and the product's words say, and how they agree."""
    record: dict[str, Any] = {
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
        "files": dict(_texts()),
        "nodes": sorted(str(path) for name in _NODES for path in Path("/").glob(name)),
        "programs": [_run(list(command)) for command in _PROGRAMS if shutil.which(command[0])],
        "torch": _json_of([sys.executable, "-c", _ASK_TORCH]),
        "detect": _word("detect"),
        "detect hidden": _word("detect", {"CUDA_VISIBLE_DEVICES": ""}),
        "select": _word("select"),
        "select hidden": _word("select", {"CUDA_VISIBLE_DEVICES": ""}),
        "doctor": _word("doctor"),
        "verify": _word("verify"),
        "verify hidden": _word("verify", {"CUDA_VISIBLE_DEVICES": ""}),
    }
    return Examination(record=record, checks=tuple(_checks(record)))


def _texts() -> Iterable[tuple[str, str]]:
    for pattern in _FILES:
        for path in sorted(Path("/").glob(pattern)):
            try:
                with path.open("rb") as file:
                    yield str(path), file.read(_LONGEST_FILE).decode("utf-8", "replace")
            except OSError as error:
                yield str(path), f"<{error.strerror}>"


def _run(command: list[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    completed = subprocess.run(
        command,
        cwd=_ROOT,
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )
    return {
        "command": " ".join([Path(command[0]).name, *command[1:]]),
        "status": completed.returncode,
        "stdout": completed.stdout,
        "stderr": completed.stderr[-_LONGEST_FILE:],
    }


def _json_of(command: list[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    answer = _run(command, variables)
    try:
        data = json.loads(answer["stdout"])
    except ValueError:
        return {**answer, "data": None}
    return {"status": answer["status"], "stderr": answer["stderr"], "data": data}


def _word(word: str, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    return _json_of([sys.executable, "-m", "torchenv_magic", word, "--json"], variables)


# ------------------------------------------------------------------------------------- the checks


def _checks(record: Mapping[str, Any]) -> Iterable[Check]:
    for word in ("torch", "detect", "select", "doctor", "verify"):
        if record[word]["data"] is None:
            yield Check(name=word, passed=False, message=record[word]["stderr"].strip()[-400:])
            return
    yield from _detection(record)
    yield from _catalog(record)
    yield from _words(record)


def _detection(record: Mapping[str, Any]) -> Iterable[Check]:
    torch, host = record["torch"]["data"], record["detect"]["data"]
    vendor = "amd" if torch["hip"] else "nvidia"
    found = [item for item in host["accelerators"] if item["vendor"] == vendor]
    names = sorted(item["name"] for item in found)
    theirs = sorted(item["name"] for item in torch["devices"])
    if theirs:
        yield Check(
            name="as many devices as torch",
            passed=len(names) == len(theirs),
            message=f"{names}; torch: {theirs}",
        )
        key, told = (
            ("gfx", [(item["gfx"] or "").partition(":")[0] for item in torch["devices"]])
            if vendor == "amd"
            else (
                "compute_capability",
                [".".join(map(str, item["capability"])) for item in torch["devices"]],
            )
        )
        mine = sorted(str(item[key]) for item in found)
        yield Check(
            name=f"the same {key} as torch",
            passed=mine == sorted(told),
            message=f"{mine}; torch: {sorted(told)}",
        )
        hidden = record["detect hidden"]["data"]
        yield Check(
            name="hiding the devices changes nothing that is detected, and is said",
            passed=hidden["accelerators"] == host["accelerators"]
            and (vendor != "nvidia" or "CUDA_VISIBLE_DEVICES" in json.dumps(hidden["findings"])),
            message="; ".join(item["message"] for item in hidden["findings"]),
        )
        yield Check(
            name="hiding the devices changes nothing that is chosen",
            passed=record["select hidden"]["data"]["backend"]
            == record["select"]["data"]["backend"],
            message=str(record["select"]["data"]["backend"]),
        )


def _catalog(record: Mapping[str, Any]) -> Iterable[Check]:
    """Compare what the catalog says of the installed build with what the build says of itself."""
    from packaging.version import Version

    from torchenv_magic.builds.backend import Backend
    from torchenv_magic.builds.catalog import load_catalog

    torch = record["torch"]["data"]
    version = Version(torch["version"])
    local = version.local or (f"cu{torch['cuda'].replace('.', '')}" if torch["cuda"] else None)
    told = sorted(name for name in torch["architectures"] if name.startswith("sm_"))
    if not told or local is None or not local.startswith("cu"):
        return
    machine = record["machine"]["architecture"]
    system = record["machine"]["system"].lower()
    platforms = {"linux": f"linux_{machine}", "windows": "win_amd64"}
    catalog = load_catalog()
    builds = [
        build
        for build in catalog.builds_for(Backend.parse(local), platforms.get(system, ""))
        if build.torch.release == version.release
    ]
    if not builds:
        return
    code = catalog.cuda_code(builds[0])
    mine = sorted(f"sm_{item.major}{item.minor}" for item in code.capabilities)
    yield Check(
        name="the code that the catalog knows in this build",
        passed=mine == told,
        message=f"{mine} ({code.source}); torch: {told}",
    )


_STEPS = ("product", "convolution", "backward", "bfloat16", "memory")


def _is_right(step: Mapping[str, Any]) -> bool:
    if step["absent"]:
        return True
    return step["difference"] is not None and step["difference"] <= step["bound"]


def _step_words(step: Mapping[str, Any]) -> str:
    """Return how far from its bound a step was, or why there is nothing to tell of it."""
    reason = step["failure"] or step["absent"] or ("no answer" if step["overdue"] else None)
    return f"{step['name']}: {reason or '{difference} of {bound} in {seconds} s'.format(**step)}"


def _words(record: Mapping[str, Any]) -> Iterable[Check]:
    select, verify = record["select"]["data"], record["verify"]["data"]
    torch = record["torch"]["data"]
    yield Check(
        name="select decides",
        passed=record["select"]["status"] == 0 and bool(select["reason"]),
        message=f"{select['backend']} with torch {select['torch']}: {select['reason']}",
    )
    on_device = bool(torch["devices"]) or torch["xpu"]
    yield Check(
        name="verify computes on the device",
        passed=record["verify"]["status"] == 0
        and (not on_device or not str(verify["device"]).startswith("cpu")),
        message=f"{verify['device']}, {verify['device_names']}, {verify['product_seconds']} s",
    )
    yield Check(
        name="the device passes every step of the self-test that it can do",
        passed=[step["name"] for step in verify["self_test"]] == list(_STEPS)
        and all(_is_right(step) for step in verify["self_test"]),
        message="; ".join(map(_step_words, verify["self_test"])),
    )
    if on_device:
        memory = verify["self_test"][-1]
        yield Check(
            name="verify tells the memory of the device",
            passed=0 < (memory["free_bytes"] or 0) <= (memory["total_bytes"] or 0),
            message=f"{memory['free_bytes']} of {memory['total_bytes']} bytes free",
        )
        told = json.dumps(verify["facts"])
        yield Check(
            name="verify tells the driver and the libraries for an issue",
            passed='"Accelerator"' in told and '"Libraries"' in told and "none found" not in told,
            message=told,
        )
    if torch["devices"]:
        yield Check(
            name="verify says what hides the device",
            passed="CUDA_VISIBLE_DEVICES" in json.dumps(record["verify hidden"]["data"]),
            message=str((record["verify hidden"]["data"] or {}).get("device")),
        )
    doctor = record["doctor"]["data"]
    errors = [item for item in doctor["problems"] if item["severity"] == "error"]
    yield Check(
        name="doctor finds no fault in a PyTorch that works",
        passed=not errors,
        message="; ".join(item["found"] for item in errors) or "none",
    )
