"use strict";
// One chart: lines with bands against the step, drawn by uPlot, read by pointer or keyboard.
// uPlot's own legend would be one per chart; here one legend rules all, and a box tells values.

// Steps are whole numbers, so the ticks of their axis are.
const STRIDES = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

GW.Chart = class {
  constructor(spec, { height = 250, sync = "steps" } = {}) {
    this.given = spec;
    this.spec = this.fitting();
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
    this.box.style.minHeight = `${height}px`; // the page does not jump when it is drawn
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.box);
    GW.redraws.push(() => this.refresh());
    GW.view.join(this);
  }

  addTools() {
    const add = (label, click, hidden = false) => {
      const button = GW.make("button", { type: "button", hidden, on: { click } }, label);
      this.tools.append(button);
      return button;
    };
    const whole = add("whole run", () => GW.view.reset(), !GW.view.zoomed);
    GW.view.listeners.push(() => {
      whole.hidden = !GW.view.zoomed; // also out of sight, where the picture itself waits
    });
    if (this.spec.square) {
      const button = add("show variance", () => {
        this.squared = !this.squared;
        button.textContent = this.squared ? "show std" : "show variance";
        this.build();
      });
    }
    if (this.spec.toggle ?? this.spec.log) {
      const other = () => (this.log ? "linear axis" : "log axis");
      const button = add(other(), () => {
        this.log = !this.log;
        button.textContent = other();
        this.build();
      });
    }
    const labelled = this.spec.lines.filter((line) => line.label && line.method === this.spec.lines[0].method);
    if (labelled.length > 1) this.tools.prepend(GW.make("span", { class: "key" }, ...labelled.map((line) => GW.make("span", {}, GW.swatch(line), line.label))));
  }

  // Replaces what is shown, keeping axes, tools and the place in the page.
  show(spec) {
    this.given = spec;
    this.spec = this.fitting();
    if (!GW.data.span || GW.view.sees(this)) {
      this.build();
      return;
    }
    this.plot?.destroy(); // out of sight: built when somebody comes near it
    this.plot = null;
    GW.view.waiting.add(this);
  }

  // The lines as fine as they are only where little of the run is shown.
  fitting() {
    const { given } = this;
    if (!given.even) return given;
    const [first, last] = GW.view.whole();
    const fine = GW.view.zoomed && GW.view.high - GW.view.low < (last - first) / 6;
    if (this.joined?.given !== given) this.joined = { given, even: { ...given, ...given.even } };
    return fine ? given : this.joined.even;
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
      const paint = () => GW.color(line);
      this.lines.push({ line, method: line.method, mean: at, members: line.low ? [at, at + 1, at + 2] : [at] });
      const show = !GW.hidden.has(line.method);
      data.push(this.values(line.mean));
      const dash = line.seed == null ? GW.dashes[GW.look(line).dash] : [2, 3];
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
    GW.marks?.listen(this);
    this.follow();
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
      padding: [10, 22, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { distr: this.log ? 3 : 1, range: (_, low, high) => this.range(low, high) } },
      axes: [
        { ...axis, size: 26, label: "step", labelSize: 16, labelGap: 0, labelFont: "11px " + GW.css("--sans"), space: 70, incrs: STRIDES },
        this.log ? { ...axis, ...this.logAxis() } : { ...axis, size: 58, space: 40 },
      ],
      cursor: {
        y: false,
        // Where the pointer is goes to all charts; what is dragged goes through the view instead.
        sync: { key: this.sync, setSeries: false, filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
        drag: { x: true, y: false, dist: 6, setScale: false },
        bind: { dblclick: () => () => GW.view.reset() },
        points: { show: (plot, index) => (this.means.has(index) ? this.point() : null), size: 7, fill: (plot, index) => GW.color(this.lineOf(index)) },
      },
      hooks: {
        setCursor: [() => this.read()],
        setSelect: [(plot) => this.selected(plot)],
        draw: [(plot) => GW.marks?.onChart(this, plot)],
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

  lineOf(index) {
    return this.lines.find((line) => line.members.includes(index))?.line ?? 0;
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
    // What differs in the last digits only is constant.
    const flat = high - low <= 1e-6 * Math.max(Math.abs(low), Math.abs(high));
    if (this.log) {
      const room = flat ? 2 : Math.max(1.1, (high / low) ** 0.04);
      return [low / room, high * room];
    }
    const room = (flat ? Math.abs(high) || 1 : high - low) * 0.05;
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

  // Far down a long page a chart waits until somebody comes near it.
  resize() {
    const width = Math.floor(this.box.clientWidth);
    if (width < 1) return;
    if (!this.plot) {
      if (!GW.data.span || GW.view.sees(this)) this.build();
    } else if (this.plot.width !== width) this.plot.setSize({ width, height: this.height });
  }

  selected(plot) {
    const { left, width } = plot.select;
    if (width < 1) return;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    GW.view.set(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
  }

  reach() {
    const { x } = this.spec;
    return x.length ? [x[0], x[x.length - 1]] : null;
  }

  // Shows the steps that all pictures show.
  follow() {
    if (!this.plot) {
      this.resize();
      return;
    }
    const whole = GW.data.span ?? this.reach();
    if (!whole) return;
    if (this.spec !== this.fitting()) {
      this.spec = this.fitting();
      this.build(); // which comes here again
      return;
    }
    const [min, max] = GW.view.zoomed ? [GW.view.low, GW.view.high] : whole;
    const now = this.plot.scales.x;
    if (min < max && (now.min !== min || now.max !== max)) this.plot.setScale("x", { min, max });
  }
};
