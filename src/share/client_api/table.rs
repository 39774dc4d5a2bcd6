//! Every route of the client API: what it takes, and all that it answers.

use super::{ClientApi, User, browse, content, links, local, remote, uploads};
use crate::net::http::Refusal;
use crate::net::http::routes::Shape::{Any, Flag, List, Map, Named, Nullable, Number, OneOf, Text, Whole};
use crate::net::http::routes::{Field, Gives, Refused, Route, Takes, Who, field, optional, refused};
use crate::net::http::{Answered, Call};
use crate::share::node::Node;
use crate::share::node::uploads::Upload;
use crate::share::shapes::{DISCOVERED, ENTRY, SIGNED_IN};

/// What handles a route.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// For anybody.
    Open(fn(&ClientApi, &Call<'_>) -> Answered),
    /// For a user, whether or not the user's node takes part yet.
    User(fn(&ClientApi, &User, &Call<'_>) -> Answered),
    /// By the user's node, which is only looked at.
    Look(fn(&Node, &Call<'_>) -> Answered),
    /// By the user's node, which has something to do.
    Work(fn(&Node, &Call<'_>) -> Answered),
    /// The same, with a body that is handed on as it comes.
    Upload(fn(&Node, &Call<'_>) -> Result<Upload, Refusal>),
}

const STATE: &[&str] = &["disconnected", "connecting", "idle", "active", "busy"];
const NODE: &[Field] = &[
    field("hostname", Text),
    field("display_name", Text),
    field("port", Whole).about("where peers reach it"),
    field("repo", Text).about("the folder for what is fetched and brought in"),
    field("state", OneOf(STATE)),
    field("heartbeat_interval", Number).about("seconds"),
    field("error", Nullable(&Text)).about("why there is no connection to the registry"),
];
const CLIENT: &[Field] = &[
    NODE[0],
    NODE[1],
    NODE[2],
    NODE[3],
    NODE[4],
    NODE[5],
    NODE[6],
    field("username", Text),
    field("server_host", Text),
    field("server_port", Whole),
    field("advertise_ip", Nullable(&Text)),
];
const LOCAL_FILE: &[Field] = &[
    field("name", Text),
    field("size", Whole),
    field("modified", Number),
    field("created", Nullable(&Number)),
    field("path", Text),
    field("is_published", Flag),
    field("added_at", Number),
    field("published_at", Nullable(&Number)),
    field("blake3", Nullable(&Text)),
    field("pieces_root", Nullable(&Text)),
    field("missing", Flag).about("there is no file at its path any more; it is forgotten after 30 days"),
];
/// What may be chosen from the node's folders.
const CHOICE: &[Field] = &[
    field("name", Text),
    field("path", Text).about("where it really lies"),
    field("kind", OneOf(&["folder", "file"])),
    field("size", Whole),
    field("modified", Number),
];
const MATCH: &[Field] = &[
    field("name", Text),
    field("size", Whole),
    field("modified", Number),
    field("created", Nullable(&Number)),
    field("published_at", Nullable(&Number)),
    field("blake3", Nullable(&Text)),
    field("hostname", Text),
    field("owner_hostname", Text),
    field("owner_name", Text),
    field("owner_ip", Text),
    field("owner_port", Whole),
];
const NETWORK_FILE: &[Field] = &[
    MATCH[0],
    MATCH[1],
    MATCH[2],
    MATCH[3],
    MATCH[4],
    MATCH[5],
    MATCH[6],
    MATCH[7],
    MATCH[8],
    MATCH[9],
    MATCH[10],
    field("copies", Whole).about("how many hosts have this content, this one among them"),
];
const PEER: &[Field] = &[
    field("hostname", Text),
    field("display_name", Text),
    field("ip", Text),
    field("port", Whole),
    field("file_count", Whole),
    field("last_seen", Nullable(&Number)),
];
const FILE_CHANGE: &[Field] = &[
    field("fname", Text),
    field("hostname", Text),
    field("entry", Nullable(&Named("Entry", ENTRY))).about("what others see of it; null: nothing any more"),
    optional("owner_name", Text),
    optional("owner_ip", Text),
    optional("owner_port", Whole),
    optional("change", Text)
        .about("of one's own: added, published, unpublished, read, fetched, missing, found, removed"),
    optional("name", Text).about("the same as `fname`"),
];
const PEER_CHANGE: &[Field] = &[
    field("hostname", Text),
    field("online", Flag),
    field("display_name", Text),
    field("ip", Text),
    field("port", Whole),
];
const DUPLICATES: &[Field] = &[
    field("has_exact_duplicate", Flag),
    field("has_partial_duplicate", Flag),
    field("exact_matches", List(&Named("Match", MATCH))),
    field("partial_matches", List(&Named("Match", MATCH))),
];
const PROGRESS: &[Field] = &[
    field("fetch_id", Text),
    field("file_name", Text),
    field("save_path", Text),
    field("downloaded_size", Whole),
    field("total_size", Whole),
    field("progress_percent", Number),
    field("speed_bps", Number),
    field("eta_seconds", Nullable(&Whole)),
    field("status", OneOf(&["pending", "downloading", "paused", "completed", "failed", "cancelled"])),
    field("verified", Flag).about("whether the content was checked by a digest that the registry knew"),
    field("sources", List(&Text)),
    field("peer_hostname", Nullable(&Text)),
    field("error", Nullable(&Text)),
    field("error_message", Nullable(&Text)).about("the same as `error`"),
];
const OWNER: &[Field] = &[field("owner_hostname", Text), field("size", Whole), field("modified", Number)];

const LISTED: &[Field] = &[
    optional("q", Text).about("what the name has in it, in any case"),
    optional("offset", Whole),
    optional("limit", Whole).about("at most 1000"),
];
const PAGED: &[Field] = &[LISTED[1], LISTED[2]];
const BROWSED: &[Field] = &[
    optional("path", Text).about("a folder; without it, the folders that there are"),
    LISTED[1],
    optional("limit", Whole).about("at most 10000"),
];
const ALL_LISTED: &[Field] = &[LISTED[0], LISTED[1], optional("limit", Whole).about("without it, all")];

const CREDENTIALS: Takes = Takes::Json(&[field("username", Text), field("password", Text)]);
const FNAME: Takes = Takes::Json(&[field("fname", Text)]);
const PROGRESS_ANSWER: &[Field] = &[field("progress", Named("Progress", PROGRESS))];
const FETCH_CHANGE: &[Field] = &[field("id", Text), PROGRESS_ANSWER[0]];
const FILE_ANSWER: &[Field] = &[field("file", Named("LocalFile", LOCAL_FILE))];

const NOT_BEGUN: Refused = refused(409, "before init");
const OTHER_ACCOUNT: &str = "another account of that name, spelt otherwise, uses this node";
const AWAY: &[Refused] = &[NOT_BEGUN];
const UNKNOWN_FETCH: &[Refused] = &[refused(404, "there is no such fetch"), refused(409, "it is over, or before init")];
const NO_SUCH_FILE: Refused = refused(404, "there is no such file");
const NO_ROOM: Refused = refused(507, "there is no room");
/// What a path can be refused by.
const OF_A_PATH: &[Refused] =
    &[NO_SUCH_FILE, refused(409, "the name stands for another file, or before init"), NO_ROOM];

/// The table.
pub(super) const ROUTES: &[Route<Act>] = &[
    Route::get("/api/client/node", "Which node this is, and of which server", Act::Open(ClientApi::about))
        .by(Who::Anybody)
        .answers(&[field("name", Text), field("version", Text), field("server", Text)]),
    Route::post("/api/client/register", "Makes an account at the server, and signs in", Act::Open(ClientApi::register))
        .by(Who::Anybody)
        .takes(Takes::Json(&[field("username", Text), field("password", Text), optional("display_name", Text)]))
        .answers(SIGNED_IN)
        .refuses(&[
            refused(409, "the name is taken"),
            refused(429, "too many have asked"),
            refused(502, "the server answers what it should not"),
        ]),
    Route::post("/api/client/login", "Signs in", Act::Open(ClientApi::login))
        .by(Who::Anybody)
        .takes(CREDENTIALS)
        .answers(SIGNED_IN)
        .refuses(&[
            refused(401, "name or password is wrong"),
            refused(404, "there is no such account"),
            refused(409, OTHER_ACCOUNT),
            refused(429, "too many wrong passwords"),
            refused(502, "the server answers what it should not"),
        ]),
    Route::post("/api/client/init", "Takes part in the network", Act::User(ClientApi::init))
        .takes(Takes::Json(&[
            field("username", Text),
            optional("server_ip", Text).about("only the server that the node was started with"),
            optional("server_port", Whole),
            optional("advertise_ip", Text).about("the address that peers are told"),
        ]))
        .answers(&[field("client", Named("Client", CLIENT))])
        .refuses(&[refused(409, "the registry refuses, or another account uses this node")]),
    Route::post("/api/client/logout", "Refuses the token from now on", Act::User(ClientApi::log_out))
        .refuses(&[refused(409, OTHER_ACCOUNT)]),
    Route::get("/api/client/status", "How the node is", Act::Look(local::status))
        .answers(&[field("client", Named("Node", NODE))])
        .refuses(AWAY),
    Route::get("/api/client/local-files", "The user's files", Act::Look(browse::local_files))
        .query(ALL_LISTED)
        .answers(&[field("total", Whole), field("files", List(&Named("LocalFile", LOCAL_FILE)))])
        .refuses(AWAY),
    Route::get("/api/client/published-files", "Those that are published", Act::Look(browse::published_files))
        .query(ALL_LISTED)
        .answers(&[field("total", Whole), field("files", List(&Named("LocalFile", LOCAL_FILE)))])
        .refuses(AWAY),
    Route::get("/api/client/browse", "What may be chosen from the node's folders", Act::Look(browse::browse))
        .query(BROWSED)
        .answers(&[
            field("path", Text),
            field("entries", List(&Named("Choice", CHOICE))).about("folders first, then by name"),
            field("total", Whole),
            field("truncated", Flag).about("the folder has even more, which are not looked at"),
        ])
        .refuses(&[refused(404, "there is no such folder, or it may not be seen"), NOT_BEGUN]),
    Route::post("/api/client/upload/{name}", "Brings a file into the repo", Act::Upload(uploads::begin))
        .takes(Takes::Content)
        .answers(FILE_ANSWER)
        .refuses(&[
            refused(409, "there is a file of that name, or before init"),
            refused(413, "it is larger than any file may be"),
            refused(415, "it comes encoded (Content-Encoding)"),
            NO_ROOM,
        ]),
    Route::post(
        "/api/client/remove-file",
        "Tracks a file no more; it stays where it lies",
        Act::Work(browse::remove_file),
    )
    .takes(FNAME)
    .refuses(&[NO_SUCH_FILE, NOT_BEGUN]),
    Route::get("/api/client/files/{name}/content", "What is in a file", Act::Look(content::content))
        .gives(Gives::Content)
        .refuses(&[refused(404, "there is no such file, or it is gone"), NOT_BEGUN]),
    Route::post(
        "/api/client/files/{name}/link",
        "An address of its content for what cannot send a header, for an hour",
        Act::User(links::link),
    )
    .answers(&[field("url", Text).about("behind `/api/client/`")])
    .refuses(&[refused(404, "there is no such file, or it is gone"), NOT_BEGUN]),
    Route::get("/api/client/content", "What is in the file that a link stands for", Act::Open(links::linked))
        .by(Who::Anybody)
        .query(&[field("ticket", Text)])
        .gives(Gives::Content)
        .refuses(&[refused(404, "the link is good no more, or the file is gone")]),
    Route::get("/api/client/network-files", "What the network has", Act::Work(remote::network_files))
        .query(LISTED)
        .answers(&[field("total", Whole), field("files", List(&Named("NetworkFile", NETWORK_FILE)))])
        .refuses(AWAY),
    Route::get("/api/client/peers", "Who is in the network", Act::Work(remote::peers))
        .query(PAGED)
        .answers(&[field("total", Whole), field("peers", List(&Named("Peer", PEER)))])
        .refuses(AWAY),
    Route::post("/api/client/add-file", "Tracks a file where it lies", Act::Work(local::add_file))
        .takes(Takes::Json(&[field("filepath", Text)]))
        .answers(FILE_ANSWER)
        .refuses(OF_A_PATH),
    Route::post("/api/client/check-duplicate", "What of the network looks the same", Act::Work(local::check_duplicate))
        .takes(Takes::Json(&[field("fname", Text), field("size", Whole), optional("modified", Number)]))
        .answers(DUPLICATES)
        .refuses(AWAY),
    Route::post(
        "/api/client/check-local-duplicate",
        "Whether a name is tracked",
        Act::Work(local::check_local_duplicate),
    )
    .takes(FNAME)
    .answers(&[field("exists", Flag), optional("local_file", Named("LocalFile", LOCAL_FILE))])
    .refuses(AWAY),
    Route::post("/api/client/publish", "Shows a file to the network", Act::Work(local::publish))
        .takes(Takes::Json(&[
            field("fname", Text),
            optional("local_path", Text).about("for a file that is not tracked yet"),
            optional("path", Text).about("the same as `local_path`"),
            optional("overwrite", Flag).about("false: a file that looks the same is a reason not to"),
        ]))
        .answers(&[
            field("path", Text),
            field("file", Named("LocalFile", LOCAL_FILE)),
            field("duplicates", Named("Duplicates", DUPLICATES)),
        ])
        .refuses(&[
            NO_SUCH_FILE,
            Refused {
                status: 409,
                why: "the name stands for another file, or the network has one that looks the same",
                fields: &[
                    optional("has_exact_duplicate", Flag),
                    optional("has_partial_duplicate", Flag),
                    optional("exact_matches", List(&Named("Match", MATCH))),
                    optional("partial_matches", List(&Named("Match", MATCH))),
                ],
            },
            NO_ROOM,
        ]),
    Route::post("/api/client/unpublish", "Shows it no more", Act::Work(local::unpublish))
        .takes(FNAME)
        .answers(FILE_ANSWER)
        .refuses(&[NO_SUCH_FILE, NOT_BEGUN]),
    Route::post("/api/client/fetch", "Fetches a file from whoever has it", Act::Work(remote::fetch))
        .takes(Takes::Json(&[
            field("fname", Text),
            optional("owner_hostname", Text).about("whose file, where several have different ones of that name"),
            optional("save_path", Text).about("a folder, or a file that is not there yet"),
        ]))
        .answers(&[
            field("fetch_id", Text),
            field("file_name", Text),
            field("total_size", Whole),
            field("save_path", Text),
            field("peer_hostname", Text),
            field("peer_ip", Text),
        ])
        .refuses(&[
            refused(404, "nobody has it"),
            Refused {
                status: 409,
                why: "several have different files of that name, or there is one here already",
                fields: &[optional("owners", List(&Named("Owner", OWNER)))],
            },
            NO_ROOM,
        ]),
    Route::get("/api/client/fetches", "All fetches", Act::Look(remote::fetches))
        .answers(&[field("fetches", Map(&Named("Progress", PROGRESS)))])
        .refuses(AWAY),
    Route::get("/api/client/fetch-progress/{id}", "How far a fetch is", Act::Look(remote::fetch_progress))
        .answers(PROGRESS_ANSWER)
        .refuses(UNKNOWN_FETCH),
    Route::post("/api/client/fetches/{id}/pause", "Pauses a fetch", Act::Work(remote::pause))
        .answers(PROGRESS_ANSWER)
        .refuses(UNKNOWN_FETCH),
    Route::post("/api/client/fetches/{id}/resume", "Goes on with it", Act::Work(remote::resume))
        .answers(PROGRESS_ANSWER)
        .refuses(UNKNOWN_FETCH),
    Route::post("/api/client/fetches/{id}/cancel", "Gives it up; nothing of it stays", Act::Work(remote::cancel))
        .answers(PROGRESS_ANSWER)
        .refuses(UNKNOWN_FETCH),
    Route::get("/api/client/discover/{hostname}", "What one host has, and where it is", Act::Work(remote::discover))
        .answers(DISCOVERED)
        .refuses(&[refused(404, "there is no such host"), NOT_BEGUN]),
    Route::get("/api/client/ping/{hostname}", "Whether a host is there", Act::Work(remote::ping))
        .answers(&[field("hostname", Text), field("status", OneOf(&["ALIVE", "DEAD"]))])
        .refuses(AWAY),
    Route::get("/api/client/events", "What happens, as it happens", Act::User(ClientApi::events))
        .gives(Gives::Events(&[
            ("files", Named("FileChange", FILE_CHANGE)),
            ("fetches", Named("FetchChange", FETCH_CHANGE)),
            ("peers", Named("PeerChange", PEER_CHANGE)),
            ("node", Named("Node", NODE)),
            ("reset", Any),
        ]))
        .refuses(AWAY),
];
