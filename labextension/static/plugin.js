// What JupyterLab 4 and Notebook 7 do for torchenv_magic: restart the kernel by their own session,
// place and run the verification cell, keep a lock in the notebook's metadata, and open the picker
// from the menu and the toolbar.
//
// The kernel speaks first. It opens a comm to the target below and says which request it is; every
// client of that kernel answers with who it is; the kernel picks one, and only that one acts. The
// other half, with the meaning of each message, is torchenv_magic/notebook/plugin.py.

/**
 * @typedef {import('@jupyterlab/application').JupyterFrontEnd} JupyterFrontEnd
 * @typedef {import('@jupyterlab/application').JupyterFrontEndPlugin<void>} Plugin
 * @typedef {import('@jupyterlab/apputils').ICommandPalette} ICommandPalette
 * @typedef {import('@jupyterlab/cells').CodeCell} CodeCell
 * @typedef {import('@jupyterlab/cells').ICodeCellModel} ICodeCellModel
 * @typedef {import('@jupyterlab/notebook').INotebookTracker} INotebookTracker
 * @typedef {import('@jupyterlab/notebook').NotebookPanel} NotebookPanel
 * @typedef {import('@jupyterlab/services').Kernel.IComm} IComm
 * @typedef {import('@jupyterlab/services').Kernel.IKernelConnection} IKernelConnection
 * @typedef {import('@jupyterlab/translation').ITranslator} ITranslator
 * @typedef {import('@jupyterlab/translation').TranslationBundle} TranslationBundle
 * @typedef {typeof import('@jupyterlab/apputils') & typeof import('@jupyterlab/cells')
 *   & typeof import('@jupyterlab/notebook') & typeof import('@jupyterlab/translation')
 *   & typeof import('@jupyterlab/ui-components')} Modules
 *
 * @typedef {object} RestartRequest
 * @property {'restart'} event
 * @property {string} request
 * @property {string} client
 * @property {string} output The id of the output that asked.
 * @property {string | null} cell The id of its cell, where the kernel knows it.
 * @property {Record<string, string>} after What stands in that output once the kernel is fresh.
 * @property {{ source: string, tag: string }} verification
 *
 * @typedef {object} SwitchRequest
 * @property {'switch'} event
 * @property {string} request
 * @property {string} client
 * @property {string} kernel The name of a kernelspec.
 * @property {string} output The id of the output that asked.
 * @property {string | null} cell The id of its cell, where the kernel knows it.
 * @property {Record<string, string>} after What stands in that output once the kernel is another.
 * @property {{ source: string, tag: string }} verification
 *
 * @typedef {object} StoreRequest
 * @property {'store'} event
 * @property {string} request
 * @property {string} client
 * @property {string} output The id of the output that asked.
 * @property {string} key Of the notebook's metadata.
 * @property {any} value JSON.
 */

const PROTOCOL = 1;
// What this plugin can be told to do; its kernels may be newer.
const ORDERS = ['restart', 'switch', 'store'];
// Whatever runs in a kernel can send orders: no other key of a notebook is theirs.
const METADATA_KEY = 'torchenv';
const TARGET = 'torchenv-magic';
const OUTPUT_MIME = 'application/vnd.torchenv-magic.output+json';
const WIDGET_MIME = 'application/vnd.jupyter.widget-view+json';
const PICKER = { source: '%load_ext torchenv_magic\n%torchenv', tag: 'torchenv-picker' };

const CommandIDs = { openPicker: 'torchenv-magic:open-picker' };

// A chip with its pins; the strokes take the colour that the theme gives to icons.
const ICON = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3" fill="none" stroke="#616161" stroke-width="1.8" stroke-linecap="round">
    <rect x="6" y="6" width="12" height="12" rx="1.6"/>
    <path d="M9.5 2.5v3M14.5 2.5v3M9.5 18.5v3M14.5 18.5v3M2.5 9.5h3M2.5 14.5h3M18.5 9.5h3M18.5 14.5h3"/>
    <path d="M12 9.2c-1.6 1.5-2.2 2.4-2.2 3.5a2.2 2.2 0 0 0 4.4 0"/>
  </g>
</svg>`;

/**
 * Return the plugin, with what it needs of the application.
 *
 * @param {(name: string) => Promise<any>} shared Returns a module that the application shares.
 * @returns {Promise<Plugin>}
 */
export async function makePlugin(shared) {
  const [apputils, cells, notebook, translation, components] = await Promise.all([
    shared('@jupyterlab/apputils'),
    shared('@jupyterlab/cells'),
    shared('@jupyterlab/notebook'),
    shared('@jupyterlab/translation'),
    shared('@jupyterlab/ui-components')
  ]);
  /** @type {Modules} */
  const modules = { ...apputils, ...cells, ...notebook, ...translation, ...components };
  return {
    id: 'torchenv-magic:plugin',
    description: 'Restarts the kernel and runs the verification cell when torchenv_magic asks.',
    autoStart: true,
    optional: [modules.INotebookTracker, modules.ICommandPalette, modules.ITranslator],
    activate: (
      /** @type {JupyterFrontEnd} */ app,
      /** @type {INotebookTracker | null} */ tracker,
      /** @type {ICommandPalette | null} */ palette,
      /** @type {ITranslator | null} */ translator
    ) => {
      if (tracker === null) {
        return; // no notebooks here
      }
      tracker.widgetAdded.connect((_, panel) => watch(panel, tracker, modules));
      tracker.forEach(panel => watch(panel, tracker, modules));
      addCommand(app, tracker, palette, translator ?? modules.nullTranslator, modules);
    }
  };
}

// ---------------------------------------------------------------------------------- the kernel asks

/**
 * Answer the kernels that this notebook has from now on, and keep dead pickers out of it.
 *
 * @param {NotebookPanel} panel
 * @param {INotebookTracker} tracker
 * @param {Modules} modules
 */
function watch(panel, tracker, modules) {
  const session = panel.sessionContext;
  const answer = () => {
    const kernel = session.session?.kernel;
    if (kernel) {
      kernel.registerCommTarget(TARGET, (comm, message) => {
        // Several views of one notebook share its session, and this one may be closed.
        const living = panel.isDisposed
          ? tracker.find(each => each.sessionContext === session)
          : panel;
        if (living) {
          greet(living, kernel, comm, message.content.data, modules);
        } else {
          comm.close();
        }
      });
    }
  };
  session.kernelChanged.connect(answer);
  answer();
  session.iopubMessage.connect((_, message) => {
    if (!panel.isDisposed) {
      follow(panel, message);
    }
  });
  session.statusChanged.connect((_, status) => {
    const gone = status === 'restarting' || status === 'autorestarting' || status === 'dead';
    if (gone && !panel.isDisposed) {
      showSummaries(panel, () => true);
    }
  });
  void panel.context.ready
    .then(() => session.ready)
    .then(() => showSummariesOfDeadPickers(panel))
    .catch(() => {
      // The notebook was closed meanwhile.
    });
}

/**
 * Tell the kernel who is here, and do what it asks of this client.
 *
 * @param {NotebookPanel} panel
 * @param {IKernelConnection} kernel
 * @param {IComm} comm
 * @param {any} offer
 * @param {Modules} modules
 */
function greet(panel, kernel, comm, offer, modules) {
  comm.onMsg = message => {
    const order = /** @type {any} */ (message.content.data);
    if (order.client !== kernel.clientId) {
      return; // another tab's
    }
    // Never waited for here: the connection hands out no other message before this returns.
    if (order.event === 'restart') {
      comm.send({ event: 'accepted' });
      void restart(panel, kernel, comm, order, modules).catch(reason =>
        refuse(kernel, order, reason)
      );
    } else if (order.event === 'switch') {
      comm.send({ event: 'accepted' });
      void change(panel, kernel, comm, order, modules).catch(reason =>
        refuse(kernel, order, reason)
      );
    } else if (order.event === 'store') {
      comm.send({ event: 'accepted' });
      try {
        store(panel, order);
        comm.send({ event: 'done' });
      } catch (reason) {
        refuse(kernel, order, reason);
      }
    }
  };
  comm.send({
    event: 'hello',
    protocol: PROTOCOL,
    client: kernel.clientId,
    holds: findOutput(panel, offer.output) !== null,
    writable: panel.content.model?.readOnly === false,
    orders: ORDERS
  });
}

/**
 * Set a key of the notebook's metadata, as its property inspector does: the person saves it.
 *
 * @param {NotebookPanel} panel
 * @param {StoreRequest} order
 */
function store(panel, order) {
  const { model } = panel.content;
  if (panel.isDisposed || model === null || model.readOnly) {
    throw new Error("the notebook can't be written to");
  }
  if (order.key !== METADATA_KEY) {
    throw new Error(`metadata.${order.key} is not the plugin's to set`);
  }
  // The kernel knows the saved file only, and another page's kernel may be newer.
  const kept = /** @type {any} */ (model.sharedModel.getMetadata(order.key));
  if (kept?.schema > order.value.schema) {
    throw new Error('the notebook has a lock that a newer torchenv_magic wrote');
  }
  model.sharedModel.transact(() => model.sharedModel.setMetadata(order.key, order.value));
}

/**
 * Tell the kernel that lives on why it was not done.
 *
 * @param {IKernelConnection} kernel
 * @param {{ request: string }} order
 * @param {unknown} reason
 */
function refuse(kernel, order, reason) {
  // Through a comm of its own: an attempt to restart has closed the one that the order came by.
  if (!kernel.isDisposed) {
    const text = reason instanceof Error ? reason.message : String(reason);
    kernel.createComm(TARGET).open({ event: 'failed', request: order.request, reason: text });
  }
}

/**
 * Give the notebook another kernel, then place and run the verification cell there.
 *
 * @param {NotebookPanel} panel
 * @param {IKernelConnection} kernel
 * @param {IComm} comm The one that the order came by.
 * @param {SwitchRequest} order
 * @param {Modules} modules
 */
async function change(panel, kernel, comm, order, modules) {
  const anchor = findOutput(panel, order.output)?.cell.model.id ?? order.cell;
  const session = panel.sessionContext;
  // It was made a moment ago; a server that looks elsewhere for kernels would answer with a dialog.
  await session.specsManager.refreshSpecs();
  if (!session.specsManager.specs?.kernelspecs[order.kernel]) {
    throw new Error('the server does not find the new kernel');
  }
  // As for a restart.
  await kernel.requestKernelInfo();
  await new Promise(resolve => setTimeout(resolve));
  if (comm.isDisposed) {
    return;
  }
  await session.changeKernel({ name: order.kernel });
  if (panel.isDisposed) {
    return;
  }
  replaceOutput(panel, order.output, order.after);
  await runQuietly(panel, placeCell(panel, anchor, order.verification), modules);
}

/**
 * Restart the kernel, then place and run the verification cell.
 *
 * @param {NotebookPanel} panel
 * @param {IKernelConnection} kernel
 * @param {IComm} comm The one that the order came by.
 * @param {RestartRequest} order
 * @param {Modules} modules
 */
async function restart(panel, kernel, comm, order, modules) {
  const anchor = findOutput(panel, order.output)?.cell.model.id ?? order.cell;
  // Answered behind the reply of the cell that asked: a restart before that one would leave the
  // cell as running for ever, and lose the cell that it places below itself.
  await kernel.requestKernelInfo();
  await new Promise(resolve => setTimeout(resolve));
  if (comm.isDisposed) {
    return; // the kernel has waited too long, and taken another way
  }
  const session = panel.sessionContext;
  await session.restartKernel();
  if (!session.isReady) {
    // It reports a failure nowhere else, and leaves a connection that waits for the restart to end
    // and sends nothing meanwhile.
    await kernel.reconnect();
    throw new Error('the front end could not restart the kernel');
  }
  if (panel.isDisposed) {
    return;
  }
  replaceOutput(panel, order.output, order.after);
  await runQuietly(panel, placeCell(panel, anchor, order.verification), modules);
}

// ------------------------------------------------------------------------------------------ outputs

/**
 * Return the output with that id, and its cell; null where the notebook doesn't hold it.
 *
 * @param {NotebookPanel} panel
 * @param {string} id
 */
function findOutput(panel, id) {
  for (const found of ownOutputs(panel)) {
    if (found.id === id) {
      return found;
    }
  }
  return null;
}

/**
 * Walk through the outputs that torchenv_magic has marked as its own.
 *
 * @param {NotebookPanel} panel
 */
function* ownOutputs(panel) {
  for (const cell of panel.content.widgets) {
    if (cell.model.type !== 'code') {
      continue;
    }
    const { outputs } = /** @type {ICodeCellModel} */ (cell.model);
    for (let index = 0; index < outputs.length; index++) {
      const output = outputs.get(index);
      const mark = /** @type {{ id?: string } | undefined} */ (output.data[OUTPUT_MIME]);
      if (mark) {
        yield { cell, outputs, index, output, id: mark.id };
      }
    }
  }
}

/**
 * Put a bundle into the output with that id.
 *
 * @param {NotebookPanel} panel
 * @param {string} id
 * @param {Record<string, any>} data
 */
function replaceOutput(panel, id, data) {
  const found = findOutput(panel, id);
  if (found !== null) {
    found.outputs.set(found.index, { output_type: 'display_data', data, metadata: {} });
  }
}

/**
 * Show an update of an output of ours in a page that doesn't know it by its id any more: the page was
 * loaded again since, or its restart of the kernel has failed.
 *
 * @param {NotebookPanel} panel
 * @param {import('@jupyterlab/services').KernelMessage.IMessage} message
 */
function follow(panel, message) {
  if (message.header.msg_type !== 'update_display_data') {
    return;
  }
  const { data } = /** @type {any} */ (message.content);
  const found = data[OUTPUT_MIME] && findOutput(panel, data[OUTPUT_MIME].id);
  // The page itself comes first.
  if (found && found.output.data['text/html'] !== data['text/html']) {
    replaceOutput(panel, found.id, data);
  }
}

/**
 * Show the static summary in place of each picker whose widget `isDead`.
 *
 * @param {NotebookPanel} panel
 * @param {(model: string) => boolean} isDead
 */
function showSummaries(panel, isDead) {
  const { model } = panel.content;
  const dirty = model?.dirty;
  for (const { outputs, index, output } of ownOutputs(panel)) {
    const { data, ...rest } = /** @type {any} */ (output.toJSON());
    const { [WIDGET_MIME]: view, ...summary } = data;
    if (view && isDead(view.model_id)) {
      outputs.set(index, { ...rest, data: summary });
    }
  }
  if (model && dirty === false) {
    // Nobody has edited anything.
    model.dirty = false;
  }
}

/**
 * The same where the notebook was opened with pickers that its kernel doesn't know.
 *
 * @param {NotebookPanel} panel
 */
async function showSummariesOfDeadPickers(panel) {
  const pickers = [...ownOutputs(panel)].filter(({ output }) => output.data[WIDGET_MIME]);
  if (pickers.length === 0) {
    return;
  }
  const kernel = panel.sessionContext.session?.kernel;
  /** @type {Record<string, unknown>} */
  let living = {};
  if (kernel) {
    const reply = await kernel.requestCommInfo({ target_name: 'jupyter.widget' });
    if (reply.content.status !== 'ok') {
      return;
    }
    living = reply.content.comms;
  }
  if (!panel.isDisposed) {
    showSummaries(panel, model => !(model in living));
  }
}

// -------------------------------------------------------------------------------------------- cells

/**
 * Return the tagged cell, or one with its source; where there is none, put one below the anchor.
 *
 * @param {NotebookPanel} panel
 * @param {string | null} anchor The id of a cell; null for the active one.
 * @param {{ source: string, tag: string }} wanted
 * @returns {CodeCell}
 */
function placeCell(panel, anchor, { source, tag }) {
  const notebook = panel.content;
  const { sharedModel } = /** @type {NonNullable<typeof notebook.model>} */ (notebook.model);
  const lines = (/** @type {string} */ text) =>
    text.split('\n').map(line => line.trim()).filter(Boolean).join('\n');
  const tags = (/** @type {number} */ index) =>
    /** @type {string[]} */ (sharedModel.getCell(index).getMetadata('tags') ?? []);
  let at = notebook.widgets.findIndex(cell => cell.model.id === anchor);
  at = at < 0 ? notebook.activeCellIndex : at;
  // Below the anchor first.
  const order = [...notebook.widgets.keys()].sort(
    (one, other) => Number(one <= at) - Number(other <= at) || one - other
  );
  const code = order.filter(index => notebook.widgets[index].model.type === 'code');
  // A tagged cell may have been put to another use since, and is not run then.
  const isOurs = (/** @type {number} */ each) =>
    /^\s*%torchenv\b/m.test(sharedModel.getCell(each).getSource());
  const index =
    code.find(each => tags(each).includes(tag) && isOurs(each)) ??
    code.find(each => lines(sharedModel.getCell(each).getSource()) === lines(source));
  if (index === undefined) {
    const metadata = { tags: [tag], trusted: true };
    sharedModel.insertCell(at + 1, { cell_type: 'code', source, metadata });
    return /** @type {CodeCell} */ (notebook.widgets[at + 1]);
  }
  if (!tags(index).includes(tag)) {
    sharedModel.getCell(index).setMetadata('tags', [...tags(index), tag]);
  }
  return /** @type {CodeCell} */ (notebook.widgets[index]);
}

/**
 * Run a cell; selection, mode, keyboard and scroll position stay the person's.
 *
 * @param {NotebookPanel} panel
 * @param {CodeCell} cell
 * @param {Modules} modules
 * @returns {Promise<boolean>} Whether it ran well.
 */
async function runQuietly(panel, cell, modules) {
  const { CodeCell, NotebookActions } = modules;
  const notebook = panel.content;
  const { mode } = notebook;
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  if (NotebookActions.runCells === undefined) {
    // JupyterLab 4.0 and 4.1 run what is selected, or one cell by this.
    const reply = await CodeCell.execute(cell, panel.sessionContext, {});
    return reply?.content.status === 'ok';
  }
  const running = NotebookActions.runCells(notebook, [cell], panel.sessionContext);
  if (notebook.mode !== mode) {
    notebook.mode = mode;
  }
  if (focused === document.body && panel.isVisible) {
    // The keyboard was in the picker, and that has gone.
    notebook.activate();
  } else if (focused?.isConnected && focused !== document.activeElement) {
    focused.focus({ preventScroll: true });
  }
  return running;
}

// ------------------------------------------------------------------------------------------ command

/**
 * Add the entry that opens the picker; the schema beside this file puts it into menu and toolbar.
 *
 * @param {JupyterFrontEnd} app
 * @param {INotebookTracker} tracker
 * @param {ICommandPalette | null} palette
 * @param {ITranslator} translator
 * @param {Modules} modules
 */
function addCommand(app, tracker, palette, translator, modules) {
  const words = translator.load('torchenv_magic');
  const icon = new modules.LabIcon({ name: 'torchenv-magic:chip', svgstr: ICON });
  const language = () => tracker.currentWidget?.content.model?.defaultKernelLanguage;
  app.commands.addCommand(CommandIDs.openPicker, {
    label: words.__('PyTorch Environment…'),
    caption: words.__("Choose, install and verify PyTorch for this notebook's kernel"),
    icon: args => (args.isPalette || args.isMenu ? undefined : icon),
    isEnabled: () =>
      tracker.currentWidget !== null && ['python', ''].includes(language() ?? ''),
    execute: async () => {
      const panel = tracker.currentWidget;
      if (panel) {
        await openPicker(panel, words, modules);
      }
    }
  });
  palette?.addItem({ command: CommandIDs.openPicker, category: words.__('Notebook Operations') });
}

/**
 * Run the picker's cell, which is made where the notebook has none, and go to it.
 *
 * @param {NotebookPanel} panel
 * @param {TranslationBundle} words
 * @param {Modules} modules
 */
async function openPicker(panel, words, modules) {
  const cell = placeCell(panel, null, PICKER);
  panel.content.deselectAll();
  panel.content.activeCellIndex = panel.content.widgets.indexOf(cell);
  void panel.content.scrollToCell(cell);
  if (await runQuietly(panel, cell, modules)) {
    return;
  }
  const { outputs } = /** @type {ICodeCellModel} */ (cell.model);
  for (let index = 0; index < outputs.length; index++) {
    const { ename, evalue } = /** @type {any} */ (outputs.get(index).toJSON());
    if (ename === 'ModuleNotFoundError' && evalue.includes('torchenv_magic')) {
      modules.Notification.error(
        words.__(
          'torchenv_magic is not installed in the environment of this kernel. ' +
            'Run %pip install torchenv-magic in a cell, then try again.'
        ),
        { autoClose: false }
      );
    }
  }
}
