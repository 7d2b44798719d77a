"use strict";
// What all parts of the page share: the data, the theme, numbers in words and small DOM helpers.
// Text from the data reaches the page through textContent only, never as markup.
const GW = {};

GW.data = JSON.parse(document.getElementById("data").textContent);
GW.hidden = new Set(); // indices of the methods switched off in the legend
GW.redraws = []; // called when colours or the methods shown change

GW.make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, call] of Object.entries(value)) element.addEventListener(event, call);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
};

// How a line looks: as its method does, unless it says otherwise. A bare number is a method.
GW.look = (line) => {
  const own = typeof line === "number" ? { method: line } : line;
  const { color, dash } = GW.data.methods[own.method];
  return { color: own.color ?? color, dash: own.dash ?? dash };
};

GW.swatch = (of) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const { color, dash } = GW.look(of);
  svg.setAttribute("class", `swatch c${color} d${dash}`);
  for (const [name, value] of [["width", 18], ["height", 8], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
  for (const [name, value] of [["x1", 1], ["x2", 17], ["y1", 4], ["y2", 4]]) line.setAttribute(name, value);
  svg.append(line);
  return svg;
};

// Colours come from the style sheet, so that dark mode and print need nothing of their own here.
// Asking it is slow, so answers are kept until the colours change.
const styles = new Map();
GW.css = (name) => {
  if (!styles.has(name)) styles.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return styles.get(name);
};
GW.color = (of) => GW.css(`--c${GW.look(of).color}`);
GW.fade = (hex, alpha) => {
  const digits = parseInt(hex.slice(1), 16);
  return `rgba(${digits >> 16}, ${(digits >> 8) & 255}, ${digits & 255}, ${alpha})`;
};
GW.dashes = [undefined, [8, 4], [2, 3], [10, 3, 2, 3]];

const superscripts = "⁰¹²³⁴⁵⁶⁷⁸⁹";
GW.power = (exponent) =>
  "10" + (exponent < 0 ? "⁻" : "") + [...String(Math.abs(exponent))].map((digit) => superscripts[digit]).join("");

GW.number = (value, digits = 4) => {
  if (value == null || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e6) {
    return value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(digits, Math.floor(Math.log10(size)) + 1) }).replace("-", "−");
  }
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${mantissa.replace("-", "−").replace(/\.?0+$/, "")}×${GW.power(Number(exponent))}`;
};

// Tick labels: no more digits than the distance between two ticks calls for.
GW.tick = (value) => {
  if (value == null) return "";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return GW.number(value, 3).replace(/^(−?)1×/, "$1");
  return Number(value.toPrecision(6)).toLocaleString("en-US", { maximumFractionDigits: 6 }).replace("-", "−");
};

GW.count = (number) => Math.round(number).toLocaleString("en-US");
GW.step = (step) => {
  const words = `step ${GW.count(step)}`;
  return GW.data.epoch ? `${words} · epoch ${(step / GW.data.epoch).toFixed(1)}` : words;
};
GW.steps = (first, last) => (first === last ? GW.step(first) : `steps ${GW.count(first)} to ${GW.count(last)}`);

// A line is the mean of a method's trials, one trial that did not run to its end, or one of
// several curves of a run.
GW.name = (line) => {
  const { name } = GW.data.methods[line.method];
  if (line.label) return GW.data.methods.length > 1 ? `${name}, ${line.label}` : line.label;
  return line.seed == null ? name : `${name}, seed ${line.seed} (${line.status})`;
};

// A box beside the pointer, which may leave its parent but not the window.
GW.place = (tip, parent, x, y) => {
  tip.hidden = false;
  const origin = parent.getBoundingClientRect().left;
  const first = 6 - origin;
  const last = document.documentElement.clientWidth - origin - tip.offsetWidth - 6;
  const beside = x + 18 <= last ? x + 18 : x - tip.offsetWidth - 18;
  const left = Math.max(first, Math.min(last, beside));
  const top = Math.max(0, Math.min(parent.clientHeight - tip.offsetHeight, y - tip.offsetHeight / 2));
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
};

GW.redraw = () => {
  styles.clear();
  GW.redraws.forEach((redraw) => redraw());
};

GW.legend = (box) => {
  GW.data.methods.forEach((method, index) => {
    const button = GW.make(
      "button",
      {
        type: "button",
        "aria-pressed": "true",
        title: `Hide or show this ${GW.data.noun ?? "method"}`,
        on: {
          click: () => {
            if (!GW.hidden.delete(index)) GW.hidden.add(index);
            button.setAttribute("aria-pressed", String(!GW.hidden.has(index)));
            GW.redraw();
          },
        },
      },
      GW.swatch(index),
      method.name,
    );
    box.append(button);
  });
};
