"""HTML for the records.

Only Jupyter's own colours (`--jp-*`) with fallbacks, so that light, dark and other themes fit; what
is said is said in words, and a colour only repeats it. Everything from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from torchenv_magic.accelerators import Host
from torchenv_magic.doctor import Diagnosis
from torchenv_magic.installation.plan import Change, Plan, by_importance
from torchenv_magic.installation.progress import Bytes
from torchenv_magic.selection import Alternative, Selection
from torchenv_magic.status import Status

__all__ = [
    "STYLE",
    "alternatives_html",
    "block_html",
    "diagnosis_html",
    "facts_html",
    "log_html",
    "message_html",
    "plan_html",
    "progress_html",
    "record_html",
    "status_html",
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
.torchenv .torchenv-title { font-size: 1.2em; font-weight: 600; margin: 0.2em 0 0.5em; }
.torchenv-facts { display: grid; grid-template-columns: 8em 1fr; gap: 0.15em 1em; }
.torchenv-facts > div { min-width: 0; }
.torchenv-facts > div:nth-child(odd) { color: var(--jp-ui-font-color2, inherit); }
.torchenv table, .jp-RenderedHTMLCommon .torchenv table {
  border-collapse: collapse; margin: 0.3em 0; font-size: inherit; table-layout: auto; border: 0;
  color: inherit;
}
.torchenv tr, .jp-RenderedHTMLCommon .torchenv tbody tr:nth-child(n) { background: none; }
.torchenv td, .torchenv th, .jp-RenderedHTMLCommon .torchenv :is(td, th) {
  text-align: left; vertical-align: top; padding: 0.15em 1em 0.15em 0; max-width: none;
  white-space: normal; border: 0;
}
.torchenv td:not(:last-child), .jp-RenderedHTMLCommon .torchenv td:not(:last-child) {
  white-space: nowrap; overflow-wrap: normal;
}
.torchenv-scroll { overflow-x: auto; }
.torchenv th, .jp-RenderedHTMLCommon .torchenv th {
  font-weight: normal; color: var(--jp-ui-font-color2, inherit);
}
.torchenv :is(code, pre), .jp-RenderedHTMLCommon .torchenv :is(code, pre) {
  font-family: var(--jp-code-font-family, monospace); font-size: 0.95em;
  background: none; padding: 0; color: inherit;
}
.torchenv pre { white-space: pre-wrap; max-height: 18em; overflow: auto; margin: 0.3em 0 0; }
.torchenv summary { cursor: pointer; color: var(--jp-ui-font-color2, inherit); }
.torchenv summary:focus-visible { outline: 2px solid var(--jp-brand-color1, currentColor); }
.torchenv p { margin: 0.3em 0; }
.torchenv-quiet { color: var(--jp-ui-font-color2, inherit); }
.torchenv-good {
  color: var(--jp-success-color0, var(--jp-success-color1, inherit)); font-weight: 600;
}
.torchenv-bad { color: var(--jp-error-color0, var(--jp-error-color1, inherit)); font-weight: 600; }
.torchenv-warn { color: var(--jp-warn-color0, var(--jp-warn-color1, inherit)); }
.torchenv-bar { height: 0.5em; background: var(--jp-layout-color3, #bbb); margin: 0.4em 0; }
.torchenv-bar > div { height: 100%; background: var(--jp-brand-color1, #1976d2); }
.torchenv-wide { container-type: inline-size; }
@container (max-width: 26rem) {
  .torchenv-facts { grid-template-columns: 1fr; gap: 0; }
  .torchenv-facts > div:nth-child(even) { margin-bottom: 0.4em; }
}
@container (max-width: 36rem) {
  /* Named twice: stronger than the rules above, which have to be stronger than JupyterLab's. */
  .torchenv .torchenv-builds.torchenv-builds :is(tbody, tr:nth-child(n)) { display: block; }
  .torchenv .torchenv-builds.torchenv-builds tr:first-child { display: none; }
  .torchenv .torchenv-builds.torchenv-builds tr { margin-bottom: 0.4em; text-align: left; }
  .torchenv .torchenv-builds.torchenv-builds td:nth-child(n) {
    display: inline-block; padding-block: 0;
  }
  .torchenv .torchenv-builds.torchenv-builds td:last-child { display: block; }
}
</style>"""


def block_html(*parts: str) -> str:
    """Return the parts as one block, with the style sheet."""
    return f"{STYLE}<div class='torchenv torchenv-wide'>{''.join(parts)}</div>"


def facts_html(rows: Iterable[tuple[str, str]]) -> str:
    """Return (title, text) pairs as two columns, both already HTML, without the style sheet."""
    # No <dl>: the front ends' own sheets float its parts, each in its own way.
    cells = "".join(f"<div>{title}</div><div>{text}</div>" for title, text in rows)
    return f"<div class='torchenv-facts'>{cells}</div>"


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
    text: str, *, tone: str = "", hint: str = "", detail: str = "", title: str = ""
) -> str:
    """Return one message: a sentence, its hint, and the details folded."""
    parts = [f"<p class='torchenv-title'>{escape(title)}</p>"] if title else []
    parts += [f"<p class='torchenv-{tone}'>" if tone else "<p>", words_html(text), "</p>"]
    if hint:
        parts.append(f"<p class='torchenv-quiet'>hint: {words_html(hint)}</p>")
    if detail:
        parts.append(log_html(detail.splitlines(), title="what uv said"))
    return block_html(*parts)


def log_html(lines: Iterable[str], *, title: str = "log") -> str:
    """Return the lines folded, without the style sheet."""
    text = "\n".join(lines)
    return (
        f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
        if text
        else ""
    )


def _devices_html(host: Host) -> str:
    devices = [
        f"<b>{escape(item.name)}</b>{escape(str(item).removeprefix(item.name))}"
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
        text += f" <span class='torchenv-warn'>— {escape(problem)}</span>"
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
    return rows


def status_html(status: Status) -> str:
    """Return the status as a small table."""
    chosen = status.selection.backend
    name = (
        f"<b>{escape(chosen.label)}</b> · torch {escape(status.selection.torch or '')} — "
        if chosen
        else ""
    )
    rows = [*status_rows(status), ("Recommended", f"{name}{words_html(status.selection.reason)}")]
    return block_html(facts_html(rows))


def alternatives_html(alternatives: Iterable[Alternative], chosen: object) -> str:
    """Return builds with their reasons, as rows of a table, without the style sheet."""
    rows = "".join(
        f"<tr><td>{'<b>' if a.backend == chosen else ''}{escape(a.backend.label)}"
        f"{'</b>' if a.backend == chosen else ''}</td>"
        f"<td><code>{escape(str(a.backend))}</code></td>"
        f"<td>{escape(a.torch or '')}</td><td>{'fits' if a.fits else 'does not fit'}</td>"
        f"<td>{words_html(a.reason)}</td></tr>"
        for a in alternatives
    )
    head = "".join(f"<th>{t}</th>" for t in ("Build", "Backend", "torch", "", "Reason"))
    return (
        "<div class='torchenv-scroll'><table class='torchenv-builds'>"
        f"<tr>{head}</tr>{rows}</table></div>"
    )


def selection_html(selection: Selection) -> str:
    """Return the choice and every other build with its reason."""
    return block_html(
        alternatives_html(selection.alternatives, selection.backend),
        *(f"<p class='torchenv-warn'>{words_html(w)}</p>" for w in selection.warnings),
        f"<p class='torchenv-quiet'>{escape(str(selection.catalog))}</p>",
    )


_MARKS = {"install": "+", "replace": "~", "remove": "−"}


def _change_row(change: Change) -> str:
    return (
        f"<tr><td>{_MARKS[change.action]}</td><td>{escape(change.name)}</td>"
        f"<td>{escape(change.before or '')}</td><td>{escape(change.after or '')}</td></tr>"
    )


def changes_html(plan: Plan) -> str:
    """Return every change of a plan, folded, without the style sheet."""
    if plan.nothing_to_do:
        return ""
    count = len(plan.changes)
    head = "<tr><th></th><th>Package</th><th>now</th><th>then</th></tr>"
    return (
        f"<details><summary>{count} package{'' if count == 1 else 's'}, one by one</summary>"
        f"<div class='torchenv-scroll'><table>{head}"
        f"{''.join(map(_change_row, by_importance(plan.changes)))}</table></div></details>"
    )


def plan_html(plan: Plan) -> str:
    """Return what a plan costs and touches."""
    rows = [
        ("Backend", f"<b>{escape(plan.backend.label)}</b> — {words_html(plan.reason)}"),
        ("Into", escape(str(plan.prefix))),
        ("From", escape(str(plan.source))),
        ("Plan", escape(plan.summary)),
        *(("Note", words_html(note)) for note in plan.notes),
    ]
    return block_html(facts_html(rows), changes_html(plan))


def progress_html(message: str, progress: Bytes | None, log: Iterable[str] = ()) -> str:
    """Return a running install: a bar with its words, and the log folded."""
    parts = [f"<p>{words_html(message)}</p>"]
    if progress is not None:
        percent = 100 * progress.done / max(progress.total, 1)
        parts.append(
            f"<div class='torchenv-bar' role='progressbar' aria-valuemin='0' aria-valuemax='100' "
            f"aria-valuenow='{percent:.0f}'><div style='width:{percent:.1f}%'></div></div>"
            f"<p>{escape(progress_words(progress))}</p>"
        )
    return block_html(*parts, log_html(log))


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
    title = f"<p class='torchenv-title torchenv-{tone}'>{escape(diagnosis.title)}</p>"
    detail = log_html(diagnosis.detail.splitlines(), title="what Python said")
    return block_html(title, facts_html(rows), detail)


_RENDERERS: dict[type, Any] = {
    Host: host_html,
    Status: status_html,
    Selection: selection_html,
    Plan: plan_html,
    Diagnosis: diagnosis_html,
}


def record_html(record: object) -> str:
    """Return the table of a record, whichever of those that have one it is."""
    return str(_RENDERERS[type(record)](record))
