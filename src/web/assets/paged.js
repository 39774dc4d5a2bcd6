// A long list of the API, of which the parts are read that somebody looks at.

import { call } from "./api.js";

const PAGE = 200;

/** `path` with `field` in its answers; `onChange()` when there is something else to show. */
export class Paged {
  constructor(path, field, onChange) {
    Object.assign(this, { path, field, onChange, q: "", total: 0, error: null, isRead: false });
    this.pages = new Map();
    this.wanted = [0, 0];
    this.stale = new Set();
    this.round = new AbortController();
    this.isBusy = false;
  }

  at = (index) => this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];

  want = (from, to) => {
    this.wanted = [Math.floor(from / PAGE), Math.floor(Math.max(from, to - 1) / PAGE)];
    this.run();
  };

  /** Looks for something else. What was found before stays until there is something of it. */
  search(q) {
    if (q === this.q && this.isRead) return;
    this.q = q;
    this.round.abort();
    this.round = new AbortController();
    this.isBusy = false;
    this.isNew = true;
    this.wanted = [0, 0];
    this.refresh();
  }

  /** Reads anew what is looked at. */
  refresh() {
    for (const number of this.pages.keys()) this.stale.add(number);
    this.stale.add(this.wanted[0]);
    this.run();
  }

  async run() {
    if (this.isBusy) return;
    this.isBusy = true;
    const { signal } = this.round;
    try {
      for (let number; (number = this.next()) !== null; ) {
        this.stale.delete(number);
        const query = new URLSearchParams({ offset: number * PAGE, limit: PAGE });
        if (this.q) query.set("q", this.q);
        const answer = await call("GET", `${this.path}?${query}`, undefined, { signal });
        if (this.isNew) {
          this.pages.clear();
          this.stale.clear();
          this.isNew = false;
        }
        const found = answer[this.field];
        this.pages.set(number, found);
        this.total = answer.total ?? found.length;
        // What is past the end is no more (but the first page, which says that there is none), and what nobody looks at is
        // read again when it is.
        for (const it of [...this.pages.keys()]) {
          if ((it > 0 && it * PAGE >= this.total) || (this.stale.has(it) && !this.isWanted(it))) {
            this.pages.delete(it);
            this.stale.delete(it);
          }
        }
        this.error = null;
        this.isRead = true;
        this.onChange();
      }
    } catch (error) {
      if (signal.aborted) return;
      this.error = error;
      this.stale.clear();
      this.onChange();
    } finally {
      if (signal === this.round.signal) this.isBusy = false;
    }
  }

  isWanted(number) {
    return number >= this.wanted[0] && number <= this.wanted[1];
  }

  next() {
    for (let number = this.wanted[0]; number <= this.wanted[1]; number += 1) {
      const isThere = number === 0 || number * PAGE < this.total;
      if (this.stale.has(number) || (isThere && this.isRead && !this.error && !this.pages.has(number))) return number;
    }
    return null;
  }
}
