"use strict";
// The stretch of steps that all pictures of the page show, and which of them are in sight.
// A picture that is zoomed changes the view; the view then changes all pictures, at most once a
// frame, and those out of sight only when they come into it.

GW.view = {
  low: null,
  high: null,
  pictures: [],
  waiting: new Set(),
  listeners: [],

  get zoomed() {
    return this.low != null;
  },

  // All steps that there are: [first, last].
  whole() {
    if (GW.data.span) return GW.data.span;
    const ends = this.pictures.map((picture) => picture.reach()).filter(Boolean);
    return ends.length ? [Math.min(...ends.map((end) => end[0])), Math.max(...ends.map((end) => end[1]))] : [0, 1];
  },

  // What is shown now.
  now() {
    return this.zoomed ? [this.low, this.high] : this.whole();
  },

  set(low, high) {
    const [first, last] = this.whole();
    const width = Math.min(last - first, Math.max(high - low, Math.min(4, last - first)));
    const middle = (low + high) / 2;
    low = Math.max(first, Math.min(last - width, middle - width / 2));
    const all = width >= (last - first) * 0.9999;
    [this.low, this.high] = all ? [null, null] : [low, low + width];
    this.pictures.forEach((picture) => this.waiting.add(picture));
    this.frame ??= requestAnimationFrame(() => this.update());
  },

  reset() {
    this.set(...this.whole());
  },

  // Around `center`, which stays where it is; a factor below 1 shows less.
  zoom(factor, center) {
    const [low, high] = this.now();
    const at = center ?? (low + high) / 2;
    this.set(at - (at - low) * factor, at + (high - at) * factor);
  },

  // By a share of what is shown.
  move(share) {
    const [low, high] = this.now();
    this.set(low + share * (high - low), high + share * (high - low));
  },

  update() {
    this.frame = null;
    this.listeners.forEach((listener) => listener());
    for (const picture of [...this.waiting]) if (this.sees(picture)) this.tell(picture);
  },

  tell(picture) {
    this.waiting.delete(picture);
    picture.follow();
  },

  // A picture has an `element`, `follow()` to show the view, and `reach()`: its own first and last.
  join(picture) {
    this.pictures.push(picture);
    picture.element.dataset.unseen = "";
    this.waiting.add(picture);
    this.observer ??= new IntersectionObserver((entries) => this.look(entries), { rootMargin: "350px 0px" });
    this.observer.observe(picture.element);
  },

  look(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) delete target.dataset.unseen;
      else target.dataset.unseen = "";
    }
    for (const picture of [...this.waiting]) if (this.sees(picture)) this.tell(picture);
  },

  sees(picture) {
    return !("unseen" in picture.element.dataset);
  },

  // Everything, in sight or not: before printing.
  settle() {
    this.pictures.forEach((picture) => {
      delete picture.element.dataset.unseen;
      this.tell(picture);
    });
  },
};

// What changes the colours of all pictures, and the word that the page is ready.
GW.start = () => {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", GW.redraw);
  // Paper is white: what is printed is drawn in the light colours.
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "light";
    document.querySelectorAll("details").forEach((folded) => (folded.open = true));
    GW.view.settle();
    GW.redraw();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.theme;
    GW.redraw();
  });
  document.documentElement.dataset.ready = "";
};
