// Names the sliders of ipywidgets for screen readers. ipywidgets shows the description beside a slider, but gives its
// handle, which has the focus, no name. This is a prebuilt extension of JupyterLab and needs no build.
(() => {
  const name = () => {
    for (const handle of document.querySelectorAll(".widget-slider .noUi-handle, .widget-hslider .noUi-handle")) {
      const label = handle.closest(".widget-slider, .widget-hslider")?.querySelector(".widget-label")?.textContent;
      if (label && handle.getAttribute("aria-label") !== label) {
        handle.setAttribute("aria-label", label);
      }
    }
  };
  let due = false;
  const soon = () => {
    if (!due) {
      due = true;
      setTimeout(() => { due = false; name(); }, 100);
    }
  };
  const plugin = {
    id: "kdlab-sliders:plugin",
    autoStart: true,
    activate: () => new MutationObserver(soon).observe(document.body, { childList: true, subtree: true }),
  };
  const all = (window._JUPYTERLAB = window._JUPYTERLAB ?? {});
  all["kdlab-sliders"] = { init: () => {}, get: async () => () => ({ __esModule: true, default: plugin }) };
})();
