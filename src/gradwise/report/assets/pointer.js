"use strict";
// Reading a heatmap by pointer or keyboard, and the controls above it.

Object.assign(GW.Dynamics.prototype, {
  listen() {
    const { canvas } = this;
    const over = (event) => this.locate(event.offsetX, event.offsetY);
    canvas.addEventListener("pointermove", (event) => this.point(over(event)));
    canvas.addEventListener("pointerleave", () => this.leave());
    canvas.addEventListener("click", (event) => {
      const cell = over(event);
      if (cell) this.select(cell.row);
      if (cell?.panel) this.point(cell);
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.leave());
    let width = 0;
    new ResizeObserver(() => {
      if (this.plot.clientWidth === width) return;
      width = this.plot.clientWidth;
      this.draw();
    }).observe(this.plot);
    GW.redraws.push(() => {
      this.leave();
      this.draw();
    });
  },

  // The cell under a point; in the gutter only the row.
  locate(x, y) {
    const { layers, grid } = this.heat;
    for (const panel of this.panels) {
      if (y < panel.y || y >= panel.y + panel.height) continue;
      const row = Math.min(layers.length - 1, Math.floor(((y - panel.y) / panel.height) * layers.length));
      if (x >= panel.x && x < panel.x + panel.width) {
        return { panel, row, column: Math.min(grid.columns - 1, Math.floor(((x - panel.x) / panel.width) * grid.columns)) };
      }
      if (panel.leftmost && x < panel.x) return { panel: null, row };
    }
    return null;
  },

  point(cell) {
    this.cell = cell?.panel ? cell : null;
    this.canvas.style.cursor = cell ? "pointer" : "default";
    if (!this.cell) {
      this.leave();
      return;
    }
    const { panel, row, column } = cell;
    const { layers, grid } = this.heat;
    const size = panel.height / layers.length;
    Object.assign(this.mark.style, {
      transform: `translate(${panel.x}px, ${panel.y + row * size}px)`,
      width: `${panel.width}px`,
      height: `${Math.max(2, size)}px`,
    });
    this.mark.hidden = false;
    const [first, last] = this.step(column);
    const when = first === last ? GW.step(first) : `${GW.step((first + last) / 2)} (mean of ${last - first + 1} steps)`;
    this.tip.replaceChildren(
      GW.make("b", {}, layers[row]),
      GW.make("div", { class: "rows" }, GW.swatch(panel.method), GW.make("span", {}, GW.data.methods[panel.method].name), GW.make("i", {}, this.value(cell))),
      GW.make("small", {}, when),
    );
    GW.place(this.tip, this.plot, panel.x + ((column + 0.5) / grid.columns) * panel.width, panel.y + (row + 0.5) * size);
  },

  value({ panel, row, column }) {
    const value = panel.matrix?.[row * this.heat.grid.columns + column];
    return value == null || Number.isNaN(value) ? "not recorded" : GW.number(value);
  },

  leave() {
    this.tip.hidden = true;
    this.mark.hidden = true;
    this.cell = null;
  },

  key(event) {
    const { layers, grid } = this.heat;
    if (!this.panels.length) return;
    let { panel, row, column } = this.cell ?? { panel: this.panels[0], row: this.layer, column: -1 };
    const stride = event.shiftKey ? 10 : 1;
    if (event.key === "Enter" && this.cell) {
      const kept = this.cell;
      this.select(row);
      this.point(kept);
      return;
    }
    if (event.key === "ArrowUp") row -= stride;
    else if (event.key === "ArrowDown") row += stride;
    else if (event.key === "ArrowLeft") column -= stride;
    else if (event.key === "ArrowRight") column += stride;
    else return;
    event.preventDefault();
    // Past the end of a panel the next one begins.
    const turn = column >= grid.columns ? 1 : column < 0 && this.cell ? -1 : 0;
    const next = this.panels[this.panels.indexOf(panel) + turn];
    if (turn && next) {
      panel = next;
      column = turn > 0 ? 0 : grid.columns - 1;
    }
    column = Math.max(0, Math.min(grid.columns - 1, column));
    row = Math.max(0, Math.min(layers.length - 1, row));
    const cell = { panel, row, column };
    this.point(cell);
    this.status.textContent = `${GW.data.methods[panel.method].name}, ${layers[row]}, ${GW.step(this.step(column)[0])}: ${this.value(cell)}`;
  },
});

let controls = 0;

// Buttons of which one is chosen; they are radio buttons, so the keyboard works as everywhere.
GW.segments = (label, options, call) => {
  const name = `control-${controls++}`;
  const buttons = options.map(([value, words], at) =>
    GW.make("label", {}, GW.make("input", { type: "radio", name, value, checked: at === 0, on: { change: () => call(value) } }), words),
  );
  return GW.make("fieldset", {}, GW.make("legend", {}, label), GW.make("div", { class: "segments" }, ...buttons));
};

GW.choice = (label, options, call) => {
  const list = options.map(([value, words]) => GW.make("option", { value }, words));
  const select = GW.make("select", { on: { change: (event) => call(event.target.value) } }, ...list);
  return GW.make("label", { class: "above" }, GW.make("span", {}, label), select);
};

// Text cut at its beginning, so that the end, which tells layers apart, stays.
GW.fit = (context, words, width) => {
  if (context.measureText(words).width <= width) return words;
  let low = 0;
  let high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (context.measureText(`…${words.slice(middle)}`).width <= width) high = middle;
    else low = middle + 1;
  }
  return `…${words.slice(low)}`;
};

// Round numbers between two bounds, about so many, and at least `least` apart.
GW.ticks = (low, high, count, least = 0) => {
  const rough = Math.max((high - low) / count, least);
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((value) => value >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return found;
};

// Round numbers for a logarithmic axis: powers of ten, and what lies between where they are few.
GW.logTicks = (low, high) => {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return GW.ticks(low, high, 4);
  const digits = decades < 1.5 ? [1, 2, 3, 5, 7] : decades < 3 ? [1, 2, 5] : [1];
  const stride = Math.ceil(decades / 7);
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    if (power % stride) continue;
    found.push(...digits.map((digit) => digit * 10 ** power).filter((value) => value >= low && value <= high));
  }
  return found;
};
