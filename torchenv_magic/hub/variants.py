"""The builds that a hub's users may choose from, and what one of them has chosen. Pure."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torchenv_magic.builds.backend import Backend
from torchenv_magic.errors import ConfigurationError, RequestError

__all__ = ["AUTO", "OPTION", "Choice", "Variant", "form_html", "read_choice", "read_variants"]

OPTION = "torchenv_variant"
"""The key of the choice: in the form, in a link after `opt-`, and in `user_options`."""
AUTO = "auto"

_LONGEST_NAME = 20
_MOST_BUTTONS = 6
"""With more variants than that a list is shorter to look through."""
# Backend.parse takes digits of any script, as int() does.
_NAME = re.compile(r"[a-z]{2,5}[0-9.]{0,12}", re.ASCII)

_SENTENCES = {
    "cpu": "Small, and it runs everywhere. A GPU is left unused.",
    "cuda": "For NVIDIA GPUs.",
    "rocm": "For AMD GPUs.",
    "xpu": "For Intel GPUs.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One build that may be chosen."""

    backend: str
    """In uv's words, or `auto`."""
    title: str = ""
    """What a person reads; made of the backend where it is empty."""
    description: str = ""
    """One sentence; made of the backend where it is empty."""

    @property
    def shown_title(self) -> str:
        if self.title:
            return self.title
        return "Automatic" if self.backend == AUTO else Backend.parse(self.backend).label

    @property
    def shown_description(self) -> str:
        if self.description:
            return self.description
        if self.backend == AUTO:
            return "Takes the build that fits the machine your server runs on."
        return _SENTENCES[Backend.parse(self.backend).kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a server is started with."""

    backend: str
    notice: str = ""
    """What the person and the admin are told, where that is not what was asked for."""


def read_variants(
    given: Iterable[str | Variant] | Mapping[str, str], *, backend: str = AUTO
) -> tuple[Variant, ...]:
    """Return what is offered, the one for all who haven't chosen first.

    Parameters
    ----------
    given
        A mapping gives titles to backends.
    backend
        The one for all who haven't chosen. With `auto`, which needn't be offered, it is else the
        first of them.

    Raises
    ------
    ConfigurationError
        There is none, one is there twice, or is no backend; or `backend` is none of them.
    """
    if isinstance(given, str):
        given = (given,)
    if isinstance(given, Mapping):
        given = [Variant(backend=name, title=str(title)) for name, title in given.items()]
    found: dict[str, Variant] = {}
    for each in given:
        variant = each if isinstance(each, Variant) else Variant(backend=each)
        if not is_backend(variant.backend):
            raise ConfigurationError(
                f"The variant {variant.backend!r} is no build of PyTorch",
                hint="name each as uv does, such as `auto`, `cpu`, `cu126`, `rocm7.2` or `xpu`",
            )
        if variant.backend in found:
            raise ConfigurationError(
                f"The variant `{variant.backend}` is offered twice", hint="take one of them out"
            )
        found[variant.backend] = variant
    if not found:
        raise ConfigurationError(
            "There is no variant for the users to choose from",
            hint="name at least `auto` in `variants`, or give `form=False`",
        )
    if backend != AUTO and backend not in found:
        raise ConfigurationError(
            f"{backend!r} is named for all who haven't chosen, and nobody can choose it",
            hint="name it in `variants` too, or give `form=False`",
        )
    return tuple(sorted(found.values(), key=lambda variant: variant.backend != backend))


def is_backend(text: object) -> bool:
    """Whether that is `auto` or the name of a build, whoever offers it."""
    if not isinstance(text, str) or len(text) > _LONGEST_NAME or not _NAME.fullmatch(text):
        return False
    if text == AUTO:
        return True
    try:
        return str(Backend.parse(text)) == text
    except ValueError:
        return False


def read_choice(options: Mapping[str, object], offered: Sequence[Variant]) -> Choice:
    """Return what a server is started with, whichever way the options came.

    A build that is not offered is no mistake of the person's: a link or the last start may name one
    that the admin has taken out since.

    Raises
    ------
    RequestError
        What stands there is no name of a build.
    """
    first = offered[0].backend
    if OPTION not in options:
        return Choice(backend=first)
    asked = options[OPTION]
    names = [variant.backend for variant in offered]
    if asked in names:
        return Choice(backend=str(asked))
    if is_backend(asked):
        instead = "what fits the machine" if first == AUTO else first
        # No quotes: it goes through files that some spawners write for a shell or for systemd.
        notes = [f"This hub offers no build {asked} of PyTorch: {instead} is taken instead"]
        return Choice(backend=first, notice=notes[0])
    # Without what was sent: it may be of any length, and meant to look like something else.
    raise RequestError(
        "What was asked for is no build of PyTorch",
        hint=f"choose one of {', '.join(names)}",
    )


def form_html(offered: Sequence[Variant], *, chosen: str = "", note: str = "") -> str:
    """Return the part of the spawn page where one of them is chosen.

    Parameters
    ----------
    chosen
        What is marked at first; the first of them where that is not offered.
    note
        A sentence above them.
    """
    marked = chosen if chosen in [variant.backend for variant in offered] else offered[0].backend
    notice = f'<p id="{OPTION}-note" class="form-text">{html.escape(note)}.</p>' if note else ""
    if len(offered) > _MOST_BUTTONS:
        return f"<div>{notice}{_select(offered, marked)}</div>"
    buttons = "".join(
        _button(
            variant,
            checked=variant.backend == marked,
            recommended=_is_recommended(variant, offered),
        )
        for variant in offered
    )
    return f'<fieldset><legend class="fs-5">PyTorch</legend>{notice}{buttons}</fieldset>'


def _is_recommended(variant: Variant, offered: Sequence[Variant]) -> bool:
    """Whether it is `auto`, and the admin has named no other one to begin with."""
    return variant.backend == AUTO == offered[0].backend


def _button(variant: Variant, *, checked: bool, recommended: bool) -> str:
    name = html.escape(variant.backend)
    mark = " <strong>(recommended)</strong>" if recommended else ""
    return (
        '<div class="form-check text-start mb-2">'
        f'<input class="form-check-input" type="radio" name="{OPTION}" id="{OPTION}-{name}"'
        f' value="{name}" aria-describedby="{OPTION}-{name}-about"{" checked" if checked else ""}>'
        f'<label class="form-check-label" for="{OPTION}-{name}">'
        f"{html.escape(variant.shown_title)}{mark}</label>"
        f'<div class="form-text mt-0" id="{OPTION}-{name}-about">'
        f"{html.escape(variant.shown_description)}</div></div>"
    )


def _select(offered: Sequence[Variant], marked: str) -> str:
    options = "".join(
        f'<option value="{html.escape(variant.backend)}"'
        f"{' selected' if variant.backend == marked else ''}>"
        f"{html.escape(variant.shown_title)}"
        f"{' (recommended)' if _is_recommended(variant, offered) else ''}: "
        f"{html.escape(variant.shown_description)}</option>"
        for variant in offered
    )
    return (
        f'<label class="form-label fs-5" for="{OPTION}">PyTorch</label>'
        f'<select class="form-select" name="{OPTION}" id="{OPTION}">{options}</select>'
    )
