"use strict";
// Heatmaps side by side on one canvas, one a method or run, on one colour scale: rows by time.
// Who extends this says what the panels show; here is where they lie and how they are drawn.

GW.Panels = class {
  // `rows` are the names at the left. `tall` and `low` bound the height of a panel in pixels a row.
  constructor(rows, { per = 11, most = 460, least = 150 } = {}) {
    this.rows = rows;
    this.size = { per, most, least };
    this.chosen = null;
    this.top = 0;
    this.bottom = rows.length;
    this.panels = [];
    this.canvas = GW.make("canvas", { tabindex: "0", role: "img" });
    this.tip = GW.make("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.mark = GW.make("div", { class: "mark", hidden: true, "aria-hidden": "true" });
    this.box = GW.make("div", { class: "box", hidden: true, "aria-hidden": "true" });
    this.status = GW.make("div", { class: "status", "aria-live": "polite" });
    this.plot = GW.make("div", { class: "heat" }, this.canvas, this.mark, this.box, this.tip, this.status);
    this.note = GW.make("p", { hidden: true }, "The colours end a little before the most extreme values: at most one cell in 250 lies beyond.");
    this.element = GW.make("figure", {}, this.plot, this.note);
    this.listen();
    this.listenForZoom();
    GW.view.join(this);
  }

  // What each panel shows: `method`, `title`, and `cells`, or null where nothing was recorded.
  // Cells have `values` [rows, columns], `edges` [columns + 1] in steps, and `when(column)`.
  shown() {
    return [];
  }

  // The colours: all matrices that they are for, and the kind of scale.
  matrices() {
    return this.shown().flatMap(({ cells }) => (cells ? [cells.values] : []));
  }

  get kind() {
    return "log";
  }

  get title() {
    return "";
  }

  get short() {
    return this.title;
  }

  get label() {
    return this.title;
  }

  word({ cells }, row, column) {
    const value = cells?.values[row * cells.columns + column];
    if (value === Infinity) return "infinite";
    return value == null || Number.isNaN(value) ? "not recorded" : GW.number(value, cells.digits);
  }

  choose() {}

  reach() {
    const cells = this.shown().flatMap((one) => (one.cells ? [one.cells] : []));
    if (!cells.length) return null;
    return [Math.min(...cells.map(({ edges }) => edges[0])), Math.max(...cells.map(({ edges }) => edges[edges.length - 1]))];
  }

  follow() {
    this.leave();
    this.draw();
  }

  // Something else is shown: the colours are new.
  renew() {
    this.bounds = null;
    this.leave();
    this.draw();
  }

  rowsShown(top, bottom) {
    const size = Math.max(1, Math.min(this.rows.length, bottom - top));
    this.top = Math.max(0, Math.min(this.rows.length - size, top));
    this.bottom = this.top + size;
    this.leave();
    this.draw();
  }

  get whole() {
    return this.top === 0 && this.bottom === this.rows.length;
  }

  // Panels in rows, as many beside each other as fit; names at the left of each row.
  arrange(context) {
    const width = this.plot.clientWidth;
    const shown = this.shown();
    context.font = "700 11px " + GW.css("--sans"); // as wide as the name that is chosen
    this.widest ??= Math.max(0, ...this.rows.map((name) => context.measureText(name).width));
    const gutter = Math.ceil(Math.min(this.widest + 16, Math.max(84, width * 0.44), 210));
    const gap = 14;
    const fit = Math.max(1, Math.floor((width - gutter + gap) / (165 + gap)));
    const lines = Math.ceil(shown.length / fit);
    const across = Math.max(1, Math.ceil(shown.length / Math.max(1, lines)));
    const panelWidth = Math.floor((width - gutter - gap * (across - 1) - 6) / across);
    const { per, most, least } = this.size;
    const single = shown.length === 1;
    const height = Math.round(Math.min(single ? most * 1.48 : most, Math.max(single ? least * 1.48 : least, this.rows.length * (single ? per + 3 : per))));
    const head = 52;
    this.panels = shown.map((one, at) => ({
      ...one,
      x: gutter + (at % across) * (panelWidth + gap),
      y: head + Math.floor(at / across) * (height + 62) + 20,
      width: panelWidth,
      height,
      leftmost: at % across === 0,
    }));
    return { width, gutter, height: head + lines * (height + 62) };
  }

  draw() {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    if (this.plot.clientWidth < 1) return;
    const { width, gutter, height } = this.arrange(context);
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px " + GW.css("--sans");
    if (!this.bounds) {
      this.bounds = GW.bounds(this.matrices(), this.kind);
      this.shades = new Map();
    }
    this.inks = GW.inks(this.bounds);
    GW.colorBar(context, gutter, 2, Math.min(300, width - gutter - 8), this.bounds, this.title);
    this.note.hidden = !this.bounds.cut;
    for (const panel of this.panels) this.drawPanel(context, panel, gutter, ratio);
    const names = this.panels.map((panel) => panel.title).join(", ");
    canvas.setAttribute("aria-label", `${this.label} for ${names}. Arrow keys read single cells, Enter shows their curves, plus, minus and zero zoom.`);
  }

  drawPanel(context, panel, gutter, ratio) {
    const { x, y, width, height, cells } = panel;
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillStyle = GW.css("--ink");
    context.font = "600 12px " + GW.css("--sans");
    context.fillText(GW.fit(context, panel.title, width), x, y - 7);
    context.font = "11px " + GW.css("--sans");
    if (cells) this.drawCells(context, panel, ratio);
    else {
      context.fillStyle = GW.css("--soft");
      context.fillText("not recorded", x + 8, y + 18);
    }
    context.strokeStyle = GW.css("--line");
    context.strokeRect(x - 0.5, y - 0.5, width + 1, height + 1);
    this.drawSteps(context, panel);
    if (panel.leftmost) this.drawNames(context, panel, gutter);
    GW.marks?.onPanel(this, context, panel);
  }

  drawCells(context, { x, y, width, height, cells }, ratio) {
    if (!this.shades.has(cells)) this.shades.set(cells, this.shade(cells));
    const across = new Int32Array(Math.round(width * ratio));
    const [low, high] = GW.view.now();
    for (let at = 0; at < across.length; at++) {
      across[at] = GW.columnAt(cells.edges, low + ((at + 0.5) / across.length) * (high - low));
    }
    const lines = Math.round(height * ratio);
    const size = (this.bottom - this.top) / lines;
    const down = Array.from({ length: lines }, (_, at) => {
      const from = this.top + at * size;
      // More rows than pixels: each line of pixels has the rows that begin in it.
      if (size <= 1) return [Math.floor(from + size / 2), Math.floor(from + size / 2) + 1];
      return [Math.floor(from), Math.max(Math.floor(from) + 1, Math.floor(from + size))];
    });
    GW.paint(context, this.shades.get(cells), cells.columns, across, down, this.inks, Math.round(x * ratio), Math.round(y * ratio));
  }

  shade(cells) {
    return GW.shades(cells.values, this.bounds);
  }

  place({ x, width }, step) {
    const [low, high] = GW.view.now();
    return x + ((step - low) / (high - low)) * width;
  }

  drawSteps(context, panel) {
    const { x, y, width, height } = panel;
    const [low, high] = GW.view.now();
    context.fillStyle = GW.css("--soft");
    context.textBaseline = "top";
    context.textAlign = "center";
    const room = context.measureText(GW.count(high)).width + 16;
    for (const step of GW.ticks(low, high, Math.max(2, width / room), 1)) {
      const at = this.place(panel, step);
      context.fillRect(at - 0.5, y + height, 1, 4);
      const label = GW.count(step);
      const half = context.measureText(label).width / 2;
      context.fillText(label, Math.min(at, x + width - half), y + height + 7);
    }
    context.fillText("step", x + width / 2, y + height + 22);
  }

  drawNames(context, { y, height }, gutter) {
    const size = height / (this.bottom - this.top);
    const middle = (at) => y + (at + 0.5 - this.top) * size;
    context.textAlign = "right";
    context.textBaseline = "middle";
    const stride = Math.ceil(10.9 / size);
    for (let at = Math.floor(this.top); at < Math.min(this.rows.length, this.bottom); at++) {
      const chosen = at === this.chosen;
      const near = this.chosen != null && Math.abs(middle(at) - middle(this.chosen)) < 10.9;
      if ((!chosen && (at % stride || near)) || middle(at) < y || middle(at) > y + height) continue;
      context.font = (chosen ? "700 " : "") + "11px " + GW.css("--sans");
      context.fillStyle = GW.css(chosen ? "--ink" : "--soft");
      context.fillText(GW.fit(context, this.rows[at], gutter - 16), gutter - 12, middle(at));
      if (chosen) {
        context.beginPath();
        context.moveTo(gutter - 9, middle(at) - 4);
        context.lineTo(gutter - 3, middle(at));
        context.lineTo(gutter - 9, middle(at) + 4);
        context.fill();
      }
    }
  }
};

// The column that holds a step, or -1.
GW.columnAt = (edges, step) => {
  let low = 0;
  let high = edges.length - 1;
  if (!(step >= edges[0] && step < edges[high])) return -1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= step) low = middle;
    else high = middle;
  }
  return low;
};
