// A list that draws only what can be seen, however long it is: a table of rows of one height that scrolls with the page.

import { h, set } from "./ui.js";

const AHEAD = 8;

/**
 * `columns`: [{name, label, isUnseen?}]; `make()` gives `{el (a tr), update(item, index)}`; `key(item)` knows an item again.
 * What it shows comes by `set(items)`, or `set({total, at(index), want(from, to)})` where parts come later: `at` gives
 * undefined for what is not there yet, and `want` says which are looked at. The height of a row is the CSS `--row-height`.
 */
export class Rows {
  constructor({ label, columns, key, make, id }) {
    this.key = key;
    this.make = make;
    this.columns = columns;
    this.source = { total: 0, at: () => undefined };
    this.shown = new Map();
    this.body = h("tbody", { role: "rowgroup" });
    const head = h("tr", { role: "row", "aria-rowindex": "1" }, columns.map((it) =>
      h("th", { role: "columnheader", scope: "col", class: `c-${it.name}` }, it.isUnseen ? h("span", { class: "unseen" }, it.label) : it.label)));
    this.el = h("table", { class: "rows", role: "table", "aria-label": label, id }, h("thead", { role: "rowgroup" }, head), this.body);
    this.queued = false;
    const later = () => this.later();
    addEventListener("scroll", later, { passive: true });
    new ResizeObserver(later).observe(this.el);
    this.body.addEventListener("keydown", (event) => this.onKey(event));
  }

  set(source) {
    this.source = Array.isArray(source) ? { total: source.length, at: (index) => source[index], want: () => {} } : source;
    this.el.setAttribute("aria-rowcount", String(this.source.total + 1));
    this.draw();
  }

  /** What was shown may have changed. */
  refresh() {
    this.draw();
  }

  later() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.draw();
    });
  }

  draw() {
    if (!this.el.isConnected || this.el.closest("[hidden]")) return;
    const { total } = this.source;
    this.height = parseFloat(getComputedStyle(this.el).getPropertyValue("--row-height")) || 56;
    this.body.style.height = `${total * this.height}px`;
    const top = -this.body.getBoundingClientRect().top;
    const from = Math.max(0, Math.min(total, Math.floor(top / this.height) - AHEAD));
    const to = Math.min(total, Math.ceil((top + innerHeight) / this.height) + AHEAD);
    this.source.want?.(from, Math.max(from, to));

    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest("tr") : null;
    const old = this.shown;
    const now = new Map();
    for (let index = from; index < to; index += 1) {
      const item = this.source.at(index);
      const key = item === undefined ? `\u0000${index}` : this.key(item);
      const row = now.has(key) ? null : (old.get(key) ?? (item === undefined ? this.blank() : this.make(item)));
      if (!row) continue;
      now.set(key, row);
      this.place(row, item, index);
    }
    // The row with the focus stays, wherever the page is scrolled to, as long as its item is there.
    let lost = null;
    for (const [key, row] of old) {
      if (now.has(key)) continue;
      if (row.el === focused) {
        const index = this.find(key, row.index);
        if (index >= 0) {
          now.set(key, row);
          this.place(row, this.source.at(index), index);
          continue;
        }
        lost = row.index;
      }
      row.el.remove();
    }
    this.shown = now;
    this.order(now);
    if (lost !== null) this.focus(Math.min(lost, total - 1));
  }

  /** Keeps the order of the document that of the list, and moves no row that is where it belongs. */
  order(now) {
    const sorted = [...now.values()].sort((a, b) => a.index - b.index);
    const active = document.activeElement;
    let next = null;
    for (const row of sorted.reverse()) {
      if (row.el.parentNode !== this.body || row.el.nextSibling !== next) {
        const hadFocus = row.el.contains(active);
        this.body.insertBefore(row.el, next);
        if (hadFocus) active.focus({ preventScroll: true });
      }
      next = row.el;
    }
  }

  place(row, item, index) {
    if (row.index !== index || row.height !== this.height) {
      row.index = index;
      row.height = this.height;
      row.el.style.transform = `translateY(${index * this.height}px)`;
      set(row.el, { "aria-rowindex": String(index + 2) });
    }
    if (item !== undefined) row.update(item, index);
  }

  blank() {
    const el = h("tr", { role: "row", class: "blank" }, h("td", { role: "cell" }, h("span", { class: "skeleton" })));
    return { el, update() {} };
  }

  /** Where an item is now, looked for from where it was. */
  find(key, near) {
    const { total, at } = this.source;
    for (let away = 0; away < Math.max(near, total - near) + 1; away += 1) {
      for (const index of away ? [near - away, near + away] : [near]) {
        if (index < 0 || index >= total) continue;
        const item = at(index);
        if (item !== undefined && this.key(item) === key) return index;
      }
    }
    return -1;
  }

  /** Puts the focus on the control of a row that is nearest to the one named, and the row in sight. */
  focus(index, control = 0) {
    if (index < 0 || index >= this.source.total) return;
    const row = [...this.shown.values()].find((it) => it.index === index);
    if (!row) {
      const y = this.body.getBoundingClientRect().top + scrollY + index * this.height - innerHeight / 2;
      scrollTo(0, Math.max(0, y));
      this.draw();
    }
    const found = row ?? [...this.shown.values()].find((it) => it.index === index);
    const controls = found ? controlsOf(found.el) : [];
    const to = controls[Math.min(control, controls.length - 1)] ?? found?.el;
    if (to && to === found.el) to.tabIndex = -1;
    to?.focus({ preventScroll: true });
    found?.el.scrollIntoView({ block: "nearest" });
  }

  onKey(event) {
    const row = event.target.closest("tr");
    const at = [...this.shown.values()].find((it) => it.el === row)?.index;
    if (at === undefined || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select, textarea")) return;
    const page = Math.max(1, Math.floor(innerHeight / this.height) - 2);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.source.total - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.focus(Math.max(0, Math.min(this.source.total - 1, to)), controlsOf(row).indexOf(event.target));
  }
}

const controlsOf = (row) => [...row.querySelectorAll("button, a[href], input, [tabindex='0']")].filter((it) => !it.disabled && it.offsetParent);
