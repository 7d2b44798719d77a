"use strict";
// The controls above a picture.

let controls = 0;

// Buttons of which one is chosen; they are radio buttons, so the keyboard works as everywhere.
GW.segments = (label, options, call, chosen = options[0][0]) => {
  const name = `control-${controls++}`;
  const buttons = options.map(([value, words, title]) =>
    GW.make("label", { title }, GW.make("input", { type: "radio", name, value, checked: value === chosen, on: { change: () => call(value) } }), words),
  );
  return GW.make("fieldset", {}, GW.make("legend", {}, label), GW.make("div", { class: "segments" }, ...buttons));
};

GW.choice = (label, options, call) => {
  const list = options.map(([value, words]) => GW.make("option", { value }, words));
  const select = GW.make("select", { on: { change: (event) => call(event.target.value) } }, ...list);
  return GW.make("label", { class: "above" }, GW.make("span", {}, label), select);
};

// Text cut at its beginning, so that the end, which tells layers apart, stays.
const fitted = new Map();
GW.fit = (context, words, width) => {
  const key = `${context.font}/${Math.round(width)}/${words}`;
  if (!fitted.has(key)) {
    if (fitted.size > 5000) fitted.clear();
    fitted.set(key, GW.cut(context, words, width));
  }
  return fitted.get(key);
};

GW.cut = (context, words, width) => {
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
