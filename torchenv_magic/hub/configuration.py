"""The lines of `jupyterhub_config.py` that put all of it together, beside what stands there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchenv_magic.errors import ConfigurationError
from torchenv_magic.hub import progress as news
from torchenv_magic.hub.command import SINGLE_USER, spawner_command, spawner_command_line
from torchenv_magic.hub.environment import MARGIN_SECONDS, environment, is_batch
from torchenv_magic.hub.options import (
    apply_user_options,
    drop_user_options,
    is_ours,
    options_form,
    options_from_form,
    with_links,
)
from torchenv_magic.hub.variants import Variant, is_backend

if TYPE_CHECKING:
    from traitlets.config import Config

__all__ = ["configure"]

logger = logging.getLogger(__name__)

_GROUP = "jupyterhub.spawners"
_HOOKS = ("options_form", "options_from_form", "apply_user_options")


def configure(
    c: Config,
    *,
    backend: str = "auto",
    variants: Sequence[str | Variant] | Mapping[str, str] = ("auto", "cpu"),
    requirements: Sequence[str] = ("torch",),
    wait: float = 60,
    mirror: str | None = None,
    find_links: Sequence[str] = (),
    layers: Sequence[str] = (),
    seed: str | None = None,
    certificates: str | None = None,
    proxies: str | Mapping[str, str] | None = None,
    form: bool = True,
    progress: bool = True,
    command: Sequence[str] | None = None,
) -> None:
    """Let each server of this hub come up with the PyTorch that fits the machine it runs on.

    Belongs at the end of `jupyterhub_config.py`: what stands there already is kept, and added to.

    Parameters
    ----------
    c
        The configuration.
    variants
        What the users may choose from: backends as uv calls them, with titles where it is a
        mapping. `backend` is what is taken where somebody hasn't chosen, and has to be one of
        them.
    wait
        The seconds that a server may be kept waiting for its install. The time-out of the spawner
        is raised for it; with 0 nothing waits, and notebooks join the running install.
    form
        Lets the users choose on the page that starts a server. Without it `backend` is installed.
    progress
        Shows the install on the page of a pending server.
    command
        How `torchenv` is started where the servers run, where it is not on their `PATH`.
    backend, requirements, mirror, find_links, layers, seed, certificates, proxies
        See `environment`.

    Raises
    ------
    ConfigurationError
        One of them can't be used, or what stands there can't be added to.
    """
    configured = _Configured(c)
    variables = environment(
        backend=backend,
        requirements=requirements,
        wait=wait,
        mirror=mirror,
        find_links=find_links,
        layers=layers,
        seed=seed,
        certificates=certificates,
        proxies=proxies,
    )
    if form:
        configured.add_form(variants, backend)
    else:
        configured.guard_jobs()
    configured.add_variables(variables)
    configured.wrap_command(command)
    configured.raise_timeout(wait)
    if progress:
        configured.add_progress()


class _Configured:
    """The configuration of one hub, as it counts for the class of its spawner."""

    def __init__(self, c: Config) -> None:
        self._c = c
        self._class = _spawner_class(c)

    def _section(self, trait: str, otherwise: str = "Spawner") -> Any:  # noqa: ANN401
        """Return the section where the trait is set, or would be: the more special one counts."""
        for base in self._class.mro():
            section = dict.get(self._c, base.__name__)
            if section is not None and trait in section:
                return section
        return self._c[otherwise]

    def _value(self, trait: str, default: Any = None) -> Any:  # noqa: ANN401
        return dict.get(self._section(trait), trait, default)

    def _class_default(self, trait: str) -> Any:  # noqa: ANN401
        declared = self._class.class_traits()[trait]  # type: ignore[attr-defined]
        return declared.default()

    def wrap_command(self, command: Sequence[str] | None) -> None:
        if is_batch(self._class):
            # It wraps `cmd` in a command of its own, which runs on the node that the job got.
            trait = "batchspawner_singleuser_cmd"
            line = str(self._value(trait, self._class_default(trait)))
            section = self._section(trait, "BatchSpawnerBase")
            section[trait] = spawner_command_line(line, torchenv=command)
            return
        if any(base.__name__ == "SudoSpawner" for base in self._class.mro()):
            logger.warning(
                "SudoSpawner starts `sudospawner-singleuser` and no other command: let that script "
                "begin with `torchenv preinstall --`"
            )
            return
        now = self._value("cmd") or self._class_default("cmd") or SINGLE_USER
        self._section("cmd").cmd = spawner_command(now, torchenv=command)

    def raise_timeout(self, wait: float) -> None:
        trait = "start_timeout" if is_batch(self._class) else "http_timeout"
        needed = int(wait) + MARGIN_SECONDS
        # Without a wait everything is as it was.
        if wait and self._value(trait, self._class_default(trait)) < needed:
            self._section(trait)[trait] = needed

    def add_variables(self, variables: Mapping[str, Any]) -> None:
        section = self._section("environment")
        # What the admin has said in so many words stays.
        wanted = {**variables, **self._given_variables()}
        if isinstance(given := dict.get(section, "environment", {}), Mapping):
            section.environment = wanted
        else:
            given.update(wanted)

    def _given_variables(self) -> Mapping[str, Any]:
        given = self._value("environment", {})
        if isinstance(given, Mapping):
            return given
        # `c.Spawner.environment.update(…)`
        late: Mapping[str, Any] = given.to_dict().get("update", {})
        return late

    def guard_jobs(self) -> None:
        """Let no option into a job's script that nobody is asked for."""
        known = self._class.class_traits(config=True)  # type: ignore[attr-defined]
        if is_batch(self._class) and "apply_user_options" in known and not self._asks():
            self._section("apply_user_options").apply_user_options = drop_user_options()

    def _asks(self) -> bool:
        """Whether the admin has a use of their own for what users choose."""
        return any(self._value(trait) for trait in _HOOKS)

    def add_form(self, variants: Sequence[str | Variant] | Mapping[str, str], backend: str) -> None:
        known = self._class.class_traits(config=True)  # type: ignore[attr-defined]
        if "apply_user_options" not in known:
            raise ConfigurationError(
                "This JupyterHub can't look at what a user chose before a server starts",
                hint="install JupyterHub 5.3 or newer, or give `form=False`",
            )
        if not {"options_form", "options_from_form"} <= known.keys():
            # wrapspawner's profiles are one.
            raise ConfigurationError(
                f"The form of {self._class.__name__} is its own, and none can stand beside it",
                hint="give `form=False`, and name the build by `backend` or by a profile's "
                "`environment`",
            )
        named = self._given_variables().get("TORCHENV_BACKEND", backend)
        if not is_backend(named):
            # A function of the spawner would be one.
            raise ConfigurationError(
                "What the spawner's `environment` gives to TORCHENV_BACKEND names no build, while "
                "users choose one",
                hint="name it by `backend` instead, or give `form=False`",
            )
        before = {trait: self._value(trait) for trait in _HOOKS}
        if any(map(is_ours, before.values())):
            raise ConfigurationError(
                "`configure` is called twice for this hub", hint="leave one of the calls out"
            )
        self._section("options_form").options_form = options_form(
            variants, backend=named, **_given(before=before["options_form"])
        )
        self._section("options_from_form").options_from_form = options_from_form(
            **_given(before=before["options_from_form"])
        )
        apply = before["apply_user_options"]
        self._section("apply_user_options").apply_user_options = apply_user_options(
            variants,
            backend=named,
            before=apply,
            only=is_batch(self._class)
            and not (before["options_form"] or before["options_from_form"] or callable(apply)),
        )
        self._take_class(with_links(self._class))

    def add_progress(self) -> None:
        self._take_class(news.with_progress(self._class))
        hub = self._c.JupyterHub
        entry = (news.ADDRESS, news.progress_handler())
        if "extra_handlers" not in hub:
            hub.extra_handlers = [entry]
        elif isinstance(hub.extra_handlers, list):
            hub.extra_handlers = [*hub.extra_handlers, entry]
        else:  # `c.JupyterHub.extra_handlers.append(…)`
            hub.extra_handlers.append(entry)

    def _take_class(self, spawner_class: type) -> None:
        self._class = spawner_class
        self._c.JupyterHub.spawner_class = spawner_class


def _given(**arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: value for name, value in arguments.items() if value}


def _spawner_class(c: Config) -> type:
    """Return the class that the hub will use, by whichever name it is given."""
    section = dict.get(c, "JupyterHub", {})
    named = dict.get(section, "spawner_class", "localprocess")
    if isinstance(named, type):
        return named
    from importlib.metadata import entry_points

    known = {point.name.lower(): point for point in entry_points(group=_GROUP)}
    try:
        if point := known.get(str(named).lower()):
            found = point.load()
        else:
            from traitlets import import_item

            found = import_item(str(named))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"The spawner {named!r} can't be imported",
            hint="install its package where the hub runs, or correct `c.JupyterHub.spawner_class`",
            detail=str(error),
        ) from None
    if not isinstance(found, type):
        raise ConfigurationError(
            f"The spawner {named!r} is no class", hint="correct `c.JupyterHub.spawner_class`"
        )
    return found
