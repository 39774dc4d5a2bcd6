// The operator's page: signs in, shows the view that the address names, and keeps it up to date.

import { readClock } from "./admin-data.js";
import { accounts, deals, hosts, ledger, log } from "./admin-lists.js";
import { overview } from "./admin-overview.js";
import { bus, call, configure, events, session, signedIn, signedOff } from "./api.js";
import { awayBanner, coalesce, dialog, field, fill, h, notice, regions, set, show } from "./ui.js";

const CLOCK_EVERY_MS = 60_000;
const VIEWS = { overview, hosts, accounts, deals, ledger, log };
/** Which views show what an event tells of. */
const CONCERNED = { hosts: ["overview", "hosts"], deals: ["overview", "deals", "ledger"], warnings: ["overview", "log"] };

configure({ tokenKey: "p2s2.operator", probe: "/api/health" });

const place = document.getElementById("view");
const main = document.getElementById("main");
const side = document.getElementById("side");
const ways = [...document.querySelectorAll("#ways a")];
const views = {};
let shown = null;

regions();
document.querySelector(".top").after(awayBanner(bus));

const wanted = () => (location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "overview");

/** Shows the view that the address names. */
function open() {
  const name = wanted();
  for (const way of ways) set(way, { "aria-current": way.hash === `#${name}` ? "page" : null });
  document.title = `${ways.find((way) => way.hash === `#${name}`).textContent.trim()} – Operator – P2S2`;
  if (!session() || name === shown) return;
  const isFirst = shown === null;
  if (views[shown]) show(views[shown].el, false);
  shown = name;
  if (!views[name]) place.append((views[name] = VIEWS[name]()).el);
  show(views[name].el, true);
  views[name].opened();
  scrollTo(0, 0);
  if (!isFirst) main.focus({ preventScroll: true });
}

/** Somebody is signed in: everything begins. */
function begin() {
  fill(side, h("span", { class: "muted cut who", dir: "auto" }, session().user.username), h("button", { class: "small", onclick: signedOff }, "Sign out"));
  readClock();
  open();
  // A look at all that changed at once is enough, however much that was.
  const handlers = { reset: coalesce(() => views[shown]?.opened(), 2_000) };
  for (const [event, concerned] of Object.entries(CONCERNED)) {
    handlers[event] = coalesce(() => concerned.includes(shown) && views[shown].refresh(event), 2_000);
  }
  events("/api/admin/events", handlers);
  setInterval(() => document.hidden || views[shown]?.tick(), 1_000);
  setInterval(() => document.hidden || readClock(), CLOCK_EVERY_MS);
}

let closeSignIn = null;

/** Asks who it is, on top of whatever is there. */
async function signIn(isOver = false) {
  if (closeSignIn) return;
  await dialog({
    title: "Sign in as the operator", className: "narrow", isForced: true,
    // Whose name is known needs to say the password alone.
    onOpen: (el) => session() && el.querySelector("[name=password]").focus(),
    build(close) {
      closeSignIn = close;
      const name = field("User name", { name: "username", autocomplete: "username", required: true, maxLength: 64, autocapitalize: "none", spellcheck: false, value: session()?.user.username ?? "" });
      const password = field("Password", { name: "password", type: "password", autocomplete: "current-password", required: true, maxLength: 1024 });
      const wrong = notice();
      const act = h("button", { type: "submit", class: "primary full" }, "Sign in");
      return h("form", {
        class: "stack",
        async onsubmit(event) {
          event.preventDefault();
          wrong.say(null);
          set(act, { "aria-busy": "true", disabled: true });
          try {
            const answer = await call("POST", "/api/admin/login", { username: name.input.value, password: password.input.value }, { isAnonymous: true });
            signedIn(answer.token, { username: answer.username });
          } catch (refusal) {
            wrong.say(refusal.message);
            password.input.select();
            password.input.focus();
          } finally {
            set(act, { "aria-busy": null, disabled: false });
          }
        },
      },
      isOver ? h("p", null, "Your sign-in is over. Sign in again and go on where you were.") : null,
      wrong.el, name.el, password.el, act,
      h("p", { class: "hint" }, "The operator’s name and password come from the server’s environment, or were printed once when it first started."));
    },
  });
  closeSignIn = null;
}

bus.addEventListener("signed-out", () => signIn(shown !== null));
bus.addEventListener("signed-in", ({ detail: { isOther } }) => {
  closeSignIn?.(null);
  if (isOther) location.reload();
  else if (shown === null) begin();
});
// A page that starts anew holds nothing of what was shown before.
bus.addEventListener("signed-off", () => location.reload());
bus.addEventListener("back", () => views[shown]?.opened());
addEventListener("hashchange", open);
document.addEventListener("visibilitychange", () => document.hidden || views[shown]?.opened());

open();
if (session()) begin();
else signIn();
