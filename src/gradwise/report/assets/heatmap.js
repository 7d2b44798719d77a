"use strict";
// Heatmaps: layers by time, one panel a method, all on one canvas and on one colour scale.

// Eleven colours between which the scale is mixed: dark to bright, even in lightness, and in that
// order for every kind of colour vision.
const RAMP = [
  [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
  [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
];
const TABLE = Array.from({ length: 256 }, (_, at) => {
  const place = (at / 255) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((value, channel) => Math.round(value + (RAMP[low + 1][channel] - value) * (place - low)));
});

// Two bytes a value: 0 is none, 1 is zero, the rest lies evenly between two logarithms.
GW.unpack = (packed) => {
  const bytes = atob(packed.codes);
  const values = new Float64Array(packed.rows * packed.columns);
  for (let at = 0; at < values.length; at++) {
    const code = bytes.charCodeAt(2 * at) | (bytes.charCodeAt(2 * at + 1) << 8);
    if (code === 0) values[at] = NaN;
    else if (code === 1) values[at] = 0;
    else values[at] = 10 ** (packed.low + ((code - 2) * (packed.high - packed.low)) / 65533);
  }
  return values;
};

// Mean of several matrices cell by cell, over those that have a value there.
GW.average = (matrices) => {
  if (matrices.length === 1) return matrices[0];
  const mean = new Float64Array(matrices[0].length);
  for (let at = 0; at < mean.length; at++) {
    let sum = 0;
    let count = 0;
    for (const matrix of matrices) {
      if (Number.isNaN(matrix[at])) continue;
      sum += matrix[at];
      count += 1;
    }
    mean[at] = count ? sum / count : NaN;
  }
  return mean;
};

// The bounds of the colours. A few extreme cells (a diverged trial) must not wash out the rest,
// so one cell in five hundred may lie beyond them at either end.
GW.bounds = (matrices, log) => {
  const values = matrices.flatMap((matrix) => Array.from(matrix).filter((value) => value > 0)).sort((a, b) => a - b);
  if (!values.length) return { low: 0, high: 1, log: false, cut: false };
  const spare = Math.floor(values.length / 500);
  const high = values[values.length - 1 - spare];
  const low = log ? values[spare] : 0;
  return { low: log && low === high ? low / 2 : low, high, log, cut: values[values.length - 1] > high || (log && values[0] < low) };
};

GW.share = (value, { low, high, log }) => {
  const share = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low || 1);
  return Math.max(0, Math.min(1, share));
};

// A matrix as a picture of one pixel a cell, to be stretched.
GW.picture = (matrix, rows, columns, bounds) => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const nothing = parseInt(GW.css("--void").slice(1), 16);
  for (let at = 0; at < matrix.length; at++) {
    const value = matrix[at];
    const color = value > 0 ? TABLE[Math.round(255 * GW.share(value, bounds))] : [nothing >> 16, (nothing >> 8) & 255, nothing & 255];
    image.data.set([...color, 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
  return canvas;
};

// The bar that says which colour stands for how much.
GW.colorBar = (context, x, y, width, bounds, title) => {
  const ink = GW.css("--soft");
  context.fillStyle = ink;
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.fillText(title, x, y + 9);
  const top = y + 16;
  for (let at = 0; at < width; at++) {
    context.fillStyle = `rgb(${TABLE[Math.round((255 * at) / (width - 1))]})`;
    context.fillRect(x + at, top, 1.5, 9);
  }
  context.fillStyle = ink;
  context.textAlign = "center";
  const ticks = bounds.log ? GW.decades(bounds) : [0, 0.25, 0.5, 0.75, 1].map((share) => share * bounds.high);
  for (const value of ticks) {
    const at = x + GW.share(value, bounds) * width;
    context.fillRect(at - 0.5, top + 9, 1, 3);
    const label = bounds.log && ticks.decades ? GW.power(Math.round(Math.log10(value))) : GW.number(value, 2);
    context.fillText(label, Math.max(x + 8, Math.min(x + width - 8, at)), top + 23);
  }
};

// Powers of ten inside the bounds, at most six of them; the ends where there are fewer than two.
GW.decades = ({ low, high }) => {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 1) return [low, Math.sqrt(low * high), high];
  const stride = Math.ceil((last - first + 1) / 6);
  const found = [];
  for (let at = first; at <= last; at += stride) found.push(10 ** at);
  return Object.assign(found, { decades: true });
};
