"use strict";
// The layers of runs: heatmaps of one metric, and all curves of one layer.

GW.Layers = class extends GW.Panels {
  constructor(box, heat) {
    super(heat.layers, { per: 11, most: GW.data.methods.length > 1 ? 440 : 330, least: 132 });
    this.heat = heat;
    this.metric = heat.metrics[0];
    this.colors = "log";
    this.part = "mean";
    this.found = new Map();
    this.listeners = [];
    this.scaled = new Map();
    for (const { method, matrices } of heat.runs) {
      for (const [key, one] of Object.entries(matrices)) this.found.set(`${method}/${key}`, new GW.Matrix(heat.bins[one.bins], one.values, heat.coarse));
    }
    this.meaning = GW.make("p", { class: "meaning" });
    this.element.append(this.meaning);
    box.append(this.controls(), this.element);
    this.chosen = GW.data.chosen;
    this.explain();
  }

  controls() {
    const change = (key) => (value) => {
      this[key] = key === "metric" ? this.heat.metrics.find((one) => one.key === value) : value;
      this.explain();
      this.renew();
    };
    const metrics = this.heat.metrics.map(({ key, title, meaning }) => [key, title.toLowerCase(), meaning]);
    return GW.make(
      "div",
      { class: "controls" },
      GW.segments("Metric", metrics, change("metric")),
      GW.segments("Colours", [["log", "logarithmic"], ["linear", "linear"], ["ratio", "against its own median"]], change("colors")),
      GW.segments("Cells show", [["mean", "mean"], ["high", "largest"], ["low", "smallest"]], change("part")),
    );
  }

  explain() {
    const { meaning } = this.metric;
    this.meaning.textContent = meaning && `${meaning}.`;
    this.meaning.hidden = !meaning || GW.data.methods.length < 2;
  }

  get kind() {
    if (this.metric.kind === "signed") return this.colors === "linear" ? "even" : "signed";
    if (this.metric.kind === "share" && this.colors === "log") return "linear";
    return this.colors;
  }

  get title() {
    const times = this.kind === "ratio" ? ", each layer against its own median" : "";
    const what = { mean: "", high: ", largest of each bin", low: ", smallest of each bin" }[this.part];
    return `${this.metric.title}${what}${times}`;
  }

  get short() {
    return this.metric.title;
  }

  get label() {
    return `Heatmap of ${this.title.toLowerCase()} by layer and step`;
  }

  // Over a panel: the run, or, where there is one only, what the metric is.
  heading(method) {
    return GW.data.methods.length > 1 ? GW.data.methods[method].name : this.metric.meaning || this.metric.title;
  }

  matrix(method, key = this.metric.key) {
    return this.found.get(`${method}/${key}`);
  }

  shown() {
    return this.heat.runs
      .filter(({ method }) => !GW.hidden.has(method))
      .map(({ method }) => ({ method, title: this.heading(method), cells: this.matrix(method)?.cells(this.part) ?? null }));
  }

  // What the colours are for: all runs, also those that are hidden, so that they stay the same.
  matrices() {
    const all = this.heat.runs.map(({ method }) => this.matrix(method)?.cells(this.part)).filter(Boolean);
    return all.map((cells) => (this.kind === "ratio" ? this.relative(cells) : cells.values));
  }

  // The median of each layer over the means of all runs.
  medians() {
    const { key } = this.metric;
    if (!this.scaled.has(key)) {
      const own = this.heat.runs.map(({ method }) => this.matrix(method)).filter(Boolean);
      const medians = this.rows.map((_, row) => {
        const values = own.flatMap((matrix) => Array.from(matrix.row(row, "mean"))).filter((value) => value > 0 && value < Infinity);
        return values.sort((a, b) => a - b)[values.length >> 1] ?? NaN;
      });
      this.scaled.set(key, medians);
    }
    return this.scaled.get(key);
  }

  relative({ values, columns }) {
    const medians = this.medians();
    return values.map((value, at) => (value > 0 ? value / medians[Math.floor(at / columns)] : value));
  }

  // Cells with values that are not finite are marked whatever the metric.
  shade(cells) {
    const shades = GW.shades(this.kind === "ratio" ? this.relative(cells) : cells.values, this.bounds);
    const { method } = this.shown().find((one) => one.cells === cells) ?? {};
    const bad = this.matrix(method, "nonfinite")?.cells(this.part === "mean" ? "mean" : "high");
    if (bad?.values.length === shades.length) bad.values.forEach((count, at) => count > 0 && (shades[at] = 257));
    return shades;
  }

  word(panel, row, column) {
    const words = super.word(panel, row, column);
    const value = panel.cells?.values[row * panel.cells.columns + column];
    const median = this.kind === "ratio" && value > 0 ? this.medians()[row] : NaN;
    return Number.isNaN(median) ? words : `${words} (×${GW.number(value / median, 2)})`;
  }

  choose(row) {
    this.chosen = row;
    this.listeners.forEach((listener) => listener(row));
    if (row < this.top || row + 1 > this.bottom) this.rowsShown(row + 0.5 - (this.bottom - this.top) / 2, row + 0.5 + (this.bottom - this.top) / 2);
    else this.draw();
  }
};

// All curves of one layer. Layers that alerts name have finer ones than the heatmaps.
GW.One = class {
  constructor(box, layers) {
    this.layers = layers;
    const { heat } = layers;
    this.close = heat.close.map((one) => ({ ...one, matrix: new GW.Matrix(heat.bins[one.bins], one.values) }));
    const choice = GW.choice("layer", heat.layers.map((name, at) => [String(at), name]), (at) => layers.choose(Number(at)));
    this.picker = choice.querySelector("select");
    const beside = (words, label, by) =>
      GW.make("button", { type: "button", "aria-label": label, title: label, on: { click: () => layers.choose((layers.chosen + by + heat.layers.length) % heat.layers.length) } }, words);
    this.bar = GW.make("div", { class: "tools picker" }, choice, beside("‹", "previous layer", -1), beside("›", "next layer", 1));
    this.charts = heat.metrics.map((metric) => new GW.Chart(this.spec(metric, 0), { height: 200 }));
    this.nothing = GW.make("p", { class: "soft", hidden: true }, "Nothing finite was recorded of this layer.");
    this.grid = GW.make("div", { class: "charts small" }, ...this.charts.map((chart) => chart.element));
    this.printed = GW.make("h3", { class: "printed" }); // on paper there is no picker
    box.append(this.bar, this.printed, this.nothing, this.grid);
    layers.listeners.push((layer) => this.show(layer));
    this.show(layers.chosen);
  }

  spec(metric, layer) {
    const { heat } = this.layers;
    const sources = [];
    for (const { method } of heat.runs) {
      const fine = this.close.find((one) => one.method === method && one.layer === layer && one.metrics.includes(metric.key));
      const matrix = fine ? fine.matrix : this.layers.matrix(method, metric.key);
      if (!matrix) continue;
      const line = { method, color: GW.data.methods.length > 1 ? undefined : 1, ...matrix.curve(fine ? fine.metrics.indexOf(metric.key) : layer) };
      const said = metric.key === "nonfinite" ? (value) => value > 0 : (value) => value != null;
      if (line.mean.some(said)) sources.push({ bins: matrix.bins, line });
    }
    const log = metric.axis === "log";
    const together = sources.length ? GW.together(sources) : { x: [], lines: [] };
    const toggle = metric.kind === "positive";
    return { key: metric.key, scale: `layer/${metric.key}`, title: metric.title, unit: "", log, toggle, layer, ...together };
  }

  show(layer) {
    this.picker.value = String(layer);
    this.printed.textContent = this.layers.rows[layer];
    this.layers.heat.metrics.forEach((metric, at) => {
      const spec = this.spec(metric, layer);
      const chart = this.charts[at];
      chart.element.hidden = !spec.lines.length;
      if (spec.lines.length) chart.show(spec);
    });
    this.nothing.hidden = this.charts.some((chart) => !chart.element.hidden);
  }
};
