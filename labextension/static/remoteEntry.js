// The module-federation container that JupyterLab's and Notebook's loader asks for: it hands over
// the share scope (`init`) and takes the plugin out (`get`). Nothing is bundled, so nothing is built.
(() => {
  /** @typedef {{ get: () => Promise<() => any>, loaded?: unknown }} SharedModule */

  const script = /** @type {HTMLScriptElement} */ (document.currentScript).src;
  /** @type {Record<string, Record<string, SharedModule>>} */
  let scope = {};

  /**
   * Return a module of the application: the copy that it uses itself, where it has several.
   *
   * @param {string} name
   */
  async function shared(name) {
    const versions = Object.values(scope[name] ?? {});
    const version = versions.find(each => each.loaded) ?? versions[0];
    if (version === undefined) {
      throw new Error(`the application shares no ${name}`);
    }
    return (await version.get())();
  }

  const application = /** @type {any} */ (window);
  application._JUPYTERLAB ??= {};
  application._JUPYTERLAB['torchenv-magic'] = {
    /** @param {typeof scope} given */
    init: given => {
      scope = given;
    },
    get: async () => {
      const { makePlugin } = await import(new URL('plugin.js', script).href);
      const module = { __esModule: true, default: await makePlugin(shared) };
      return () => module;
    }
  };
})();
