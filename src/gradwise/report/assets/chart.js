"use strict";
// One chart: lines with bands against the step, drawn by uPlot, read by pointer or keyboard.
// uPlot's own legend would be one per chart; here one legend rules all, and a box tells values.

// Steps are whole numbers, so the ticks of their axis are.
const STRIDES = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

GW.Chart = class {
  constructor(spec, { height = 250, sync = "steps" } = {}) {
    this.spec = spec;
    this.height = height;
    this.sync = sync;
    this.log = spec.log;
    this.squared = false;
    this.tools = GW.make("div", { class: "tools" });
    this.heading = GW.make("h3");
    this.box = GW.make("div", {
      class: "plot",
      tabindex: "0",
      role: "group",
      on: { keydown: (event) => this.key(event), blur: () => this.leave() },
    });
    this.tip = GW.make("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.status = GW.make("div", { class: "status", "aria-live": "polite" });
    this.note = GW.make("p", { hidden: !spec.note }, spec.note || "");
    this.element = GW.make("figure", {}, GW.make("figcaption", {}, this.heading, this.tools), this.box, this.note, this.status);
    this.addTools();
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.box);
    GW.redraws.push(() => this.refresh());
  }

  addTools() {
    const add = (label, click, hidden = false) => {
      const button = GW.make("button", { type: "button", hidden, on: { click } }, label);
      this.tools.append(button);
      return button;
    };
    this.zoomButton = add("whole run", () => this.unzoom(), true);
    if (this.spec.square) {
      const button = add("show variance", () => {
        this.squared = !this.squared;
        button.textContent = this.squared ? "show std" : "show variance";
        this.build();
      });
    }
    if (this.spec.log) {
      const button = add("linear axis", () => {
        this.log = !this.log;
        button.textContent = this.log ? "linear axis" : "log axis";
        this.build();
      });
    }
  }

  // Replaces what is shown, keeping axes, tools and the place in the page.
  show(spec) {
    this.spec = spec;
    this.build();
  }

  get title() {
    const title = this.squared ? this.spec.title.replace("Std", "Variance") : this.spec.title;
    return this.spec.unit ? `${title} (${this.spec.unit})` : title;
  }

  values(list) {
    const power = this.squared ? (value) => value * value : (value) => value;
    return list.map((value) => (value == null || (this.log && value <= 0) ? null : power(value)));
  }

  build() {
    this.leave();
    this.plot?.destroy();
    this.heading.textContent = this.title;
    this.box.setAttribute("aria-label", `${this.title} against step. Left and right arrows read the values.`);
    const { spec } = this;
    const data = [spec.x];
    const series = [{}];
    const bands = [];
    this.lines = [];
    for (const line of spec.lines) {
      const at = data.length;
      const paint = () => GW.color(line.method);
      this.lines.push({ method: line.method, mean: at, members: line.low ? [at, at + 1, at + 2] : [at] });
      const show = !GW.hidden.has(line.method);
      data.push(this.values(line.mean));
      const dash = line.seed == null ? GW.dashes[GW.data.methods[line.method].dash] : [2, 3];
      series.push({ show, stroke: paint, width: line.seed == null ? 1.75 : 1.25, dash, points: { size: 4 }, spanGaps: true });
      if (line.low) {
        const edge = { show, stroke: () => "transparent", width: 0, points: { show: false }, spanGaps: true };
        data.push(this.values(line.high), this.values(line.low));
        series.push({ ...edge }, { ...edge });
        bands.push({ series: [at + 1, at + 2], fill: () => GW.fade(paint(), 0.16) });
      }
    }
    this.means = new Set(this.lines.map((line) => line.mean));
    this.plot = new uPlot({ ...this.options(), series, bands }, data, this.box);
    this.plot.over.append(this.tip);
    this.plot.over.addEventListener("mouseenter", () => (this.reading = true));
    this.plot.over.addEventListener("mouseleave", () => this.leave());
  }

  options() {
    const axis = {
      stroke: () => GW.css("--soft"),
      font: "11px " + GW.css("--sans"),
      grid: { stroke: () => GW.css("--grid"), width: 1 },
      ticks: { stroke: () => GW.css("--grid"), width: 1, size: 4 },
      values: (_, splits) => splits.map((value) => GW.tick(value)),
    };
    return {
      width: Math.max(200, this.box.clientWidth),
      height: this.height,
      padding: [10, 14, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { distr: this.log ? 3 : 1, range: (_, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, size: 26, label: "step", labelSize: 16, labelGap: 0, labelFont: "11px " + GW.css("--sans"), space: 70, incrs: STRIDES },
        this.log ? { ...axis, ...this.logAxis() } : { ...axis, size: 58, space: 40 },
      ],
      cursor: {
        y: false,
        sync: { key: this.sync, setSeries: false },
        drag: { x: true, y: false, dist: 6 },
        points: { show: (plot, index) => (this.means.has(index) ? this.point() : null), size: 7, fill: (plot, index) => GW.color(this.methodOf(index)) },
      },
      hooks: {
        setCursor: [() => this.read()],
        setScale: [(plot, key) => key === "x" && this.zoomed()],
      },
    };
  }

  // uPlot's own ticks begin at whatever the axis begins with; these are round numbers only.
  logAxis() {
    const all = (_, splits) => splits;
    const lines = (kind) => ({ stroke: () => GW.css("--grid"), width: 1, size: kind === "ticks" ? 4 : undefined, filter: all });
    return { size: 58, filter: all, grid: lines("grid"), ticks: lines("ticks"), splits: (_, axis, low, high) => GW.logTicks(low, high) };
  }

  point() {
    return GW.make("div");
  }

  methodOf(index) {
    return this.lines.find((line) => line.members.includes(index))?.method ?? 0;
  }

  // Charts that name the same scale have the same axis, so that they can be compared by eye.
  range(low, high) {
    const { shared } = this;
    if (shared && shared.length > 1) {
      const ends = shared.map((chart) => chart.extent());
      low = Math.min(...ends.map((end) => end[0]));
      high = Math.max(...ends.map((end) => end[1]));
    }
    if (low == null || high == null || !Number.isFinite(low) || !Number.isFinite(high)) return this.log ? [0.1, 1] : [0, 1];
    if (this.log) {
      const room = low === high ? 2 : Math.max(1.1, (high / low) ** 0.04);
      return [low / room, high * room];
    }
    const room = (high - low || Math.abs(high) || 1) * 0.05;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  extent() {
    let low = Infinity;
    let high = -Infinity;
    for (const line of this.spec.lines) {
      if (GW.hidden.has(line.method)) continue;
      for (const list of [line.mean, line.low, line.high]) {
        for (const value of list ? this.values(list) : []) {
          if (value == null) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
        }
      }
    }
    return [low, high];
  }

  refresh() {
    if (!this.plot) return;
    this.plot.batch(() => {
      for (const line of this.lines) {
        const show = !GW.hidden.has(line.method);
        for (const index of line.members) {
          if (this.plot.series[index].show !== show) this.plot.setSeries(index, { show });
        }
      }
    });
    this.plot.redraw(true, true);
  }

  resize() {
    const width = Math.floor(this.box.clientWidth);
    if (width < 1) return;
    if (!this.plot) this.build();
    else if (this.plot.width !== width) this.plot.setSize({ width, height: this.height });
  }

  zoomed() {
    if (!this.plot) return;
    const { min, max } = this.plot.scales.x;
    const { x } = this.spec;
    this.zoomButton.hidden = min <= x[0] && max >= x[x.length - 1];
  }

  unzoom() {
    const { x } = this.spec;
    const group = uPlot.sync(this.sync).plots;
    for (const plot of group.includes(this.plot) ? group : [this.plot]) {
      plot.setScale("x", { min: plot.data[0][0], max: plot.data[0][plot.data[0].length - 1] });
    }
  }
};
