//! Every route of the operator's API, with its parameters and responses.

use super::{OperatorApi, deals, events, items, ledgers, log, metrics, users};
use crate::net::http::routes::Schema::{Boolean, Integer, List, Named, Nullable, Number, OneOf, Text};
use crate::net::http::routes::{FieldSchema, ResponseKind, Route, RouteAccess, error_case, field, optional};
use crate::net::http::{HandlerResult, RouteCall};

/// Handles a request whose token has been checked.
pub(super) type OperatorRouteHandler = fn(&OperatorApi, &RouteCall<'_>) -> HandlerResult;

const Q: FieldSchema = optional("q", Text).described_as("what an entry must have in it, in any case");
const OFFSET: FieldSchema = optional("offset", Integer);
const LIMIT: FieldSchema = optional("limit", Integer).described_as("at most 1000; 100 where it is not said");

const USER: &[FieldSchema] = &[
    field("username", Text),
    field("display_name", Text),
    field("created_at", Text),
    field("last_login", Nullable(&Text)),
    field("shop", Nullable(&Boolean))
        .described_as("whether the shop has an account of that name; null: there is no shop here"),
    field("hostname", Nullable(&Boolean))
        .described_as("whether the host of that name is there; null: there is no registry here"),
    field("blocked", Boolean),
];
const DEAL: &[FieldSchema] = &[
    field("deal", Integer),
    field("opened_at", Integer).described_as("Unix seconds"),
    field("buyer", Text),
    field("rq", Integer),
    field("item_name", Text),
    field("max_price", Number),
    field("state", OneOf(&["searching", "negotiating", "reserved", "settling", "completed", "cancelled"])),
    field("seller", Nullable(&Text)),
    field("price", Nullable(&Number)),
    field("reason", Nullable(&Text)),
    field("asked", Integer).described_as("how many peers were asked"),
    field("ends_in_ms", Nullable(&Integer)).described_as("of its present state; null: time does not end that"),
];
const BALANCE: &[FieldSchema] =
    &[field("room", OneOf(&["trade", "shop"])), field("account", Text), field("balance", Number)];
const TOTALS: &[FieldSchema] =
    &[field("card", Number), field("escrow", Number), field("payout", Number), field("fee", Number)];
const LEDGER_ENTRY: &[FieldSchema] = &[
    field("room", OneOf(&["trade", "shop"])),
    field("at", Integer).described_as("Unix seconds"),
    field("key", Text),
    field("step", OneOf(&["authorise", "void", "capture"])),
    field("account", Text),
    field("amount", Number),
];
const LOG_ENTRY: &[FieldSchema] = &[
    field("at", Number).described_as("Unix seconds"),
    field("kind", Text).described_as("warning, error, or what happened in trade"),
    field("peer", Nullable(&Text)),
    field("text", Text),
];
const SERIES: &[FieldSchema] = &[
    field("room", OneOf(&["trade", "shop", "share", "http", "process"])),
    field("name", Text),
    field("unit", OneOf(&["1/s", "ms", "count", "bytes"])),
    field("points", List(&Nullable(&Number))).described_as("one for each time; null: not known"),
];
const HOST: &[FieldSchema] = &[field("hostname", Text), field("online", Boolean), field("file_count", Integer)];
const CHANGED_DEAL: &[FieldSchema] = &[
    field("deal", Integer),
    field("row", Nullable(&Named("Deal", DEAL))).described_as("null: it is not open any more"),
];

pub(super) const ROUTES: &[Route<OperatorRouteHandler>] = &[
    Route::get("/api/admin/users", "Everybody who may sign in", users::users as OperatorRouteHandler)
        .access(RouteAccess::Admin)
        .query(&[Q, OFFSET, LIMIT])
        .responds_with_json(&[field("users", List(&Named("Person", USER))), field("total", Integer)]),
    Route::post("/api/admin/users/{name}/block", "Lets a user sign in no more", users::block as OperatorRouteHandler)
        .access(RouteAccess::Admin)
        .responds_with_json(&[field("user", Named("Person", USER))])
        .error_cases(&[error_case(404, "there is no such account"), error_case(409, "it is the admin's own name")]),
    Route::post("/api/admin/users/{name}/unblock", "Lets a user sign in again", users::unblock as OperatorRouteHandler)
        .access(RouteAccess::Admin)
        .responds_with_json(&[field("user", Named("Person", USER))])
        .error_cases(&[error_case(404, "there is no such account")]),
    Route::get("/api/admin/deals", "The deals that are open, newest first", deals::deals as OperatorRouteHandler)
        .access(RouteAccess::Admin)
        .query(&[OFFSET, LIMIT])
        .responds_with_json(&[field("deals", List(&Named("Deal", DEAL))), field("total", Integer)]),
    Route::get(
        "/api/admin/ledger",
        "Where money is, and how it moved, newest first",
        ledgers::ledger as OperatorRouteHandler,
    )
    .access(RouteAccess::Admin)
    .query(&[OFFSET, LIMIT, optional("balances_offset", Integer), optional("balances_limit", Integer)])
    .responds_with_json(&[
        field("balances", List(&Named("Balance", BALANCE))).described_as("a part of them, the house's own first"),
        field("balances_total", Integer),
        field("totals", Named("BalanceTotals", TOTALS)).described_as("of all accounts of a kind"),
        field("entries", List(&Named("LedgerEntry", LEDGER_ENTRY))),
        field("total", Integer).described_as("how many entries there are"),
        field("sum", Number).described_as("of all entries: 0, or something is very wrong"),
    ]),
    Route::get(
        "/api/admin/log",
        "What happened in trade, and what the process warned of, newest first",
        log::log as OperatorRouteHandler,
    )
    .access(RouteAccess::Admin)
    .query(&[OFFSET, LIMIT, optional("of", OneOf(&["trade", "warnings"])).described_as("that alone")])
    .responds_with_json(&[field("log", List(&Named("LogLine", LOG_ENTRY))), field("total", Integer)]),
    Route::get("/api/admin/metrics", "The figures of the last 15 minutes", metrics::metrics as OperatorRouteHandler)
        .access(RouteAccess::Admin)
        .responds_with_json(&[
            field("step_s", Integer),
            field("times", List(&Integer)).described_as("Unix seconds"),
            field("series", List(&Named("Series", SERIES))),
        ]),
    Route::get("/api/admin/events", "What happens, as it happens", events::events as OperatorRouteHandler)
        .access(RouteAccess::Admin)
        .responds_with(ResponseKind::Events(&[
            ("hosts", Named("HostEvent", HOST)),
            ("deals", Named("DealEvent", CHANGED_DEAL)),
            ("warnings", Named("LogLine", LOG_ENTRY)),
            ("reset", crate::net::http::routes::Schema::Object(&[])),
        ])),
    Route::post("/api/admin/items/{id}/remove", "Takes an item out of the shop", items::remove as OperatorRouteHandler)
        .access(RouteAccess::Admin)
        .responds_with_json(&[field("item_id", Text)])
        .error_cases(&[error_case(404, "there is no such item")]),
];
