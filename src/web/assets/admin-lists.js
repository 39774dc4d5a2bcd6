// The lists of the operator's page: hosts, accounts, deals, the ledger, warnings.

import { piece, serverNow } from "./admin-data.js";
import { ListView, badge, given, row } from "./admin-list.js";
import { call } from "./api.js";
import { atClock } from "./charts.js";
import { age, announce, confirm, count, date, dialog, fill, h, set, show, text } from "./ui.js";

const seconds = (iso) => (iso ? Date.parse(iso) / 1000 : null);
/** The whole of a point in time; nothing of none. */
const instant = (at) => (at === null ? "" : `${date(at)}, ${atClock(at * 1000)}`);
const since = (at) => age(at, serverNow() / 1000);
const many = (n) => Number(n).toLocaleString("en");

/** An amount with its cents: `1,234.50`. What is owed bears a real minus. */
export const money = (amount) =>
  (Number(amount) || 0).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }).replace("-", "−");

/** Minutes and seconds that are left: `1:05`. */
export function left(ms) {
  const s = Math.max(0, Math.ceil(ms / 1000));
  const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  const two = (n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

/** All of a row, as it was when it was opened: what is cut in a list is whole here. `facts` {name: value}; an empty one is left out. */
function details(title, facts, ...more) {
  const all = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== false && value !== "");
  dialog({ title, build: () => [h("dl", { class: "facts" }, all.map(([name, value]) => [h("dt", null, name), h("dd", { dir: "auto" }, String(value))])), more] });
}

/** The hosts of the registry, and the accounts that have none. */
export function hosts() {
  return new ListView({
    id: "hosts", title: "Hosts", path: "/api/admin/registry", field: "clients", key: (host) => host.hostname,
    search: { label: "Search hosts", hint: "Search by name" },
    missing: "The registry is",
    none: "No host has registered yet.",
    counts: (total) => `${many(total)} hosts and accounts`,
    columns: [
      { name: "name", label: "Host" }, { name: "state", label: "State" }, { name: "where", label: "Address" },
      { name: "files", label: "Files" }, { name: "seen", label: "Last heard" }, { name: "account", label: "Account" },
    ],
    make() {
      let host;
      const [title, hostname, where, state] = [given("span", "title"), given("span", "muted small"), given("span", "mono"), badge()];
      const [files, seen, account] = [h("span"), h("span"), h("span", { class: "cut" })];
      const name = h("button", { class: "plain", onclick: () => showHost(host) }, title, " ", hostname);
      return row({ name, state, where, files, seen, account }, (it) => {
        host = it;
        title.say(it.display_name || it.hostname);
        hostname.say(it.hostname);
        where.say(it.ip === null ? "–" : address(it));
        state.say(it.status, it.status === "online" ? "ok" : "");
        text(files, many(it.file_count));
        text(seen, since(it.last_seen));
        text(account, it.created_at ? `signed in ${it.last_login ? since(seconds(it.last_login)) : "never"}` : "none");
      });
    },
  });
}

const address = ({ ip, port }) => (ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`);

const FILES_SHOWN = 200;

function showHost(host) {
  const files = h("div", { class: "stack" }, h("p", { class: "muted" }, "Asking for its files…"));
  details(host.display_name || host.hostname, {
    Hostname: host.hostname, State: host.status, Address: host.ip === null ? "none" : address(host),
    "Last heard": host.last_seen === null ? "never" : `${instant(host.last_seen)} (${since(host.last_seen)})`,
    "Connected since": instant(host.connected_at) || "not connected",
    Account: host.created_at ? `since ${date(seconds(host.created_at))}` : "none",
    "Last sign-in": host.created_at && (instant(seconds(host.last_login)) || "never"),
    Files: many(host.file_count),
  }, files);
  call("GET", `/api/admin/discover/${encodeURIComponent(host.hostname)}`).then(
    ({ files: found }) => {
      const names = Object.keys(found).sort();
      fill(files,
        names.length === 0 ? h("p", { class: "muted" }, "None.") : null,
        h("ul", { class: "names", tabIndex: 0, "aria-label": "Published files" }, names.slice(0, FILES_SHOWN).map((name) => h("li", { dir: "auto" }, name))),
        names.length > FILES_SHOWN ? h("p", { class: "muted" }, `and ${many(names.length - FILES_SHOWN)} more`) : null);
    },
    (refusal) => fill(files, h("p", { class: "muted", dir: "auto" }, refusal.status === 404 ? "None: the host is not online." : refusal.message)),
  );
}

/** What an account has here; what does not run here is not known. */
const usesOf = (user) => [user.hostname && "host online", user.shop && "shop"].filter(Boolean).join(", ") || "–";

const showAccount = (user) => details(user.display_name || user.username, {
  "User name": user.username, State: user.blocked ? "blocked" : "may sign in", "Signed up": instant(seconds(user.created_at)),
  "Last sign-in": instant(seconds(user.last_login)) || "never", Uses: usesOf(user),
});

/** Everybody who may sign in. */
export function accounts() {
  const view = new ListView({
    id: "accounts", title: "Accounts", path: "/api/admin/users", field: "users", key: (user) => user.username,
    search: { label: "Search accounts", hint: "Search by name" },
    missing: "The accounts are",
    none: "Nobody has signed up yet.",
    counts: (total) => count(total, "account"),
    columns: [
      { name: "name", label: "User name" }, { name: "state", label: "State" }, { name: "uses", label: "Uses" },
      { name: "made", label: "Signed up" }, { name: "seen", label: "Last sign-in" }, { name: "do", label: "Actions", isUnseen: true },
    ],
    make() {
      let user;
      const [title, username, state, uses] = [given("span", "title"), given("span", "muted small"), badge(), given("span")];
      const [made, seen] = [h("span"), h("span")];
      const act = h("button", { class: "small", onclick: () => block(user, act) });
      const name = h("button", { class: "plain", onclick: () => showAccount(user) }, title, " ", username);
      return row({ name, state, uses, made, seen, do: act }, (it) => {
        user = it;
        title.say(it.display_name || it.username);
        username.say(it.username);
        state.say(it.blocked ? "blocked" : "may sign in", it.blocked ? "danger" : "calm");
        uses.say(usesOf(it));
        text(made, date(seconds(it.created_at)));
        text(seen, it.last_login ? since(seconds(it.last_login)) : "never");
        text(act, it.blocked ? "Unblock" : "Block");
        set(act, { "aria-label": `${act.textContent} ${it.username}` });
      });
    },
  });

  async function block(user, act) {
    const name = user.username;
    const isSure = user.blocked
      ? await confirm(`Unblock ${name}?`, "The account may sign in again. Tokens and items of before are good again too.", "Unblock")
      : await confirm(`Block ${name}?`, "It can no longer sign in, its tokens end within 60 seconds, and its items are no longer shown. Orders under way go on.", "Block", true);
    if (!isSure) return;
    act.disabled = true;
    const what = user.blocked ? "unblock" : "block";
    try {
      await call("POST", `/api/admin/users/${encodeURIComponent(name)}/${what}`, {});
      announce(`${name} is ${what}ed.`);
    } catch (refusal) {
      announce(refusal.message);
    } finally {
      act.disabled = false;
      view.refresh();
    }
  }
  return view;
}

export const DEAL_STATES = { searching: "accent", negotiating: "accent", reserved: "warn", settling: "warn", completed: "ok", cancelled: "" };

/** The deals that are open, newest first. */
export function deals() {
  return new ListView({
    id: "deals", title: "Deals", path: "/api/admin/deals", field: "deals", key: (deal) => deal.deal,
    missing: "Trade is",
    none: "No deal is open. One begins when a peer looks for something.",
    counts: (total) => count(total, "open deal"), onRead: ({ pages }) => pages.forEach(timed),
    columns: [
      { name: "name", label: "Item" }, { name: "state", label: "State" }, { name: "price", label: "Price" },
      { name: "buyer", label: "Buyer" }, { name: "seller", label: "Seller" }, { name: "opened", label: "Opened" }, { name: "left", label: "Time left" },
    ],
    make() {
      let deal;
      const [item, state, buyer, seller] = [given("span", "title"), badge(), given(), given()];
      const [price, opened, ends] = [h("span"), h("span"), h("span")];
      const name = h("button", { class: "plain", onclick: () => showDeal(deal) }, item);
      return row({ name, state, price, buyer, seller, opened, left: ends }, (it) => {
        deal = it;
        item.say(it.item_name);
        state.say(it.state, DEAL_STATES[it.state] ?? "");
        text(price, it.price === null ? `at most ${money(it.max_price)}` : money(it.price));
        buyer.say(it.buyer);
        seller.say(it.seller ?? `${it.asked} asked`);
        text(opened, since(it.opened_at));
        text(ends, remains(it));
      });
    },
  });
}

/** What is left of a deal's time is counted from when the server said it. */
export function timed(deals) {
  for (const deal of deals) deal.readAt ??= performance.now();
  return deals;
}

const showDeal = (deal) => details(deal.item_name, {
  Deal: deal.deal, State: deal.state, Price: deal.price !== null && money(deal.price), "At most": money(deal.max_price), Buyer: deal.buyer,
  "Buyer’s number": deal.rq, Seller: deal.seller, Asked: count(deal.asked, "peer"), Opened: instant(deal.opened_at), Reason: deal.reason,
});

/** How long a deal still has in its state. */
export function remains(deal) {
  if (deal.ends_in_ms === null) return "being paid";
  const ms = deal.ends_in_ms - (performance.now() - deal.readAt);
  return ms > 0 ? left(ms) : "ending";
}

/** Whether the books balance, in words; the mark repeats them. */
export function check(sum) {
  const isZero = Number(sum) === 0;
  return h("p", { class: `check ${isZero ? "is-good" : "is-bad"}` }, h("span", { class: "mark", "aria-hidden": "true" }, isZero ? "✓" : "✗"),
    isZero ? "The sum of all accounts is 0.00: the books balance." : `The sum of all accounts is ${money(sum)} and must be 0.00: the books do not balance.`);
}

const BALANCES_SHOWN = 100;

/** A room's account, by words. */
export const accountOf = ({ room, account }) => `${room} · ${account}`;

/** Where money is, and every movement of it. */
export function ledger() {
  const sum = h("div", { role: "status" });
  const balances = h("tbody");
  const more = h("p", { class: "muted small" });
  const totals = h("div", { class: "card stack", hidden: true }, sum,
    h("div", { class: "balances", tabIndex: 0, role: "region", "aria-label": "Balances" }, h("table", null, h("caption", { class: "unseen" }, "Balances"),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Account"), h("th", { scope: "col", class: "number" }, "Balance"))), balances)), more);
  let said;
  const also = piece(`/api/admin/ledger?limit=1&balances_limit=${BALANCES_SHOWN}`, (answer, refusal) => {
    show(totals, answer !== null);
    if (refusal) return; // The list says it.
    if (said !== answer.sum) fill(sum, check((said = answer.sum)));
    fill(balances, answer.balances.map((it) => h("tr", null,
      h("th", { scope: "row", dir: "auto" }, accountOf(it)), h("td", { class: "number" }, money(it.balance)))));
    const rest = answer.balances_total - answer.balances.length;
    text(more, rest > 0 ? `and ${count(rest, "account")} more` : "");
    show(more, rest > 0);
  });
  return new ListView({
    id: "ledger", title: "Ledger", path: "/api/admin/ledger", field: "entries",
    key: (entry) => `${entry.room} ${entry.key} ${entry.step} ${entry.account}`,
    missing: "The ledger is",
    none: "No money has moved yet.",
    counts: (total) => count(total, "entry", "entries"),
    above: totals, also,
    columns: [
      { name: "at", label: "Time" }, { name: "room", label: "Room" }, { name: "name", label: "Account" }, { name: "step", label: "Step" },
      { name: "key", label: "Purchase" }, { name: "amount", label: "Amount" },
    ],
    make() {
      let entry;
      const [at, room, account, step, key, amount] = [h("time"), h("span"), given("span", "title"), h("span"), given("span", "mono"), h("span")];
      const name = h("button", { class: "plain", onclick: () => showEntry(entry) }, account);
      return row({ at, room, name, step, key, amount }, (it) => {
        entry = it;
        moment(at, it.at);
        text(room, it.room);
        account.say(it.account);
        text(step, it.step);
        key.say(it.key);
        text(amount, money(it.amount));
      });
    },
  });
}

const showEntry = (entry) => details(entry.account, {
  Amount: money(entry.amount), Step: entry.step, Room: entry.room, Purchase: entry.key, Time: instant(entry.at),
});

/** The time of day, with the day where it is another. */
export function moment(el, at) {
  const iso = new Date(at * 1000).toISOString();
  const isToday = new Date(at * 1000).toDateString() === new Date(serverNow()).toDateString();
  text(el, isToday ? atClock(at * 1000) : instant(at));
  if (el.dateTime !== iso) el.dateTime = iso;
  return el;
}

const WARNINGS_READ = 300;
const WARNED = { error: "danger", warning: "warn" };

/** What the server has warned of, and what happened in trade. */
export function log() {
  return new ListView({
    id: "log", title: "Log", path: "/api/admin/log", field: "log", key: (line) => line.nth,
    missing: "The log is",
    none: "Nothing has happened yet.",
    counts: (total, all = total) => (all > total ? `the last ${many(total)} of ${count(all, "line")}` : count(total, "line")),
    others: { Warnings: { path: `/api/admin/log?of=warnings&limit=${WARNINGS_READ}`, none: "The server has warned of nothing." }, all: "Everything" },
    // No line has a number: equal ones are told apart by where they stand.
    onRead: ({ pages }) => pages.forEach((page, number) => page.forEach((line, place) => (line.nth = `${number} ${place}`))),
    columns: [
      { name: "at", label: "Time" }, { name: "kind", label: "Kind" }, { name: "name", label: "What" }, { name: "peer", label: "Who" },
    ],
    make() {
      let line;
      const [at, kind, what, peer] = [h("time"), badge(), given("span", "words"), given()];
      const name = h("button", { class: "plain", onclick: () => showLine(line) }, what);
      return row({ at, kind, name, peer }, (it) => {
        line = it;
        moment(at, it.at);
        kind.say(it.kind, WARNED[it.kind] ?? "calm");
        what.say(it.text);
        peer.say(it.peer);
      });
    },
  });
}

const showLine = (line) => details(line.kind, { Time: instant(line.at), Who: line.peer, What: line.text });
