"use strict";
// What a run recorded, in bins of steps: as curves for charts and as cells for heatmaps.

// Bins are {first, last}: the first and last step of each.
GW.edges = (bins) => {
  if (!bins.edges) {
    const { first, last } = bins;
    const count = first.length;
    const alone = count > 1 && first[count - 1] === last[count - 1];
    bins.edges = Float64Array.from([...first, last[count - 1] + (alone ? first[count - 1] - first[count - 2] : 1)]);
    bins.middles = first.map((step, at) => (step + last[at]) / 2);
  }
  return bins.edges;
};

// Rows of means, and beside them the smallest and largest values of `coarse` bins together.
GW.Matrix = class {
  constructor(bins, packed, coarse = 1) {
    this.bins = bins;
    this.packed = packed;
    this.coarse = coarse;
    this.columns = bins.first.length;
    this.wide = Math.ceil(this.columns / coarse);
    this.parts = new Map();
    GW.edges(bins);
  }

  get values() {
    return (this.unpacked ??= GW.unpack(this.packed));
  }

  // The values of one row: `mean`, `low` or `high`.
  row(at, part) {
    const begin = at * this.packed.columns + { mean: 0, low: this.columns, high: this.columns + this.wide }[part];
    return this.values.subarray(begin, begin + (part === "mean" ? this.columns : this.wide));
  }

  // A row as a line of a chart; what is not a finite number is a gap.
  curve(at) {
    const plain = (value) => (Number.isFinite(value) ? value : null);
    const mean = Array.from(this.row(at, "mean"), plain);
    const [low, high] = ["low", "high"].map((part) => {
      const values = this.row(at, part);
      return mean.map((value, column) => (value == null ? null : plain(values[Math.floor(column / this.coarse)])));
    });
    const spread = low.some((value, column) => value != null && value < high[column]);
    return spread ? { mean, low, high } : { mean };
  }

  // All rows as cells of a heatmap.
  cells(part) {
    if (!this.parts.has(part)) {
      const columns = part === "mean" ? this.columns : this.wide;
      const values = new Float64Array(this.packed.rows * columns);
      for (let at = 0; at < this.packed.rows; at++) values.set(this.row(at, part), at * columns);
      const { first, last, edges } = this.bins;
      const stride = part === "mean" ? 1 : this.coarse;
      const begins = edges.filter((_, at) => at % stride === 0 && at < this.columns);
      this.parts.set(part, {
        values,
        columns,
        edges: Float64Array.from([...begins, edges[this.columns]]),
        when: (column) => [first[column * stride], last[Math.min(this.columns, (column + 1) * stride) - 1]],
        digits: this.packed.size === 1 ? 2 : 4,
      });
    }
    return this.parts.get(part);
  }
};

// Bins of about the same length, from such as are narrow where something happened: only a picture
// of little of the run has room for those. Null where they are even already.
GW.evened = (bins) => {
  if (bins.even !== undefined) return bins.even;
  const { first, last } = bins;
  const wide = Math.max(...first.map((step, at) => last[at] - step + 1)) / 2;
  const groups = [];
  first.forEach((step, at) => {
    const begun = groups.length ? first[groups[groups.length - 1]] : -Infinity;
    if (last[at] - begun >= wide) groups.push(at);
  });
  bins.even = null;
  if (groups.length > first.length * 0.9) return null;
  const ends = [...groups.slice(1), first.length];
  bins.even = { groups, ends, bins: { first: groups.map((at) => first[at]), last: ends.map((at) => last[at - 1]) } };
  GW.edges(bins.even.bins);
  return bins.even;
};

GW.evenLine = (line, bins, { groups, ends }) => {
  const even = { ...line, mean: [], low: [], high: [] };
  groups.forEach((begin, group) => {
    let [sum, weight, low, high] = [0, 0, Infinity, -Infinity];
    for (let at = begin; at < ends[group]; at++) {
      const value = line.mean[at];
      if (value == null) continue;
      const width = bins.last[at] - bins.first[at] + 1;
      sum += value * width;
      weight += width;
      low = Math.min(low, line.low?.[at] ?? value);
      high = Math.max(high, line.high?.[at] ?? value);
    }
    even.mean.push(weight ? sum / weight : null);
    even.low.push(weight ? low : null);
    even.high.push(weight ? high : null);
  });
  return even;
};

// Lines with points at different steps, brought together: [{bins, line}] to {x, lines, when}, and,
// where some bins are narrower than others, the same in `even` ones.
GW.together = (sources) => {
  const found = GW.joined(sources);
  if (!sources.some(({ bins }) => GW.evened(bins))) return found;
  const even = sources.map(({ bins, line }) => (bins.even ? { bins: bins.even.bins, line: GW.evenLine(line, bins, bins.even) } : { bins, line }));
  return { ...found, even: GW.joined(even) };
};

GW.joined = (sources) => {
  const sets = [...new Set(sources.map(({ bins }) => bins))];
  const words = (bins, at) => `${GW.steps(bins.first[at], bins.last[at])}${bins.first[at] < bins.last[at] ? " (mean)" : ""}`;
  if (sets.length === 1) {
    const [bins] = sets;
    return { x: bins.middles, lines: sources.map(({ line }) => line), when: (index) => words(bins, index) };
  }
  const x = [...new Set(sets.flatMap((bins) => bins.middles))].sort((a, b) => a - b);
  const place = new Map(x.map((step, at) => [step, at]));
  const maps = new Map(
    sets.map((bins) => {
      const spots = bins.middles.map((step) => place.get(step));
      return [bins, { spots, near: x.map((step) => spots[GW.columnAt(bins.edges, step)] ?? -1) }];
    }),
  );
  const lines = sources.map(({ bins, line }) => {
    const { spots, near } = maps.get(bins);
    const spread = (list) => {
      if (!list) return undefined;
      const wide = new Array(x.length).fill(null);
      spots.forEach((spot, at) => (wide[spot] = list[at]));
      return wide;
    };
    return { ...line, mean: spread(line.mean), low: spread(line.low), high: spread(line.high), near };
  });
  const owner = new Map(sets.flatMap((bins) => bins.middles.map((step, at) => [step, [bins, at]])));
  return { x, lines, when: (index) => words(...owner.get(x[index])) };
};

// The charts of the step metrics: a line says which curve of its run it shows.
GW.stepCharts = (charts, series) => {
  const matrices = series.map(({ first, last, values }) => new GW.Matrix({ first, last }, values));
  return charts.map((chart) => ({
    ...chart,
    scale: chart.key,
    ...GW.together(chart.lines.map((line) => ({ bins: matrices[line.method].bins, line: { ...line, ...matrices[line.method].curve(line.at) } }))),
  }));
};
