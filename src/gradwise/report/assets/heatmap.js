"use strict";
// Matrices: unpacked, averaged, and as pixels.

// One or two bytes a value: 0 is none, 1 is zero, 2 is infinite, the rest lies evenly on the bent
// scale of its row (see encode.py).
GW.unpack = (packed) => {
  const { rows, columns, size } = packed;
  const bytes = atob(packed.codes);
  const scales = new Float64Array(Uint8Array.from(atob(packed.scales), (one) => one.charCodeAt(0)).buffer);
  const levels = size === 1 ? 252 : 65532;
  const values = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const [unit, low, high] = scales.subarray(3 * row, 3 * row + 3);
    const stride = (high - low) / levels;
    for (let at = row * columns; at < (row + 1) * columns; at++) {
      const code = size === 1 ? bytes.charCodeAt(at) : bytes.charCodeAt(2 * at) | (bytes.charCodeAt(2 * at + 1) << 8);
      values[at] = code > 2 ? unit * Math.sinh(low + (code - 3) * stride) : code === 1 ? 0 : code ? Infinity : NaN;
    }
  }
  return values;
};

GW.floats = (text) => new Float32Array(Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer);

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

// Every value as an index of a colour: 0 for none, 1 to 256 for the table, 257 for not finite.
GW.shades = (values, bounds) => {
  const shades = new Uint16Array(values.length);
  const nothing = bounds.kind === "signed" || bounds.kind === "even" ? () => false : (value) => value <= 0;
  for (let at = 0; at < values.length; at++) {
    const value = values[at];
    if (value === Infinity) shades[at] = 257;
    else if (!Number.isNaN(value) && !nothing(value)) shades[at] = 1 + Math.round(255 * GW.share(value, bounds));
  }
  return shades;
};

// The colours of these indices as the pixels of a canvas, and which of several that share a pixel
// wins: what stands out most.
GW.inks = (bounds) => {
  const hex = (name) => {
    const digits = parseInt(GW.css(name).slice(1), 16);
    return [digits >> 16, (digits >> 8) & 255, digits & 255];
  };
  const colors = [hex("--void"), ...GW.table(bounds), hex("--alarm")];
  const middle = GW.table(bounds) === TABLES.two ? 128 : 0;
  return {
    pixels: Uint32Array.from(colors, ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red),
    ranks: Uint16Array.from(colors, (_, at) => (at === 0 ? 0 : at === 257 ? 999 : 1 + Math.abs(at - middle))),
  };
};

// Draws cells into a rectangle of device pixels. `across` says which column each pixel shows, and
// `down` which rows [from, to) each line of pixels.
GW.paint = (context, shades, columns, across, down, { pixels, ranks }, x, y) => {
  const width = across.length;
  const image = context.createImageData(width, down.length);
  const out = new Uint32Array(image.data.buffer);
  for (let line = 0; line < down.length; line++) {
    const start = line * width;
    const [from, to] = down[line];
    if (line && down[line - 1][0] === from && down[line - 1][1] === to) {
      out.copyWithin(start, start - width, start);
      continue;
    }
    for (let at = 0; at < width; at++) {
      const column = across[at];
      if (column < 0) continue;
      let shade = from < to ? shades[from * columns + column] : 0;
      for (let row = from + 1; row < to; row++) {
        const other = shades[row * columns + column];
        if (ranks[other] > ranks[shade]) shade = other;
      }
      out[start + at] = pixels[shade];
    }
  }
  context.putImageData(image, x, y);
};

// The bar that says which colour stands for how much.
GW.colorBar = (context, x, y, width, bounds, title) => {
  const ink = GW.css("--soft");
  const table = GW.table(bounds);
  context.fillStyle = ink;
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.fillText(title, x, y + 9);
  const top = y + 16;
  for (let at = 0; at < width; at++) {
    context.fillStyle = `rgb(${table[Math.round((255 * at) / (width - 1))]})`;
    context.fillRect(x + at, top, 1.5, 9);
  }
  context.fillStyle = ink;
  context.textAlign = "center";
  // The ends and the middle first: of the others those for whose words there is room.
  const ticks = GW.colorTicks(bounds).map(([value, label]) => ({ at: x + GW.share(value, bounds) * width, label, half: context.measureText(label).width / 2 }));
  const told = [];
  for (const tick of [ticks[0], ticks[ticks.length - 1], ticks[ticks.length >> 1], ...ticks]) {
    context.fillRect(tick.at - 0.5, top + 9, 1, 3);
    const middle = Math.max(x + tick.half, Math.min(x + width - tick.half, tick.at));
    if (told.some((other) => Math.abs(other.middle - middle) < other.half + tick.half + 6)) continue;
    told.push({ middle, half: tick.half });
    context.fillText(tick.label, middle, top + 23);
  }
};
