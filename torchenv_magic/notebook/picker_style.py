"""The picker's style sheet.

Only Jupyter's own colours (`--jp-*`), so that every theme fits; nothing that depends on the
direction of writing; borders that are drawn by the system where it forces its own colours.
"""

from __future__ import annotations

__all__ = ["PICKER_STYLE"]

PICKER_STYLE = """<style>
.torchenv-picker {
  border: 1px solid var(--jp-border-color2, currentColor); border-radius: 4px;
  box-sizing: border-box; padding: 0.9rem 1.2rem 1.1rem; max-width: 46rem; gap: 0.8rem;
  container-type: inline-size;
}
/* Named twice: stronger than what lays the others out. */
.torchenv-picker .torchenv-absent.torchenv-absent,
.torchenv-picker .widget-html:has(> .widget-html-content:empty) {
  display: none;
}
.torchenv-picker .widget-html, .torchenv-picker .widget-html-content,
.torchenv-picker .jupyter-widget-html {
  height: auto; margin: 0; line-height: 1.5; width: 100%; white-space: normal;
}
.torchenv-picker .widget-box { overflow: visible; margin: 0; }

/* One build a label: its name, and its reason on lines of their own. */
.torchenv-picker .widget-radio {
  display: flex; flex-direction: column; align-items: stretch; width: 100%; height: auto; margin: 0;
}
.torchenv-picker .widget-radio > .widget-label {
  width: auto; height: auto; margin: 0 0 0.4em; text-align: start; line-height: 1.5;
  overflow: visible; white-space: normal; color: var(--jp-ui-font-color2, inherit);
}
.torchenv-picker .widget-radio-box {
  display: flex; flex-direction: column; gap: 0.45rem; width: 100%; padding: 0;
  margin: 0 !important; /* ipywidgets computes one, for lines of another height */
}
.torchenv-picker .widget-radio-box label {
  display: block; position: relative; width: auto; height: auto; margin: 0; padding: 0;
  padding-inline-start: 1.9em; line-height: 1.45; white-space: pre-line; cursor: pointer;
  color: var(--jp-ui-font-color2, inherit);
}
.torchenv-picker .widget-radio-box label::first-line { color: var(--jp-ui-font-color1, inherit); }
.torchenv-picker .widget-radio-box label:has(input:checked)::first-line { font-weight: 600; }
.torchenv-picker .widget-radio-box label:has(input:disabled) { cursor: default; }
.torchenv-picker .widget-radio-box input {
  position: absolute; inset-block-start: 0.15em; inset-inline-start: 0.15em; float: none;
  width: 1.15em; height: 1.15em; margin: 0;
}

.torchenv-picker .jupyter-button {
  height: auto; min-height: 2.2em; width: auto; margin: 0; padding: 0.3em 0.9em; line-height: 1.4;
  white-space: normal; border: 1px solid transparent; /* visible where the system forces colours */
}
.torchenv-picker .jupyter-button:disabled { cursor: default; }
.torchenv-picker :is(.jupyter-button, input, summary):focus-visible {
  /* ipywidgets takes the outline of text fields away, with !important. */
  outline: 2px solid var(--jp-brand-color1, currentColor) !important; outline-offset: 2px;
}
.torchenv-picker :is(.widget-checkbox, .widget-text) { margin: 0; height: auto; }
.torchenv-picker .widget-checkbox { width: auto; }
.torchenv-picker .widget-text {
  display: flex; flex-flow: row wrap; align-items: center; gap: 0.2em 0.8em; width: 100%;
}
.torchenv-picker .widget-text .widget-label {
  flex: 0 0 8.5em; width: auto; margin: 0; text-align: start; overflow: visible;
}
.torchenv-picker .widget-text input {
  flex: 1 1 12em; width: auto; min-width: 0; height: 2.2em; box-sizing: border-box;
}
.torchenv-picker :is(.widget-checkbox, .widget-text, .widget-radio-box) :is(label, span, input),
.torchenv-picker .widget-label {
  font-family: inherit; font-size: var(--jp-ui-font-size1, 13px);
}
.torchenv-picker :is(.widget-checkbox, .widget-text) :is(label, span, input) {
  color: var(--jp-ui-font-color1, inherit);
}
.torchenv-picker .widget-checkbox label {
  display: flex; align-items: center; gap: 0.4em; width: auto; line-height: 1.5;
}
.torchenv-picker .widget-checkbox input { position: static; margin: 0; }
.torchenv-picker :is(.widget-label, .widget-radio-box label, .jupyter-button) {
  unicode-bidi: plaintext;
}
.torchenv-picker :is(.widget-label, .widget-radio-box label):dir(rtl) { text-align: right; }
.torchenv-row { display: flex; flex-flow: row wrap; gap: 0.6rem 1.2rem; align-items: center; }
.torchenv-row:has(> .jupyter-button) { gap: 0.6rem; }

/* The log follows the line that opens it. That line is never written anew, so it stays open. */
.torchenv-picker .torchenv-log { display: none; }
.torchenv-picker .torchenv-log-switch:has(details[open]) + .torchenv-log { display: block; }
.torchenv-picker .torchenv-log pre { margin: 0; }
</style>"""
