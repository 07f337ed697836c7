"""All that is judged together: what was examined, the host, what would be chosen, the catalog."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from packaging.version import InvalidVersion, Version

from torchenv_magic.accelerators.records import Accelerator, Host, Vendor
from torchenv_magic.builds.backend import Backend, Kind
from torchenv_magic.builds.catalog import Build, Catalog
from torchenv_magic.doctor.examination import Examination
from torchenv_magic.doctor.problem import install_cure, uv_cure
from torchenv_magic.environment import InstalledPackage, backend_of_local_version
from torchenv_magic.selection import Selection
from torchenv_magic.verification.findings import Findings

__all__ = ["VENDOR_OF_KIND", "Case", "Remarks", "listed", "stock_version"]

VENDOR_OF_KIND: dict[Kind, Vendor] = {"cuda": "nvidia", "rocm": "amd", "xpu": "intel"}


@dataclass(frozen=True, slots=True)
class Remarks:
    """What a judgement has to say besides its problems; filled while it judges."""

    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One environment on one host. No slots: `cached_property` keeps its answers here."""

    examination: Examination
    host: Host
    selection: Selection
    """Of what an install without further words would choose here."""
    catalog: Catalog

    @cached_property
    def torch(self) -> InstalledPackage | None:
        return self.examination.environment.installed("torch")

    @property
    def backend(self) -> Backend | None:
        return self.examination.backend

    @cached_property
    def stock(self) -> Version | None:
        """The release, where the wheel is one of PyTorch's own: only of those the catalog knows."""
        if self.torch is None or self.by_conda(self.torch):
            return None
        texts = [self.torch.version, self.examination.version_file or self.torch.version]
        versions = [stock_version(text) for text in texts]
        return versions[0] if None not in versions else None

    @cached_property
    def build(self) -> Build | None:
        """The catalog's row, or one like it for a release that it doesn't have."""
        if self.stock is None or self.backend is None:
            return None
        platform = self.host.platform.wheel_platform
        release = Version(self.stock.base_version)
        for build in self.catalog.builds_for(self.backend, platform):
            if build.torch == release:
                return build
        return Build(
            torch=release,
            backend=self.backend,
            wheel_platform=platform,
            python_tags=(),
            glibc=None,
            source="by rule",
        )

    @cached_property
    def findings(self) -> Findings | None:
        """What the child found, as far as it came."""
        return self.examination.run.findings if self.examination.run else None

    def by_conda(self, package: InstalledPackage) -> bool:
        """Return whether conda installed it: it says so, or has it on its books.

        The `pytorch` channel ships an .egg-info, which no wheel has, and no file that names conda.
        """
        directory = package.metadata_directory
        if package.installer is not None or directory is None or directory.suffix != ".egg-info":
            return package.installer == "conda"
        names = ("pytorch", "libtorch") if package.name == "torch" else (package.name,)
        return any(
            (booked.name in names) and booked.version == package.version
            for booked in self.examination.conda
        )

    def version_of(self, name: str) -> str | None:
        """Return the version of a package; empty where it can't be read, None where it is missing.

        Of one that the interpreter finds elsewhere too: pip takes what the Python below has.
        """
        package = self.examination.environment.installed(name)
        if package is not None:
            return package.version
        elsewhere = dict(self.findings.installed).get(name, ()) if self.findings else ()
        return (elsewhere[0] or "") if elsewhere else None

    @property
    def imports(self) -> bool:
        """Whether the import was seen to work: then what looks wrong is not what breaks it."""
        return self.findings is not None and self.findings.torch_version is not None

    @property
    def computes(self) -> bool:
        """Whether a product on the device was seen to be right."""
        product = self.findings.step("product") if self.findings else None
        return product is not None and product.is_right

    @property
    def sees_gpu(self) -> bool:
        return self.findings is not None and self.findings.device not in (None, "cpu")

    def accelerators(self, vendor: Vendor | None) -> tuple[Accelerator, ...]:
        return tuple(item for item in self.host.accelerators if item.vendor == vendor)

    @property
    def shown(self) -> str:
        """The installed torch in words: `torch 2.13.0+cu126`, `torch 2.13.0 (cu130)`."""
        version = self.torch.version if self.torch else ""
        named = f" ({self.backend})" if self.backend and "+" not in version else ""
        return f"torch {version}{named}"

    @property
    def words(self) -> tuple[str, ...]:
        """The installed build, as an install is asked for it; empty where no index has it."""
        if (
            self.stock is None
            or self.stock.is_prerelease
            or self.backend is None
            or self.backend not in self.catalog.backends()
            or not self.catalog.is_known_to_uv(self.backend)
        ):
            return ()
        return (str(self.backend), f"torch=={self.stock.public}")

    def same_build_cure(self, *packages: str) -> str:
        """Return the install of this build with `packages`; of the best one where it can't be."""
        return install_cure(*(self.words or ()), *packages)

    def anew_cure(self) -> str:
        """Return the run of uv that links every file of torch anew: ours sees nothing to do."""
        words = self.words or ("torch",)
        backend = [f"--torch-backend={words[0]}"] if self.words else []
        return self.uv(["install", "--reinstall-package=torch", *backend], words[-1:])

    def uv(self, action: list[str], packages: tuple[str, ...]) -> str:
        python = self.examination.environment.interpreter.executable
        return uv_cure(action, packages, python=python, uv=self.examination.uv)


def stock_version(text: str) -> Version | None:
    """Return the version where it is one that PyTorch itself builds, None for others' builds.

    >>> stock_version("2.14.1+cu126"), stock_version("2.7.0a0+gitabc1234")
    (<Version('2.14.1+cu126')>, None)
    """
    try:
        version = Version(text)
    except InvalidVersion:
        return None
    # `2.9.0a0+nv25.10` and `2.7.0a0+git…` count up to a release; nightlies are `.dev20260101`.
    if version.pre is not None and version.pre[0] == "a":
        return None
    if version.local is not None and backend_of_local_version(version.local) is None:
        return None
    return version


def listed(texts: list[str] | tuple[str, ...], most: int = 3) -> str:
    """Return the texts as one, the first few of them.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
    ('a and b', 'a, b, c and 2 more')
    """
    if len(texts) > most + 1:
        return f"{', '.join(texts[:most])} and {len(texts) - most} more"
    return " and ".join([", ".join(texts[:-1]), *texts[-1:]] if len(texts) > 1 else texts)
