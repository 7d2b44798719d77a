"use strict";
// The table of layers: a number a metric, sortable, with the trend of the metric it is sorted by.

GW.Table = class {
  constructor(box, layers, numbers) {
    this.layers = layers;
    this.metrics = layers.heat.metrics;
    this.columns = this.metrics.filter(({ key }) => key !== "var" || !this.metrics.some((other) => other.key === "std"));
    this.values = numbers.map((one) => Object.fromEntries(Object.entries(one).map(([name, packed]) => [name, GW.floats(packed)])));
    this.what = "latest";
    this.by = null; // the metric it is sorted by; null keeps the order of the model
    this.down = true;
    this.words = "";
    this.most = 25;
    const kinds = [["latest", "latest", "Mean over the last steps"], ["mean", "mean", "Mean over the run"], ["largest", "largest", "The largest value of the run"]];
    if (numbers.length === 2) kinds.push(["ratio", "ratio", "Mean of the second run, divided by that of the first"]);
    const change = (value) => {
      this.what = value;
      this.fill();
    };
    const search = GW.make("input", { type: "search", placeholder: "part of a name", on: { input: (event) => this.find(event.target.value) } });
    this.head = GW.make("tr");
    this.body = GW.make("tbody");
    this.more = GW.make("button", { type: "button", class: "more", on: { click: () => this.all() } });
    box.append(
      GW.make("div", { class: "controls" }, GW.segments("Numbers", kinds, change), GW.make("label", { class: "above" }, GW.make("span", {}, "Layers"), search)),
      GW.make("div", { class: "scroll", role: "region", "aria-label": "Layers", tabindex: "0" }, GW.make("table", { class: "layers" }, GW.make("thead", {}, this.head), this.body)),
      this.more,
    );
    GW.redraws.push(() => this.fill());
    this.fill();
  }

  find(words) {
    this.words = words.toLowerCase();
    this.fill();
  }

  all() {
    this.most = Infinity;
    this.fill();
  }

  sort(key) {
    // First the largest, then the smallest, then the order of the model again.
    if (this.by !== key) [this.by, this.down] = [key, true];
    else if (this.down) this.down = false;
    else this.by = null;
    this.fill();
    this.head.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  }

  // The numbers of a layer: one a run, or the ratio of two runs.
  numbers(metric, layer) {
    const at = metric * this.layers.rows.length + layer;
    if (this.what !== "ratio") return this.values.map((one) => one[this.what][at]);
    const [first, second] = this.values.map((one) => one.mean[at]);
    return [second / first];
  }

  order() {
    const names = this.layers.rows;
    const found = names.map((_, at) => at).filter((at) => names[at].toLowerCase().includes(this.words));
    if (this.by == null) return found;
    const metric = this.metrics.findIndex((one) => one.key === this.by);
    const run = this.what === "ratio" ? 0 : Math.max(0, GW.data.methods.findIndex((_, method) => !GW.hidden.has(method)));
    const value = (layer) => {
      const number = this.numbers(metric, layer)[run];
      return this.what === "ratio" ? Math.abs(Math.log(number)) : number;
    };
    const keys = new Map(found.map((layer) => [layer, value(layer)]));
    const rank = (layer) => (Number.isNaN(keys.get(layer)) ? (this.down ? -Infinity : Infinity) : keys.get(layer));
    return found.sort((a, b) => (rank(a) === rank(b) ? a - b : rank(a) < rank(b) === this.down ? 1 : -1));
  }

  fill() {
    const order = this.order();
    const trend = this.metrics.find((one) => one.key === this.by) ?? this.metrics[0];
    this.head.replaceChildren(
      GW.make("th", { scope: "col" }, "Layer"),
      GW.make("th", { scope: "col", class: "trend" }, `${trend.title} over time`),
      ...this.columns.map((metric) => this.column(metric)),
    );
    this.body.replaceChildren(...order.slice(0, this.most).map((layer) => this.row(layer, trend)));
    this.more.hidden = order.length <= this.most;
    this.more.textContent = `show all ${order.length}`;
  }

  column({ key, title, meaning }) {
    const sorted = this.by === key;
    const arrow = sorted ? (this.down ? " ↓" : " ↑") : "";
    const button = GW.make("button", { type: "button", "data-key": key, title: meaning, on: { click: () => this.sort(key) } }, title + arrow);
    return GW.make("th", { scope: "col", class: "num", "aria-sort": sorted ? (this.down ? "descending" : "ascending") : "none" }, button);
  }

  row(layer, trend) {
    // The end of a name is what tells layers apart.
    const full = this.layers.rows[layer];
    const short = full.length > 30 ? `…${full.slice(-29)}` : full;
    const name = GW.make("button", { type: "button", class: "jump", title: `Show the curves of ${full}`, on: { click: () => GW.open(layer) } }, GW.make("code", {}, short));
    const cells = this.columns.map((metric) => {
      const numbers = this.numbers(this.metrics.indexOf(metric), layer);
      if (numbers.length === 1) return GW.make("td", { class: "num" }, this.said(numbers[0]));
      return GW.make("td", { class: "num" }, ...numbers.flatMap((number, method) => (GW.hidden.has(method) ? [] : [GW.make("div", {}, this.said(number), GW.swatch(method))])));
    });
    return GW.make("tr", {}, GW.make("th", { scope: "row" }, name), GW.make("td", { class: "trend" }, this.spark(trend.key, layer)), ...cells);
  }

  said(number) {
    if (number === Infinity) return "∞";
    return this.what === "ratio" && !Number.isNaN(number) ? `×${GW.number(number, 3)}` : GW.number(number, 3);
  }

  // The curves of a layer, small: logarithmic where that can be, all runs on one scale.
  spark(key, layer) {
    const [width, height, ratio] = [110, 24, devicePixelRatio || 1];
    const canvas = GW.make("canvas", { width: width * ratio, height: height * ratio, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const lines = GW.data.methods.flatMap((_, method) => {
      const matrix = GW.hidden.has(method) ? null : this.layers.matrix(method, key);
      return matrix ? [{ method, values: matrix.row(layer, "mean"), middles: matrix.bins.middles }] : [];
    });
    const log = lines.every(({ values }) => values.every((value) => !(value < 0)));
    const bent = (value) => (log ? (value > 0 ? Math.log(value) : NaN) : value);
    let [low, high] = [Infinity, -Infinity];
    for (const { values } of lines) {
      for (const value of values) {
        const at = bent(value);
        if (!Number.isFinite(at)) continue;
        low = Math.min(low, at);
        high = Math.max(high, at);
      }
    }
    const [first, last] = GW.view.whole();
    for (const { method, values, middles } of lines) {
      context.strokeStyle = GW.color(GW.data.methods.length > 1 ? method : { method, color: 1 });
      context.beginPath();
      values.forEach((value, at) => {
        const bend = bent(value);
        if (!Number.isFinite(bend)) return;
        const x = 1 + ((middles[at] - first) / (last - first || 1)) * (width - 2);
        context.lineTo(x, height - 3 - ((bend - low) / (high - low || 1)) * (height - 6));
      });
      context.stroke();
    }
    return canvas;
  }
};
