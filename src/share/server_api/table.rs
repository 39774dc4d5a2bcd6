//! Every route of the server API with its parameters and responses.

use self::ServerRouteHandler::{Admin, Public};
use super::ServerApi;
use crate::net::http::routes::Schema::{Integer, List, Map, Named, Nullable, Number, OneOf, Text};
use crate::net::http::routes::{
    BodyKind, ErrorCase, FieldSchema, ResponseKind, Route, RouteAccess, RouteHandler, error_case, field, optional,
};
use crate::net::http::{HandlerResult, RouteCall, success};
use crate::share::response_fields::{DISCOVER_RESPONSE, FILE_ENTRY_FIELDS, SIGN_IN_RESPONSE, USER_FIELDS};
use serde_json::json;

#[derive(Debug, Clone, Copy)]
pub(super) enum ServerRouteHandler {
    /// Needs no token, or checks one itself.
    Public(fn(&ServerApi, &RouteCall<'_>) -> HandlerResult),
    Admin(fn(&ServerApi, &RouteCall<'_>) -> HandlerResult),
}

impl RouteHandler for ServerRouteHandler {
    fn access(self) -> RouteAccess {
        match self {
            Public(_) => RouteAccess::Anybody,
            Admin(_) => RouteAccess::Admin,
        }
    }
}

const USERNAME: FieldSchema = field("username", Text);
const PASSWORD: FieldSchema = field("password", Text);
const CREDENTIALS: &[FieldSchema] = &[USERNAME, PASSWORD];
/// A token in the body, for clients that cannot set a header.
const TOKEN_BODY: BodyKind = BodyKind::OptionalJson(&[optional("token", Text)]);
/// A token in the body can be checked only after the body was read.
const TOKEN_REFUSALS: &[ErrorCase] = &[error_case(401, "the token is missing, or not good")];
const HOST_FIELDS: &[FieldSchema] = &[
    field("hostname", Text),
    field("display_name", Text),
    field("ip", Nullable(&Text)),
    field("port", Nullable(&Integer)),
    field("files", Map(&Named("Entry", FILE_ENTRY_FIELDS))),
    field("file_count", Integer),
    field("last_seen", Nullable(&Number)),
    field("connected_at", Nullable(&Number)),
    field("status", OneOf(&["online", "offline"])),
    field("created_at", Nullable(&Text)),
    field("last_login", Nullable(&Text)),
];
const TOTAL_CLIENTS: FieldSchema = field("total_clients", Integer);
const ACTIVE_CLIENTS: FieldSchema = field("active_clients", Integer);
const TOTAL_FILES: FieldSchema = field("total_files", Integer);
const STATS_FIELDS: &[FieldSchema] = &[TOTAL_CLIENTS, ACTIVE_CLIENTS, TOTAL_FILES];
const TOTALS_FIELDS: &[FieldSchema] =
    &[TOTAL_CLIENTS, ACTIVE_CLIENTS, TOTAL_FILES, field("total_size", Integer), field("timestamp", Number)];

pub const PAGE_QUERY: &[FieldSchema] = &[
    optional("q", Text).described_as("what an entry must have in it, in any case"),
    optional("offset", Integer),
    optional("limit", Integer).described_as("at most 1000"),
];

pub(super) const ROUTES: &[Route<ServerRouteHandler>] = &[
    Route::post("/api/user/register", "Makes an account, and signs in", Public(ServerApi::register))
        .request_body(BodyKind::Json(&[USERNAME, PASSWORD, optional("display_name", Text)]))
        .responds_with_json(SIGN_IN_RESPONSE)
        .error_cases(&[error_case(409, "the name is taken"), error_case(429, "too many have asked")]),
    Route::post("/api/user/login", "Signs in", Public(ServerApi::login))
        .request_body(BodyKind::Json(CREDENTIALS))
        .responds_with_json(SIGN_IN_RESPONSE)
        .error_cases(&[
            error_case(401, "name or password is wrong"),
            error_case(403, "the operator has blocked the account"),
            error_case(429, "too many wrong passwords"),
        ]),
    Route::post("/api/user/verify", "Whose token it is", Public(ServerApi::verify))
        .request_body(TOKEN_BODY)
        .responds_with_json(&[
            field("user", Named("User", USER_FIELDS)),
            field("exp", Integer).described_as("Unix seconds"),
            field("expires_in", Number).described_as("seconds from now"),
        ])
        .error_cases(TOKEN_REFUSALS),
    Route::post("/api/user/refresh", "A new token for one that is good", Public(ServerApi::refresh))
        .request_body(TOKEN_BODY)
        .responds_with_json(SIGN_IN_RESPONSE)
        .error_cases(TOKEN_REFUSALS),
    Route::post("/api/admin/login", "Signs the admin in", Public(ServerApi::admin_login))
        .request_body(BodyKind::Json(CREDENTIALS))
        .responds_with_json(&[field("token", Text), field("username", Text)])
        .error_cases(&[error_case(401, "name or password is wrong"), error_case(429, "too many wrong passwords")]),
    Route::post("/api/admin/verify", "Whether it is the admin's token", Public(ServerApi::admin_verify))
        .request_body(TOKEN_BODY)
        .responds_with_json(&[field("username", Text)])
        .error_cases(TOKEN_REFUSALS),
    Route::get(
        "/api/admin/registry",
        "The hosts, and the accounts that have none: all of them, or the part that is asked for",
        Admin(ServerApi::admin_registry),
    )
    .query(PAGE_QUERY)
    .responds_with_json(&[
        field("stats", Named("Stats", STATS_FIELDS)),
        field("clients", List(&Named("Host", HOST_FIELDS))),
        optional("total", Integer).described_as("of all pages, where a part was asked for"),
    ]),
    Route::get("/api/admin/discover/{hostname}", "What one host has", Admin(ServerApi::discover))
        .responds_with_json(DISCOVER_RESPONSE)
        .error_cases(&[error_case(404, "there is no such host")]),
    Route::get("/api/admin/ping/{hostname}", "Whether a host is there", Admin(ServerApi::ping))
        .responds_with_json(&[field("hostname", Text), field("status", OneOf(&["ALIVE", "DEAD"]))]),
    Route::get("/api/stats", "How much there is", Public(ServerApi::stats))
        .responds_with_json(&[field("stats", Named("Totals", TOTALS_FIELDS))]),
    Route::get("/api/health", "Whether the server runs", Public(|_, _| Ok(success(json!({"status": "healthy"})))))
        .responds_with_json(&[field("status", OneOf(&["healthy"]))]),
    Route::get("/metrics", "What is counted, for Prometheus", Public(ServerApi::metrics))
        .responds_with(ResponseKind::Text("text/plain; version=0.0.4")),
];
