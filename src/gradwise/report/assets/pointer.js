"use strict";
// Reading a heatmap by pointer or keyboard.

Object.assign(GW.Panels.prototype, {
  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => event.buttons === 0 && this.point(this.locate(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerleave", () => this.leave());
    canvas.addEventListener("click", (event) => this.click(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.leave());
    let width = 0;
    new ResizeObserver(() => {
      if (this.plot.clientWidth === width) return;
      width = this.plot.clientWidth;
      if (GW.view.sees(this) || !GW.data.span) this.draw();
      else GW.view.waiting.add(this);
    }).observe(this.plot);
    GW.redraws.push(() => this.renew());
  },

  // The cell under a point; in the gutter only the row.
  locate(x, y) {
    for (const panel of this.panels) {
      if (y < panel.y || y >= panel.y + panel.height) continue;
      const row = Math.min(this.rows.length - 1, Math.floor(this.top + ((y - panel.y) / panel.height) * (this.bottom - this.top)));
      if (x >= panel.x && x < panel.x + panel.width) {
        const step = this.stepAt(panel, x);
        return { panel, row, step, column: panel.cells ? GW.columnAt(panel.cells.edges, step) : -1 };
      }
      if (panel.leftmost && x < panel.x) return { panel: null, row };
    }
    return null;
  },

  stepAt({ x, width }, at) {
    const [low, high] = GW.view.now();
    return low + ((at - x) / width) * (high - low);
  },

  click(event) {
    if (this.dragged) return; // the end of a drag, not a click
    const { offsetX, offsetY } = event;
    if (GW.marks?.clickedPanel(this, offsetX, offsetY, event)) return;
    const cell = this.locate(offsetX, offsetY);
    if (cell) this.choose(cell.row);
    if (cell?.panel) this.point(cell);
  },

  point(cell) {
    this.cell = cell?.panel ? cell : null;
    this.canvas.style.cursor = cell ? "pointer" : "default";
    if (!this.cell) {
      this.leave();
      return;
    }
    const { panel, row, column } = cell;
    const size = panel.height / (this.bottom - this.top);
    const top = Math.max(panel.y, panel.y + (row - this.top) * size);
    const bottom = Math.min(panel.y + panel.height, panel.y + (row + 1 - this.top) * size);
    Object.assign(this.mark.style, {
      transform: `translate(${panel.x}px, ${top}px)`,
      width: `${panel.width}px`,
      height: `${Math.max(2, bottom - top)}px`,
    });
    this.mark.hidden = false;
    this.tip.replaceChildren(
      GW.make("b", {}, this.rows[row]),
      GW.make("div", { class: "rows" }, ...this.named(panel), GW.make("i", {}, this.word(panel, row, column))),
      GW.make("small", {}, this.when(cell)),
    );
    GW.place(this.tip, this.plot, this.middle(cell), (top + bottom) / 2);
  },

  // What a value is of: the method or run, unless there is only one.
  named(panel) {
    if (GW.data.methods.length === 1) return [GW.make("span"), GW.make("span", {}, this.short)];
    return [GW.swatch(panel.method), GW.make("span", {}, panel.title)];
  },

  when({ panel, column, step }) {
    if (!panel.cells || column < 0) return GW.step(step);
    const [first, last] = panel.cells.when(column);
    return first === last ? GW.step(first) : `${GW.steps(first, last)}${GW.data.epoch ? ` · epoch ${((first + last) / 2 / GW.data.epoch).toFixed(1)}` : ""}`;
  },

  // Where a cell is from left to right, as far as it can be seen.
  middle({ panel, column, step }) {
    if (!panel.cells || column < 0) return this.place(panel, step);
    const [left, right] = [0, 1].map((side) => this.place(panel, panel.cells.edges[column + side]));
    return (Math.max(panel.x, left) + Math.min(panel.x + panel.width, right)) / 2;
  },

  leave() {
    this.tip.hidden = true;
    this.mark.hidden = true;
    this.cell = null;
  },

  key(event) {
    if (!this.panels.length || this.zoomKey(event)) return;
    const stride = event.shiftKey ? 10 : 1;
    if (event.key === "Enter" && this.cell) {
      const kept = this.cell;
      this.choose(kept.row);
      this.point(kept);
      return;
    }
    const moves = { ArrowUp: [-stride, 0], ArrowDown: [stride, 0], ArrowLeft: [0, -stride], ArrowRight: [0, stride] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [down, right] = moves[event.key];
    const cell = this.beside(down, right);
    this.show(cell);
    this.point(cell);
    this.status.textContent = `${cell.panel.title}, ${this.rows[cell.row]}, ${this.when(cell)}: ${this.word(cell.panel, cell.row, cell.column)}`;
  },

  // The cell so many rows and columns away from the one that is read; past the end of a panel the
  // next one begins.
  beside(down, right) {
    const start = { panel: this.panels[0], row: this.chosen ?? Math.floor(this.top), column: this.first(this.panels[0]) - 1 };
    let { panel, row, column } = this.cell ?? start;
    const count = (of) => of.cells?.columns ?? 1;
    column += right;
    const turn = column >= count(panel) ? 1 : column < 0 && this.cell ? -1 : 0;
    const next = this.panels[this.panels.indexOf(panel) + turn];
    if (turn && next) {
      panel = next;
      column = turn > 0 ? 0 : count(next) - 1;
    }
    column = Math.max(0, Math.min(count(panel) - 1, column));
    row = Math.max(0, Math.min(this.rows.length - 1, row + down));
    return { panel, row, column, step: panel.cells ? panel.cells.edges[column] : GW.view.now()[0] };
  },

  // The first column that is shown.
  first({ cells }) {
    return cells ? Math.max(0, GW.columnAt(cells.edges, GW.view.now()[0])) : 0;
  },

  // Moves the rows and the steps shown so that a cell is among them.
  show({ panel, row, column }) {
    if (row < this.top) this.rowsShown(row, row + this.bottom - this.top);
    else if (row + 1 > this.bottom) this.rowsShown(row + 1 - (this.bottom - this.top), row + 1);
    if (!panel.cells || !GW.view.zoomed) return;
    const [low, high] = GW.view.now();
    const [left, right] = [panel.cells.edges[column], panel.cells.edges[column + 1]];
    if (left < low) GW.view.set(left, left + high - low);
    else if (right > high) GW.view.set(right - (high - low), right);
  },
});
