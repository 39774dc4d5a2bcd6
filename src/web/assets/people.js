// Who is on the network.

import { Paged } from "./paged.js";
import { Rows } from "./rows.js";
import { instead, me, named, nothing } from "./state.js";
import { ago, coalesce, count, h, set, show, text } from "./ui.js";

const place = h("div", { class: "panel", id: "people-list" });
const found = h("p", { class: "muted small" });

/** The view. */
export const view = h("section", { id: "view-people", "aria-labelledby": "people-title" },
  h("div", { class: "head" }, h("h1", { id: "people-title" }, "People"), h("div", { class: "side" }, found)), place);

const all = new Paged("/api/client/peers", "peers", draw);
const rows = new Rows({
  id: "peers",
  label: "People",
  columns: [{ name: "name", label: "Name" }, { name: "host", label: "Host" }, { name: "count", label: "Files" }, { name: "age", label: "Last seen" }],
  key: (it) => it.hostname,
  make,
});

function make() {
  const name = named("span");
  const link = h("a", { class: "title plain cut" }, name);
  const you = h("span", { class: "badge" }, "You");
  const host = named("td", "c-host muted");
  host.setAttribute("role", "cell");
  const files = h("td", { role: "cell", class: "c-count number" });
  const seen = ago();
  const sub = [h("bdi"), h("span"), ago()];
  const el = h("tr", { role: "row" },
    h("td", { role: "cell", class: "c-name" }, h("div", { class: "line nowrap" }, link, you), h("span", { class: "sub small muted" }, sub[1], " · seen ", sub[2])),
    host, files, h("td", { role: "cell", class: "c-age" }, seen));
  return {
    el,
    update(it) {
      set(el, { "data-name": it.hostname });
      name.set(it.display_name || it.hostname);
      host.set(it.hostname);
      const n = count(it.file_count ?? 0, "file");
      text(files, n);
      text(sub[1], n);
      seen.set(it.last_seen);
      sub[2].set(it.last_seen);
      show(you, it.hostname === me());
      link.href = it.hostname === me() ? "#files" : `#network?of=${encodeURIComponent(it.hostname)}&title=${encodeURIComponent(it.display_name || it.hostname)}`;
    },
  };
}

function draw() {
  instead(place, all, rows, () => nothing("people", "Nobody here yet", "Whoever uses the same server and is online shows here."));
  rows.set(all);
  text(found, all.isRead && all.total ? `${all.total.toLocaleString("en")} online` : "");
}

/** Reads anew what is shown. */
export const refresh = coalesce(() => all.refresh());

/** The view has come into sight. */
export const shown = () => draw();
