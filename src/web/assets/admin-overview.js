// The first view: how much there is now, and the last quarter of an hour in lines, by room.

import { isElsewhere, isOld, piece, serverNow } from "./admin-data.js";
import { badge, given } from "./admin-list.js";
import { DEAL_STATES, check, money, moment, remains, timed } from "./admin-lists.js";
import { Chart, STALE_AFTER_MS, short } from "./charts.js";
import { bytes, coalesce, duration, fill, h, show, text } from "./ui.js";

const CHARTS_EVERY_MS = 2_500;
const REST_EVERY_MS = 10_000;
const SHOWN = 5;
const WARNINGS_READ = 200;
const WARNED_WITHIN_S = 900;
/** Percent: a few refusals are every day's, such as a mistyped password. */
const ERRORS_BAD_FROM = 5;

const ROOMS = { trade: "Trade", shop: "Shop", share: "Share", http: "HTTP", process: "Process" };

/** The charts of a room, in this order: which series they take, and what they say. What none of these takes has one of its own. */
const CHARTS = [
  { names: ["requests"], title: "Requests", counts: "came in" },
  { names: ["p50", "p95", "commit p95"], title: "Latency", counts: "half and 95 % within" },
  { names: ["errors"], title: "Errors", counts: "refused, failed" },
  { names: ["purchases"], title: "Purchases", counts: "paid" },
  { names: ["open deals"], title: "Open deals", counts: "under way" },
  { names: ["peers"], title: "Peers", counts: "registered" },
  { names: ["hosts"], title: "Hosts", counts: "online" },
  { names: ["files"], title: "Files", counts: "published" },
  { names: ["event streams"], title: "Event streams", counts: "open" },
  { names: ["connections", "threads", "open files"], title: "In use", counts: "how many" },
  { names: ["connections refused"], title: "Refused", counts: "connections" },
  { names: ["memory"], title: "Memory", counts: "of the process" },
];
const LABELS = { p50: "half", p95: "95 %", "commit p95": "commits 95 %" };
const labelOf = (name) => LABELS[name] ?? name;

/** A number that is read from across the room. */
function tile(label, href) {
  const [value, unit, note] = [h("b", null, "–"), h("span", { class: "unit" }), h("span", { class: "note" })];
  const el = h("div", { class: "tile" }, h("dt", null, href ? h("a", { href }, label) : label), h("dd", null, h("span", { class: "value" }, value, unit), note));
  return {
    el,
    say(number, { of = "", said = "", kind = "" } = {}) {
      text(value, number);
      text(unit, of);
      text(note, said);
      el.className = `tile ${kind}`.trim();
    },
    fail(refusal) {
      this.say("–", { said: isElsewhere(refusal) ? "not running here" : "not known", kind: "is-off" });
    },
  };
}

/** A card with a few of a list, and the way to all of it. */
function card(title, href, more) {
  const body = h("div", { class: "some" }, h("span", { class: "skeleton" }));
  return { body, el: h("section", { class: "card", "aria-label": title }, h("div", { class: "head" }, h("h2", null, title), h("a", { class: "side", href }, more)), body) };
}

export function overview() {
  const tiles = {
    hosts: tile("Hosts online", "#hosts"), files: tile("Files"), accounts: tile("Accounts", "#accounts"), deals: tile("Open deals", "#deals"),
    connections: tile("Connections"), requests: tile("Requests"), errors: tile("Errors"), warnings: tile("Warnings", "#log"),
  };
  const cards = { deals: card("Deals that end next", "#deals", "All deals"), ledger: card("Ledger", "#ledger", "All entries"), warnings: card("Last warnings", "#log", "All warnings") };
  const aged = h("span", { class: "aged" });
  const wrong = h("p", { class: "wrong box", role: "alert", dir: "auto", hidden: true });
  const rooms = h("div", { class: "rooms" }, h("p", { class: "muted" }, "Asking for the charts…"));
  const el = h("section", { class: "view stack v-overview", "aria-label": "Overview", hidden: true },
    h("div", { class: "head" }, h("h1", null, "Overview"), h("div", { class: "side" }, aged)),
    wrong, h("dl", { class: "tiles" }, Object.values(tiles).map((it) => it.el)), h("div", { class: "grid cards" }, Object.values(cards).map((it) => it.el)), rooms);

  let metrics = null;
  let charts = [];
  let plan = "";
  let deals = [];
  let [warned, isMore] = [[], false];

  const lists = {
    stats: piece("/api/stats", (answer, refusal) => {
      if (refusal) return [tiles.hosts, tiles.files].forEach((it) => it.fail(refusal));
      const { active_clients: online, total_clients: all, total_files: files, total_size: size } = answer.stats;
      tiles.hosts.say(short(online), { said: `of ${short(all)} known` });
      tiles.files.say(short(files), { said: size === undefined ? "" : `${bytes(size)} published` });
    }),
    users: piece("/api/admin/users?limit=1", (answer, refusal) =>
      refusal ? tiles.accounts.fail(refusal) : tiles.accounts.say(short(answer.total), { said: "signed up" })),
    deals: piece("/api/admin/deals?limit=100", (answer, refusal) => {
      if (refusal) {
        tiles.deals.fail(refusal);
        fill(cards.deals.body, none(refusal));
        return;
      }
      deals = timed(answer.deals);
      tiles.deals.say(short(answer.total), { said: "under way" });
      showDeals(answer.total);
    }),
    ledger: piece("/api/admin/ledger?limit=1&balances_limit=1", (answer, refusal) => fill(cards.ledger.body, refusal ? none(refusal) : [check(answer.sum), totals(answer)])),
    warnings: piece(`/api/admin/log?of=warnings&limit=${WARNINGS_READ}`, (answer, refusal) => {
      if (refusal) {
        tiles.warnings.fail(refusal);
        fill(cards.warnings.body, none(refusal));
        return;
      }
      warned = answer.log;
      isMore = answer.total > warned.length;
      sayWarned();
      fill(cards.warnings.body, warned.length === 0 ? h("p", { class: "muted" }, "The server has warned of nothing.")
        : h("ul", { class: "lines" }, warned.slice(0, SHOWN).map((line) => h("li", null, moment(h("time"), line.at), given("span", "what").say(line.text)))));
    }),
  };
  const none = (refusal) => h("p", { class: "muted", dir: "auto" }, isElsewhere(refusal) ? "Not running here." : refusal.message);

  /** How many warnings there were in the time of the charts; at least so many, where the last read one is younger. */
  function sayWarned() {
    const from = serverNow() / 1000 - WARNED_WITHIN_S;
    const recent = warned.filter(({ at }) => at >= from).length;
    tiles.warnings.say(short(recent), { of: isMore && recent === warned.length ? "+" : "", said: "in 15 min", kind: recent ? "is-warn" : "" });
  }

  /** Those of the newest that end soonest, with what is left of them. */
  function showDeals(total) {
    const next = deals.filter((deal) => deal.ends_in_ms !== null).sort((a, b) => endOf(a) - endOf(b)).slice(0, SHOWN);
    fill(cards.deals.body, next.length === 0 ? h("p", { class: "muted" }, deals.length ? "No open deal has an end set." : "No deal is open.")
      : h("ul", { class: "lines" }, next.map((deal) => {
        const end = h("span", { class: "number" }, remains(deal));
        end.deal = deal;
        return h("li", null, given("span", "what").say(deal.item_name), badge().say(deal.state, DEAL_STATES[deal.state]), end);
      })), total > deals.length ? h("p", { class: "muted small" }, `of the newest ${deals.length}`) : null);
  }

  const charted = piece("/api/admin/metrics", (answer, refusal) => {
    show(wrong, Boolean(refusal));
    if (refusal) {
      text(wrong, refusal.message);
      if (!metrics) {
        fill(rooms);
        [tiles.connections, tiles.requests, tiles.errors].forEach((it) => it.fail(refusal));
      }
      return;
    }
    metrics = answer;
    draw();
  });

  function draw() {
    const now = serverNow();
    const times = metrics.times.map((at) => at * 1000);
    const names = JSON.stringify(metrics.series.map(({ name, unit, room }) => [name, unit, room]));
    if (names !== plan) build(names);
    for (const { chart, indexes } of charts) {
      chart.set(times, indexes.map((index) => metrics.series[index].points), metrics.step_s * 1000, now);
    }
    const last = (named) => metrics.series.filter(({ name }) => name === named).map(({ points }) => points.at(-1) ?? null).filter((it) => it !== null);
    const sum = (all) => (all.length ? all.reduce((whole, part) => whole + part, 0) : null);
    const say = (tile, value, more) => (value === null ? tile.say("–", { said: "no point yet" }) : tile.say(short(value), more));
    const [requests, errors] = [sum(last("requests")), sum(last("errors"))];
    const part = requests > 0 ? (100 * errors) / requests : 0;
    say(tiles.requests, requests, { of: "/s", said: "in all rooms" });
    say(tiles.errors, errors, { of: "/s", said: `${short(part)} % of all`, kind: part > ERRORS_BAD_FROM ? "is-bad" : "" });
    say(tiles.connections, sum(last("connections")), { said: "open" });
  }

  /** The charts for these series: a row a room, and in it requests, latency and errors before the rest. */
  function build(names) {
    plan = names;
    charts.forEach(({ chart }) => chart.remove());
    charts = [];
    const all = metrics.series.map((it, index) => ({ ...it, index }));
    const order = [...new Set([...Object.keys(ROOMS), ...all.map(({ room }) => room)])].filter((room) => all.some((it) => it.room === room));
    fill(rooms, order.map((room) => {
      const inRoom = all.filter((it) => it.room === room);
      const named = CHARTS.map((it) => ({ ...it, series: inRoom.filter(({ name }) => it.names.includes(name)) })).filter(({ series }) => series.length);
      const rest = inRoom.filter(({ name }) => !CHARTS.some(({ names: taken }) => taken.includes(name)))
        .map((it) => ({ title: it.name[0].toUpperCase() + it.name.slice(1), counts: "how many", series: [it] }));
      const title = ROOMS[room] ?? room;
      return h("section", { class: "room", "aria-label": title }, h("h2", null, title),
        h("div", { class: "charts" }, [...named, ...rest].map(({ title, counts, series }) => {
          const chart = new Chart({ title, counts, unit: series[0].unit, lines: series.map(({ name }) => ({ label: labelOf(name) })) });
          charts.push({ chart, indexes: series.map(({ index }) => index) });
          return chart.element;
        })));
    }));
  }

  const all = coalesce(() => Object.values(lists).forEach((it) => it.read()), 1000);
  let [chartedAt, restAt] = [-Infinity, -Infinity];
  return {
    el,
    opened() {
      [chartedAt, restAt] = [-Infinity, -Infinity];
      this.tick();
    },
    refresh: (what) => lists[what === "hosts" ? "stats" : what]?.read(),
    tick() {
      const now = performance.now();
      if (now - chartedAt >= CHARTS_EVERY_MS) {
        chartedAt = now;
        charted.read();
      }
      if (now - restAt >= REST_EVERY_MS) {
        restAt = now;
        all();
      }
      charts.forEach(({ chart }) => chart.tick(serverNow()));
      cards.deals.body.querySelectorAll(".number").forEach((it) => text(it, remains(it.deal)));
      const areChartsStale = charted.readAt !== null && now - charted.readAt > STALE_AFTER_MS;
      for (const [name, by] of [["hosts", "stats"], ["files", "stats"], ["accounts", "users"], ["deals", "deals"], ["warnings", "warnings"]])
        tiles[name].el.classList.toggle("is-stale", isOld(lists[by].readAt));
      for (const name of ["requests", "errors", "connections"]) tiles[name].el.classList.toggle("is-stale", areChartsStale);
      for (const name of ["deals", "ledger", "warnings"]) cards[name].el.classList.toggle("is-stale", isOld(lists[name].readAt));
      el.classList.toggle("is-stale", areChartsStale);
      text(aged, charted.readAt === null ? "" : `${areChartsStale ? "stale: " : ""}read ${duration((now - charted.readAt) / 1000)} ago`);
    },
  };
}

const endOf = (deal) => deal.ends_in_ms + deal.readAt;

/** What the accounts of each kind hold together. */
function totals({ totals: { card, escrow, payout, fee }, total }) {
  const fact = (name, value) => [h("dt", null, name), h("dd", { class: "number" }, value)];
  return h("dl", { class: "facts" }, fact("Paid by buyers", money(-card)), fact("Held in escrow", money(escrow)), fact("Earned by sellers", money(payout)),
    fact("Fees of the house", money(fee)), fact("Entries", total.toLocaleString("en")));
}
