"""What the picker shows in each of its states: one table, and pure functions around it.

A `PickerModel` says how things stand; `look` says what is on the screen then. Nothing here knows a
widget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Literal

from torchenv_magic.builds.backend import Backend
from torchenv_magic.environment import FAMILY_MEMBERS, check_target, is_satellite
from torchenv_magic.errors import (
    ConsentError,
    InstallCancelled,
    SelectionError,
    TargetError,
    TorchEnvError,
)
from torchenv_magic.installation.plan import Plan
from torchenv_magic.installation.planning import IndexUnreachableError
from torchenv_magic.notebook.job import JobState
from torchenv_magic.notebook.lock_offer import LockOffer
from torchenv_magic.notebook.rendering import (
    alternatives_html,
    changes_html,
    facts_html,
    log_html,
    running_html,
    status_rows,
    summary_html,
    title_html,
    words_html,
)
from torchenv_magic.notebook.server_preinstall import Preinstall
from torchenv_magic.selection import Alternative
from torchenv_magic.status import Status

__all__ = [
    "BUSY",
    "EDITABLE",
    "RESTART",
    "TITLE",
    "Choices",
    "Look",
    "PickerModel",
    "PickerState",
    "choices",
    "look",
    "obstacle",
    "offer_of",
    "state_of_error",
    "state_of_job",
]

PickerState = Literal[
    "detecting",
    "ready",
    "nothing to do",
    "not possible",
    "not yours",
    "preinstalling",
    "elsewhere",
    "locked",
    "planning",
    "joining",
    "installing",
    "making",
    "undoing",
    "stopping",
    "verifying",
    "cancelled",
    "failed",
    "offered",
    "consenting",
    "asking",
    "made",
    "restarting",
    "over",
]
"""`not yours`: nothing can be installed here, but a kernel of one's own can be made, which `making`
does. `preinstalling`: what began with the server is waited for; `elsewhere`: it has put PyTorch
into another kernel. `locked`: the notebook has a lock that can be restored here. `offered`: the
index is away, and there is another place to install from.
`consenting`: the plan changes packages that are no part of PyTorch. `asking`: all is installed, and
the session holds what a restart would cost; `made`: the same of a new kernel, and of the switch to
it. `over`: restarting, switching or verified; what came of it stands in the picker's place."""

TITLE = "PyTorch for this kernel"

INSTALL = "Install and restart kernel"
INSTALL_ONLY = "Install"
PLAN = "Show plan"
VERIFY = "Verify PyTorch"
CANCEL = "Cancel"
MAKE = "Make a kernel of your own"
KEEP = "Keep the session"
STAY = "Switch later"
SWITCH = "Switch to it now"
USE = "Use that kernel in this notebook"
LEAVE = "Stop waiting"
CHOOSE = "Choose for yourself"
RESTORE = "Restore it"
LATER = "Restart later"
RESTART = "Restart now"

_BEFORE_A_PLAN = (
    f"“{PLAN}” tells what is downloaded, installed and replaced; nothing is changed before you "
    "press the button."
)

_OFFLINE = (
    "`UV_OFFLINE` is set: until it is unset, only what uv's cache or a wheel folder holds can be "
    "installed."
)

_OF_YOUR_OWN = (
    "A kernel of your own is an environment in your home with the build and the packages that are "
    "chosen above, and no others. Jupyter lists it, this notebook is given it, and nothing else "
    "is touched."
)

_REPAIRED_BY_INSTALL = "What it has left is set right by the next install, which begins anew."

# A log of uv's is long: while it grows, its end is what tells where the install stands.
_LOG_LINES = 12
_NAMED_PACKAGES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class PickerModel:
    """How things stand."""

    state: PickerState = "detecting"
    restarts: bool = True
    """Whether a kernel can be restarted from here: the button does not promise what isn't done."""
    offline: bool = False
    """Whether a person told uv to stay off the network."""
    status: Status | None = None
    plan: Plan | None = None
    """What was planned for the fields as they are."""
    session: str = ""
    """What a restart means for this session, in a sentence."""
    job: JobState | None = None
    error: TorchEnvError | None = None
    lead: str = ""
    """What was installed."""
    undo: str = ""
    """What undoing the last install does, where it can be: `back to torch 2.12.0+cpu`."""
    asks_first: bool = False
    """Whether the session holds what took work, so that a restart is asked for."""
    preinstall: Preinstall | None = None
    """What began with the server, if anything did."""
    lock: LockOffer | None = None
    """What there is to say of the notebook's lock, if it has one."""
    restores: bool = False
    """Whether it is that lock that is being installed, and not what the fields ask for."""
    how_to_choose: str = ""
    """What a person presses for another kernel, where the notebook can't be given one from here."""
    switches: bool = False
    """Whether it is not a restart that ends this session, but a kernel of one's own."""
    may_keep: bool = False
    """Whether nothing that changed is loaded, so that the session may go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is on the screen: texts are HTML, and an empty one is not there."""

    fields: Literal["hidden", "absent", "open", "closed"]
    """Hidden with the buttons, or absent alone."""
    primary: str
    """The words on the first button."""
    works: bool
    """Whether the first button does anything; it keeps its place and the keyboard where not."""
    secondary: str
    asks: str
    """The words on the button that costs something: the first one does no harm then."""
    undo: str
    """The words on the button that undoes the last install."""
    names: bool
    """Whether the field for a kernel's name is there."""
    facts: str
    said: str
    """Above the buttons: what they would do, or what there is to know before one is pressed."""
    progress: str
    """Below the buttons: what goes on."""
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    fields: Literal["hidden", "absent", "open", "closed"] = "closed"
    primary: str = ""
    works: bool = False
    secondary: str = ""
    asks: str = ""
    names: bool = False
    undoes: bool = False


_ROWS: Mapping[PickerState, _Row] = {
    "detecting": _Row(fields="hidden"),
    "ready": _Row(fields="open", primary=INSTALL, works=True, secondary=PLAN, undoes=True),
    "nothing to do": _Row(fields="open", primary=VERIFY, works=True, secondary=PLAN, undoes=True),
    "not possible": _Row(primary=VERIFY, works=True),
    "not yours": _Row(fields="open", primary=MAKE, works=True, secondary=VERIFY, names=True),
    "preinstalling": _Row(fields="absent", primary="Waiting…", secondary=LEAVE),
    "elsewhere": _Row(fields="absent", primary=USE, works=True, secondary=CHOOSE),
    "locked": _Row(fields="absent", primary=RESTORE, works=True, secondary=CHOOSE),
    "planning": _Row(primary="Planning…", secondary=CANCEL),
    "joining": _Row(primary="Waiting…", secondary=CANCEL),
    "installing": _Row(primary="Installing…", secondary=CANCEL),
    "making": _Row(primary="Making…", secondary=CANCEL, names=True),
    "undoing": _Row(primary="Undoing…", secondary=CANCEL),
    "stopping": _Row(primary="Stopping…", secondary=CANCEL),
    "verifying": _Row(primary="Verifying…"),
    "cancelled": _Row(fields="open", primary=INSTALL, works=True, secondary=PLAN),
    "failed": _Row(fields="open", primary=INSTALL, works=True, secondary=PLAN),
    "offered": _Row(fields="open", primary=INSTALL, works=True, secondary=PLAN),
    # The button that had the keyboard all the while becomes the one that does no harm.
    "consenting": _Row(primary=CANCEL, works=True, asks=INSTALL),
    "asking": _Row(primary=KEEP, works=True, asks=RESTART),
    "made": _Row(primary=STAY, works=True, asks=SWITCH),
    "restarting": _Row(primary="Restarting…"),
    "over": _Row(fields="hidden"),
}

# A way on that is open, or a wish that was met, is no alarm.
_TONES: Mapping[PickerState, str] = {
    "cancelled": "calm",
    "failed": "bad",
    "not possible": "warn",
    "not yours": "warn",
    "offered": "warn",
    "locked": "bad",
}

EDITABLE = frozenset(state for state, row in _ROWS.items() if row.fields == "open")
BUSY = frozenset(state for state, row in _ROWS.items() if row.secondary == CANCEL)
_RUNNING = BUSY | {"preinstalling"}


def look(model: PickerModel) -> Look:
    """Return what is on the screen."""
    row = _ROWS[model.state]
    if model.status is None and model.state != "over":
        row = _ROWS["detecting"]
    job = model.job if model.state in _RUNNING else None
    return Look(
        # They ask for something else.
        fields="absent" if model.restores and row.fields == "closed" else row.fields,
        primary=_primary(row.primary, model),
        works=row.works,
        secondary=_secondary(row.secondary, model),
        asks=_asks(row.asks, model),
        undo=f"Undo: {model.undo}" if row.undoes and model.undo else "",
        names=row.names,
        facts=_facts(model),
        said=_said(model),
        progress=_progress(model),
        log=_log(job.log if job else ()),
    )


def state_of_job(state: JobState) -> PickerState:
    """Return the state of a picker whose job runs."""
    return state.stage


def state_of_error(error: TorchEnvError) -> PickerState:
    """Return the state of a picker whose job has ended so."""
    if isinstance(error, InstallCancelled):
        return "cancelled"
    if isinstance(error, IndexUnreachableError) and error.offers:
        return "offered"
    return "failed"


def offer_of(model: PickerModel) -> Plan | None:
    """Return what can be had from elsewhere where the index was away, with a person's consent."""
    error = model.error
    return error.offers[0] if isinstance(error, IndexUnreachableError) and error.offers else None


def obstacle(status: Status) -> TorchEnvError | None:
    """Return why nothing can be installed here, whatever is chosen; None where something can."""
    try:
        check_target(status.environment)
    except TargetError as error:
        return error
    selection = status.selection
    if selection.backend is None and not any(item.fits for item in selection.alternatives):
        # The warnings stand among the facts already.
        return SelectionError(
            f"No build of PyTorch fits here: {selection.reason}",
            hint="`%torchenv list` tells the reason of each build",
        )
    return None


# --------------------------------------------------------------------------------------- the choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The list to choose from, best first, and what stands below it."""

    options: tuple[tuple[str, Backend], ...]
    """Words and value: a second line of the words is the reason."""
    chosen: Backend | None
    others: str
    """The builds that don't fit with their reasons, as HTML."""


def choices(status: Status) -> Choices:
    """Return what there is to choose from; the recommended build is the first."""
    selection = status.selection
    chosen = selection.backend
    listed = [item for item in selection.alternatives if item.fits or item.backend == chosen]
    listed.sort(key=lambda item: item.backend != chosen)
    others = [item for item in selection.alternatives if item not in listed]
    return Choices(
        options=tuple(
            (_label(item, recommended=item.backend == chosen), item.backend) for item in listed
        ),
        chosen=chosen,
        others=_others(others),
    )


def _label(item: Alternative, *, recommended: bool) -> str:
    name = item.backend.label + (f" · torch {item.torch}" if item.torch else "")
    return f"{name}{' — recommended' if recommended else ''}\n{item.reason}"


def _others(items: list[Alternative]) -> str:
    if not items:
        return ""
    words = "1 build that does" if len(items) == 1 else f"{len(items)} builds that do"
    summary = summary_html(f"{words} not fit here, and why")
    return _block(f"<details>{summary}{alternatives_html(items, None)}</details>")


# ---------------------------------------------------------------------------------------- the words


def _primary(words: str, model: PickerModel) -> str:
    if offer := offer_of(model):
        version = offer.versions.get("torch", "")
        if model.state == "not yours":
            return f"{MAKE} with torch {version} from there"
        if model.state == "locked":
            return f"{RESTORE} with torch {version} from there"
        if model.state == "offered":
            words = f"Install torch {version} from there"
            return f"{words} and restart kernel" if model.restarts else words
    if model.state == "asking":
        return KEEP if model.may_keep else LATER
    if model.state == "elsewhere" and model.how_to_choose:
        return ""
    if model.state == "not possible" and (model.status is None or model.status.torch is None):
        return ""
    if words == INSTALL:
        return _install_words(model)
    return words


def _install_words(model: PickerModel) -> str:
    """Return what the button says that installs; it names what is lost."""
    losses = model.plan.losses if model.plan is not None else ()
    if losses:
        first = losses[0]
        what = f"Replace {first.name} {first.before} by {first.after}"
        if first.after is None:
            what = f"Remove {first.name} {first.before}"
        if len(losses) > 1:
            what = f"Change {len(losses)} packages of yours"
        return f"{what} and install"
    return INSTALL if model.restarts else INSTALL_ONLY


def _secondary(words: str, model: PickerModel) -> str:
    # There may be nothing yet that could be verified.
    absent = model.status is None or model.status.torch is None
    if words == LEAVE and model.preinstall is not None and not model.preinstall.here:
        return CHOOSE
    return "" if words == VERIFY and absent else words


def _asks(words: str, model: PickerModel) -> str:
    return _install_words(model) if words == INSTALL else words


def _facts(model: PickerModel) -> str:
    if model.state == "over":
        return ""
    parts = [title_html(TITLE)]
    if model.status is not None:
        rows = [*status_rows(model.status), *_notice_rows(model), *_lock_rows(model)]
        parts.append(facts_html(rows))
        parts.append(_failure_html(model.preinstall, model.status))
    elif model.error is not None:
        parts.append(_error_html(model.error, tone="warn"))
    else:
        parts.append("<p class='torchenv-quiet' role='status'>Looking at this machine…</p>")
    return _block(*parts)


def _notice_rows(model: PickerModel) -> list[tuple[str, str]]:
    """Return what there is to know of what began with the server, and stands nowhere else."""
    preinstall = model.preinstall
    if preinstall is None:
        return []
    texts = [preinstall.record.notice] if preinstall.record.notice else []
    if model.state not in ("preinstalling", "elsewhere"):
        if preinstall.stage == "running":
            texts.append(f"{preinstall}.")
            if preinstall.here:
                texts[-1] += " What you install from here waits for that."
        elif preinstall.has_kernel:
            texts.append(f"{preinstall}.")
    return [("Note", words_html(text)) for text in texts]


def _lock_rows(model: PickerModel) -> list[tuple[str, str]]:
    """Return what there is to know of the notebook's lock where it is not offered."""
    offer = model.lock
    if offer is None or model.state == "locked" or model.restores:
        return []
    has = f"This notebook has a lock: {offer.title}."
    if offer.stage == "met":
        text = f"{has} It is met: what it has for {offer.backend} is here."
    elif offer.error is not None:
        message, hint = offer.error.message, offer.error.hint
        text = f"{message}; {hint}." if hint else f"{message}."
        if offer.lock is not None:
            text = f"{has} It can't be restored here: {text[0].lower()}{text[1:]}"
    elif model.state in ("not possible", "not yours"):
        text = f"{has} `%torchenv restore` installs it in a kernel that can be changed."
    else:
        text = f"{has} Open the picker again to restore it."
    return [("Lock", words_html(text))]


def _failure_html(preinstall: Preinstall | None, status: Status) -> str:
    """Return how what began with the server has failed; what a person can do stands below."""
    if preinstall is None or not preinstall.has_failed(status):
        return ""
    words = f"<p class='torchenv-warn'>{words_html(f'{preinstall}.')}</p>"
    hint = preinstall.record.hint
    if preinstall.stage == "killed":
        words += f"<p class='torchenv-quiet'>{_REPAIRED_BY_INSTALL}</p>"
    elif hint:
        words += f"<p class='torchenv-quiet'>hint: {words_html(hint)}</p>"
    detail = log_html(preinstall.log, title="what was said about it")
    return f"<div role='alert'>{words}</div>{detail}"


def _preinstalled(model: PickerModel, preinstall: Preinstall) -> list[str]:
    """Return what is said in the states that are about what began with the server."""
    if preinstall.stage == "running":
        first = f"PyTorch is being installed{preinstall.where}."
        then = "That began as the server started, and goes on whether you wait or not."
        if not preinstall.here:
            then += " This notebook has another kernel; in the end it can be given that one."
    else:
        first = f"{preinstall}."
        then = f"This notebook has another kernel, without PyTorch. {model.how_to_choose}".rstrip()
        then += "." if model.how_to_choose else ""
    return [
        f"<p role='status'><strong>{words_html(first)}</strong></p>",
        f"<p class='torchenv-quiet'>{words_html(then)}</p>",
    ]


def _said(model: PickerModel) -> str:
    if model.status is None or model.state in ("restarting", "verifying", "over"):
        return ""
    if model.state in ("asking", "made"):
        lead, words = words_html(model.lead), words_html(model.session)
        return _block(f"<div role='alert'><p><strong>{lead}.</strong> {words}</p></div>")
    if model.state in ("preinstalling", "elsewhere") and model.preinstall is not None:
        return _block(*_preinstalled(model, model.preinstall))
    if model.state == "not yours":
        return _block(*_not_yours(model))
    if model.state == "locked" and model.lock is not None:
        return _block(*_locked(model, model.lock))
    if model.error is not None and model.state in _TONES:
        return _block(_error_html(model.error, tone=_TONES[model.state]))
    if model.state == "making":
        return _block(f"<p class='torchenv-quiet'>{_OF_YOUR_OWN}</p>")
    plan = (model.job.plan if model.job else None) or model.plan
    if plan is not None and not plan.nothing_to_do:
        return _block(
            _losses(plan, asks=model.state == "consenting"),
            f"<p>{escape(plan.summary)}</p>",
            f"<p class='torchenv-quiet'>from {escape(str(plan.source))}</p>",
            *(f"<p class='torchenv-quiet'>{words_html(note)}</p>" for note in plan.notes),
            *(f"<p class='torchenv-warn'>{words_html(note)}</p>" for note in plan.space_notes),
            *_afterwards(model),
            changes_html(plan),
        )
    if model.restores and model.lock is not None:
        return _block(_lock_title(model.lock))
    if model.state == "nothing to do":
        return _block(*(f"<p>{words_html(text)}</p>" for text in _nothing_to_do(model.status)))
    offline = f"<p class='torchenv-warn'>{words_html(_OFFLINE)}</p>" if model.offline else ""
    return _block(offline, *_afterwards(model), f"<p class='torchenv-quiet'>{_BEFORE_A_PLAN}</p>")


def _locked(model: PickerModel, offer: LockOffer) -> list[str]:
    error = model.error
    parts = [_lock_title(offer)]
    if offer.backend is not None:
        words = (
            f"For this machine that is its {offer.backend.label} build, with each package in the "
            "version that was locked."
        )
        parts += [f"<p>{escape(words)}</p>", *_brought(model, offer)]
    if error is not None:
        tone = "calm" if isinstance(error, InstallCancelled) else _TONES[model.state]
        if offer_of(model) is not None:
            tone = _TONES["offered"]
        parts.insert(0, _error_html(error, tone=tone))
    return [*parts, *_afterwards(model)]


def _brought(model: PickerModel, offer: LockOffer) -> list[str]:
    """Return what comes with PyTorch: somebody else may have written what a lock says."""
    if model.status is None:
        return []
    packages = offer.brings(model.status.environment)
    others = [
        each.name
        for each in packages
        if each.name not in FAMILY_MEMBERS and not is_satellite(each.name)
    ]
    parts = []
    if others:
        rest = len(others) - _NAMED_PACKAGES
        listed = ", ".join(others[:_NAMED_PACKAGES]) + (f" and {rest} more" if rest > 0 else "")
        parts.append(f"<p>With PyTorch it installs {escape(listed)}.</p>")
    count = f"{len(packages)} packages" if len(packages) != 1 else "1 package"
    lines = [f"{each.name} {each.version}" for each in packages]
    return [*parts, log_html(lines, title=f"{count}, each with its version")]


def _lock_title(offer: LockOffer) -> str:
    words = f"This notebook has a lock: {offer.title}."
    return f"<p><strong>{words_html(words)}</strong></p>"


def _afterwards(model: PickerModel) -> list[str]:
    """Return what follows an install, and what it would cost the session."""
    if not model.restarts:
        return []
    words = f"{model.session} " if model.session else ""
    if model.asks_first:
        words += "You are asked before the kernel is restarted."
    else:
        words += "After the install the kernel is restarted, and PyTorch verified."
    return [f"<p>{words_html(words)}</p>"]


def _losses(plan: Plan, *, asks: bool) -> str:
    try:
        plan.check_consent()
    except ConsentError as error:
        words = f"<p class='torchenv-warn'>{words_html(error.message)}.</p>"
        return f"<div role='alert'>{words}</div>" if asks else words
    return ""


def _not_yours(model: PickerModel) -> list[str]:
    error = model.error
    parts = [f"<p class='torchenv-quiet'>{_OF_YOUR_OWN}</p>"]
    if error is not None:
        tone = "calm" if isinstance(error, InstallCancelled) else _TONES[model.state]
        # Of what stands in the way the button is the hint.
        reason = obstacle(model.status) if model.status is not None else None
        hinted = reason is None or error.message != reason.message
        parts.insert(0, _error_html(error, tone=tone, hinted=hinted))
    return parts


def _nothing_to_do(status: Status) -> list[str]:
    here = (
        f"Nothing to do: torch {status.torch} is here, as asked for. “{VERIFY}” computes with it "
        "in a process of its own; the kernel is not restarted."
    )
    texts = [here]
    newest = status.selection.torch
    if newest and status.torch and status.torch.partition("+")[0] != newest:
        texts.append(f"The newest that fits is torch {newest}: write it as the version to get it.")
    return texts


def _progress(model: PickerModel) -> str:
    if model.state == "stopping":
        return _block("<p role='status'>Stopping…</p>")
    if model.state == "restarting":
        what = "Switching this notebook to it…" if model.switches else "Restarting the kernel…"
        return _block(f"<p role='status'>{words_html(model.lead)}. {what}</p>")
    if model.state == "verifying":
        lead = f"{words_html(model.lead)}. " if model.lead else ""
        return _block(f"<p role='status'>{lead}A process of its own computes with torch now.</p>")
    job = model.job
    if model.state not in _RUNNING or job is None:
        return ""
    running = running_html(
        job.message,
        progress=job.bytes,
        count=job.count,
        fraction=job.fraction,
        phase=job.phase,
        plan=job.plan,
    )
    return _block(running)


def _error_html(error: TorchEnvError, *, tone: str, hinted: bool = True) -> str:
    words = f"<p class='torchenv-{tone}'>{words_html(error.message)}</p>"
    # Of an offer the button is the hint.
    if hinted and error.hint and state_of_error(error) != "offered":
        words += f"<p class='torchenv-quiet'>hint: {words_html(error.hint)}</p>"
    detail = log_html(error.detail.splitlines(), title="what was said about it")
    return f"<div role='alert'>{words}</div>{detail}"


def _log(lines: tuple[str, ...]) -> str:
    text = "\n".join(lines[-_LOG_LINES:])
    return _block(f"<pre>{escape(text)}</pre>") if text else ""


def _block(*parts: str) -> str:
    return f"<div class='torchenv torchenv-wide'>{''.join(parts)}</div>"
