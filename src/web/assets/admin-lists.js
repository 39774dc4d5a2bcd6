// The lists of the operator's page: hosts, accounts, deals, the ledger, warnings.

import { piece, serverNow } from "./admin-data.js";
import { ListView, badge, given, row } from "./admin-list.js";
import { call } from "./api.js";
import { atClock } from "./charts.js";
import { age, announce, confirm, count, date, dialog, fill, h, instant, set, show, text } from "./ui.js";

const seconds = (iso) => (iso ? Date.parse(iso) / 1000 : null);
const since = (at) => age(at, serverNow() / 1000);
const many = (n) => Number(n).toLocaleString("en");

/** An amount with its cents: `1,234.50`. What is owed bears a real minus. */
export const money = (amount) =>
  Number(amount).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }).replace("-", "−");

/** Minutes and seconds that are left: `1:05`. */
export function left(ms) {
  const s = Math.max(0, Math.ceil(ms / 1000));
  const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  const two = (n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
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
      const name = h("button", { class: "plain", onclick: () => showHost(host) }, title, hostname);
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
  const fact = (name, value) => [h("dt", null, name), h("dd", { dir: "auto" }, value)];
  const files = h("div", { class: "stack" }, h("p", { class: "muted" }, "Asking for its files…"));
  dialog({
    title: host.display_name || host.hostname,
    build: () => [
      h("dl", { class: "facts" },
        fact("Hostname", host.hostname), fact("State", host.status), fact("Address", host.ip === null ? "none" : address(host)),
        fact("Last heard", host.last_seen === null ? "never" : `${instant(host.last_seen)} (${since(host.last_seen)})`),
        fact("Connected since", instant(host.connected_at) || "not connected"),
        fact("Account", host.created_at ? `since ${date(seconds(host.created_at))}` : "none"),
        host.created_at ? fact("Last sign-in", instant(seconds(host.last_login)) || "never") : []),
      h("h3", null, "Published files"), files,
    ],
  });
  call("GET", `/api/admin/discover/${encodeURIComponent(host.hostname)}`).then(
    ({ files: found }) => {
      const names = Object.keys(found).sort();
      fill(files,
        names.length === 0 ? h("p", { class: "muted" }, "None.") : null,
        h("ul", { class: "names" }, names.slice(0, FILES_SHOWN).map((name) => h("li", { dir: "auto" }, name))),
        names.length > FILES_SHOWN ? h("p", { class: "muted" }, `and ${many(names.length - FILES_SHOWN)} more`) : null);
    },
    (refusal) => fill(files, h("p", { class: "muted", dir: "auto" }, refusal.status === 404 ? "None: the host is not online." : refusal.message)),
  );
}

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
      return row({ name: h("div", { class: "two" }, title, username), state, uses, made, seen, do: act }, (it) => {
        user = it;
        title.say(it.display_name || it.username);
        username.say(it.username);
        state.say(it.blocked ? "blocked" : "may sign in", it.blocked ? "danger" : "");
        uses.say([it.hostname && "files", it.shop && "shop"].filter(Boolean).join(", ") || "–");
        text(made, date(seconds(it.created_at)));
        text(seen, it.last_login ? since(seconds(it.last_login)) : "never");
        text(act, it.blocked ? "Unblock" : "Block");
        act.classList.toggle("danger", !it.blocked);
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
      const [item, state, buyer, seller] = [given("span", "title"), badge(), given(), given()];
      const [price, opened, ends] = [h("span"), h("span"), h("span")];
      return row({ name: item, state, price, buyer, seller, opened, left: ends }, (it) => {
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

/** How long a deal still has in its state. */
export function remains(deal) {
  if (deal.ends_in_ms == null) return "–";
  const ms = deal.ends_in_ms - (performance.now() - deal.readAt);
  return ms > 0 ? left(ms) : "ending";
}

/** Whether the books balance, in words; the mark repeats them. */
export function check(sum) {
  const isZero = Number(sum) === 0;
  return h("p", { class: `check ${isZero ? "is-good" : "is-bad"}` }, h("span", { class: "mark", "aria-hidden": "true" }, isZero ? "✓" : "✗"),
    isZero ? "The sum of all accounts is 0.00: the books balance." : `The sum of all accounts is ${money(sum)} and must be 0.00: the books do not balance.`);
}

const STEPS = { authorise: "authorised", void: "given back", capture: "captured" };

/** Where money is, and every movement of it. */
export function ledger() {
  const sum = h("div", { "aria-live": "polite" });
  const balances = h("tbody");
  const totals = h("div", { class: "card stack", hidden: true }, sum,
    h("div", { class: "over", tabIndex: 0, role: "region", "aria-label": "Balances" }, h("table", { class: "balances" }, h("caption", { class: "unseen" }, "Balances"),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Account"), h("th", { scope: "col", class: "number" }, "Balance"))), balances)));
  let said;
  const also = piece("/api/admin/ledger?limit=1", (answer, refusal) => {
    show(totals, answer !== null);
    if (refusal) return; // The list says it.
    if (said !== answer.sum) fill(sum, check((said = answer.sum)));
    fill(balances, answer.balances.map(({ account, balance }) => h("tr", null,
      h("th", { scope: "row", dir: "auto" }, account), h("td", { class: "number" }, money(balance)))));
  });
  return new ListView({
    id: "ledger", title: "Ledger", path: "/api/admin/ledger", field: "entries",
    key: (entry) => `${entry.key} ${entry.step} ${entry.account}`,
    missing: "The ledger is",
    none: "No money has moved yet.",
    counts: (total) => count(total, "entry", "entries"),
    above: totals, also,
    columns: [
      { name: "at", label: "Time" }, { name: "name", label: "Account" }, { name: "step", label: "Step" },
      { name: "key", label: "Purchase" }, { name: "amount", label: "Amount" },
    ],
    make() {
      const [at, account, step, key, amount] = [h("time"), given("span", "title"), h("span"), given("span", "mono"), h("span", { class: "number" })];
      return row({ at, name: account, step, key, amount }, (it) => {
        moment(at, it.at);
        account.say(it.account);
        text(step, STEPS[it.step] ?? it.step);
        key.say(it.key);
        text(amount, money(it.amount));
      });
    },
  });
}

/** The time of day, with the day where it is another. */
export function moment(el, iso) {
  const at = Date.parse(iso);
  if (el.dateTime === iso) return;
  const isToday = new Date(at).toDateString() === new Date(serverNow()).toDateString();
  text(el, isToday ? atClock(at) : `${date(at / 1000)}, ${atClock(at)}`);
  el.dateTime = iso;
}

/** What the server has warned of. */
export function warnings() {
  return new ListView({
    id: "warnings", title: "Warnings", path: "/api/admin/log", field: "log",
    key: (line) => JSON.stringify([line.at, line.kind, line.peer, line.text]),
    missing: "The log is",
    none: "The server has nothing to warn of.",
    counts: (total) => `the last ${count(total, "warning")}`,
    columns: [
      { name: "at", label: "Time" }, { name: "kind", label: "Kind" }, { name: "name", label: "What" }, { name: "peer", label: "Who" },
    ],
    make() {
      const [at, kind, what, peer] = [h("time"), badge(), given("span", "words"), given()];
      return row({ at, kind, name: what, peer }, (it) => {
        moment(at, it.at);
        kind.say(it.kind, it.kind === "error" ? "danger" : "warn");
        what.say(it.text);
        peer.say(it.peer ?? "–");
      });
    },
  });
}
