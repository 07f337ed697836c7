"""HTML for the records.

Only Jupyter's own colours (`--jp-*`) with fallbacks, so that light, dark and other themes fit; what
is said is said in words, and a colour only repeats it. Everything from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from torchenv_magic.accelerators import Host
from torchenv_magic.installation.history import Entry, History, asked, took, when
from torchenv_magic.installation.plan import Change, Plan, by_importance
from torchenv_magic.installation.progress import Bytes, Phase, format_bytes
from torchenv_magic.selection import Alternative, Selection
from torchenv_magic.status import Status

if TYPE_CHECKING:
    from torchenv_magic.doctor import Diagnosis

__all__ = [
    "STYLE",
    "alternatives_html",
    "bar_html",
    "block_html",
    "changes_html",
    "diagnosis_html",
    "facts_html",
    "history_html",
    "log_html",
    "message_html",
    "plan_html",
    "progress_html",
    "progress_words",
    "record_html",
    "running_html",
    "status_html",
    "status_rows",
    "summary_html",
    "title_html",
    "words_html",
]

STYLE = """<style>
.torchenv {
  font-family: var(--jp-ui-font-family, sans-serif);
  font-size: var(--jp-ui-font-size1, 13px);
  line-height: 1.5;
  color: var(--jp-ui-font-color1, inherit);
  max-width: 46rem;
  overflow-wrap: anywhere;
  text-wrap: pretty;
}
/* In VS Code the light colours of ipywidgets hold on the whole page. Widgets stand on white there,
   other outputs on the theme's own background. */
body[class*="vscode-"] .torchenv:not(.jupyter-widgets *) {
  --jp-ui-font-color1: var(--vscode-editor-foreground);
  --jp-ui-font-color2: var(--vscode-descriptionForeground);
}
.torchenv p { margin: 0.3em 0; }
/* The words are English wherever they stand: their order is their own, their edge is the page's. */
.torchenv :is(p, td, th) { unicode-bidi: plaintext; }
.torchenv:dir(rtl) :is(p, td:nth-child(n), th:nth-child(n)) { text-align: right; }
.torchenv p.torchenv-title { font-size: 1.2em; margin: 0.2em 0 0.5em; }
.torchenv strong { font-weight: 600; }
.torchenv table, .jp-RenderedHTMLCommon .torchenv table {
  border-collapse: collapse; margin: 0.3em 0; font-size: inherit; table-layout: auto; border: 0;
  color: inherit;
}
.torchenv tr, .jp-RenderedHTMLCommon .torchenv tbody tr:nth-child(n) { background: none; }
.torchenv :is(td, th), .jp-RenderedHTMLCommon .torchenv :is(td, th) {
  text-align: start; vertical-align: top; padding-block: 0.15em; padding-inline: 0 1em;
  max-width: none; white-space: normal; border: 0; line-height: 1.5;
}
.torchenv td:not(:last-child), .jp-RenderedHTMLCommon .torchenv td:not(:last-child),
.torchenv th[scope=row], .jp-RenderedHTMLCommon .torchenv th[scope=row] {
  white-space: nowrap; overflow-wrap: normal;
}
.torchenv-scroll { overflow-x: auto; }
.torchenv th, .jp-RenderedHTMLCommon .torchenv th {
  font-weight: normal; color: var(--jp-ui-font-color2, inherit);
}
.torchenv-builds th[scope=row], .jp-RenderedHTMLCommon .torchenv-builds th[scope=row] {
  color: inherit;
}
.torchenv :is(code, pre), .jp-RenderedHTMLCommon .torchenv :is(code, pre) {
  font-family: var(--jp-code-font-family, monospace); font-size: 0.95em;
  background: none; padding: 0; color: inherit;
}
.torchenv pre { white-space: pre-wrap; margin: 0.3em 0 0; }
.torchenv summary { cursor: pointer; color: var(--jp-ui-font-color2, inherit); }
.torchenv summary:focus-visible {
  outline: 2px solid var(--jp-brand-color1, currentColor); outline-offset: 2px;
}
.torchenv-quiet { color: var(--jp-ui-font-color2, inherit); }
.torchenv-good {
  color: var(--jp-success-color0, var(--jp-success-color1, inherit)); font-weight: 600;
}
/* The themes' own red and orange are hard to read on their background: the words keep theirs. */
.torchenv :is(.torchenv-bad, .torchenv-warn) {
  border-inline-start: 3px solid var(--jp-warn-color1, currentColor); padding-inline-start: 0.6em;
}
.torchenv .torchenv-bad {
  border-color: var(--jp-error-color1, currentColor); color: var(--jp-ui-font-color1, inherit);
  font-weight: 600;
}
.torchenv progress.torchenv-bar {
  display: block; width: 100%; height: 0.8em; margin: 0.4em 0;
  accent-color: var(--jp-brand-color1, auto);
}
/* Each step with what is before it: a line that is full breaks between two. */
.torchenv .torchenv-steps.torchenv-steps {
  list-style: none; display: flex; flex-wrap: wrap; gap: 0 1.2em; margin: 0.3em 0; padding: 0;
}
.torchenv .torchenv-steps.torchenv-steps li { margin: 0; }
.torchenv .torchenv-wheels td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.torchenv .torchenv-wheels td:last-child { width: 100%; vertical-align: middle; padding: 0; }
.torchenv .torchenv-wheels :is(div, span) { display: block; height: 3px; border-radius: 2px; }
.torchenv .torchenv-wheels div { background: var(--jp-border-color2, #8884); }
.torchenv .torchenv-wheels span { background: var(--jp-brand-color1, currentColor); }
.torchenv-wide { container-type: inline-size; }
@container (max-width: 26rem) {
  .torchenv .torchenv-wheels.torchenv-wheels td:last-child:nth-child(n) { display: none; }
  .torchenv .torchenv-wheels.torchenv-wheels :is(td, th):nth-child(n) {
    white-space: normal; overflow-wrap: anywhere;
  }
  /* Named twice: stronger than the rules above, which have to be stronger than JupyterLab's. */
  .torchenv .torchenv-facts.torchenv-facts :is(tbody, tr, td, th):nth-child(n) {
    display: block; white-space: normal; padding-block: 0;
  }
  .torchenv .torchenv-facts.torchenv-facts td:nth-child(n) { margin-bottom: 0.4em; }
}
@container (max-width: 36rem) {
  .torchenv .torchenv-builds.torchenv-builds :is(tbody, tr):nth-child(n) { display: block; }
  .torchenv .torchenv-builds.torchenv-builds thead { display: none; }
  .torchenv .torchenv-builds.torchenv-builds tr { margin-bottom: 0.4em; text-align: start; }
  .torchenv .torchenv-builds.torchenv-builds :is(td, th):nth-child(n) {
    display: inline-block; padding-block: 0;
  }
  .torchenv .torchenv-builds.torchenv-builds td:last-child:nth-child(n) { display: block; }
  .torchenv-changes td:last-child:not(:empty)::before { content: "→ "; }
}
</style>"""


def block_html(*parts: str) -> str:
    """Return the parts as one block, with the style sheet."""
    return f"{STYLE}<div class='torchenv torchenv-wide'>{''.join(parts)}</div>"


def facts_html(rows: Iterable[tuple[str, str]]) -> str:
    """Return (title, text) pairs as a table, both already HTML, without the style sheet."""
    # A real table: it is one in a page too that takes away styles and classes, as GitHub does.
    cells = "".join(f"<tr><th scope='row'>{title}</th><td>{text}</td></tr>" for title, text in rows)
    return f"<table class='torchenv-facts'><tbody>{cells}</tbody></table>"


def words_html(text: str) -> str:
    """Return a sentence with its `literals` as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(
        f"<code>{escape(part)}</code>" if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def message_html(
    text: str,
    *,
    tone: str = "",
    hint: str = "",
    detail: str = "",
    detail_title: str = "what uv said",
    title: str = "",
) -> str:
    """Return one message: a sentence, its hint, and the details folded."""
    parts = [title_html(title)] if title else []
    parts += [f"<p class='torchenv-{tone}'>" if tone else "<p>", words_html(text), "</p>"]
    if hint:
        parts.append(f"<p class='torchenv-quiet'>hint: {words_html(hint)}</p>")
    if detail:
        parts.append(log_html(detail.splitlines(), title=detail_title))
    return block_html(*parts)


def title_html(text: str, *, tone: str = "") -> str:
    """Return the line above what is told."""
    # No heading: JupyterLab's table of contents would list it among the notebook's own.
    toned = f" torchenv-{tone}" if tone else ""
    return f"<p class='torchenv-title{toned}'><strong>{escape(text)}</strong></p>"


def summary_html(text: str) -> str:
    """Return the line that unfolds what follows it."""
    # Its marker goes with the page's direction, and its words with their own.
    return f"<summary><bdi>{escape(text)}</bdi></summary>"


def log_html(lines: Iterable[str], *, title: str = "log") -> str:
    """Return the lines folded, without the style sheet."""
    text = "\n".join(lines)
    return f"<details>{summary_html(title)}<pre>{escape(text)}</pre></details>" if text else ""


def _devices_html(host: Host) -> str:
    devices = [
        f"<strong>{escape(item.name)}</strong>{escape(str(item).removeprefix(item.name))}"
        for item in host.accelerators
    ]
    return "<br>".join(devices) or "none found"


def _finding_rows(host: Host) -> list[tuple[str, str]]:
    return [
        (
            "Note",
            words_html(finding.message)
            + (
                f"<br><span class='torchenv-quiet'>hint: {words_html(finding.hint)}</span>"
                if finding.hint
                else ""
            ),
        )
        for finding in host.findings
    ]


def host_html(host: Host) -> str:
    """Return what is in the host as a small table."""
    rows = [("Accelerator", _devices_html(host)), ("System", escape(str(host.platform)))]
    return block_html(facts_html([*rows, *_finding_rows(host)]))


def status_rows(status: Status) -> list[tuple[str, str]]:
    """Return what is here, as the picker and the status show it."""
    installed, separator, problem = status.installed.partition(" — ")
    text = escape(installed)
    if separator:
        text += f"<br><strong class='torchenv-warn'>{escape(problem)}</strong>"
    rows = [
        ("Accelerator", _devices_html(status.host)),
        ("Environment", escape(str(status.environment))),
        ("Installed", text),
    ]
    rows += _finding_rows(status.host)
    rows += [("Note", words_html(note)) for note in status.warnings]
    if status.recovered:
        rows.append(("Repaired", words_html(status.recovered)))
    if status.unrepaired:
        rows.append(("Note", words_html(status.unrepaired)))
    if status.preinstall:
        rows.append(("Preinstall", words_html(status.preinstall)))
    return rows


def status_html(status: Status, *, title: str = "") -> str:
    """Return the status as a small table."""
    chosen = status.selection.backend
    name = (
        f"<strong>{escape(chosen.label)}</strong> · torch {escape(status.selection.torch or '')} — "
        if chosen
        else ""
    )
    rows = [*status_rows(status), ("Recommended", f"{name}{words_html(status.selection.reason)}")]
    return block_html(title_html(title) if title else "", facts_html(rows))


def alternatives_html(alternatives: Iterable[Alternative], chosen: object) -> str:
    """Return builds with their reasons, as rows of a table, without the style sheet."""
    rows = "".join(
        f"<tr><th scope='row'>{_strong(a.backend.label, when=a.backend == chosen)}</th>"
        f"<td><code>{escape(str(a.backend))}</code></td>"
        f"<td>{escape(a.torch or '')}</td><td>{'fits' if a.fits else 'does not fit'}</td>"
        f"<td>{words_html(a.reason)}</td></tr>"
        for a in alternatives
    )
    titles = ("Build", "Backend", "torch", "Here", "Reason")
    head = "".join(f"<th scope='col'>{title}</th>" for title in titles)
    return (
        "<div class='torchenv-scroll'><table class='torchenv-builds'>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _strong(text: str, *, when: bool) -> str:
    return f"<strong>{escape(text)}</strong>" if when else escape(text)


def selection_html(selection: Selection) -> str:
    """Return the choice and every other build with its reason."""
    return block_html(
        alternatives_html(selection.alternatives, selection.backend),
        *(f"<p class='torchenv-warn'>{words_html(w)}</p>" for w in selection.warnings),
        f"<p class='torchenv-quiet'>{escape(str(selection.catalog))}</p>",
    )


def _change_row(change: Change) -> str:
    return (
        f"<tr><th scope='row'>{escape(change.name)}</th><td>{change.action}</td>"
        f"<td>{escape(change.before or '')}</td><td>{escape(change.after or '')}</td></tr>"
    )


def changes_html(plan: Plan) -> str:
    """Return every change of a plan, folded, without the style sheet."""
    if plan.nothing_to_do:
        return ""
    count = len(plan.changes)
    words = f"{count} package{'' if count == 1 else 's'}, one by one"
    titles = ("Package", "Change", "Now", "Then")
    head = "".join(f"<th scope='col'>{title}</th>" for title in titles)
    return (
        f"<details>{summary_html(words)}"
        "<div class='torchenv-scroll'><table class='torchenv-builds torchenv-changes'>"
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(map(_change_row, by_importance(plan.changes)))}</tbody></table></div>"
        "</details>"
    )


def plan_html(plan: Plan) -> str:
    """Return what a plan costs and touches."""
    rows = [
        ("Backend", f"<strong>{escape(plan.backend.label)}</strong> — {words_html(plan.reason)}"),
        ("Into", escape(str(plan.prefix))),
        ("From", escape(str(plan.source))),
        ("Plan", escape(plan.summary)),
        *(("Space", words_html(note)) for note in plan.space_notes),
        *(("Note", words_html(note)) for note in plan.notes),
    ]
    return block_html(facts_html(rows), changes_html(plan))


def progress_html(
    message: str,
    progress: Bytes | None,
    log: Iterable[str] = (),
    *,
    count: tuple[int, int] | None = None,
    phase: Phase | None = None,
    plan: Plan | None = None,
) -> str:
    """Return a running install: its steps, a bar with its words, and the log folded."""
    running = running_html(message, progress=progress, count=count, phase=phase, plan=plan)
    return block_html(running, log_html(log))


def running_html(
    message: str,
    *,
    progress: Bytes | None = None,
    count: tuple[int, int] | None = None,
    fraction: float | None = None,
    phase: Phase | None = None,
    plan: Plan | None = None,
) -> str:
    """Return what goes on, without the style sheet: the steps, the message, bars and numbers."""
    # A screen reader says the sentence as it changes, and the numbers when it is asked to.
    parts = [_steps_html(phase, plan), f"<p role='status'>{words_html(message)}</p>"]
    if progress is not None:
        numbers = str(progress)
        if count is not None and count[1]:
            numbers += f" · {_counted(count)} ready"
        parts += [bar_html(progress), f"<p>{escape(numbers)}</p>", _wheels_html(progress)]
    elif count is not None and count[1]:
        parts += [_bar("Packages", *count), f"<p>{_counted(count)}</p>"]
    elif fraction is not None:
        parts.append(_bar("Install", round(1000 * fraction), 1000))
    return "".join(parts)


_STEPS: dict[Phase, str] = {
    "download": "Download",
    "unpack": "Unpack",
    "link": "Link",
    "switch": "Switch",
    "check": "Check",
}


def _steps_html(phase: Phase | None, plan: Plan | None) -> str:
    """Return the steps of an install on a line: those that are behind, the one now, the others."""
    if phase not in _STEPS or plan is None:
        return ""
    wanted = {"switch", "check", phase}
    if plan.versions:
        wanted.add("link")
    if not all(item.cached for item in plan.downloads):
        wanted.add("unpack")
    if plan.download_bytes or plan.unknown_sizes:
        wanted.add("download")
    steps = [step for step in _STEPS if step in wanted]
    now = steps.index(phase)
    items = []
    for place, step in enumerate(steps):
        if place == now:
            items.append(f"<li aria-current='step'><strong>{_STEPS[step]}</strong></li>")
        else:
            mark = "✓ " if place < now else ""
            items.append(f"<li class='torchenv-quiet'>{mark}{_STEPS[step]}</li>")
    return f"<ol class='torchenv-steps' aria-label='Steps'>{''.join(items)}</ol>"


def bar_html(progress: Bytes) -> str:
    """Return the bytes as a bar that says to a screen reader what it shows."""
    return _bar("Download", progress.done, progress.total)


def _bar(label: str, done: int, of: int) -> str:
    percent = 100 * done / max(of, 1)
    return (
        f"<progress class='torchenv-bar' aria-label='{escape(label)}' max='100' "
        f"value='{percent:.1f}'>{percent:.0f} %</progress>"
    )


def _wheels_html(progress: Bytes) -> str:
    """Return a row for each large wheel under way; the numbers say what the thin bars show."""
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>"
        f"<td>{format_bytes(done)} of {format_bytes(total)}</td>"
        "<td aria-hidden='true'><div>"
        f"<span style='width: {100 * done / max(total, 1):.1f}%'></span></div></td></tr>"
        for name, done, total in progress.large
    )
    return f"<table class='torchenv-wheels'><tbody>{rows}</tbody></table>" if rows else ""


def _counted(count: tuple[int, int]) -> str:
    return f"{count[0]} of {count[1]} package{'' if count[1] == 1 else 's'}"


def progress_words(progress: Bytes) -> str:
    """Return the bytes in words, with the package that is the largest of those under way."""
    text = str(progress)
    if progress.packages:
        name, _, total = progress.packages[0]
        more = len(progress.packages) - 1
        if progress.total > total:
            text = f"{name}{f' and {more} more' if more else ''} · {text}"
    return text


def diagnosis_html(diagnosis: Diagnosis) -> str:
    """Return what is wrong, each with its cure, and what was looked at."""
    tone = "good" if not diagnosis.problems else "bad" if diagnosis.errors else "warn"
    marks = {"Error": "bad", "Warning": "warn"}
    rows = []
    for name, text in diagnosis.rows:
        mark = marks.get(name)
        word = f"<span class='torchenv-{mark}'>{escape(name)}</span>" if mark else escape(name)
        rows.append((word, words_html(text)))
    detail = log_html(diagnosis.detail.splitlines(), title="what Python said")
    return block_html(title_html(diagnosis.title, tone=tone), facts_html(rows), detail)


def _entry_row(entry: Entry) -> str:
    return (
        f"<tr><th scope='row'>{escape(when(entry))}</th><td>{escape(entry.title)}</td>"
        f"<td>{escape(took(entry))}</td><td>{escape(asked(entry))}</td></tr>"
    )


def history_html(history: History) -> str:
    """Return what was done to an environment, the latest first."""
    if not history.entries:
        return block_html(f"<p>{words_html(str(history))}</p>")
    titles = ("When (UTC)", "What", "Took", "By")
    head = "".join(f"<th scope='col'>{title}</th>" for title in titles)
    return block_html(
        "<div class='torchenv-scroll'><table class='torchenv-builds'>"
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(map(_entry_row, history.entries))}</tbody></table></div>",
        f"<p>{words_html(history.undo)}</p>" if history.undo else "",
    )


# By name: the verification cell, which a person waits for, needs no doctor.
_RENDERERS: dict[str, Callable[[Any], str]] = {
    "Host": host_html,
    "Status": status_html,
    "Selection": selection_html,
    "History": history_html,
    "Plan": plan_html,
    "Diagnosis": diagnosis_html,
}


def record_html(record: object) -> str:
    """Return the table of a record, whichever of those that have one it is."""
    return _RENDERERS[type(record).__name__](record)
