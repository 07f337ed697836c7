"""What the users of a hub choose, beside what its admin lets them choose already."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable, signature
from typing import Any, TypeVar

from torchenv_magic.errors import RequestError
from torchenv_magic.hub.variants import AUTO, OPTION, Variant, form_html, read_choice, read_variants

__all__ = [
    "NOTICE_VARIABLE",
    "apply_user_options",
    "drop_user_options",
    "is_ours",
    "options_form",
    "options_from_form",
    "with_links",
]

logger = logging.getLogger(__name__)

NOTICE_VARIABLE = "TORCHENV_PREINSTALL_NOTICE"
"""Brings what a person has to know of their choice to their server, and so to a notebook."""

_DEFAULT = object()
"""Stands for what the class of the spawner does by itself: a list of profiles or of images."""
# `Any` is a Spawner: nothing here imports JupyterHub before it has to.
_Form = Callable[[Any], Awaitable[str]]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def options_form(
    variants: Sequence[str | Variant] | Mapping[str, str],
    *,
    backend: str = AUTO,
    before: Any = _DEFAULT,  # noqa: ANN401
) -> _Form:
    """Return a function for `Spawner.options_form`.

    Parameters
    ----------
    backend
        The one that is marked for all who haven't chosen yet.
    before
        The form that there is already; without it the one that the class of the spawner has.
    """
    offered = read_variants(variants, backend=backend)

    async def torchenv_options_form(spawner: Any) -> str:  # noqa: ANN401
        theirs = spawner.trait_defaults("options_form") if before is _DEFAULT else before
        if callable(theirs):
            theirs = theirs(spawner)
        if isawaitable(theirs):
            theirs = await theirs
        chosen, note = _last_choice(spawner, offered)
        return f"{theirs or ''}{form_html(offered, chosen=chosen, note=note)}"

    return _mark(torchenv_options_form)


def options_from_form(*, before: Any = _DEFAULT) -> Callable[..., Any]:  # noqa: ANN401
    """Return a function for `Spawner.options_from_form`; nothing is judged there."""

    def torchenv_options_from_form(
        form_data: Mapping[str, Sequence[Any]],
        spawner: Any = None,  # noqa: ANN401
    ) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        others = {key: value for key, value in form_data.items() if key != OPTION}
        values = form_data.get(OPTION, ())
        # Several are refused later, where options from everywhere are.
        ours = {OPTION: values[0] if len(values) == 1 else list(values)} if values else {}
        theirs = _their_options(before, others, spawner)
        if isawaitable(theirs):
            return _joined(theirs, ours)
        return {**theirs, **ours}

    return _mark(torchenv_options_from_form)


def apply_user_options(
    variants: Sequence[str | Variant] | Mapping[str, str],
    *,
    backend: str = AUTO,
    before: Callable[..., Any] | Mapping[str, str] | None = None,
    only: bool = False,
) -> Callable[[Any, Mapping[str, Any]], Awaitable[None]]:
    """Return a function for `Spawner.apply_user_options`: the one place where a choice is judged.

    Options come there from the form, from a link, by the hub's API, and from the start before.

    Parameters
    ----------
    backend
        The one for all who haven't chosen.
    before
        What is done with the other options now.
    only
        Drops the options that neither this nor `before` knows, where a spawner would write them
        into a program.
    """
    offered = read_variants(variants, backend=backend)

    async def torchenv_apply_user_options(
        spawner: Any,  # noqa: ANN401
        user_options: Mapping[str, Any],
    ) -> None:
        others = {key: value for key, value in user_options.items() if key != OPTION}
        try:
            choice = read_choice(user_options, offered)
        except RequestError as error:
            # The hub keeps options before they are looked at: the next start would be refused too.
            spawner.user_options = others
            if (kept := getattr(spawner, "orm_spawner", None)) is not None:
                kept.user_options = others
            _log(spawner).warning("%s: %s", _name(spawner), error.message)
            raise _refusal(error) from None
        # Always both: the spawner may have started another choice before.
        spawner.environment["TORCHENV_BACKEND"] = choice.backend
        spawner.environment.pop(NOTICE_VARIABLE, None)
        if choice.notice:
            spawner.environment[NOTICE_VARIABLE] = choice.notice
            _log(spawner).warning("%s: %s", _name(spawner), choice.notice)
        if only:
            known = before if isinstance(before, Mapping) else ()
            others = {key: value for key, value in others.items() if key in known}
            spawner.user_options = {**others, OPTION: choice.backend}
        if isinstance(before, Mapping):
            _set_traits(spawner, before, others)
        elif before is not None and isawaitable(answer := before(spawner, others)):
            await answer

    return _mark(torchenv_apply_user_options)


def drop_user_options() -> Callable[[Any, Mapping[str, Any]], None]:
    """Return a function for `Spawner.apply_user_options` where nobody is asked for any.

    They come by a link or the hub's API all the same, and some spawners write them into a program.
    """

    def torchenv_drop_user_options(spawner: Any, _user_options: Mapping[str, Any]) -> None:  # noqa: ANN401
        spawner.user_options = {}

    return _mark(torchenv_drop_user_options)


def with_links(spawner_class: type) -> type:
    """Return the class, where a link's options are read by what reads a form's for that spawner.

    JupyterHub hands the spawner on for a form only, and what a class does by itself takes one.
    """

    class Spawner(spawner_class):  # type: ignore[misc]
        def options_from_query(self, query_data: Mapping[str, Sequence[str]]) -> Any:  # noqa: ANN401
            return self.run_options_from_form(query_data)

    Spawner.__name__ = Spawner.__qualname__ = spawner_class.__name__
    Spawner.__doc__ = spawner_class.__doc__
    return Spawner


def is_ours(function: object) -> bool:
    """Whether one of the functions above has made it."""
    return getattr(function, "torchenv", False) is True


# --- inside ---------------------------------------------------------------------------------------


def _their_options(before: Any, data: dict[str, Any], spawner: Any) -> Any:  # noqa: ANN401
    if before is _DEFAULT:
        if spawner is None:
            return {}
        before = spawner.trait_defaults("options_from_form")
    if isinstance(before, str):
        # `simple` and `passthrough`, which JupyterHub has under these names.
        before = getattr(spawner, f"_{before}_options_from_form", None)
    if before is None:
        return {}
    if "spawner" in signature(before).parameters:
        return before(data, spawner=spawner)
    return before(data)


async def _joined(theirs: Awaitable[Any], ours: dict[str, Any]) -> dict[str, Any]:
    return {**(await theirs), **ours}


def _last_choice(spawner: Any, offered: Sequence[Variant]) -> tuple[str, str]:  # noqa: ANN401
    """Return what the person chose last, and a sentence where that is not offered now."""
    kept = getattr(spawner, "orm_spawner", None)
    options = getattr(kept, "user_options", None)
    try:
        choice = read_choice(options if isinstance(options, dict) else {}, offered)
    except RequestError:
        return "", ""
    return choice.backend, choice.notice


def _refusal(error: RequestError) -> Exception:
    """Return the error that JupyterHub shows to a person, with the status of a bad request."""
    text = f"{error.message}: {error.hint}"
    try:
        from jupyterhub.spawner import SpawnException
    except ImportError:  # JupyterHub 5
        from tornado.web import HTTPError

        refusal: Exception = HTTPError(400, "%s", text)
    else:
        refusal = SpawnException(text, reason="torchenv-variant")
    # Without it the page begins with the name of the class.
    refusal.jupyterhub_message = text  # type: ignore[attr-defined]
    return refusal


def _set_traits(spawner: Any, names: Mapping[str, str], options: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Do what JupyterHub does where `apply_user_options` is a table of attributes."""
    for key, value in options.items():
        trait = spawner.traits().get(names.get(key, ""))
        if trait is None:
            _log(spawner).warning("%s: nothing takes %s", _name(spawner), ascii(key)[:60])
            continue
        try:
            setattr(spawner, trait.name, value)
        except Exception:
            # A number came as text.
            if not isinstance(value, str):
                raise
            setattr(spawner, trait.name, trait.from_string(value))


def _log(spawner: Any) -> logging.Logger:  # noqa: ANN401
    """Return the hub's own log, which an admin reads."""
    log: logging.Logger = getattr(spawner, "log", None) or logger
    return log


def _name(spawner: Any) -> str:  # noqa: ANN401
    return str(getattr(spawner, "_log_name", "a server"))


def _mark(function: _Function) -> _Function:
    function.torchenv = True  # type: ignore[attr-defined]
    return function
