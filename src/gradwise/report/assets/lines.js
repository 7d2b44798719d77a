"use strict";
// Reading a chart: the box with the values under the cursor, by pointer or by arrow keys.

Object.assign(GW.Chart.prototype, {
  read() {
    const { plot, tip } = this;
    if (!plot || !this.reading) return;
    const index = plot.cursor.idx;
    if (index == null || plot.cursor.left < 0) {
      tip.hidden = true;
      return;
    }
    const rows = this.rows(index);
    const list = GW.make("div", { class: "rows" }, ...rows.flatMap((row) => this.row(row)));
    tip.replaceChildren(GW.make("b", {}, this.when(index)), list);
    GW.place(tip, plot.over, plot.cursor.left, plot.cursor.top < 0 ? plot.over.clientHeight / 2 : plot.cursor.top);
  },

  when(index) {
    return this.spec.when?.(index) ?? GW.step(this.spec.x[index]);
  },

  // The methods shown, with their values at one step, the largest first. Lines of different runs
  // have their points at different steps; then the one nearest by counts.
  rows(index) {
    const found = [];
    for (const line of this.spec.lines) {
      const at = line.near ? line.near[index] : index;
      if (GW.hidden.has(line.method) || line.mean[at] == null) continue;
      const [mean, low, high] = [line.mean, line.low, line.high].map((list) => {
        const value = list?.[at];
        return value != null && this.squared ? value * value : value;
      });
      found.push({ line, mean, low, high });
    }
    return found.sort((one, other) => other.mean - one.mean);
  },

  words({ mean, low, high }) {
    const unit = this.spec.unit ? ` ${this.spec.unit}` : "";
    const spread = low != null && low !== high ? `${GW.number(low, 3)} to ${GW.number(high, 3)}` : "";
    return [GW.number(mean) + unit, spread];
  },

  row(row) {
    const [value, spread] = this.words(row);
    return [GW.swatch(row.line), GW.make("span", {}, GW.name(row.line)), GW.make("i", {}, value), GW.make("small", {}, spread)];
  },

  leave() {
    this.reading = false;
    this.tip.hidden = true;
  },

  key(event) {
    const { plot } = this;
    if (!plot || event.target !== this.box) return;
    const { x } = this.spec;
    const stride = event.shiftKey ? 10 : 1;
    const at = this.reading ? (plot.cursor.idx ?? 0) : -1;
    const moves = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: x.length - 1 };
    if (event.key === "Escape") {
      this.leave();
      plot.setCursor({ left: -10, top: -10 });
      return;
    }
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.reading = true;
    const index = Math.max(0, Math.min(x.length - 1, moves[event.key]));
    plot.setCursor({ left: plot.valToPos(x[index], "x"), top: plot.over.clientHeight / 2 });
    const said = this.rows(index).map((row) => `${GW.name(row.line)} ${this.words(row)[0]}`);
    this.status.textContent = `${this.when(index)}: ${said.join(", ") || "no values"}`;
  },
});

// All charts of a section; those with the same scale know of each other.
GW.charts = (box, specs) => {
  const charts = specs.map((spec) => new GW.Chart(spec));
  for (const chart of charts) {
    chart.shared = charts.filter((other) => other.spec.scale === chart.spec.scale);
    box.append(chart.element);
  }
  return charts;
};
