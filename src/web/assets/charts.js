// Lines over time on a canvas: what an operator looks at from across the room, and reads exactly with the
// pointer or the arrow keys. Nothing is drawn that was not measured: where a point is missing the line breaks,
// and the right edge is now, so that a service that fell silent leaves an empty strip behind.

import { bytes, duration, h, set, text } from "./ui.js";

/** Past this age of its last point a chart is grey and says that it is stale. */
export const STALE_AFTER_MS = 10_000;

const MINUTE_MS = 60_000;
const SPAN_MS = 15 * MINUTE_MS;
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3]];

const clockTime = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const hourMinute = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** The time of day to the second, by 24 hours as logs have it. */
export const atClock = (ms) => clockTime.format(ms);

/** A number as short as it may be read: 0.25, 12.5, 1,234, 12.3k, 4.5M. */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e10) return `${trim(value / 1e9, 1)}G`;
  if (size >= 1e6) return `${trim(value / 1e6, 1)}M`;
  if (size >= 1e4) return `${trim(value / 1e3, 1)}k`;
  if (size < 0.1) return value.toLocaleString("en", { maximumSignificantDigits: 2 });
  return trim(value, size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

const trim = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });

/** The units of series: how a number is written with it, how it is called, alone and behind words, and how high a quiet chart reaches. */
const UNITS = {
  "1/s": { say: (value) => `${short(value)}/s`, called: "per second", within: " · per second", least: 1 },
  ms: { say: (value) => `${short(value)} ms`, called: "milliseconds", within: " · ms", least: 1 },
  bytes: { say: bytes, called: "bytes", within: "", least: 1e6 },
  count: { say: short, called: "how many", within: "", least: 4 },
};

/** The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below: steps that people count in. */
function roundStep(atLeast) {
  const power = 10 ** Math.floor(Math.log10(atLeast));
  return power * [1, 2, 2.5, 5, 10].find((times) => power * times >= atLeast * (1 - 1e-9));
}

/** Where the pointer or the arrow keys are, in all charts alike: what happened at that moment elsewhere? */
const cursor = {
  at: null,
  charts: new Set(),
  move(at) {
    if (at === this.at) return;
    this.at = at;
    for (const chart of this.charts) chart.paintSoon();
  },
};

/** The colours change with the system's, the size with the window's: both mean painting anew. */
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => target.chart.paintSoon()));
for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
  matchMedia(query).addEventListener("change", () => cursor.charts.forEach((chart) => chart.paintSoon()));
}

/** The index of the time next to `at`; times go up. */
function nearest(times, at) {
  let [low, high] = [0, times.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < at) low = middle + 1;
    else high = middle;
  }
  return low > 0 && at - times[low - 1] < times[low] - at ? low - 1 : low;
}

let made = 0;

export class Chart {
  /**
   * @param {{title: string, counts: string, unit: string, lines: {key: string, label: string}[]}} what
   *   `counts` says what is counted.
   */
  constructor({ title, counts, unit, lines }) {
    Object.assign(this, { title, lines });
    this.unit = UNITS[unit] ?? { say: (value) => `${short(value)} ${unit}`, called: unit, within: ` · ${unit}`, least: 1 };
    this.times = [];
    this.points = lines.map(() => []);
    this.stepMs = 2000;
    this.asked = 0;
    this.lastAt = null;

    const id = `chart-${++made}`;
    this.age = h("span", { class: "chart-age" }, "no point yet");
    this.summary = h("p", { class: "unseen", id: `${id}-summary` });
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.canvas.chart = this;
    // A slider is what every screen reader moves with the arrow keys, saying the text of where it stands.
    this.plot = h("div", {
      class: "chart-plot", tabIndex: 0, role: "slider", "aria-roledescription": "chart", "aria-label": `${title}, ${this.unit.called}`,
      "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0", "aria-valuetext": "no point yet",
      "aria-describedby": `${id}-counts ${id}-summary`,
    }, this.canvas);
    this.values = lines.map(() => h("b", null, "–"));
    const legend = lines.map(({ label }, index) =>
      h("li", null, h("i", { class: `swatch series-${index + 1}` }), h("span", null, label), this.values[index]));
    this.element = h("figure", { class: "chart" },
      h("figcaption", null,
        h("h3", null, title), this.age,
        h("p", { class: "chart-counts", id: `${id}-counts` }, `${counts}${this.unit.within} · last 15 min`), this.summary),
      this.plot,
      // The readout is for the eye: the plot's own text says the same.
      h("ul", { class: "chart-legend", "aria-hidden": "true" }, legend));

    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => cursor.move(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("focus", () => this.plot.matches(":focus-visible") && this.goTo(this.times.length - 1));
    this.plot.addEventListener("blur", () => cursor.move(null));
    cursor.charts.add(this);
    resized.observe(this.canvas);
  }

  /** Takes it off the page. */
  remove() {
    cursor.charts.delete(this);
    resized.unobserve(this.canvas);
    cancelAnimationFrame(this.asked);
    this.element.remove();
  }

  /**
   * New points: `times` in milliseconds, going up; one list of numbers or nulls a line, as long as `times`.
   * `now` is the clock of whoever measured.
   */
  set(times, points, stepMs, now) {
    Object.assign(this, { times, points, stepMs });
    this.lastAt = times.findLast((_, index) => points.some((line) => line[index] != null)) ?? null;
    this.summary.textContent = this.summed();
    // By time, which stays what it is while points come and go.
    if (times.length) set(this.plot, { "aria-valuemin": String(times[0] / 1000), "aria-valuemax": String(times.at(-1) / 1000) });
    this.tick(now);
    this.paintSoon();
  }

  /** Time has passed: how old is the last point? Stale is what was not looked at; that there was nothing to measure is no fault. */
  tick(now) {
    const was = this.isStale;
    this.now = now;
    this.isStale = this.times.length > 0 && now - this.times.at(-1) > STALE_AFTER_MS;
    this.element.classList.toggle("is-stale", this.isStale);
    const old = this.lastAt === null ? "" : duration((now - this.lastAt) / 1000);
    this.aged = this.lastAt === null ? "no point yet" : this.isStale ? `stale: ${old} old` : `last point ${old} ago`;
    if (cursor.at === null) text(this.age, this.aged);
    if (this.isStale || was) this.paintSoon();
  }

  /** In words, for whoever cannot see the line. */
  summed() {
    return this.lines.map(({ label }, index) => {
      const measured = this.points[index].filter((value) => value != null);
      if (measured.length === 0) return `${label}: nothing measured.`;
      const [least, most] = [Math.min(...measured), Math.max(...measured)];
      const mean = measured.reduce((sum, value) => sum + value, 0) / measured.length;
      const { say } = this.unit;
      return `${label}: now ${say(measured.at(-1))}, between ${say(least)} and ${say(most)}, on average ${say(mean)}.`;
    }).join(" ");
  }

  point(event) {
    if (this.times.length === 0 || !this.scale) return;
    const x = event.clientX - this.canvas.getBoundingClientRect().left;
    this.goTo(nearest(this.times, this.scale.timeAt(x)));
  }

  key(event) {
    const last = this.times.length - 1;
    if (last < 0) return;
    const here = cursor.at === null ? last : nearest(this.times, cursor.at);
    const minute = Math.round(MINUTE_MS / this.stepMs);
    const to = {
      ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1,
      PageDown: here - minute, PageUp: here + minute, Home: 0, End: last,
    }[event.key];
    if (to === undefined) {
      if (event.key === "Escape") cursor.move(null);
      return;
    }
    event.preventDefault();
    this.goTo(Math.min(last, Math.max(0, to)));
  }

  goTo(index) {
    if (index >= 0) cursor.move(this.times[index]);
  }

  paintSoon() {
    this.asked ||= requestAnimationFrame(() => {
      this.asked = 0;
      this.paint();
      this.read();
    });
  }

  /** The numbers beneath the plot: of the cursor's moment, else the last ones. */
  read() {
    const last = this.times.length - 1;
    const isAt = cursor.at !== null && last >= 0;
    const index = isAt ? nearest(this.times, cursor.at) : last;
    const say = (value) => (value == null ? "–" : this.unit.say(value));
    const read = this.points.map((line) => say(line[index]));
    read.forEach((said, line) => text(this.values[line], said));
    text(this.age, isAt ? `at ${atClock(this.times[index])}` : (this.aged ?? ""));
    if (index < 0) return;
    const said = this.lines.map(({ label }, line) => `${label} ${read[line] === "–" ? "not measured" : read[line]}`);
    set(this.plot, { "aria-valuenow": String(this.times[index] / 1000), "aria-valuetext": `${atClock(this.times[index])}: ${said.join(", ")}` });
  }

  paint() {
    const { canvas, times, points } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (width === 0 || height === 0) return;
    const ratio = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    const style = getComputedStyle(this.element);
    const colour = (name) => style.getPropertyValue(name).trim() || style.color;
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${style.fontFamily}`;
    pen.textBaseline = "middle";

    // Y: from nought to a round number above the highest point.
    let most = this.unit.least;
    for (const line of points) for (const value of line) if (value > most) most = value;
    const step = roundStep(most / 4);
    const ticks = Math.ceil(most / step - 1e-9);
    const write = this.unit === UNITS.bytes ? (value) => bytes(value).replace(".0 ", " ") : short;
    const labels = Array.from({ length: ticks + 1 }, (_, tick) => write(tick * step));
    const left = Math.ceil(Math.max(...labels.map((label) => pen.measureText(label).width))) + 8;
    const [top, right, bottom] = [8, width - 4, height - 18];
    const end = Math.max(this.now ?? 0, times.at(-1) ?? 0);
    const x = (at) => left + ((at - (end - SPAN_MS)) / SPAN_MS) * (right - left);
    const y = (value) => bottom - (value / (ticks * step)) * (bottom - top);
    this.scale = { timeAt: (at) => end - SPAN_MS + ((at - left) / (right - left)) * SPAN_MS };

    pen.lineWidth = 1;
    pen.strokeStyle = colour("--chart-grid");
    pen.fillStyle = colour("--chart-text");
    pen.textAlign = "right";
    labels.forEach((label, tick) => {
      const line = Math.round(y(tick * step)) + 0.5;
      pen.beginPath();
      pen.moveTo(left, line);
      pen.lineTo(right, line);
      pen.stroke();
      pen.fillText(label, left - 6, line);
    });
    pen.textAlign = "center";
    const minutes = 5 * MINUTE_MS;
    const offset = new Date(end).getTimezoneOffset() * MINUTE_MS;
    for (let at = Math.ceil((end - SPAN_MS - offset) / minutes) * minutes + offset; at <= end; at += minutes) {
      const label = hourMinute.format(at);
      const half = pen.measureText(label).width / 2;
      pen.fillText(label, Math.max(left + half, Math.min(right + 4 - half, x(at))), bottom + 11);
      pen.beginPath();
      pen.moveTo(Math.round(x(at)) + 0.5, bottom);
      pen.lineTo(Math.round(x(at)) + 0.5, bottom + 4);
      pen.stroke();
    }
    if (this.lastAt === null) {
      pen.fillText("nothing measured", (left + right) / 2, (top + bottom) / 2);
      return;
    }

    pen.save();
    pen.beginPath();
    pen.rect(left, 0, right - left + 2, bottom + 1);
    pen.clip();
    points.forEach((line, index) => {
      pen.strokeStyle = pen.fillStyle = colour(this.isStale ? "--chart-stale" : `--s${index + 1}`);
      pen.lineWidth = 1.5;
      pen.lineJoin = "round";
      for (const [from, to] of this.stretches(line)) {
        pen.setLineDash(DASHES[index % DASHES.length]);
        pen.beginPath();
        for (let at = from; at < to; at++) pen.lineTo(x(times[at]), y(line[at]));
        pen.stroke();
        pen.setLineDash([]);
        if (to - from === 1) this.dot(pen, x(times[from]), y(line[from]), 1.5);
        else if (points.length === 1) {
          pen.lineTo(x(times[to - 1]), bottom);
          pen.lineTo(x(times[from]), bottom);
          pen.globalAlpha = 0.12;
          pen.fill();
          pen.globalAlpha = 1;
        }
      }
    });
    if (cursor.at !== null) {
      const index = nearest(times, cursor.at);
      pen.strokeStyle = colour("--chart-text");
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(Math.round(x(times[index])) + 0.5, top);
      pen.lineTo(Math.round(x(times[index])) + 0.5, bottom);
      pen.stroke();
      points.forEach((line, number) => {
        pen.fillStyle = colour(`--s${number + 1}`);
        if (line[index] != null) this.dot(pen, x(times[index]), y(line[index]), 3);
      });
    }
    pen.restore();
  }

  dot(pen, x, y, radius) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  }

  /** The stretches of a line without a gap, as [from, to): a point missing or late is a gap. */
  stretches(line) {
    const all = [];
    let from = 0;
    for (let at = 0; at <= line.length; at++) {
      const isMissing = at === line.length || line[at] == null;
      const isLate = at > from && !isMissing && this.times[at] - this.times[at - 1] > 1.5 * this.stepMs;
      if (!isMissing && !isLate) continue;
      if (at > from) all.push([from, at]);
      from = isMissing ? at + 1 : at;
    }
    return all;
  }
}
