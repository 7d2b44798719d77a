"use strict";
// Puts everything in its place and listens for what changes the colours.

(() => {
  const legend = document.getElementById("legend");
  if (legend) GW.legend(legend);
  for (const box of document.querySelectorAll("[data-charts]")) GW.charts(box, GW.data[box.dataset.charts]);
  const heat = document.getElementById("heat");
  if (heat && GW.data.heat) new GW.Dynamics(heat, GW.data.heat);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", GW.redraw);
  // Paper is white: what is printed is drawn in the light colours.
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "light";
    GW.redraw();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.theme;
    GW.redraw();
  });
  document.documentElement.dataset.ready = "";
})();
