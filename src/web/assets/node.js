// The node's page: who signs in sees the network, their files and their transfers, all of it as it is now.

import { ApiError, bus, call, events, session, signedIn, signedOff } from "./api.js";
import { useElsewhere } from "./device.js";
import * as files from "./files.js";
import * as network from "./network.js";
import * as people from "./people.js";
import { changed, get, me, run, sentence, state } from "./state.js";
import * as transfers from "./transfers.js";
import { announce, awayBanner, coalesce, dialog, duration, field, fill, h, icon, instant, notice, regions, show, text } from "./ui.js";

const API = "/api/client";

// The frame.

const views = [
  { id: "network", label: "Network", icon: "search", of: network },
  { id: "files", label: "My files", icon: "files", of: files },
  { id: "transfers", label: "Transfers", icon: "transfers", of: transfers },
  { id: "people", label: "People", icon: "people", of: people },
];
const pip = h("span", { class: "pip", hidden: true, "aria-hidden": "true" });
for (const it of views) {
  it.link = h("a", { href: `#${it.id}` }, icon(it.icon), h("span", null, it.label), it.of === transfers ? pip : null);
}
const nav = h("nav", { class: "tabs", "aria-label": "Sections", hidden: true }, views.map((it) => it.link));
const badgeText = h("span", { class: "cut" });
const badge = h("button", { type: "button", id: "state", class: "badge", hidden: true, onclick: showNode }, h("span", { class: "dot" }), badgeText);
const userName = h("bdi", { class: "cut" });
const user = h("button", { type: "button", id: "account", class: "small", hidden: true, onclick: showAccount }, icon("user"), userName);
const out = h("button", { type: "button", id: "sign-out", class: "quiet small", hidden: true, onclick: signOut }, "Sign out");
const main = h("main", { id: "main", class: "in", tabIndex: -1 });
const about = h("span");
const foot = h("footer", { class: "foot" }, h("div", { class: "in" }, about,
  h("button", { type: "button", class: "quiet small", id: "elsewhere", onclick: useElsewhere }, icon("phone"), "Use on another device")));
const cut = h("p", { class: "banner", role: "status", hidden: true }, h("span", { class: "dot" }), "This node has no connection to its server. It is tried again by itself.");
const veil = h("div", { class: "dropveil", hidden: true, "aria-hidden": "true" }, h("div", null, icon("down"), h("p", null, "Drop to add to your files")));

document.body.prepend(
  h("a", { class: "skip", href: "#main", onclick(event) { event.preventDefault(); main.focus(); } }, "Skip to content"),
  h("header", { class: "top" }, h("div", { class: "in" },
    h("a", { class: "brand", href: "#network", "aria-label": "P2S2" }, h("img", { src: new URL("favicon.svg", import.meta.url).href, alt: "", width: 26, height: 26 }), "P2S2"),
    nav, h("div", { class: "side" }, badge, user, out)), awayBanner(bus), cut),
  main, foot, veil,
);
regions();

// The way through: each view has an address, so that back goes back.

function route() {
  if (!session() || !main.contains(network.view)) return;
  const [id, query] = location.hash.slice(1).split("?");
  const now = views.find((it) => it.id === id) ?? views[0];
  const isOther = now.of.view.hidden;
  for (const it of views) {
    show(it.of.view, it === now);
    if (it === now) it.link.setAttribute("aria-current", "page");
    else it.link.removeAttribute("aria-current");
  }
  document.title = `${now.label} – P2S2`;
  if (isOther) scrollTo(0, 0);
  now.of.shown({ ...Object.fromEntries(new URLSearchParams(query)), isByHand: isOther });
}

addEventListener("hashchange", route);

// Signing in.

/** A form that signs in and up; resolves nothing, but calls `done` once the node takes part as that user. */
function signInForm({ username = "", isAgain = false, done }) {
  const name = field("User name", { name: "username", type: "text", autocomplete: "username", autocapitalize: "none", spellcheck: false, required: true, value: username, readOnly: isAgain });
  const password = field("Password", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const wrong = notice();
  const enter = h("button", { type: "submit", class: "primary full", value: "login" }, "Sign in");
  const join = isAgain ? null : h("button", { type: "button", class: "full", onclick: () => go("register", join) }, "Sign up");

  function go(what, button) {
    for (const it of [name, password]) it.error(null);
    wrong.say(null);
    if (!name.input.value || !password.input.value) {
      const empty = name.input.value ? password : name;
      empty.error(empty === name ? "Type a user name." : "Type a password.");
      empty.input.focus();
      return;
    }
    run(button, async () => {
      try {
        const body = { username: name.input.value.trim(), password: password.input.value };
        const { token, user: account } = await call("POST", `${API}/${what}`, body, { isAnonymous: true });
        await begin(account.username, token);
        done(token, account);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        const at = { username: name, password }[error.field] ?? (error.status === 409 && what === "register" ? name : error.status === 401 ? password : null);
        if (!at) throw error;
        at.error(error.message);
        at.input.focus();
        at.input.select();
      }
    }, wrong.say);
  }

  return h("form", {
    class: "stack", novalidate: true, "aria-label": "Sign in", onsubmit(event) {
      event.preventDefault();
      go("login", enter);
    },
  }, name.el, password.el, wrong.el, h("div", { class: "buttons" }, enter, join));
}

/** Has the node take part as the user, before anybody else is told of the token. */
async function begin(username, token) {
  await call("POST", `${API}/init`, { username }, { token });
}

function showSignIn() {
  show(nav, false);
  for (const it of [badge, user, out]) show(it, false);
  document.title = "P2S2";
  const form = signInForm({ done: (token, account) => signedIn(token, account) });
  fill(main, h("section", { class: "welcome" },
    h("h1", null, "Share files directly"),
    h("p", { class: "muted" }, "Sign in, or choose a user name and a password and sign up."),
    h("div", { class: "card" }, form)));
  form.querySelector("input").focus();
}

let again = null;

/** The token is good no more: asks for the password on top of what is there. */
function signInAgain() {
  if (!main.contains(network.view)) {
    showSignIn();
    return;
  }
  again ??= dialog({
    title: "Sign in again",
    className: "narrow",
    isForced: true,
    build(close, el) {
      bus.addEventListener("signed-in", () => close(true), { once: true });
      bus.addEventListener("signed-off", () => close(true), { once: true });
      el.id = "sign-in-again";
      return [h("p", { class: "muted" }, "Your sign-in is over. Nothing of what you were doing is lost."),
        signInForm({ username: me(), isAgain: true, done: (token, account) => signedIn(token, account) }),
        h("button", { type: "button", class: "quiet full", onclick: signedOff }, "Somebody else")];
    },
    onOpen: (el) => el.querySelector("input[type=password]").focus(),
  }).then(() => { again = null; });
}

async function signOut() {
  await run(out, async () => {
    // Whoever is away from the node is signed out here all the same.
    try {
      await call("POST", `${API}/logout`, {}, { token: session()?.token ?? "" });
    } finally {
      signedOff();
    }
  }, announce);
}

bus.addEventListener("signed-out", signInAgain);
// Nothing of who was here stays for who comes next.
bus.addEventListener("signed-off", () => location.reload());
bus.addEventListener("signed-in", ({ detail }) => {
  if (detail.isOther) location.reload();
  else if (!main.contains(network.view)) start();
});

// Being there.

let stream = null;
let round = 0;

async function start() {
  const mine = (round += 1);
  fill(main, h("div", { class: "waits center", "aria-busy": "true" }, h("span", { class: "skeleton w40" })));
  try {
    await begin(me());
  } catch (error) {
    if (mine !== round) return;
    fill(main, h("div", { class: "welcome" }, h("p", { class: "wrong box", role: "alert", dir: "auto" }, sentence(error)),
      h("button", { type: "button", class: "primary", onclick: start }, "Try again"), h("button", { type: "button", class: "quiet", onclick: signOut }, "Sign out")));
    return;
  }
  // It may have waited for a sign-in, which has begun it anew.
  if (mine !== round) return;
  fill(main, views.map((it) => it.of.view));
  for (const it of views) it.of.view.hidden = true;
  show(nav, true);
  for (const it of [user, out]) show(it, true);
  text(userName, session().user.display_name || me());
  user.title = me();
  route();
  stream?.close();
  stream = events(`${API}/events`, {
    files({ hostname }) {
      network.refresh();
      people.refresh();
      if (hostname === me() || !hostname) files.refresh();
    },
    fetches({ id, progress }) {
      transfers.put(id, progress);
    },
    peers() {
      people.refresh();
      network.refresh();
    },
    node(node) {
      if (node) tellNode(node);
    },
    reset: readAll,
  });
}

const readAll = coalesce(() => {
  network.refresh();
  files.refresh();
  people.refresh();
  transfers.refresh();
  get("status").then(({ client }) => tellNode(client), (error) => announce(sentence(error)));
});

bus.addEventListener("back", () => {
  // It may have been started anew, and know nobody.
  if (main.contains(network.view)) begin(me()).then(readAll, (error) => announce(sentence(error)));
});

state.addEventListener("fetches", () => {
  const open = [...state.fetches.values()].filter(transfers.isOpen).length;
  pip.dataset.count = open > 99 ? "99+" : String(open);
  show(pip, open > 0);
});

// The node.

const WORDS = {
  disconnected: ["Disconnected", "danger", "The server is not there. Files that are on their way go on; it is tried again by itself."],
  connecting: ["Connecting", "warn", "It is looking for the server."],
  idle: ["Idle", "ok", "Connected, with nothing to do."],
  active: ["Active", "ok", "Connected, and used a short while ago."],
  busy: ["Busy", "accent", "Files are on their way."],
};

function tellNode(node) {
  const wasAway = state.node && ["disconnected", "connecting"].includes(state.node.state);
  state.node = { ...state.node, ...node };
  const [word, kind] = WORDS[node.state] ?? [node.state, ""];
  const isShut = state.node.reachable === false && node.state !== "disconnected";
  text(badgeText, word);
  badge.className = `badge ${isShut ? "warn" : kind}`;
  badge.title = [word, `tells the server that it is here every ${duration(node.heartbeat_interval)}`, `port ${node.port}`, reach(state.node)].filter(Boolean).join(" · ");
  badge.setAttribute("aria-label", `Node: ${word}${isShut ? ", not to be reached" : ""}`);
  show(badge, true);
  const isOff = node.state === "disconnected";
  cut.title = node.error ?? "";
  show(cut, isOff);
  changed("node");
  if (wasAway && kind !== "danger" && kind !== "warn") readAll();
}

let which = {};
// What was known of it last is not what it is now.
bus.addEventListener("away", () => {
  text(badgeText, "No answer");
  badge.className = "badge danger";
  badge.title = "";
  badge.setAttribute("aria-label", "Node: No answer");
});

const reach = (node) => (node.reachable === true ? "others can reach it" : node.reachable === false ? "others cannot reach it" : "");

function showNode() {
  const { node } = state;
  const [word, , sentenceOf] = WORDS[node.state] ?? [node.state];
  const facts = [
    ["State", word], ["Heartbeat", `every ${duration(node.heartbeat_interval)}`],
    ["For others", [node.address ?? `port ${node.port}`, reach(node)].filter(Boolean).join(", ")],
    ["Server", which.server], ["Name", node.hostname], ["Fetched to", node.repo], ["Version", which.version],
  ];
  dialog({
    title: "This node",
    className: "narrow",
    build: () => [
      h("p", { class: "muted" }, sentenceOf), node.error ? h("p", { class: "wrong box", dir: "auto" }, node.error) : null,
      h("dl", { class: "facts" }, facts.filter(([, value]) => value).flatMap(([label, value]) => [h("dt", null, label), h("dd", { dir: "auto" }, value)])),
    ],
  });
}

function showAccount() {
  const { user: account } = session();
  dialog({
    title: account.display_name || account.username,
    className: "narrow",
    build: (close) => [
      h("dl", { class: "facts" }, [["User name", account.username], ["Here since", instant(Date.parse(account.created_at) / 1000)]].filter(([, it]) => it)
        .flatMap(([label, value]) => [h("dt", null, label), h("dd", { dir: "auto" }, value)])),
      h("div", { class: "buttons" },
        h("button", { type: "button", class: "full", onclick: () => { close(); useElsewhere(); } }, icon("phone"), "Use on another device"),
        h("button", { type: "button", class: "full", onclick: () => { close(); signOut(); } }, "Sign out")),
    ],
  });
}

// Dropping files anywhere.

let depth = 0;
const isFiles = (event) => session() && main.contains(network.view) && event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (!isFiles(event)) return;
  event.preventDefault();
  depth += 1;
  show(veil, true);
});
addEventListener("dragleave", (event) => {
  if (!isFiles(event)) return;
  depth = Math.max(0, depth - 1);
  show(veil, depth > 0);
});
addEventListener("dragover", (event) => {
  if (isFiles(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  // A browser shows what is dropped beside, in place of this page.
  event.preventDefault();
  depth = 0;
  show(veil, false);
  if (isFiles(event)) files.dropped(event.dataTransfer);
});

addEventListener("paste", (event) => {
  if (session() && event.clipboardData?.files.length && !event.target.closest?.("input")) files.pasted(event.clipboardData.files);
});

// Typing a slash looks for something, as in many places.
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.closest("input, textarea, select, dialog") || !main.contains(network.view)) return;
  event.preventDefault();
  location.hash = "#network";
  document.getElementById("search").focus();
});

call("GET", `${API}/node`, undefined, { isAnonymous: true }).then((node) => {
  which = node;
  text(about, `P2S2 ${which.version} · server ${which.server}`);
}, (error) => text(about, sentence(error)));
if (session()) start();
else showSignIn();
