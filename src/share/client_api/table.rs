//! Every route of the client API with its parameters and responses.

use super::handler::ClientRouteHandler::{self, NodeAction, NodeQuery, Public, Upload, User};
use super::{ClientApi, browse, content, links, local, remote, uploads};
use crate::net::http::routes::Schema::{Any, Boolean, Integer, List, Map, Named, Nullable, Number, OneOf, Text};
use crate::net::http::routes::{
    BodyKind, ErrorCase, FieldSchema, ResponseKind, Route, Schema, error_case, field, joined, optional,
};
use crate::net::http::{HandlerResult, RouteCall};
use crate::share::node::Node;
use crate::share::response_fields::{DISCOVER_RESPONSE, FILE_ENTRY_FIELDS, SIGN_IN_RESPONSE};
use crate::share::transfer::FetchAction;

const NODE_STATES: &[&str] = &["disconnected", "connecting", "idle", "active", "busy"];
const NODE_FIELDS: &[FieldSchema] = &[
    field("hostname", Text),
    field("display_name", Text),
    field("port", Integer).described_as("where peers reach it"),
    field("repo", Text).described_as("the folder for what is fetched and brought in"),
    field("state", OneOf(NODE_STATES)),
    field("heartbeat_interval", Number).described_as("seconds"),
    field("error", Nullable(&Text)).described_as("why there is no connection to the registry"),
];
const CLIENT_FIELDS: &[FieldSchema] = &joined::<11>(
    NODE_FIELDS,
    &[
        field("username", Text),
        field("server_host", Text),
        field("server_port", Integer),
        field("advertise_ip", Nullable(&Text)),
    ],
);
const LOCAL_FILE_FIELDS: &[FieldSchema] = &[
    field("name", Text),
    field("size", Integer),
    field("modified", Number),
    field("created", Nullable(&Number)),
    field("path", Text),
    field("is_published", Boolean),
    field("added_at", Number),
    field("published_at", Nullable(&Number)),
    field("blake3", Nullable(&Text)),
    field("pieces_root", Nullable(&Text)),
    field("missing", Boolean).described_as("there is no file at its path any more; it is forgotten after 30 days"),
];
const FOLDER_ENTRY_FIELDS: &[FieldSchema] = &[
    field("name", Text),
    field("path", Text).described_as("where it really lies"),
    field("kind", OneOf(&["folder", "file"])),
    field("size", Integer),
    field("modified", Number),
];
const MATCH_FIELDS: &[FieldSchema] = &[
    field("name", Text),
    field("size", Integer),
    field("modified", Number),
    field("created", Nullable(&Number)),
    field("published_at", Nullable(&Number)),
    field("blake3", Nullable(&Text)),
    field("hostname", Text),
    field("owner_hostname", Text),
    field("owner_name", Text),
    field("owner_ip", Text),
    field("owner_port", Integer),
];
const NETWORK_FILE_FIELDS: &[FieldSchema] = &joined::<12>(
    MATCH_FIELDS,
    &[field("copies", Integer).described_as("how many hosts have this content, this one among them")],
);
const PEER_FIELDS: &[FieldSchema] = &[
    field("hostname", Text),
    field("display_name", Text),
    field("ip", Text),
    field("port", Integer),
    field("file_count", Integer),
    field("last_seen", Nullable(&Number)),
];
const FILE_EVENT_FIELDS: &[FieldSchema] = &[
    field("fname", Text),
    field("hostname", Text),
    field("entry", Nullable(&Named("Entry", FILE_ENTRY_FIELDS)))
        .described_as("what others see of it; null: nothing any more"),
    optional("owner_name", Text),
    optional("owner_ip", Text),
    optional("owner_port", Integer),
    optional("change", Text)
        .described_as("of one's own: added, published, unpublished, read, fetched, missing, found, removed"),
    optional("name", Text).described_as("the same as `fname`"),
];
const PEER_EVENT_FIELDS: &[FieldSchema] = &[
    field("hostname", Text),
    field("online", Boolean),
    field("display_name", Text),
    field("ip", Text),
    field("port", Integer),
];
const DUPLICATES_FIELDS: &[FieldSchema] = &[
    field("has_exact_duplicate", Boolean),
    field("has_partial_duplicate", Boolean),
    field("exact_matches", List(&Named("Match", MATCH_FIELDS))),
    field("partial_matches", List(&Named("Match", MATCH_FIELDS))),
];
const PROGRESS_FIELDS: &[FieldSchema] = &[
    field("fetch_id", Text),
    field("file_name", Text),
    field("save_path", Text),
    field("downloaded_size", Integer),
    field("total_size", Integer),
    field("progress_percent", Number),
    field("speed_bps", Number),
    field("eta_seconds", Nullable(&Integer)),
    field("status", OneOf(&["pending", "downloading", "paused", "completed", "failed", "cancelled"])),
    field("verified", Boolean).described_as("whether the content was checked by a digest that the registry knew"),
    field("sources", List(&Text)),
    field("peer_hostname", Nullable(&Text)),
    field("error", Nullable(&Text)),
    field("error_message", Nullable(&Text)).described_as("the same as `error`"),
];
const OWNER_FIELDS: &[FieldSchema] =
    &[field("owner_hostname", Text), field("size", Integer), field("modified", Number)];

const LIST_QUERY: &[FieldSchema] = &[
    optional("q", Text).described_as("what the name has in it, in any case"),
    optional("offset", Integer),
    optional("limit", Integer).described_as("at most 1000"),
];
const PAGE_QUERY: &[FieldSchema] = &[LIST_QUERY[1], LIST_QUERY[2]];
const BROWSE_QUERY: &[FieldSchema] = &[
    optional("path", Text).described_as("a folder; without it, the folders that there are"),
    LIST_QUERY[1],
    optional("limit", Integer).described_as("at most 10000"),
];
const FULL_LIST_QUERY: &[FieldSchema] =
    &[LIST_QUERY[0], LIST_QUERY[1], optional("limit", Integer).described_as("without it, all")];

const CREDENTIALS_BODY: BodyKind = BodyKind::Json(&[field("username", Text), field("password", Text)]);
const FILE_NAME_BODY: BodyKind = BodyKind::Json(&[field("fname", Text)]);
const PROGRESS_RESPONSE: &[FieldSchema] = &[field("progress", Named("Progress", PROGRESS_FIELDS))];
const FETCH_EVENT_FIELDS: &[FieldSchema] = &[field("id", Text), PROGRESS_RESPONSE[0]];
const LOCAL_FILE: Schema = Named("LocalFile", LOCAL_FILE_FIELDS);
const FILE_RESPONSE: &[FieldSchema] = &[field("file", LOCAL_FILE)];
const FILES_RESPONSE: &[FieldSchema] = &[field("total", Integer), field("files", List(&LOCAL_FILE))];

const NOT_INITIALIZED: ErrorCase = error_case(409, "before init");
const ACCOUNT_CONFLICT: &str = "another account of that name, spelt otherwise, uses this node";
const NODE_REFUSALS: &[ErrorCase] = &[NOT_INITIALIZED];
const FETCH_REFUSALS: &[ErrorCase] =
    &[error_case(404, "there is no such fetch"), error_case(409, "it is over, or before init")];
const FILE_NOT_FOUND: ErrorCase = error_case(404, "there is no such file");
const NO_SPACE: ErrorCase = error_case(507, "there is no room");
/// Refusals of routes that take a path.
const PATH_REFUSALS: &[ErrorCase] =
    &[FILE_NOT_FOUND, error_case(409, "the name stands for another file, or before init"), NO_SPACE];

const fn fetch_action(
    path: &'static str,
    summary: &'static str,
    run: fn(&Node, &RouteCall<'_>) -> HandlerResult,
) -> Route<ClientRouteHandler> {
    Route::post(path, summary, NodeAction(run)).responds_with_json(PROGRESS_RESPONSE).error_cases(FETCH_REFUSALS)
}

pub(super) const ROUTES: &[Route<ClientRouteHandler>] = &[
    Route::get("/api/client/node", "Which node this is, and of which server", Public(ClientApi::node_info))
        .responds_with_json(&[field("name", Text), field("version", Text), field("server", Text)]),
    Route::post(
        "/api/client/register",
        "Makes an account at the server, and signs in",
        Public(|api, call| api.sign_in("register", call.request)),
    )
    .request_body(BodyKind::Json(&[field("username", Text), field("password", Text), optional("display_name", Text)]))
    .responds_with_json(SIGN_IN_RESPONSE)
    .error_cases(&[
        error_case(409, "the name is taken"),
        error_case(429, "too many have asked"),
        error_case(502, "the server answers what it should not"),
    ]),
    Route::post("/api/client/login", "Signs in", Public(|api, call| api.sign_in("login", call.request)))
        .request_body(CREDENTIALS_BODY)
        .responds_with_json(SIGN_IN_RESPONSE)
        .error_cases(&[
            error_case(401, "name or password is wrong"),
            error_case(404, "there is no such account"),
            error_case(409, ACCOUNT_CONFLICT),
            error_case(429, "too many wrong passwords"),
            error_case(502, "the server answers what it should not"),
        ]),
    Route::post("/api/client/init", "Takes part in the network", User(ClientApi::init))
        .request_body(BodyKind::Json(&[
            field("username", Text),
            optional("server_ip", Text).described_as("only the server that the node was started with"),
            optional("server_port", Integer),
            optional("advertise_ip", Text).described_as("the address that peers are told"),
        ]))
        .responds_with_json(&[field("client", Named("Client", CLIENT_FIELDS))])
        .error_cases(&[error_case(409, "the registry refuses, or another account uses this node")]),
    Route::post("/api/client/logout", "Refuses the token from now on", User(ClientApi::log_out))
        .error_cases(&[error_case(409, ACCOUNT_CONFLICT)]),
    Route::get("/api/client/status", "How the node is", NodeQuery(local::status))
        .responds_with_json(&[field("client", Named("Node", NODE_FIELDS))])
        .error_cases(NODE_REFUSALS),
    Route::get("/api/client/local-files", "The user's files", NodeQuery(|node, call| browse::files(node, call, false)))
        .query(FULL_LIST_QUERY)
        .responds_with_json(FILES_RESPONSE)
        .error_cases(NODE_REFUSALS),
    Route::get(
        "/api/client/published-files",
        "Those that are published",
        NodeQuery(|node, call| browse::files(node, call, true)),
    )
    .query(FULL_LIST_QUERY)
    .responds_with_json(FILES_RESPONSE)
    .error_cases(NODE_REFUSALS),
    Route::get("/api/client/browse", "What may be chosen from the node's folders", NodeQuery(browse::browse))
        .query(BROWSE_QUERY)
        .responds_with_json(&[
            field("path", Text),
            field("entries", List(&Named("Choice", FOLDER_ENTRY_FIELDS))).described_as("folders first, then by name"),
            field("total", Integer),
            field("truncated", Boolean).described_as("the folder has even more, which are not looked at"),
        ])
        .error_cases(&[error_case(404, "there is no such folder, or it may not be seen"), NOT_INITIALIZED]),
    Route::post("/api/client/upload/{name}", "Brings a file into the repo", Upload(uploads::begin))
        .request_body(BodyKind::Content)
        .responds_with_json(FILE_RESPONSE)
        .error_cases(&[
            error_case(409, "there is a file of that name, or before init"),
            error_case(413, "it is larger than any file may be"),
            error_case(415, "it comes encoded (Content-Encoding)"),
            NO_SPACE,
        ]),
    Route::post(
        "/api/client/remove-file",
        "Tracks a file no more; it stays where it lies",
        NodeAction(browse::remove_file),
    )
    .request_body(FILE_NAME_BODY)
    .error_cases(&[FILE_NOT_FOUND, NOT_INITIALIZED]),
    Route::get("/api/client/files/{name}/content", "What is in a file", NodeQuery(content::content))
        .responds_with(ResponseKind::Content)
        .error_cases(&[error_case(404, "there is no such file, or it is gone"), NOT_INITIALIZED]),
    Route::post(
        "/api/client/files/{name}/link",
        "An address of its content for what cannot send a header, for an hour",
        User(links::link),
    )
    .responds_with_json(&[field("url", Text).described_as("behind `/api/client/`")])
    .error_cases(&[error_case(404, "there is no such file, or it is gone"), NOT_INITIALIZED]),
    Route::get("/api/client/content", "What is in the file that a link stands for", Public(links::linked_content))
        .query(&[field("ticket", Text)])
        .responds_with(ResponseKind::Content)
        .error_cases(&[error_case(404, "the link is good no more, or the file is gone")]),
    Route::get("/api/client/network-files", "What the network has", NodeAction(remote::network_files))
        .query(LIST_QUERY)
        .responds_with_json(&[
            field("total", Integer),
            field("files", List(&Named("NetworkFile", NETWORK_FILE_FIELDS))),
        ])
        .error_cases(NODE_REFUSALS),
    Route::get("/api/client/peers", "Who is in the network", NodeAction(remote::peers))
        .query(PAGE_QUERY)
        .responds_with_json(&[field("total", Integer), field("peers", List(&Named("Peer", PEER_FIELDS)))])
        .error_cases(NODE_REFUSALS),
    Route::post("/api/client/add-file", "Tracks a file where it lies", NodeAction(local::add_file))
        .request_body(BodyKind::Json(&[field("filepath", Text)]))
        .responds_with_json(FILE_RESPONSE)
        .error_cases(PATH_REFUSALS),
    Route::post(
        "/api/client/check-duplicate",
        "What of the network looks the same",
        NodeAction(local::check_duplicate),
    )
    .request_body(BodyKind::Json(&[field("fname", Text), field("size", Integer), optional("modified", Number)]))
    .responds_with_json(DUPLICATES_FIELDS)
    .error_cases(NODE_REFUSALS),
    Route::post(
        "/api/client/check-local-duplicate",
        "Whether a name is tracked",
        NodeAction(local::check_local_duplicate),
    )
    .request_body(FILE_NAME_BODY)
    .responds_with_json(&[field("exists", Boolean), optional("local_file", LOCAL_FILE)])
    .error_cases(NODE_REFUSALS),
    Route::post("/api/client/publish", "Shows a file to the network", NodeAction(local::publish))
        .request_body(BodyKind::Json(&[
            field("fname", Text),
            optional("local_path", Text).described_as("for a file that is not tracked yet"),
            optional("path", Text).described_as("the same as `local_path`"),
            optional("overwrite", Boolean).described_as("false: a file that looks the same is a reason not to"),
        ]))
        .responds_with_json(&[
            field("path", Text),
            field("file", LOCAL_FILE),
            field("duplicates", Named("Duplicates", DUPLICATES_FIELDS)),
        ])
        .error_cases(&[
            FILE_NOT_FOUND,
            ErrorCase {
                status: 409,
                why: "the name stands for another file, or the network has one that looks the same",
                fields: &[
                    optional("has_exact_duplicate", Boolean),
                    optional("has_partial_duplicate", Boolean),
                    optional("exact_matches", List(&Named("Match", MATCH_FIELDS))),
                    optional("partial_matches", List(&Named("Match", MATCH_FIELDS))),
                ],
            },
            NO_SPACE,
        ]),
    Route::post("/api/client/unpublish", "Shows it no more", NodeAction(local::unpublish))
        .request_body(FILE_NAME_BODY)
        .responds_with_json(FILE_RESPONSE)
        .error_cases(&[FILE_NOT_FOUND, NOT_INITIALIZED]),
    Route::post("/api/client/fetch", "Fetches a file from whoever has it", NodeAction(remote::fetch))
        .request_body(BodyKind::Json(&[
            field("fname", Text),
            optional("owner_hostname", Text).described_as("whose file, where several have different ones of that name"),
            optional("save_path", Text).described_as("a folder, or a file that is not there yet"),
        ]))
        .responds_with_json(&[
            field("fetch_id", Text),
            field("file_name", Text),
            field("total_size", Integer),
            field("save_path", Text),
            field("peer_hostname", Text),
            field("peer_ip", Text),
        ])
        .error_cases(&[
            error_case(404, "nobody has it"),
            ErrorCase {
                status: 409,
                why: "several have different files of that name, or there is one here already",
                fields: &[optional("owners", List(&Named("Owner", OWNER_FIELDS)))],
            },
            NO_SPACE,
        ]),
    Route::get("/api/client/fetches", "All fetches", NodeQuery(remote::fetches))
        .responds_with_json(&[field("fetches", Map(&Named("Progress", PROGRESS_FIELDS)))])
        .error_cases(NODE_REFUSALS),
    Route::get("/api/client/fetch-progress/{id}", "How far a fetch is", NodeQuery(remote::fetch_progress))
        .responds_with_json(PROGRESS_RESPONSE)
        .error_cases(FETCH_REFUSALS),
    fetch_action("/api/client/fetches/{id}/pause", "Pauses a fetch", |node, call| {
        remote::act_on_fetch(node, call, FetchAction::Pause)
    }),
    fetch_action("/api/client/fetches/{id}/resume", "Goes on with it", |node, call| {
        remote::act_on_fetch(node, call, FetchAction::Resume)
    }),
    fetch_action("/api/client/fetches/{id}/cancel", "Gives it up; nothing of it stays", |node, call| {
        remote::act_on_fetch(node, call, FetchAction::Cancel)
    }),
    Route::get("/api/client/discover/{hostname}", "What one host has, and where it is", NodeAction(remote::discover))
        .responds_with_json(DISCOVER_RESPONSE)
        .error_cases(&[error_case(404, "there is no such host"), NOT_INITIALIZED]),
    Route::get("/api/client/ping/{hostname}", "Whether a host is there", NodeAction(remote::ping))
        .responds_with_json(&[field("hostname", Text), field("status", OneOf(&["ALIVE", "DEAD"]))])
        .error_cases(NODE_REFUSALS),
    Route::get("/api/client/events", "What happens, as it happens", User(ClientApi::events))
        .responds_with(ResponseKind::Events(&[
            ("files", Named("FileChange", FILE_EVENT_FIELDS)),
            ("fetches", Named("FetchChange", FETCH_EVENT_FIELDS)),
            ("peers", Named("PeerChange", PEER_EVENT_FIELDS)),
            ("node", Named("Node", NODE_FIELDS)),
            ("reset", Any),
        ]))
        .error_cases(NODE_REFUSALS),
];
