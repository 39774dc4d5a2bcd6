//! Every route of the server API: what it takes, and all that it answers.

use super::ServerApi;
use crate::net::http::routes::Shape::{List, Map, Named, Nullable, Number, OneOf, Text, Whole};
use crate::net::http::routes::{Field, Gives, Refused, Route, Takes, Who, field, optional, refused};
use crate::net::http::{Answered, Call, success};
use crate::share::shapes::{DISCOVERED, ENTRY, SIGNED_IN, USER};
use serde_json::json;

/// What handles a route.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// Whoever asks.
    Open(fn(&ServerApi, &Call<'_>) -> Answered),
    /// For the admin alone.
    Admin(fn(&ServerApi, &Call<'_>) -> Answered),
}

const USERNAME: Field = field("username", Text);
const PASSWORD: Field = field("password", Text);
const CREDENTIALS: &[Field] = &[USERNAME, PASSWORD];
/// A token in the body, for who cannot set a header.
const TOKEN: Takes = Takes::MaybeJson(&[optional("token", Text)]);
/// So whoever has none is told so only once the body was read.
const NO_TOKEN: &[Refused] = &[refused(401, "the token is missing, or not good")];
const CLIENT: &[Field] = &[
    field("hostname", Text),
    field("display_name", Text),
    field("ip", Nullable(&Text)),
    field("port", Nullable(&Whole)),
    field("files", Map(&Named("Entry", ENTRY))),
    field("file_count", Whole),
    field("last_seen", Nullable(&Number)),
    field("connected_at", Nullable(&Number)),
    field("status", OneOf(&["online", "offline"])),
    field("created_at", Nullable(&Text)),
    field("last_login", Nullable(&Text)),
];
const CLIENTS: Field = field("total_clients", Whole);
const ACTIVE: Field = field("active_clients", Whole);
const FILES: Field = field("total_files", Whole);
const STATS: &[Field] = &[CLIENTS, ACTIVE, FILES];
const TOTALS: &[Field] = &[CLIENTS, ACTIVE, FILES, field("total_size", Whole), field("timestamp", Number)];

/// Which part of a list is asked for.
pub const PAGE: &[Field] = &[
    optional("q", Text).about("what an entry must have in it, in any case"),
    optional("offset", Whole),
    optional("limit", Whole).about("at most 1000"),
];

/// The table.
pub(super) const ROUTES: &[Route<Act>] = &[
    Route::post(
        "/api/user/register",
        "Makes an account, and signs in",
        Act::Open(|api, call| api.register(call.request)),
    )
    .by(Who::Anybody)
    .takes(Takes::Json(&[USERNAME, PASSWORD, optional("display_name", Text)]))
    .answers(SIGNED_IN)
    .refuses(&[refused(409, "the name is taken"), refused(429, "too many have asked")]),
    Route::post("/api/user/login", "Signs in", Act::Open(|api, call| api.login(call.request)))
        .by(Who::Anybody)
        .takes(Takes::Json(CREDENTIALS))
        .answers(SIGNED_IN)
        .refuses(&[
            refused(401, "name or password is wrong"),
            refused(403, "the operator has blocked the account"),
            refused(429, "too many wrong passwords"),
        ]),
    Route::post("/api/user/verify", "Whose token it is", Act::Open(|api, call| api.verify(call.request)))
        .takes(TOKEN)
        .answers(&[
            field("user", Named("User", USER)),
            field("exp", Whole).about("Unix seconds"),
            field("expires_in", Number).about("seconds from now"),
        ])
        .by(Who::Anybody)
        .refuses(NO_TOKEN),
    Route::post(
        "/api/user/refresh",
        "A new token for one that is good",
        Act::Open(|api, call| api.refresh(call.request)),
    )
    .by(Who::Anybody)
    .takes(TOKEN)
    .answers(SIGNED_IN)
    .refuses(NO_TOKEN),
    Route::post("/api/admin/login", "Signs the admin in", Act::Open(|api, call| api.admin_login(call.request)))
        .by(Who::Anybody)
        .takes(Takes::Json(CREDENTIALS))
        .answers(&[field("token", Text), field("username", Text)])
        .refuses(&[refused(401, "name or password is wrong"), refused(429, "too many wrong passwords")]),
    Route::post(
        "/api/admin/verify",
        "Whether it is the admin's token",
        Act::Open(|api, call| api.admin_verify(call.request)),
    )
    .by(Who::Anybody)
    .takes(TOKEN)
    .answers(&[field("username", Text)])
    .refuses(NO_TOKEN),
    Route::get(
        "/api/admin/registry",
        "The hosts, and the accounts that have none: all of them, or the part that is asked for",
        Act::Admin(|api, call| api.admins_registry(call.request)),
    )
    .by(Who::Admin)
    .query(PAGE)
    .answers(&[
        field("stats", Named("Stats", STATS)),
        field("clients", List(&Named("Host", CLIENT))),
        optional("total", Whole).about("of all pages, where a part was asked for"),
    ]),
    Route::get(
        "/api/admin/discover/{hostname}",
        "What one host has",
        Act::Admin(|api, call| api.discover(call.param(0))),
    )
    .by(Who::Admin)
    .answers(DISCOVERED)
    .refuses(&[refused(404, "there is no such host")]),
    Route::get(
        "/api/admin/ping/{hostname}",
        "Whether a host is there",
        Act::Admin(|api, call| api.ping(call.param(0))),
    )
    .by(Who::Admin)
    .answers(&[field("hostname", Text), field("status", OneOf(&["ALIVE", "DEAD"]))]),
    Route::get("/api/stats", "How much there is", Act::Open(|api, _| api.stats()))
        .by(Who::Anybody)
        .answers(&[field("stats", Named("Totals", TOTALS))]),
    Route::get("/api/health", "Whether the server runs", Act::Open(|_, _| Ok(success(json!({"status": "healthy"})))))
        .by(Who::Anybody)
        .answers(&[field("status", OneOf(&["healthy"]))]),
    Route::get("/metrics", "What is counted, for Prometheus", Act::Open(|api, call| api.metrics(call.request)))
        .by(Who::Anybody)
        .gives(Gives::Text("text/plain; version=0.0.4")),
];
