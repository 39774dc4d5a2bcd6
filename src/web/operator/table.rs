//! Every route of the operator's: what it takes, and all that it answers.

use super::{Operator, books, deals, events, figures, goods, log, people};
use crate::net::http::routes::Shape::{Flag, List, Named, Nullable, Number, OneOf, Text, Whole};
use crate::net::http::routes::{Field, Gives, Route, Who, field, optional, refused};
use crate::net::http::{Answered, Call};

/// What handles a route; the token was looked at.
pub(super) type Act = fn(&Operator, &Call<'_>) -> Answered;

const Q: Field = optional("q", Text).about("what an entry must have in it, in any case");
const OFFSET: Field = optional("offset", Whole);
const LIMIT: Field = optional("limit", Whole).about("at most 1000; 100 where it is not said");

const USER: &[Field] = &[
    field("username", Text),
    field("display_name", Text),
    field("created_at", Text),
    field("last_login", Nullable(&Text)),
    field("shop", Nullable(&Flag)).about("whether the shop has an account of that name; null: there is no shop here"),
    field("hostname", Nullable(&Flag)).about("whether the host of that name is there; null: there is no registry here"),
    field("blocked", Flag),
];
const DEAL: &[Field] = &[
    field("deal", Whole),
    field("opened_at", Whole).about("Unix seconds"),
    field("buyer", Text),
    field("rq", Whole),
    field("item_name", Text),
    field("max_price", Number),
    field("state", OneOf(&["searching", "negotiating", "reserved", "settling", "completed", "cancelled"])),
    field("seller", Nullable(&Text)),
    field("price", Nullable(&Number)),
    field("reason", Nullable(&Text)),
    field("asked", Whole).about("how many peers were asked"),
    field("ends_in_ms", Nullable(&Whole)).about("of its present state; null: time does not end that"),
];
const BALANCE: &[Field] = &[field("room", OneOf(&["trade", "shop"])), field("account", Text), field("balance", Number)];
const TOTALS: &[Field] =
    &[field("card", Number), field("escrow", Number), field("payout", Number), field("fee", Number)];
const ENTRY: &[Field] = &[
    field("room", OneOf(&["trade", "shop"])),
    field("at", Whole).about("Unix seconds"),
    field("key", Text),
    field("step", OneOf(&["authorise", "void", "capture"])),
    field("account", Text),
    field("amount", Number),
];
const LINE: &[Field] = &[
    field("at", Number).about("Unix seconds"),
    field("kind", Text).about("warning, error, or what happened in trade"),
    field("peer", Nullable(&Text)),
    field("text", Text),
];
const SERIES: &[Field] = &[
    field("room", OneOf(&["trade", "shop", "share", "http", "process"])),
    field("name", Text),
    field("unit", OneOf(&["1/s", "ms", "count", "bytes"])),
    field("points", List(&Nullable(&Number))).about("one for each time; null: not known"),
];
const HOST: &[Field] = &[field("hostname", Text), field("online", Flag), field("file_count", Whole)];
const CHANGED_DEAL: &[Field] =
    &[field("deal", Whole), field("row", Nullable(&Named("Deal", DEAL))).about("null: it is not open any more")];

/// The table.
pub(super) const ROUTES: &[Route<Act>] = &[
    Route::get("/api/admin/users", "Everybody who may sign in", people::users as Act)
        .by(Who::Admin)
        .query(&[Q, OFFSET, LIMIT])
        .answers(&[field("users", List(&Named("Person", USER))), field("total", Whole)]),
    Route::post("/api/admin/users/{name}/block", "Lets a user sign in no more", people::block as Act)
        .by(Who::Admin)
        .answers(&[field("user", Named("Person", USER))])
        .refuses(&[refused(404, "there is no such account"), refused(409, "it is the admin's own name")]),
    Route::post("/api/admin/users/{name}/unblock", "Lets a user sign in again", people::unblock as Act)
        .by(Who::Admin)
        .answers(&[field("user", Named("Person", USER))])
        .refuses(&[refused(404, "there is no such account")]),
    Route::get("/api/admin/deals", "The deals that are open, newest first", deals::deals as Act)
        .by(Who::Admin)
        .query(&[OFFSET, LIMIT])
        .answers(&[field("deals", List(&Named("Deal", DEAL))), field("total", Whole)]),
    Route::get("/api/admin/ledger", "Where money is, and how it moved, newest first", books::ledger as Act)
        .by(Who::Admin)
        .query(&[OFFSET, LIMIT, optional("balances_offset", Whole), optional("balances_limit", Whole)])
        .answers(&[
            field("balances", List(&Named("Balance", BALANCE))).about("a part of them, the house's own first"),
            field("balances_total", Whole),
            field("totals", Named("BalanceTotals", TOTALS)).about("of all accounts of a kind"),
            field("entries", List(&Named("LedgerEntry", ENTRY))),
            field("total", Whole).about("how many entries there are"),
            field("sum", Number).about("of all entries: 0, or something is very wrong"),
        ]),
    Route::get(
        "/api/admin/log",
        "What happened in trade, and what the process warned of, newest first",
        log::log as Act,
    )
    .by(Who::Admin)
    .query(&[OFFSET, LIMIT, optional("of", OneOf(&["trade", "warnings"])).about("that alone")])
    .answers(&[field("log", List(&Named("LogLine", LINE))), field("total", Whole)]),
    Route::get("/api/admin/metrics", "The figures of the last 15 minutes", figures::metrics as Act)
        .by(Who::Admin)
        .answers(&[
            field("step_s", Whole),
            field("times", List(&Whole)).about("Unix seconds"),
            field("series", List(&Named("Series", SERIES))),
        ]),
    Route::get("/api/admin/events", "What happens, as it happens", events::events as Act).by(Who::Admin).gives(
        Gives::Events(&[
            ("hosts", Named("HostEvent", HOST)),
            ("deals", Named("DealEvent", CHANGED_DEAL)),
            ("warnings", Named("LogLine", LINE)),
            ("reset", crate::net::http::routes::Shape::Object(&[])),
        ]),
    ),
    Route::post("/api/admin/items/{id}/remove", "Takes an item out of the shop", goods::remove as Act)
        .by(Who::Admin)
        .answers(&[field("item_id", Text)])
        .refuses(&[refused(404, "there is no such item")]),
];
