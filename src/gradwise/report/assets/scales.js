"use strict";
// Which colour stands for how much, and the ticks of axes.

// Dark to bright, even in lightness, and in that order for every kind of colour vision.
const RAMP = [
  [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
  [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
];
// From one side of the middle to the other: blue, nearly white, orange.
const SIDES = [
  [16, 62, 122], [33, 102, 172], [82, 148, 200], [150, 194, 224], [208, 226, 239], [244, 243, 240],
  [250, 222, 190], [246, 184, 124], [226, 133, 60], [184, 84, 18], [116, 48, 6],
];
const mixed = (colors) =>
  Array.from({ length: 256 }, (_, at) => {
    const place = (at / 255) * (colors.length - 1);
    const low = Math.min(Math.floor(place), colors.length - 2);
    return colors[low].map((value, channel) => Math.round(value + (colors[low + 1][channel] - value) * (place - low)));
  });
const TABLES = { one: mixed(RAMP), two: mixed(SIDES) };

// The bounds of the colours. A few extreme cells (a diverged trial) must not wash out the rest,
// so one cell in five hundred may lie beyond them at either end. Kinds: "log", "linear" (from
// zero), "signed" (zero in the middle), "even" (that, but linear) and "ratio" (one in the middle, logarithmic).
GW.bounds = (matrices, kind) => {
  const sided = kind === "signed" || kind === "even";
  const usable = sided ? (value) => value !== 0 && Number.isFinite(value) : (value) => value > 0 && value < Infinity;
  const size = sided ? Math.abs : kind === "ratio" ? (value) => Math.abs(Math.log10(value)) : (value) => value;
  let count = 0;
  for (const matrix of matrices) for (let at = 0; at < matrix.length; at++) if (usable(matrix[at])) count += 1;
  const values = new Float64Array(count);
  for (const matrix of matrices) for (let at = 0; at < matrix.length; at++) if (usable(matrix[at])) values[--count] = size(matrix[at]);
  values.sort();
  if (!values.length) return { kind: "linear", low: 0, high: 1, cut: false };
  const spare = Math.floor(values.length / 500);
  const last = values.length - 1;
  const high = values[last - spare];
  const cut = values[last] > high || (kind === "log" && values[0] < values[spare]);
  if (kind === "signed") return { kind, unit: Math.max(values[last >> 1], high / 1e4), high, cut };
  if (kind === "even") return { kind, low: -high, high, cut };
  if (kind === "ratio") return { kind, high: Math.max(high, 0.05), cut };
  if (kind === "linear") return { kind, low: 0, high, cut };
  const low = values[spare];
  return { kind, low: low === high ? low / 2 : low, high, cut };
};

GW.share = (value, bounds) => {
  const { kind, low, high, unit } = bounds;
  let share;
  if (kind === "log") share = Math.log(value / low) / Math.log(high / low);
  else if (kind === "signed") share = 0.5 + (0.5 * Math.asinh(value / unit)) / Math.asinh(high / unit);
  else if (kind === "ratio") share = 0.5 + (0.5 * Math.log10(value)) / high;
  else share = (value - low) / (high - low || 1);
  return Math.max(0, Math.min(1, share));
};

GW.table = ({ kind }) => TABLES[kind === "log" || kind === "linear" ? "one" : "two"];

// Values to mark on a colour bar, each with its words.
GW.colorTicks = (bounds) => {
  const { kind, low, high, unit } = bounds;
  const plain = (value) => [value, GW.number(value, 2)];
  if (kind === "linear" || kind === "even") return [0, 0.25, 0.5, 0.75, 1].map((part) => plain(low + part * (high - low)));
  if (kind === "signed") {
    const half = unit * Math.sinh(Math.asinh(high / unit) / 2);
    return [-high, -half, 0, half, high].map(plain);
  }
  if (kind === "ratio") {
    const times = (value) => (value < 1 ? `÷${GW.number(1 / value, 2)}` : value === 1 ? "its median" : `×${GW.number(value, 2)}`);
    return [-1, -0.5, 0, 0.5, 1].map((part) => [10 ** (part * high), times(10 ** (part * high))]);
  }
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 1) return [low, Math.sqrt(low * high), high].map(plain);
  const stride = Math.ceil((last - first + 1) / 6);
  const found = [];
  for (let at = first; at <= last; at += stride) found.push([10 ** at, GW.power(at)]);
  return found;
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
