"use strict";
// Histograms of one layer over time: bins of magnitude by steps, one panel a run.

GW.Histogram = class extends GW.Panels {
  constructor(runs, layers) {
    const name = ([low, high]) => {
      if (low == null) return `below ${GW.number(high, 2)}`;
      return high == null ? `${GW.number(low, 2)} and more` : `${GW.number(low, 2)} to ${GW.number(high, 2)}`;
    };
    super(runs[0].bins.map(name), { per: 5, most: 220, least: 140 });
    this.runs = runs;
    this.cache = new Map();
    this.layer = layers.chosen;
    layers.listeners.push((layer) => {
      this.layer = layer;
      this.element.hidden = !this.runs.some((run) => layer in run.shares);
      this.renew();
    });
    this.element.hidden = !runs.some((run) => this.layer in run.shares);
  }

  get kind() {
    return "linear";
  }

  get title() {
    return "Share of the gradient's entries";
  }

  get label() {
    return "Histograms of the layer's gradient over time";
  }

  cells(run) {
    const packed = run.shares[this.layer];
    if (!packed) return null;
    const key = `${run.method}/${this.layer}`;
    if (!this.cache.has(key)) {
      const edges = Float64Array.from([...run.first, run.end]);
      this.cache.set(key, { values: GW.unpack(packed), columns: packed.columns, edges, when: (column) => [run.first[column], run.last[column]], digits: 2 });
    }
    return this.cache.get(key);
  }

  heading({ method }) {
    return GW.data.methods.length > 1 ? GW.data.methods[method].name : "Histograms of the gradient's entries, one a column";
  }

  shown() {
    return this.runs.filter(({ method }) => !GW.hidden.has(method)).map((run) => ({ method: run.method, title: this.heading(run), cells: this.cells(run) }));
  }
};

// Runs with the same bins share a picture.
GW.histograms = (box, runs, layers) => {
  const groups = new Map();
  for (const run of runs) {
    const key = run.bins.join();
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  for (const group of groups.values()) box.append(new GW.Histogram(group, layers).element);
};
