"use strict";
// The section with the heatmaps: what is shown, where it lies, and what the pointer is over.

GW.Dynamics = class {
  constructor(box, heat) {
    this.heat = heat;
    this.methods = [...new Set(heat.matrices.map((one) => one.method))].sort((a, b) => a - b);
    this.mode = "all";
    this.quantity = "std";
    this.scale = "log";
    this.seed = "mean";
    this.layer = 0;
    this.cache = new Map();
    this.panels = [];
    this.canvas = GW.make("canvas", { tabindex: "0", role: "img" });
    this.tip = GW.make("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.mark = GW.make("div", { class: "mark", hidden: true, "aria-hidden": "true" });
    this.status = GW.make("div", { class: "status", "aria-live": "polite" });
    this.plot = GW.make("div", { class: "heat" }, this.canvas, this.mark, this.tip, this.status);
    this.chart = new GW.Chart({ title: "", unit: "", x: [], lines: [], log: true }, { height: 270 });
    this.chart.element.classList.add("layer");
    const layers = heat.layers.map((name, at) => [String(at), name]);
    const choice = GW.choice("layer", layers, (at) => this.select(Number(at)));
    this.picker = choice.querySelector("select");
    this.chart.tools.prepend(choice);
    this.note = GW.make("p", { hidden: true }, "The colours end a little before the most extreme values: at most one cell in 250 lies beyond.");
    box.append(this.controls(), GW.make("figure", {}, this.plot, this.note), this.chart.element);
    this.listen();
    this.select(0);
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

  get word() {
    return this.quantity === "std" ? "Std" : "Variance";
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
  matrix(method) {
    const own = this.trials(method);
    if (!own.length) return null;
    const key = `${method}/${this.seed}/${this.quantity}/shown`;
    if (!this.cache.has(key)) this.cache.set(key, GW.average(own.map((one) => this.single(one))));
    return this.cache.get(key);
  }

  shown() {
    if (this.mode !== "all") return [Number(this.mode)];
    return this.methods.filter((method) => !GW.hidden.has(method));
  }

  update() {
    this.leave();
    this.draw();
    this.drawLayer();
  }

  select(layer) {
    this.layer = layer;
    this.picker.value = String(layer);
    this.update();
  }

  step(column) {
    const { first, last, width } = this.heat.grid;
    const from = first + column * width;
    return [from, Math.min(from + width - 1, last)];
  }

  // Panels in rows, as many beside each other as fit; names of layers at the left of each row.
  arrange(context) {
    const width = this.plot.clientWidth;
    const methods = this.shown();
    const { layers } = this.heat;
    context.font = "700 11px " + GW.css("--sans"); // as wide as the name that is chosen
    const widest = Math.max(...layers.map((name) => context.measureText(name).width));
    const gutter = Math.ceil(Math.min(widest + 16, Math.max(84, width * 0.44), 210));
    const gap = 14;
    const fit = Math.max(1, Math.floor((width - gutter + gap) / (165 + gap)));
    const rows = Math.ceil(methods.length / fit);
    const across = Math.max(1, Math.ceil(methods.length / Math.max(1, rows)));
    const panelWidth = Math.floor((width - gutter - gap * (across - 1) - 6) / across);
    const single = methods.length === 1;
    const height = Math.round(Math.min(single ? 680 : 460, Math.max(single ? 220 : 150, layers.length * (single ? 14 : 11))));
    const head = 52;
    this.panels = methods.map((method, at) => ({
      method,
      matrix: this.matrix(method),
      x: gutter + (at % across) * (panelWidth + gap),
      y: head + Math.floor(at / across) * (height + 62) + 20,
      width: panelWidth,
      height,
      leftmost: at % across === 0,
    }));
    return { width, gutter, height: head + rows * (height + 62) };
  }

  draw() {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    const { width, gutter, height } = this.arrange(context);
    if (width < 1) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = "11px " + GW.css("--sans");
    const matrices = this.methods.map((method) => this.matrix(method)).filter(Boolean);
    this.bounds = GW.bounds(matrices, this.scale === "log");
    GW.colorBar(context, gutter, 2, Math.min(300, width - gutter - 8), this.bounds, `${this.word} of the gradient`);
    this.note.hidden = !this.bounds.cut;
    for (const panel of this.panels) this.drawPanel(context, panel, gutter);
    const names = this.panels.map((panel) => GW.data.methods[panel.method].name).join(", ");
    canvas.setAttribute(
      "aria-label",
      `Heatmap of the gradient's ${this.word.toLowerCase()} by layer and step for ${names}. ` +
        "Arrow keys read single cells, Enter shows the layer's curves.",
    );
  }

  drawPanel(context, panel, gutter) {
    const { layers, grid } = this.heat;
    const { x, y, width, height } = panel;
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillStyle = GW.css("--ink");
    context.font = "600 12px " + GW.css("--sans");
    context.fillText(GW.fit(context, GW.data.methods[panel.method].name, width), x, y - 7);
    context.font = "11px " + GW.css("--sans");
    if (panel.matrix) {
      context.imageSmoothingEnabled = false;
      context.drawImage(GW.picture(panel.matrix, layers.length, grid.columns, this.bounds), x, y, width, height);
    } else {
      context.fillStyle = GW.css("--soft");
      context.fillText("not recorded", x + 8, y + 18);
    }
    context.strokeStyle = GW.css("--line");
    context.strokeRect(x - 0.5, y - 0.5, width + 1, height + 1);
    this.drawSteps(context, panel);
    if (panel.leftmost) this.drawNames(context, panel, gutter);
  }

  drawSteps(context, { x, y, width, height }) {
    const { first, width: stride, columns } = this.heat.grid;
    const ends = first + columns * stride;
    context.fillStyle = GW.css("--soft");
    context.textBaseline = "top";
    context.textAlign = "center";
    const room = context.measureText(ends.toLocaleString("en-US")).width + 16;
    for (const step of GW.ticks(first, ends, Math.max(2, width / room), 1)) {
      const at = x + ((step - first) / (ends - first)) * width;
      context.fillRect(at - 0.5, y + height, 1, 4);
      const label = step.toLocaleString("en-US");
      const half = context.measureText(label).width / 2;
      context.fillText(label, Math.min(at, x + width - half), y + height + 7);
    }
    context.fillText("step", x + width / 2, y + height + 22);
  }

  drawNames(context, { y, height }, gutter) {
    const { layers } = this.heat;
    const size = height / layers.length;
    const middle = (at) => y + (at + 0.5) * size;
    context.textAlign = "right";
    context.textBaseline = "middle";
    const stride = Math.ceil(10.9 / size);
    for (let at = 0; at < layers.length; at++) {
      const chosen = at === this.layer;
      const near = Math.abs(middle(at) - middle(this.layer)) < 10.9;
      if (!chosen && (at % stride || near)) continue;
      context.font = (chosen ? "700 " : "") + "11px " + GW.css("--sans");
      context.fillStyle = GW.css(chosen ? "--ink" : "--soft");
      context.fillText(GW.fit(context, layers[at], gutter - 16), gutter - 12, middle(at));
      if (chosen) {
        context.beginPath();
        context.moveTo(gutter - 9, middle(at) - 4);
        context.lineTo(gutter - 3, middle(at));
        context.lineTo(gutter - 9, middle(at) + 4);
        context.fill();
      }
    }
  }

  // The curves of one layer, one line a method, with the spread over its seeds.
  drawLayer() {
    const { layers, grid } = this.heat;
    const row = (values) => Array.from(values.subarray(this.layer * grid.columns, (this.layer + 1) * grid.columns), (value) => (Number.isNaN(value) ? null : value));
    const lines = [];
    for (const method of this.methods) {
      const shown = this.matrix(method);
      if (!shown) continue;
      const line = { method, mean: row(shown) };
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
    const x = Array.from({ length: grid.columns }, (_, column) => Math.floor((this.step(column)[0] + this.step(column)[1]) / 2));
    this.chart.show({ ...this.chart.spec, title: `${this.word} of the gradient of ${layers[this.layer]}`, x, lines });
  }
};
