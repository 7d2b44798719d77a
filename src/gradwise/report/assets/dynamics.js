"use strict";
// The heatmaps of a comparison: which methods, seeds and quantity they show, and a layer's curves.

GW.Dynamics = class extends GW.Panels {
  constructor(box, heat) {
    super(heat.layers);
    this.heat = heat;
    this.methods = [...new Set(heat.matrices.map((one) => one.method))].sort((a, b) => a - b);
    this.mode = "all";
    this.quantity = "std";
    this.scale = "log";
    this.seed = "mean";
    this.cache = new Map();
    const { first, last, width, columns } = heat.grid;
    this.edges = Float64Array.from({ length: columns + 1 }, (_, at) => Math.min(first + at * width, last + 1));
    this.chart = new GW.Chart({ title: "", unit: "", x: [], lines: [], log: true }, { height: 270 });
    this.chart.element.classList.add("layer");
    const choice = GW.choice("layer", heat.layers.map((name, at) => [String(at), name]), (at) => this.choose(Number(at)));
    this.picker = choice.querySelector("select");
    this.chart.tools.prepend(choice);
    box.append(this.controls(), this.element, this.chart.element);
    this.choose(0);
  }

  controls() {
    const names = this.methods.map((method) => [String(method), GW.data.methods[method].name]);
    const change = (key) => (value) => {
      this[key] = value;
      this.update();
    };
    const box = GW.make("div", { class: "controls" });
    if (names.length > 1) box.append(GW.segments("Show", [["all", "all side by side"], ...names], change("mode")));
    box.append(GW.segments("Quantity", [["std", "std"], ["var", "variance"]], change("quantity")));
    box.append(GW.segments("Colours", [["log", "logarithmic"], ["linear", "linear"]], change("scale")));
    if (this.heat.seeds.length > 1) {
      const options = [["mean", "mean over seeds"], ...this.heat.seeds.map((seed) => [String(seed), `seed ${seed}`])];
      box.append(GW.choice("Seeds", options, change("seed")));
    }
    return box;
  }

  get noun() {
    return this.quantity === "std" ? "Std" : "Variance";
  }

  get title() {
    return `${this.noun} of the gradient`;
  }

  get label() {
    return `Heatmap of the gradient's ${this.noun.toLowerCase()} by layer and step`;
  }

  get kind() {
    return this.scale;
  }

  // One seed's matrix in the quantity shown.
  single(one) {
    const key = `${one.method}/${one.seed}/${this.quantity}`;
    if (!this.cache.has(key)) {
      const values = GW.unpack(one.std);
      this.cache.set(key, this.quantity === "var" ? values.map((value) => value * value) : values);
    }
    return this.cache.get(key);
  }

  // The trials behind what is shown of a method. A mean has those that ran to their end; where
  // none did, all of them.
  trials(method) {
    const own = this.heat.matrices.filter((one) => one.method === method);
    if (this.seed !== "mean") return own.filter((one) => String(one.seed) === this.seed);
    const whole = own.filter((one) => one.whole);
    return whole.length ? whole : own;
  }

  // What a panel shows: the mean over seeds or one seed; null where that was not recorded.
  cells(method) {
    const own = this.trials(method);
    if (!own.length) return null;
    const key = `${method}/${this.seed}/${this.quantity}/shown`;
    if (!this.cache.has(key)) {
      const { edges } = this;
      const values = GW.average(own.map((one) => this.single(one)));
      this.cache.set(key, { values, edges, columns: edges.length - 1, when: (column) => [edges[column], edges[column + 1] - 1] });
    }
    return this.cache.get(key);
  }

  // The colours stay the same whichever methods are shown.
  matrices() {
    return this.methods.map((method) => this.cells(method)?.values).filter(Boolean);
  }

  shown() {
    const methods = this.mode === "all" ? this.methods.filter((method) => !GW.hidden.has(method)) : [Number(this.mode)];
    return methods.map((method) => ({ method, title: GW.data.methods[method].name, cells: this.cells(method) }));
  }

  update() {
    this.renew();
    this.drawLayer();
  }

  choose(layer) {
    this.chosen = layer;
    this.picker.value = String(layer);
    this.leave();
    this.draw();
    this.drawLayer();
  }

  // The curves of one layer, one line a method, with the spread over its seeds.
  drawLayer() {
    const { edges } = this;
    const columns = edges.length - 1;
    const row = (values) => Array.from(values.subarray(this.chosen * columns, (this.chosen + 1) * columns), (value) => (Number.isNaN(value) ? null : value));
    const lines = [];
    for (const method of this.methods) {
      const shown = this.cells(method);
      if (!shown) continue;
      const line = { method, mean: row(shown.values) };
      const own = this.trials(method);
      if (own.length > 1) {
        const seeds = own.map((one) => row(this.single(one)));
        const there = line.mean.map((_, at) => seeds.map((seed) => seed[at]).filter((value) => value != null));
        const over = (pick) => there.map((values) => (values.length ? pick(...values) : null));
        line.low = over(Math.min);
        line.high = over(Math.max);
      }
      lines.push(line);
    }
    const x = Array.from({ length: columns }, (_, column) => Math.floor((edges[column] + edges[column + 1] - 1) / 2));
    this.chart.show({ ...this.chart.spec, title: `${this.noun} of the gradient of ${this.rows[this.chosen]}`, x, lines });
  }
};
