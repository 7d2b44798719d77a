"use strict";
// Alerts: their marks on every picture, the box that tells one, and the way to its place.

GW.marks = (GW.data.alerts ?? []).length && {
  all: GW.data.alerts,

  // Those that belong on a picture of all layers, or of one, in the order in which they are drawn.
  on(layer) {
    const found = this.all.filter((alert) => !GW.hidden.has(alert.method) && (layer == null || alert.whole || alert.layer === layer));
    return found.sort((one, other) => (one.severity === "error") - (other.severity === "error")); // errors on top
  },

  color(alert) {
    return GW.css(alert.severity === "error" ? "--bad" : "--warn");
  },

  // A triangle at the top of a picture; lines and bands are faint, so that curves stay readable.
  triangle(context, alert, x, y, size) {
    context.beginPath();
    context.moveTo(x - size, y);
    context.lineTo(x + size, y);
    context.lineTo(x, y + 1.7 * size);
    context.closePath();
    context.fillStyle = this.color(alert);
    context.fill();
    context.strokeStyle = GW.css("--card");
    context.lineWidth = size / 5;
    context.stroke();
  },

  onChart(chart, plot) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    const right = bbox.left + bbox.width;
    ctx.save();
    for (const alert of this.on(chart.spec.layer)) {
      const x = plot.valToPos(alert.step, "x", true);
      const end = alert.ended == null ? x : plot.valToPos(alert.ended, "x", true);
      if (end < bbox.left || x > right) continue;
      ctx.fillStyle = GW.fade(this.color(alert), 0.1);
      const from = Math.max(bbox.left, x);
      ctx.fillRect(from, bbox.top, Math.min(right, end) - from, bbox.height);
      if (x < bbox.left) continue;
      ctx.fillStyle = GW.fade(this.color(alert), 0.4);
      ctx.fillRect(x - ratio / 2, bbox.top, ratio, bbox.height);
      this.triangle(ctx, alert, x, bbox.top, 5 * ratio);
    }
    ctx.restore();
  },

  // On a heatmap also a ring at the layer's row.
  onPanel(panels, context, panel) {
    for (const { alert, x, y } of this.placed(panels, panel)) {
      this.triangle(context, alert, x, panel.y - 1, 5);
      if (y == null) continue;
      context.beginPath();
      context.arc(x, y, 4.5, 0, 7);
      context.lineWidth = 3.5;
      context.strokeStyle = "#fff";
      context.stroke();
      context.lineWidth = 1.8;
      context.strokeStyle = GW.css(`--ring-${alert.severity}`); // heatmaps are the same by night
      context.stroke();
    }
    context.lineWidth = 1;
  },

  placed(panels, panel) {
    const found = [];
    for (const alert of this.on(panels.layer)) {
      if (alert.method !== panel.method) continue;
      const x = panels.place(panel, alert.step + 0.5);
      if (x < panel.x || x > panel.x + panel.width) continue;
      const size = panel.height / (panels.bottom - panels.top);
      const y = panel.y + (alert.layer + 0.5 - panels.top) * size;
      const inside = panels.layer == null && alert.layer != null && y > panel.y && y < panel.y + panel.height;
      found.push({ alert, x, y: inside ? y : null });
    }
    return found;
  },

  listen(chart) {
    const { over } = chart.plot;
    const near = (event) => this.on(chart.spec.layer).filter((alert) => Math.abs(chart.plot.valToPos(alert.step, "x") - event.offsetX) < 7);
    over.addEventListener("pointermove", (event) => (over.style.cursor = near(event).length ? "pointer" : ""));
    over.addEventListener("click", (event) => this.open(near(event), event));
  },

  clickedPanel(panels, x, y, event) {
    const near = panels.panels.flatMap((panel) =>
      this.placed(panels, panel).filter((one) => Math.abs(one.x - x) < 8 && (Math.abs(panel.y + 3 - y) < 8 || (one.y != null && Math.abs(one.y - y) < 7))),
    );
    return this.open(near.map((one) => one.alert), event);
  },

  // The box; whether there was anything to tell.
  open(alerts, event) {
    this.close();
    if (!alerts.length) return false;
    alerts.sort((one, other) => (other.severity === "error") - (one.severity === "error") || one.step - other.step);
    const shut = GW.make("button", { type: "button", class: "shut", "aria-label": "Close", on: { click: () => this.close() } }, "×");
    this.back = event.currentTarget;
    this.told = GW.make("div", { class: "told", role: "dialog", "aria-label": "Alert", tabindex: "-1" }, shut, ...alerts.slice(0, 5).map((alert) => this.tell(alert)));
    if (alerts.length > 5) this.told.append(GW.make("p", { class: "soft" }, `and ${alerts.length - 5} more; zoom in to tell them apart`));
    document.body.append(this.told);
    const left = Math.max(8, Math.min(document.documentElement.clientWidth - this.told.offsetWidth - 8, event.clientX - this.told.offsetWidth / 2));
    this.told.style.left = `${left + scrollX}px`;
    this.told.style.top = `${event.clientY + scrollY + 14}px`;
    this.told.focus({ preventScroll: true });
    // This very click is still on its way to the document.
    setTimeout(() => {
      this.away = (other) => this.told?.contains(other.target) || this.close();
      document.addEventListener("click", this.away);
    });
    this.told.addEventListener("keydown", (pressed) => {
      if (pressed.key !== "Escape") return;
      this.close();
      this.back?.focus?.({ preventScroll: true });
    });
    return true;
  },

  close() {
    this.told?.remove();
    this.told = null;
    document.removeEventListener("click", this.away);
  },

  tell(alert) {
    const layer = alert.layer == null ? [] : [GW.make("code", {}, GW.data.heat.layers[alert.layer])];
    const run = GW.data.methods.length > 1 ? [GW.make("span", { class: "of" }, GW.swatch(alert.method), GW.data.methods[alert.method].name)] : [];
    const jump = GW.make("button", { type: "button", class: "jump", on: { click: () => this.go(alert) } }, "show this place");
    return GW.make(
      "div",
      { class: "alert" },
      GW.make("p", { class: "what" }, GW.make("span", { class: `badge ${alert.severity}` }, alert.severity), GW.make("strong", {}, `${alert.rule.replaceAll("_", " ")}, ${GW.step(alert.step)}`), ...layer, ...run),
      GW.make("p", {}, `${alert.message} `, GW.make("span", { class: "soft" }, alert.advice)),
      jump,
    );
  },

  // Zooms to an alert, and shows its layer.
  go(alert) {
    this.close();
    // As far as the bins are fine (see bins.py): a long one is shown where it begins.
    const { reach, stride } = GW.data;
    const end = Math.min(alert.ended ?? alert.step, alert.step + 3 * reach * stride);
    GW.view.set(alert.step - reach * stride, end + reach * stride);
    if (alert.layer == null) document.getElementById("time")?.scrollIntoView();
    else GW.open(alert.layer);
  },
};

GW.marks ||= null;
