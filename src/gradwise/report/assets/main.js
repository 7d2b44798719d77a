"use strict";
// Puts everything in its place and listens for what changes the colours.

(() => {
  const legend = document.getElementById("legend");
  if (legend) GW.legend(legend);
  for (const box of document.querySelectorAll("[data-charts]")) GW.charts(box, GW.data[box.dataset.charts]);
  const heat = document.getElementById("heat");
  if (heat && GW.data.heat) new GW.Dynamics(heat, GW.data.heat);

  GW.start();
})();
