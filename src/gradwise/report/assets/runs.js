"use strict";
// Puts the pictures of runs in their places, and ties them together.

// The bar at the top: which runs are shown, and which steps.
GW.bar = (box) => {
  if (GW.data.methods.length > 1) GW.legend(box);
  const where = GW.make("span", { class: "where", "aria-live": "polite" });
  const button = (words, label, click) => GW.make("button", { type: "button", "aria-label": label, title: label, on: { click } }, words);
  const whole = button("whole run", "Show all steps again", () => GW.view.reset());
  const [earlier, later] = [button("‹", "earlier steps", () => GW.view.move(-0.5)), button("›", "later steps", () => GW.view.move(0.5))];
  const out = button("−", "zoom out", () => GW.view.zoom(2));
  box.append(GW.make("span", { class: "steps" }, where, earlier, out, button("+", "zoom in", () => GW.view.zoom(0.5)), later, whole));
  const say = () => {
    const [low, high] = GW.view.now();
    where.textContent = GW.view.zoomed ? `steps ${GW.count(Math.ceil(low))} to ${GW.count(Math.floor(high))}` : "all steps";
    for (const one of [whole, out, earlier, later]) one.disabled = !GW.view.zoomed;
  };
  GW.view.listeners.push(say);
  say();
};

(() => {
  const { data } = GW;
  const bar = document.getElementById("legend");
  if (bar) GW.bar(bar);
  const charts = document.querySelector("[data-charts]");
  if (charts) GW.charts(charts, GW.stepCharts(data.global, data.series));
  const heat = document.getElementById("heat");
  if (heat) {
    const layers = new GW.Layers(heat, data.heat);
    const one = document.getElementById("one");
    new GW.One(one, layers);
    GW.histograms(one, data.histograms, layers);
    new GW.Table(document.getElementById("rows"), layers, data.numbers);
    // Shows a layer's curves.
    GW.open = (layer) => {
      layers.choose(layer);
      document.getElementById("layer").scrollIntoView();
    };
  }
  for (const entry of document.querySelectorAll("[data-alert]")) {
    entry.querySelector(".jump").addEventListener("click", () => GW.marks.go(data.alerts[Number(entry.dataset.alert)]));
  }
  for (const button of document.querySelectorAll("button[data-layer]")) button.addEventListener("click", () => GW.open(Number(button.dataset.layer)));
  GW.start();
})();
