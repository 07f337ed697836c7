"""The installer beside a server: a process of its own that makes what was wished for come true.

It reads its order from standard input, tells how it stands in the record that all who wait read,
and ends in words whatever happens. Killed at any point it leaves what the next one finds: a record
of a process that is gone, and no stamp.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from torchenv_magic import __version__
from torchenv_magic.builds.backend import Backend
from torchenv_magic.builds.catalog import load_catalog
from torchenv_magic.demand import parse_requirement
from torchenv_magic.environment import (
    Environment,
    family,
    installed_backend,
    read_environment,
    shown_path,
)
from torchenv_magic.errors import (
    BusyError,
    ConsentError,
    InstallCancelled,
    InstallError,
    TargetError,
    TorchEnvError,
)
from torchenv_magic.installation.data_folder import data_folder
from torchenv_magic.installation.history import read_entries
from torchenv_magic.installation.install import install_plan
from torchenv_magic.installation.layers import (
    Layer,
    Unusable,
    attach,
    choose_layer,
    find_layers,
)
from torchenv_magic.installation.layers_trust import path_problem, tree_problem
from torchenv_magic.installation.plan import Plan, ask, is_met, looks_satisfied
from torchenv_magic.installation.planning import IndexUnreachableError, make_plan
from torchenv_magic.installation.progress import OnEvent
from torchenv_magic.installation.seeds import cache_problem, seed_cache
from torchenv_magic.installation.settings import Sites, read_sites
from torchenv_magic.installation.uv import Cancellation, find_uv
from torchenv_magic.installation.waiting import holding
from torchenv_magic.interpreter import running_interpreter
from torchenv_magic.preinstall.home import COMMAND, leaving_room, offer_to_user, prepare
from torchenv_magic.preinstall.place import (
    KERNEL_NAME,
    KERNEL_TITLE,
    Place,
)
from torchenv_magic.preinstall.record import LOG_NAME, own_user
from torchenv_magic.preinstall.report import Report
from torchenv_magic.preinstall.room import check_reserve
from torchenv_magic.preinstall.stamp import (
    Last,
    Stamp,
    circumstances,
    files_of,
    holds,
    read_last,
    read_stamp,
    remove_stamp,
    write_last,
    write_stamp,
)
from torchenv_magic.preinstall.wish import Wish
from torchenv_magic.selection import Request, parse_backend
from torchenv_magic.state import make_state_directory
from torchenv_magic.status import Status, read_selection, read_status, verdict

__all__ = ["main"]

logger = logging.getLogger(__name__)

_LAYERS = "TORCHENV_LAYERS"
_MOST_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done, as whoever began it has written."""

    directory: Path
    place: Place
    wish: Wish
    notice: str = ""
    since: str = ""
    offers_kernel: bool = False


_THERE = " is there"


@dataclass(frozen=True, slots=True)
class _Found:
    """What is there at the end."""

    environment: Environment
    backend: str
    remark: str = _THERE
    """What is to be said of it, after its name."""


def main(content: bytes) -> int:
    """Carry out an order; return 0 where all is there."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    order = _read_order(content)
    _stand_back()
    report = Report(
        order.directory, target=order.place.prefix, since=order.since, notice=order.notice
    )
    try:
        with _stoppable() as cancellation:
            _carry_out(order, report, cancellation)
    except InstallCancelled:
        report.fail(
            InstallError(
                "The install was stopped from outside",
                hint="start the server again: it goes on from there",
            )
        )
    except TorchEnvError as error:
        report.fail(error)
    except OSError as error:
        logger.exception("failed")
        place = f"`{error.filename}`: " if error.filename else ""
        report.fail(
            InstallError(
                f"PyTorch was not installed: {place}{error.strerror or error}",
                hint="free some space, or see who may write there; the next start tries again",
            )
        )
    except Exception as error:
        logger.exception("failed")
        report.fail(
            InstallError(
                f"PyTorch was not installed, by a fault of torchenv_magic: {type(error).__name__}",
                hint=f"read `{order.directory / LOG_NAME}`; `%torchenv install` tries again",
            )
        )
    else:
        return 0
    return 1


def _read_order(content: bytes) -> Order:
    data: dict[str, Any] = json.loads(content)
    return Order(
        directory=Path(data["directory"]),
        place=Place(prefix=Path(data["prefix"]), is_own=data["is_own"], is_ours=data["is_ours"]),
        wish=Wish(backend=data["backend"], requirements=tuple(data["requirements"])),
        notice=data["notice"],
        since=data["since"],
        offers_kernel=data["offers_kernel"],
    )


def _stand_back() -> None:
    """Let the server, which a person waits for, have the disk and the memory first."""
    if sys.platform != "linux":
        return
    # Where memory runs out, it is not the server that has to go.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    if (program := shutil.which("ionice")) is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [program, "--class", "3", "--pid", str(os.getpid())],
                capture_output=True,
                timeout=5,
                check=False,
            )


@contextlib.contextmanager
def _stoppable() -> Iterator[Cancellation]:
    """Turn a polite end from outside into a wish that puts everything back first."""
    cancellation = Cancellation()

    def stop(_number: int, _frame: object) -> None:
        # In a thread of its own: the interrupted code may hold the very lock that this takes.
        threading.Thread(target=cancellation.cancel, name="torchenv-stop").start()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    yield cancellation


# ------------------------------------------------------------------------------------- the errand


def _carry_out(order: Order, report: Report, cancellation: Cancellation) -> None:
    place = order.place
    request = _request(order.wish)
    with _gate(place, report, cancellation) as tell:
        _check_cache(report)
        stamp = read_stamp(place.prefix)
        if stamp is not None and holds(stamp, _circumstances(order)):
            # Somebody who was here before has done all of it.
            _tell_of(stamp, order, report)
            return
        remove_stamp(place.prefix)
        if not place.is_own and (there := _there_already(request)) is not None:
            found = _Found(there.environment, str(there.installed_backend))
            kernel = ""
            logger.info("the server's own environment has what is wished for")
        else:
            with leaving_room(place, find_uv().cache_directory()):
                found = _bring(order, request, report, tell, cancellation)
            kernel = "" if place.is_own else KERNEL_NAME
        environment = found.environment
        stamp = Stamp(
            circumstances=_circumstances(order),
            target=str(environment.prefix),
            kernel=kernel,
            kernel_title=KERNEL_TITLE if kernel else "",
            backend=found.backend,
            torch=_version(environment),
            message=f"PyTorch {_version(environment)}{found.remark}",
            files=files_of(_metadata(environment, request)),
        )
        place.prefix.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_state_directory(place.prefix)
        write_stamp(place.prefix, stamp)
        _tell_of(stamp, order, report)


def _check_cache(report: Report) -> None:
    """Use no cache that somebody else fills: what they put there would run here."""
    named = os.environ.get("UV_CACHE_DIR")
    if named and not _is_own(Path(named)) and (problem := cache_problem(Path(named))):
        logger.info("%s", problem)
        report.remark(f"{problem}: your own is used")
        os.environ["UV_CACHE_DIR"] = str(data_folder(os.environ) / "cache")
    if seed := os.environ.get("TORCHENV_SEED"):
        seeded = seed_cache(Path(seed), find_uv().cache_directory())
        logger.info("%s", seeded.reason)


def _is_own(folder: Path) -> bool:
    """Whether a folder is this user's alone: a home on the way may be open to a group."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return status.st_uid == own_user() and not status.st_mode & 0o022


def _request(wish: Wish) -> Request:
    """Return what is asked for: by a configuration or a form, and by nobody who typed it here.

    Raises
    ------
    RequestError
    """
    for text in wish.requirements:
        parse_requirement(text, trusted=False)
    return Request(
        backend=parse_backend(wish.backend, load_catalog()), requirements=wish.requirements
    )


def _circumstances(order: Order) -> dict[str, Any]:
    return circumstances(order.wish, order.place, os.environ, version=__version__)


@contextlib.contextmanager
def _gate(place: Place, report: Report, cancellation: Cancellation) -> Iterator[OnEvent]:
    """Let one preinstall of an environment work at a time; who waits hears what the other does.

    A lock beside the environment's own, which each of its installs takes and which an environment
    that is yet to be made has nobody to ask for.

    Raises
    ------
    TargetError
    """
    prefix = place.prefix
    try:
        if place.is_ours:
            # Beside it: where it is made anew it is gone for a moment.
            folder = prefix.with_name(f".{prefix.name}")
        else:
            prefix.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = make_state_directory(prefix) / "preinstall"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        where = shown_path(Path(error.filename or prefix))
        raise TargetError(
            f"`{where}` can't be written: {error.strerror}",
            hint="free some space, or see who may write there; the next start tries again",
        ) from error
    here = replace(read_environment(None), prefix=folder)
    with holding(
        here, command=COMMAND, on_event=report, cancellation=cancellation, wait=True
    ) as hold:
        yield hold.tell


def _there_already(request: Request) -> Status | None:
    """Return how the server's own environment stands, where it has what is wished for already.

    An image may have come with it, or an admin have installed it for all: then nobody needs an
    environment of their own.
    """
    environment = read_environment(None)
    if environment.installed("torch") is None:
        return None
    status = read_status(request)
    backend = status.selection.backend or request.backend
    if backend is None or status.installed_backend != backend:
        return None
    question = ask(request, status.environment, backend)
    return status if looks_satisfied(question, status.environment) else None


def _bring(
    order: Order, request: Request, report: Report, tell: OnEvent, cancellation: Cancellation
) -> _Found:
    """Install what is wished for; return what is there then."""
    place = order.place
    # An environment that is kept by us has no settings of its own: the server's hold there.
    settings = Path(sys.prefix) if place.is_ours else place.prefix
    sites = _trusted(read_sites(prefix=settings), report)
    layer = _layer(request, report)
    python = None
    if not place.is_own:
        prepared = prepare(place, layer=layer, sites=sites, tell=tell, cancellation=cancellation)
        python = prepared.python
        report.know(kernel=KERNEL_NAME, kernel_title=KERNEL_TITLE)
        if layer is not None and prepared.has_layer:
            return _installed(order, read_environment(python), str(layer.backend))
    if layer is not None:
        _attach(layer, python, tell, cancellation)
    environment = read_environment(python)
    last = read_last(environment.prefix)
    kept = _kept(order, request, environment, last)
    if kept is None:
        plan = _install(
            request, python, sites=sites, report=report, tell=tell, cancellation=cancellation
        )
        return _installed(order, read_environment(python), str(plan.backend))
    # Of theirs nothing is touched, also not what they have asked for, where nothing is missing.
    if not looks_satisfied(ask(request, environment, kept), environment):
        request = replace(request, backend=kept)
        _install(request, python, sites=sites, report=report, tell=tell, cancellation=cancellation)
    remark = _THERE if last is None else ", which you installed, stays"
    return _Found(read_environment(python), str(kept), remark)


def _installed(order: Order, environment: Environment, backend: str) -> _Found:
    last = Last(backend=order.wish.backend, torch=_version(environment))
    write_last(environment.prefix, last)
    return _Found(environment, backend)


def _kept(
    order: Order, request: Request, environment: Environment, last: Last | None
) -> Backend | None:
    """Return the build that is there, where a person has put it there since.

    Whoever chose another build in a notebook doesn't lose it by a new start of the server, as long
    as it does here. A build that an admin or a form names anew is newer than that.
    """
    torch = _version(environment)
    backend = installed_backend(environment)
    if backend is None or not torch or (last is not None and last.torch == torch):
        return None
    wished = order.wish.backend
    if wished != "auto" and (last is None or last.backend != wished):
        return None
    if any(is_met(text, environment) is False for text in request.requirements):
        return None
    selection = read_status(request, python=environment.interpreter.executable).selection
    entries = read_entries(environment.prefix)
    if entries and entries[-1].torch == torch and entries[-1].command != COMMAND:
        # By a line of theirs: a build for the processor may be just what they want.
        fits = any(each.backend == backend and each.fits for each in selection.alternatives)
    else:
        fits = verdict(selection, backend) is None
    return backend if fits else None


def _trusted(sites: Sites, report: Report) -> Sites:
    """Return the places for wheels without the folders that others can write.

    Nothing holds a wheel of a folder to a hash, and what is in it runs at the next import.
    """
    kept = []
    for text in sites.find_links:
        folder = Path(text)
        if problem := path_problem(folder) or tree_problem(folder):
            logger.info("%s: %s", folder, problem)
            report.remark(f"The wheel folder {folder} is refused: {problem}")
        else:
            kept.append(text)
    return replace(sites, find_links=tuple(kept))


def _layer(request: Request, report: Report) -> Layer | None:
    """Return the layer that fits, of those in the folders that an admin has named."""
    folders = [Path(text) for text in os.environ.get(_LAYERS, "").split(os.pathsep) if text]
    if not folders:
        return None
    layers = find_layers(folders)
    choice = choose_layer(
        layers, read_selection(request), running_interpreter(), request.requirements
    )
    for reason in choice.reasons:
        logger.info("%s", reason)
    for layer in layers:
        if isinstance(layer, Unusable) and layer.untrusted:
            report.remark(f"The layer {layer.directory} is not taken: {layer.problem}")
    return choice.layer


def _attach(layer: Layer, python: Path | None, tell: OnEvent, cancellation: Cancellation) -> None:
    """Let an environment that has no torch yet take it from the layer, where that can be."""
    environment = read_environment(python)
    if environment.installed("torch") is not None:
        return
    try:
        attach(
            layer,
            environment,
            command=COMMAND,
            on_event=tell,
            cancellation=cancellation,
            wait=True,
        )
    except InstallCancelled:
        raise
    except TorchEnvError as error:
        logger.info("the layer %s is not attached: %s", layer.directory, error.message)


def _install(
    request: Request,
    python: Path | None,
    *,
    sites: Sites,
    report: Report,
    tell: OnEvent,
    cancellation: Cancellation,
) -> Plan:
    rounds = 0
    while True:
        rounds += 1
        status = read_status(request, python=python, refresh="stale", index_base=sites.index_base)
        for text in filter(None, (status.recovered, status.unrepaired, *status.warnings)):
            logger.info("%s", text)
        plan = _plan(status, request, sites, tell, cancellation)
        report.know(backend=str(plan.backend))
        try:
            plan.check_consent()
        except ConsentError as error:
            # Nobody is here to be asked, and no option of this word says yes.
            error.hint = f"`%torchenv install {plan.backend} --yes` in a notebook does it"
            raise
        check_reserve(plan)
        logger.info("%s", plan)
        try:
            install_plan(plan, command=COMMAND, on_event=tell, cancellation=cancellation, wait=True)
        except BusyError:
            # Where another install began or ended meanwhile, this one plans anew, but not for ever.
            if rounds == _MOST_ROUNDS:
                raise
        else:
            return plan


def _plan(
    status: Status, request: Request, sites: Sites, tell: OnEvent, cancellation: Cancellation
) -> Plan:
    try:
        return make_plan(
            status.selection,
            status.environment,
            request,
            sites=sites,
            on_event=tell,
            cancellation=cancellation,
        )
    except IndexUnreachableError as error:
        # A folder of wheels that pip's or uv's settings name is meant for that. PyPI is not: its
        # build is another one on most machines, and nobody is there to be asked.
        for plan in error.offers:
            if plan.source.kind == "folder":
                logger.info("%s. Used: %s", error.message, plan.source)
                return plan
        raise


# ----------------------------------------------------------------------------------------- the end


def _tell_of(stamp: Stamp, order: Order, report: Report) -> None:
    if order.offers_kernel and stamp.kernel:
        offer_to_user(Path(stamp.target))
    report.know(
        target=stamp.target,
        kernel=stamp.kernel,
        kernel_title=stamp.kernel_title,
        backend=stamp.backend,
        torch=stamp.torch,
    )
    report.done(stamp.message)


def _version(environment: Environment) -> str:
    torch = environment.installed("torch")
    return torch.version if torch else ""


def _metadata(environment: Environment, request: Request) -> list[Path]:
    """Return the folders that tell whether what was installed is still as it was."""
    asked = (canonicalize_name(parse_requirement(text).name) for text in request.requirements)
    wanted = {*asked, *(package.name for package in family(environment))}
    found = [
        package.metadata_directory
        for package in environment.packages
        if package.name in wanted and package.metadata_directory is not None
    ]
    # Those of a layer may go with an image, while what tells of them stays.
    return [*found, environment.site_packages / "torch" / "version.py"]
