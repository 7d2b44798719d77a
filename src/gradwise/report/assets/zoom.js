"use strict";
// Zooming a heatmap in steps and in rows: by dragging a box, the wheel, two fingers, keys, buttons.

Object.assign(GW.Panels.prototype, {
  listenForZoom() {
    const { canvas } = this;
    this.fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.release(event));
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  },

  reset() {
    this.rowsShown(0, this.rows.length);
    GW.view.reset();
  },

  // Factors below 1 show less; around a point, which stays where it is.
  zoomRows(factor, center = (this.top + this.bottom) / 2) {
    this.rowsShown(center - (center - this.top) * factor, center + (this.bottom - center) * factor);
  },

  // The panel at a place, and what lies there.
  under(x, y) {
    const panel = this.panels.find((one) => y >= one.y && y < one.y + one.height && x < one.x + one.width && (x >= one.x || one.leftmost));
    if (!panel) return null;
    const row = this.top + ((y - panel.y) / panel.height) * (this.bottom - this.top);
    return { panel, row, step: this.stepAt(panel, Math.max(panel.x, x)), inside: x >= panel.x };
  },

  press(event) {
    this.dragged = false;
    if (event.button !== 0) return;
    const place = this.under(event.offsetX, event.offsetY);
    if (!place) return;
    this.fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    // A touch that goes up or down scrolls the page; only two fingers, or a mouse, zoom.
    this.begun = { ...place, x: event.offsetX, y: event.offsetY, pan: event.shiftKey, mouse: event.pointerType !== "touch", view: GW.view.now(), rows: [this.top, this.bottom] };
    if (this.fingers.size === 2) this.pinch = this.spread();
  },

  drag(event) {
    const finger = this.fingers.get(event.pointerId);
    if (!finger || !this.begun) return;
    [finger.x, finger.y] = [event.offsetX, event.offsetY];
    if (this.fingers.size === 2) {
      this.squeeze();
      return;
    }
    const { x, y, mouse, pan } = this.begun;
    if (!this.dragged && Math.hypot(finger.x - x, finger.y - y) < 6) return;
    if (!this.dragged) this.canvas.setPointerCapture(event.pointerId);
    this.dragged = true;
    this.leave();
    if (pan || !mouse) this.pan(finger);
    else this.frame(finger);
  },

  // Moves what is shown along with the pointer.
  pan(finger) {
    const { panel, x, y, view, rows } = this.begun;
    const steps = ((x - finger.x) / panel.width) * (view[1] - view[0]);
    const lines = ((y - finger.y) / panel.height) * (rows[1] - rows[0]);
    if (GW.view.zoomed) GW.view.set(view[0] + steps, view[1] + steps);
    if (!this.whole && this.begun.mouse) this.rowsShown(rows[0] + lines, rows[1] + lines);
  },

  // The box between where a drag began and where it is now. One that is flat spans all rows.
  frame(finger) {
    const { panel } = this.begun;
    const inside = (value, low, size) => Math.max(low, Math.min(low + size, value));
    const [left, right] = [this.begun.x, finger.x].map((value) => inside(value, panel.x, panel.width)).sort((a, b) => a - b);
    let [top, bottom] = [this.begun.y, finger.y].map((value) => inside(value, panel.y, panel.height)).sort((a, b) => a - b);
    if (bottom - top < 12) [top, bottom] = [panel.y, panel.y + panel.height];
    this.framed = { panel, left, right, top, bottom };
    Object.assign(this.box.style, { transform: `translate(${left}px, ${top}px)`, width: `${right - left}px`, height: `${bottom - top}px` });
    this.box.hidden = false;
  },

  release(event) {
    this.fingers.delete(event.pointerId);
    this.box.hidden = true;
    this.pinch = null;
    const { framed } = this;
    this.framed = null;
    if (!framed || event.type === "pointercancel") return;
    const { panel, left, right, top, bottom } = framed;
    const size = (this.bottom - this.top) / panel.height;
    const from = this.top;
    if (bottom - top < panel.height) this.rowsShown(Math.floor(from + (top - panel.y) * size), Math.ceil(from + (bottom - panel.y) * size));
    if (right - left >= 6) GW.view.set(this.stepAt(panel, left), this.stepAt(panel, right));
  },

  // Two fingers: how far they are apart, and where they are.
  spread() {
    const [one, other] = [...this.fingers.values()];
    const apart = (key) => Math.max(24, Math.abs(one[key] - other[key]));
    return { x: apart("x"), y: apart("y"), at: [(one.x + other.x) / 2, (one.y + other.y) / 2] };
  },

  squeeze() {
    if (!this.pinch) return;
    const now = this.spread();
    const place = this.under(...now.at);
    this.dragged = true;
    if (place) {
      if (Math.abs(now.x - this.pinch.x) > 1) GW.view.zoom(this.pinch.x / now.x, place.step);
      if (Math.abs(now.y - this.pinch.y) > 1) this.zoomRows(this.pinch.y / now.y, place.row);
    }
    this.pinch = now;
  },

  // The wheel alone scrolls the page. With Ctrl (which is what a pinch on a touch pad says) it zooms
  // in steps, with Shift too, or over the names, in rows. Sideways it moves along the steps.
  wheel(event) {
    const place = this.under(event.offsetX, event.offsetY);
    if (!place) return;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      const factor = Math.exp(Math.max(-1, Math.min(1, (event.deltaY || event.deltaX) * lines * 0.004)));
      if (event.shiftKey || !place.inside) this.zoomRows(factor, place.row);
      else GW.view.zoom(factor, place.step);
    } else if (GW.view.zoomed && Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      GW.view.move(event.deltaX / place.panel.width);
    }
  },

  // Plus and minus zoom in steps, with Alt in rows; zero shows everything again.
  zoomKey(event) {
    const factor = { "+": 0.6, "=": 0.6, "-": 1 / 0.6, _: 1 / 0.6, "±": 0.6, "–": 1 / 0.6 }[event.key];
    if (event.ctrlKey || event.metaKey || (factor === undefined && event.key !== "0")) return false;
    event.preventDefault();
    if (factor === undefined) this.reset();
    else if (event.altKey) this.zoomRows(factor, this.cell ? this.cell.row + 0.5 : undefined);
    else GW.view.zoom(factor, this.cell?.step);
    return true;
  },
});
