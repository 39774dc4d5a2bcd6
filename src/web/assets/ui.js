// Small helpers of both pages: building elements, words for numbers, dialogs, what is told aloud.

// What is not seen, or turns around what stands beside it: not so what joins letters, the kind of an emoji, and the flag
// of a region (the group).
const UNSEEN = /(\u{1F3F4}[\u{E0030}-\u{E0039}\u{E0061}-\u{E007A}]{3,6}\u{E007F})|(?![\n\t\u200C\u200D\p{Variation_Selector}])[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}\p{Default_Ignorable_Code_Point}]/gu;

/** A text as it is shown, whoever has written it: nothing of it hides, or looks like something else. */
export const seen = (value) => (typeof value === "string" ? value.replace(UNSEEN, (_, flag) => flag ?? "\uFFFD") : value);

const SHOWN = new Set(["title", "alt", "aria-label", "aria-valuetext"]);

/**
 * Builds an element. Text is always text, never markup. Of the properties, functions named on… are listeners, `class` and
 * names with a dash are attributes, what the element knows is set on it, the rest are attributes.
 */
export function h(tag, props, ...children) {
  const el = document.createElement(tag);
  set(el, props ?? {});
  el.append(...shown(children));
  return el;
}

const shown = (children) => children.flat(9).filter((it) => it !== null && it !== undefined && it !== false).map(seen);

/** Sets properties as `h` does. */
export function set(el, props) {
  for (const [key, given] of Object.entries(props)) {
    const value = SHOWN.has(key) ? seen(given) : given;
    if (value === undefined) continue;
    if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
    else if (value === null) el.removeAttribute(key);
    else if (key in el && !key.includes("-") && typeof value !== "object") el[key] = value;
    else if (value === false) el.removeAttribute(key);
    else el.setAttribute(key, value === true ? "" : value);
  }
  return el;
}

/** Changes a text only where it is another, so that a selection stays. */
export function text(el, value) {
  const words = seen(value);
  if (el.textContent !== words) el.textContent = words;
  return el;
}

/** Shows or hides. */
export function show(el, isShown) {
  if (el.hidden === isShown) el.hidden = !isShown;
  return el;
}

/** Replaces what is in an element. */
export function fill(el, ...children) {
  el.replaceChildren(...shown(children));
  return el;
}

const SVG = "http://www.w3.org/2000/svg";

/** Builds an element of a drawing. */
export function svg(tag, attributes, ...children) {
  const el = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes ?? {})) el.setAttribute(key, value);
  el.append(...children);
  return el;
}

const ICONS = {
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5",
  files: "M3 6.5A1.5 1.5 0 0 1 4.5 5H9l2 2.5h8.5A1.5 1.5 0 0 1 21 9v9.5a1.5 1.5 0 0 1-1.5 1.5h-15A1.5 1.5 0 0 1 3 18.5z",
  file: "M6 3h8l5 5v13H6zM14 3v5h5",
  transfers: "M8 4v15M3.5 14.5L8 19l4.5-4.500M16 20V5M11.5 9.500L16 5l4.5 4.5",
  people: "M9 11.500a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 20c.4-3.6 3-5.5 6.5-5.500s6.100 1.900 6.5 5.500M15.5 4.800a3.5 3.5 0 0 1 0 6.400M18 15c2 .8 3.200 2.5 3.5 5",
  plus: "M12 5v14M5 12h14",
  up: "M12 20V6M6 11.500L12 5.500l6 6",
  down: "M12 4v12M6 11l6 6 6-6M5 21h14",
  close: "M6 6l12 12M18 6L6 18",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  back: "M15 5l-7 7 7 7",
  home: "M4 11.500L12 5l8 6.500V20h-5.500v-5h-5v5H4z",
  phone: "M8 3h8a1.5 1.5 0 0 1 1.5 1.500v15A1.5 1.5 0 0 1 16 21H8a1.5 1.5 0 0 1-1.5-1.500v-15A1.5 1.5 0 0 1 8 3zM11 18h2",
  user: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20.500c.6-4 3.6-6 7.5-6s6.900 2 7.5 6",
};

/** A line drawing that says nothing to who does not see it. */
export function icon(name) {
  const path = svg("path", { d: ICONS[name] });
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, path);
}

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

/** `1.2 MB` */
export function bytes(n) {
  if (n === null || n === undefined) return "–";
  let unit = 0;
  let value = Number(n);
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(value) : value < 99.95 ? value.toFixed(1) : Math.round(value)} ${UNITS[unit]}`;
}

/** `1.2 MB/s` */
export const speed = (bps) => `${bytes(Math.max(0, bps ?? 0))}/s`;

/** `45 s`, `3 min`, `2 h 10 min` */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const min = Math.round(s / 60);
  if (min < 60) return `${min} min`;
  const hours = Math.floor(min / 60);
  if (hours < 48) return min % 60 && hours < 10 ? `${hours} h ${min % 60} min` : `${hours} h`;
  return `${Math.round(hours / 24)} days`;
}

/** `3 min ago`, of Unix seconds. */
export function age(at, now = Date.now() / 1000) {
  if (at === null || at === undefined) return "–";
  const s = now - at;
  if (s < -60) return date(at);
  if (s < 10) return "just now";
  if (s < 60) return `${Math.round(s)} s ago`;
  if (s < 3570) return `${Math.round(s / 60)} min ago`;
  if (s < 86_400) return `${Math.round(s / 3600)} h ago`;
  const days = Math.round(s / 86_400);
  return days === 1 ? "yesterday" : days < 30 ? `${days} days ago` : date(at);
}

const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

// In some languages marks stand between the numbers, which are no more needed than shown.
const plain = (words) => words.replace(/\p{Bidi_Control}/gu, "");

/** `12 Mar 2026`, as it is written where the reader is. */
export const date = (at) => plain(day.format(at * 1000));

/** The whole of a point in time. */
export const instant = (at) => (Number.isFinite(at) ? plain(moment.format(at * 1000)) : "");

/** `1 file`, `3 files`, `12,000 files` */
export const count = (n, one, many = `${one}s`) => `${Number(n).toLocaleString("en")} ${n === 1 ? one : many}`;

/** An element that shows how long ago something was, and goes on doing so. */
export function ago() {
  const el = h("time", { class: "ago" });
  el.at = null;
  el.set = (at) => {
    if (el.at === at) return el;
    el.at = at;
    el.dateTime = at ? new Date(at * 1000).toISOString() : "";
    el.title = instant(at);
    text(el, age(at));
    return el;
  };
  return el;
}

setInterval(() => {
  if (document.hidden) return;
  for (const el of document.querySelectorAll("time.ago")) if (el.at) text(el, age(el.at));
}, 15_000);

/** Runs `act` soon, once for however often it is asked for: at most every `ms`. */
export function coalesce(act, ms = 250) {
  let timer = 0;
  let last = 0;
  return () => {
    if (timer) return;
    const wait = Math.max(0, last + ms - performance.now());
    timer = setTimeout(() => {
      timer = 0;
      last = performance.now();
      act();
    }, wait);
  };
}

/** Tells those who listen, and shows it for a while. `isQuiet`: to those who listen alone. */
export function announce(message, { isQuiet = false, action } = {}) {
  const region = document.getElementById(isQuiet ? "live" : "toasts");
  if (isQuiet) {
    // The same words twice are told twice.
    text(region, "");
    requestAnimationFrame(() => text(region, message));
    return;
  }
  const end = () => el.remove();
  const el = h("div", { class: "toast" }, h("span", { dir: "auto" }, message), action
    ? h("button", { class: "quiet small", onclick: () => { end(); action.run(); } }, action.label) : null);
  region.append(el);
  // On top of whatever is open, a dialog too.
  if (region.showPopover) {
    if (region.matches(":popover-open")) region.hidePopover();
    region.showPopover();
  }
  while (region.childElementCount > 3) region.firstElementChild.remove();
  setTimeout(end, action ? 12_000 : 6_000);
}

/** Adds what `announce` needs, below everything else. */
export function regions() {
  if (document.getElementById("live")) return;
  document.body.append(
    h("div", { id: "live", class: "unseen", role: "status", "aria-live": "polite" }),
    h("div", { id: "toasts", role: "status", "aria-live": "polite", popover: "manual" }),
  );
}

let dialogs = 0;

/**
 * Opens a dialog; resolves with what `close(value)` was given, or null. `build(close)` gives what is in it; the footer holds
 * `actions` [{label, value, class}]. The focus comes back to where it was.
 */
export function dialog({ title, build, actions = [], className = "", isForced = false, onOpen }) {
  return new Promise((resolve) => {
    const from = document.activeElement;
    const id = `dialog-${(dialogs += 1)}`;
    let value = null;
    const close = (it) => {
      value = it;
      el.close();
    };
    const el = h("dialog", { class: className, "aria-labelledby": id });
    const head = h("div", { class: "dialog-head" }, h("h2", { id, title, dir: "auto" }, title), isForced ? null
      : h("button", { type: "button", class: "quiet round", "aria-label": "Close", onclick: () => close(null) }, icon("close")));
    const body = h("div", { class: "body" }, build(close, el));
    el.append(head, body);
    // What has to be scrolled is reached by keyboard, too.
    new ResizeObserver(() => set(body, { tabindex: body.scrollHeight > body.clientHeight ? "0" : null })).observe(body);
    if (actions.length) {
      el.append(h("div", { class: "dialog-foot" }, actions.map((it) => h("button", {
        type: "button", class: it.class ?? "", onclick: () => close(it.value),
      }, it.label))));
    }
    el.addEventListener("cancel", (event) => isForced && event.preventDefault());
    el.addEventListener("click", (event) => event.target === el && !isForced && close(null));
    el.addEventListener("close", () => {
      el.remove();
      if (from?.isConnected) from.focus({ preventScroll: true });
      else document.querySelector("main")?.focus({ preventScroll: true });
      resolve(value);
    });
    document.body.append(el);
    el.showModal();
    el.querySelector(".dialog-foot .primary")?.focus();
    onOpen?.(el);
  });
}

/** Asks yes or no. */
export const confirm = (title, sentence, label, isDanger = false) => dialog({
  title,
  build: () => h("p", { dir: "auto" }, sentence),
  actions: [{ label: "Cancel", value: null, class: "quiet" }, { label, value: true, class: isDanger ? "danger" : "primary" }],
}).then(Boolean);

/** A field with its label, a hint and a place for what is wrong with it: `{el, input, error(sentence)}`. */
export function field(label, props, hint) {
  const id = props.id ?? `field-${props.name}`;
  const input = h("input", { ...props, id });
  const wrong = h("p", { class: "wrong", id: `${id}-wrong`, hidden: true, dir: "auto" });
  const help = hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  if (help) input.setAttribute("aria-describedby", help.id);
  const error = (sentence) => {
    text(wrong, sentence ?? "");
    show(wrong, Boolean(sentence));
    set(input, { "aria-invalid": sentence ? "true" : null });
    const described = [help?.id, sentence && wrong.id].filter(Boolean).join(" ");
    set(input, { "aria-describedby": described || null });
  };
  input.addEventListener("input", () => error(null));
  return { el: h("div", { class: "field" }, h("label", { htmlFor: id }, label), input, help, wrong), input, error };
}

/** A place for a sentence that says what went wrong: `{el, say(sentence)}`. */
export function notice() {
  const el = h("p", { class: "wrong box", role: "alert", hidden: true, dir: "auto" });
  return { el, say: (sentence) => show(text(el, sentence ?? ""), Boolean(sentence)) };
}

/** A bar that says how far something is, from 0 to 100; null: nobody knows. */
export function bar(label) {
  const inner = h("div");
  const el = h("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, inner);
  el.set = (percent, words) => {
    const isKnown = percent !== null && Number.isFinite(percent);
    const value = isKnown ? Math.min(100, Math.max(0, percent)) : 0;
    inner.style.width = `${value}%`;
    el.classList.toggle("unknown", !isKnown);
    set(el, { "aria-valuenow": isKnown ? String(Math.floor(value)) : null, "aria-valuetext": words ?? null });
  };
  return el;
}

/** Puts a text where it can be pasted from; false where the browser does not let a page. */
export async function copy(value) {
  try {
    await navigator.clipboard.writeText(value);
    return true;
  } catch {
    return false;
  }
}

/** Says at the top that the server is away, once, until it is back. */
export function awayBanner(bus) {
  const el = h("div", { class: "banner", role: "status", hidden: true },
    h("span", { class: "dot" }), "P2S2 does not answer. This page goes on by itself when it is back.");
  bus.addEventListener("away", () => show(el, true));
  bus.addEventListener("back", () => show(el, false));
  return el;
}
