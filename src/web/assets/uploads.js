// Files on their way from the browser into the node.

import { upload } from "./api.js";
import { NUMBERS_MAX, keepBoth, named, numbered, part, post, sentence } from "./state.js";
import { bar, bytes, h, set, show, speed, text } from "./ui.js";

const AT_ONCE = 2;
const SHOWN_MAX = 50;
const queue = [];
let running = 0;

/** Where they are shown. */
export const list = h("ul", { id: "uploads", class: "uploads panel", "aria-label": "Files being added", hidden: true });
const rest = h("li", { class: "muted small more", hidden: true });
list.append(rest);

/** Sends files one after the other; `onAdded(name)` after each. */
export function add(files, onAdded) {
  for (const { file, name } of files) queue.push({ file, name, onAdded });
  next();
}

addEventListener("beforeunload", (event) => {
  // Going away would cut them off: people are asked first.
  if (running) event.preventDefault();
});

function next() {
  while (running < AT_ONCE && queue.length) {
    running += 1;
    const it = queue.shift();
    send(it).finally(() => {
      running -= 1;
      next();
    });
  }
  text(rest, `${queue.length} more to come`);
  show(rest, queue.length > 0);
  show(list, list.childElementCount > 1 || queue.length > 0);
}

async function send({ file, name, onAdded }) {
  const stop = new AbortController();
  const title = named("span", "title").set(name);
  const progress = bar(`Adding ${name}`);
  const figures = h("span", { class: "muted small figures" }, bytes(file.size));
  const wrong = h("p", { class: "wrong small", dir: "auto", role: "alert", hidden: true });
  const cancel = h("button", { type: "button", class: "quiet small", onclick: () => stop.abort() }, "Cancel");
  const el = h("li", { "data-name": name }, h("div", { class: "grow" }, title, progress, figures, wrong), cancel);
  // Those that went wrong stay to be read, but not without end.
  if (list.childElementCount > SHOWN_MAX) list.firstElementChild.remove();
  list.insertBefore(el, rest);
  const end = () => {
    const hadFocus = el.contains(document.activeElement);
    el.remove();
    if (hadFocus) document.getElementById("choose-files")?.focus();
    next();
  };
  try {
    const as = await free(name);
    if (!as) {
      end();
      return;
    }
    title.set(as);
    set(el, { "data-name": as });
    let since = performance.now();
    let before = 0;
    let rate = 0;
    await upload(`/api/client/upload/${part(as)}`, file, {
      signal: stop.signal,
      onProgress(sent, total) {
        const now = performance.now();
        if (now - since > 400) {
          const fresh = ((sent - before) / (now - since)) * 1000;
          rate = rate ? rate * 0.6 + fresh * 0.4 : fresh;
          since = now;
          before = sent;
        }
        const isSent = sent === total;
        const words = isSent ? "Finishing" : `${bytes(sent)} of ${bytes(total)}${rate ? ` · ${speed(rate)}` : ""}`;
        text(figures, words);
        progress.set(total ? (sent / total) * 100 : 100, words);
      },
    });
    end();
    onAdded(as);
  } catch (error) {
    if (stop.signal.aborted) {
      end();
      return;
    }
    text(wrong, sentence(error));
    show(wrong, true);
    show(progress, false);
    show(figures, false);
    text(cancel, "Dismiss");
    cancel.addEventListener("click", end);
  }
}

/** The name that it is to have: another where there is one of that name, if that is wished. */
async function free(name) {
  let other = name;
  for (let n = 2; n < NUMBERS_MAX && await isTaken(other); n += 1) other = numbered(name, n);
  return other === name || await keepBoth(name, other) ? other : null;
}

const isTaken = async (fname) => (await post("check-local-duplicate", { fname })).exists;
