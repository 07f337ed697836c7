"""The fleet: one file a machine, laid out as a folder that detection looks at as if it were `/`.

A file and not a folder in git: PCI addresses have colons in them, which Windows can't check out,
and a device node can only be made. `README.md` says what a machine's file holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.nvml import LIBRARY, detect_in_child
from torchenv_magic.accelerators import Host, Platform, detect
from torchenv_magic.accelerators.apple import apple_accelerators
from torchenv_magic.accelerators.windows import adapter_of, adapters_report
from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import Interpreter
from torchenv_magic.selection import Request, Selection, select

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Machine", "machines"]

_FOLDER = Path(__file__).parent / "machines"

# Answers for the fields that it is asked for, and refuses a field that it does not know, as the
# real program does. The first lines are its data.
_NVIDIA_SMI = """#!{python} -I
import sys
GPUS = {gpus!r}
ANYWAY = {{"index": "0", "mig.mode.current": "[N/A]", "pci.bus_id": "00000000:01:00.0"}}
query = [text for text in sys.argv[1:] if text.startswith("--query-gpu=")]
if not query:
    sys.exit("the stand-in for nvidia-smi answers --query-gpu")
fields = query[0].partition("=")[2].split(",")
for field in fields:
    if field not in GPUS[0] and field not in ANYWAY:
        print(f'Field "{{field}}" is not a valid field to query.\\n')
        sys.exit(2)
for gpu in GPUS:
    print(", ".join({{**ANYWAY, **gpu}}[field] for field in fields))
"""
_PROGRAM = """#!{python} -I
import sys, time
sys.stdout.write({output!r})
sys.stdout.flush()
time.sleep({seconds})
sys.exit({status})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    name: str
    data: Mapping[str, Any]

    @property
    def expected(self) -> Mapping[str, Any]:
        expected: Mapping[str, Any] = self.data["expected"]
        return expected

    @property
    def platform(self) -> Platform:
        system = self.data["system"]
        libc, _, version = system.get("libc", "").partition(" ")
        return Platform(
            system=system["system"],
            machine=system.get("machine", "x86_64"),
            libc=libc or None,
            libc_version=version or None,
            system_version=system.get("version"),
        )

    @property
    def interpreter(self) -> Interpreter:
        version = self.data["system"]["python"]
        return Interpreter(
            executable=Path("python"),
            version=version.removesuffix("t"),
            implementation="cpython",
            free_threaded=version.endswith("t"),
        )

    @property
    def request(self) -> Request:
        request = self.data.get("request", {})
        backend = request.get("backend")
        return Request(
            backend=Backend.parse(backend) if backend else None,
            requirements=tuple(request.get("requirements", ["torch"])),
        )

    def lay_out(self, folder: Path) -> Path:
        """Make the machine's files and programs below `folder`; return its root."""
        root = folder / "root"
        root.mkdir()
        for name, text in self.data.get("files", {}).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for name, target in self.data.get("links", {}).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        programs = {
            name: _PROGRAM.format(
                python=sys.executable,
                output=program.get("output", ""),
                seconds=3600 if program.get("hangs") else 0,
                status=program.get("exit", 0),
            )
            for name, program in self.data.get("programs", {}).items()
        }
        if gpus := self.data.get("nvidia-smi"):
            programs["nvidia-smi"] = _NVIDIA_SMI.format(python=sys.executable, gpus=gpus)
        (folder / "bin").mkdir()
        for name, text in programs.items():
            path = folder / "bin" / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)
        return root

    def detect(self, folder: Path, *, nvml: Path | None = None) -> Host:
        """Return what detection says of it. `nvml` is the compiled stand-in for the library."""
        root = self.lay_out(folder)
        environ = {"PATH": str(folder / "bin"), **self.data.get("environ", {})}
        # A hanging program is given up on after this.
        seconds = 0.5 if "hangs" in json.dumps(self.data.get("programs", {})) else 10.0
        if "nvml" in self.data:
            assert nvml is not None
            library = root / LIBRARY
            library.parent.mkdir(parents=True, exist_ok=True)
            library.symlink_to(nvml)
            answers = {
                "FAKE_NVML_DRIVER": self.data["nvml"]["driver"],
                "FAKE_NVML_DEVICES": ";".join(self.data["nvml"]["devices"]),
            }
            host = detect_in_child(root, {**environ, **answers}, timeout_seconds=seconds)
        else:
            host = detect(root=root, environ=environ, timeout_seconds=seconds)
        return self._on_its_platform(host)

    def _on_its_platform(self, host: Host) -> Host:
        platform = replace(self.platform, wsl=host.platform.wsl)
        accelerators, findings = host.accelerators, host.findings
        if platform.system == "macos":
            accelerators = apple_accelerators(platform)
        if platform.system == "windows":
            adapters = [
                adapter_of(data["instance"], device={"ClassGUID": data["ClassGUID"]}, driver=data)
                for data in self.data.get("adapters", [])
            ]
            report = adapters_report(filter(None, adapters), nvidia=bool(accelerators))
            accelerators += report.accelerators
            findings += report.findings
        return Host(platform=platform, accelerators=accelerators, findings=findings)

    def select(self, host: Host) -> Selection:
        return select(
            host,
            self.request,
            interpreter=self.interpreter,
            environ=self.data.get("environ", {}),
        )


def machines() -> list[Machine]:
    """Return the fleet, in the order of its files' names."""
    return [
        Machine(name=path.stem, data=tomllib.loads(path.read_text(encoding="utf-8")))
        for path in sorted(_FOLDER.glob("*.toml"))
    ]
