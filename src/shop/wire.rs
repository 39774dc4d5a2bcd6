//! The messages of clients: parsing of requests and writing of responses, in both dialects.
//!
//! A message whose `type` is `request` is dialect 1, an envelope with a payload:
//! `{"type":"request","api":NAME,"session_id":…,"payload":{…}}`; its response is of type `response` or `error`, with
//! the same `api`. Any other is dialect 2, which is flat: `{"type":NAME,"sid":…,…}`, with the response
//! `{"status":"OK",…}` or `{"status":"ERR","error":…}`. Parsing is strict about the fields that it needs and ignores
//! unknown ones; every error names the field and says what was expected (`docs/spec/general.md`).

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::apis::answers::{Answer, PurchaseView, write_ok};
use super::apis::fields::{Dialect, FieldReader, Names, bad_request};
use super::apis::{Api, ApiCall, Request, ResponsePayload, SESSION, ServerKind};
use super::ops::{ErrorCode, Refusal, Role, ShopResult};

mod bounded;
#[cfg(test)]
mod tests;

/// The bytes of a request.
pub const MESSAGE_MAX: usize = 1 << 20;

/// The call, the form of its response and its api, which has the shape of the answer.
#[derive(Debug)]
pub struct ParsedRequest {
    pub envelope: ResponseEnvelope,
    pub api: &'static Api,
    pub call: ApiCall,
}

/// Refused while it was parsed.
#[derive(PartialEq, Eq)]
pub struct InvalidRequest {
    pub envelope: ResponseEnvelope,
    pub refusal: Refusal,
    /// The session id, if known. Errors of the session take precedence over this refusal.
    pub sid: Option<String>,
}

struct RequestError {
    refusal: Refusal,
    sid: Option<String>,
}

/// It takes precedence over errors of the session.
impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> RequestError {
        RequestError { refusal, sid: None }
    }
}

/// The dialect of a response, and what it repeats of the request. In dialect 2 that is the api, if it is known: errors
/// that a frontend or a database finds name the fields of dialect 1, and must be translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResponseEnvelope {
    Dialect1 { api: Option<String>, session_id: Option<String> },
    Dialect2(Option<&'static Api>),
}

impl ResponseEnvelope {
    /// The envelope for what is not a request: dialect 2, of no api.
    pub const UNPARSED: ResponseEnvelope = ResponseEnvelope::Dialect2(None);

    /// Then the cart is the buyer's saved one.
    pub fn is_dialect2(&self) -> bool {
        matches!(self, ResponseEnvelope::Dialect2(_))
    }
}

/// The error tells how to respond.
pub fn parse_request(server_kind: ServerKind, message: &[u8]) -> Result<ParsedRequest, InvalidRequest> {
    let no_message = |why: String| {
        Err(InvalidRequest { envelope: ResponseEnvelope::UNPARSED, refusal: bad_request(why), sid: None })
    };
    // The whole message: the parser skips unknown fields without decoding them.
    let Ok(message) = std::str::from_utf8(message) else {
        return no_message("expected one JSON object: it is not UTF-8".to_owned());
    };
    let message = message.strip_prefix('\u{feff}').unwrap_or(message);
    let message = match bounded::parse(message) {
        Ok(Value::Object(map)) => map,
        Ok(_) => return no_message("expected one JSON object".to_owned()),
        Err(error) => return no_message(format!("expected one JSON object: {}", json_error_text(&error))),
    };
    let text = |field: &str| message.get(field).and_then(Value::as_str);
    let dialect = if text("type") == Some("request") { Dialect::One } else { Dialect::Two };
    let name = text(API_NAME.of(dialect));
    let api = name.and_then(|name| Api::find(server_kind, dialect, name));
    let envelope = match dialect {
        Dialect::One => ResponseEnvelope::Dialect1 {
            api: name.map(str::to_owned),
            session_id: text(SESSION.of(dialect)).map(str::to_owned),
        },
        Dialect::Two => ResponseEnvelope::Dialect2(api),
    };
    match parse_call(server_kind, api, FieldReader { fields: &message, dialect, role: server_kind.role() }) {
        Ok((api, call)) => Ok(ParsedRequest { envelope, api, call }),
        Err(RequestError { refusal, sid }) => Err(InvalidRequest { envelope, refusal, sid }),
    }
}

/// The field that names the api.
const API_NAME: Names = Names("api", "type");

fn parse_call(
    server_kind: ServerKind,
    api: Option<&'static Api>,
    message: FieldReader<'_>,
) -> Result<(&'static Api, ApiCall), RequestError> {
    let dialect = message.dialect;
    let frontends_only = || Refusal::new(ErrorCode::Forbidden, "only the frontends may ask this database");
    if server_kind == ServerKind::Product || (dialect == Dialect::One && server_kind.role().is_none()) {
        return Err(frontends_only().into());
    }
    let name = message.string(API_NAME.of(dialect))?;
    let api = api.ok_or_else(|| match server_kind.role() {
        None => frontends_only(),
        Some(role) => unknown_api(name, dialect, role),
    })?;
    let no_fields = Map::new();
    let fields = match (dialect, message.get("payload")) {
        (Dialect::Two, _) => Ok(message),
        (Dialect::One, None) => Ok(FieldReader { fields: &no_fields, ..message }),
        (Dialect::One, Some(Value::Object(fields))) => Ok(FieldReader { fields, ..message }),
        (Dialect::One, Some(_)) => Err(bad_request("payload: expected an object")),
    };
    // A missing session takes precedence over all other errors.
    let session = || message.session_id(SESSION.of(dialect));
    let (sid, refusal) = match api.request {
        Request::OfAccount(parse) => return Ok((api, parse(fields?)?)),
        Request::OfSession(call) => match (session()?, fields) {
            (sid, Ok(_)) => return Ok((api, call(sid))),
            (sid, Err(refusal)) => (sid, refusal),
        },
        Request::InSession(parse) => match (session()?, fields.and_then(parse)) {
            (sid, Ok(call)) => return Ok((api, ApiCall::InSession { sid, call })),
            (sid, Err(refusal)) => (sid, refusal),
        },
    };
    Err(RequestError { refusal, sid: Some(sid) })
}

/// The answer of the call has this shape.
pub fn write_response(envelope: &ResponseEnvelope, answer: Answer, result: &ShopResult<ResponsePayload>) -> Vec<u8> {
    let payload = match result {
        Ok(payload) => payload,
        Err(refusal) => return write_refusal(envelope, refusal),
    };
    let written = match envelope {
        ResponseEnvelope::Dialect1 { api, session_id } => {
            write_dialect1(api.as_deref(), session_id.as_deref(), answer, payload)
        }
        ResponseEnvelope::Dialect2(_) => match payload {
            ResponsePayload::Json(json) => (answer.write2)(json),
            ResponsePayload::Created(..) => write_ok(json!({})),
            ResponsePayload::LoggedIn(_, session) => write_ok(json!({"sid": session.sid})),
            ResponsePayload::Purchased(purchased) => write_ok(PurchaseView::from(purchased)),
        },
    };
    // Otherwise a database's JSON does not have the expected form.
    written.unwrap_or_else(|_| write_refusal(envelope, &Refusal::no_proper_answer()))
}

fn write_dialect1(
    api: Option<&str>,
    session_id: Option<&str>,
    answer: Answer,
    payload: &ResponsePayload,
) -> serde_json::Result<Vec<u8>> {
    let session_id = match payload {
        ResponsePayload::LoggedIn(_, session) => Some(session.sid.as_str()),
        _ => session_id,
    };
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"type\":\"response\",\"api\":");
    serde_json::to_writer(&mut out, &api)?;
    out.extend_from_slice(b",\"session_id\":");
    serde_json::to_writer(&mut out, &session_id)?;
    out.extend_from_slice(b",\"payload\":");
    let id = |role: Role| format!("{}_id", role.as_str());
    match payload {
        ResponsePayload::Json(json) => (answer.write1)(json, &mut out)?,
        ResponsePayload::Created(role, account) => {
            serde_json::to_writer(&mut out, &json!({id(*role): account.user_id}))?;
        }
        ResponsePayload::LoggedIn(role, session) => {
            serde_json::to_writer(&mut out, &json!({"session_id": session.sid, id(*role): session.user_id}))?;
        }
        ResponsePayload::Purchased(purchased) => serde_json::to_writer(&mut out, &PurchaseView::from(purchased))?,
    }
    out.push(b'}');
    Ok(out)
}

pub fn write_refusal(envelope: &ResponseEnvelope, refusal: &Refusal) -> Vec<u8> {
    #[derive(Serialize)]
    struct ErrorResponse<'a> {
        r#type: &'a str,
        api: Option<&'a str>,
        session_id: Option<&'a str>,
        error: &'a Refusal,
    }
    let written = match envelope {
        ResponseEnvelope::Dialect1 { api, session_id } => serde_json::to_vec(&ErrorResponse {
            r#type: "error",
            api: api.as_deref(),
            session_id: session_id.as_deref(),
            error: refusal,
        }),
        ResponseEnvelope::Dialect2(api) => {
            serde_json::to_vec(&json!({"status": "ERR", "error": in_dialect2(*api, refusal)}))
        }
    };
    // Serialising strings to memory cannot fail.
    written.unwrap_or_default()
}

/// Translates the field with which a refusal's message begins, if it does.
fn in_dialect2<'a>(api: Option<&Api>, refusal: &'a Refusal) -> Cow<'a, Refusal> {
    let renamed = refusal.message.split_once(": ").and_then(|(field, rest)| {
        let own = api?.name_in_dialect2(field)?;
        Some(Refusal::new(refusal.code, format!("{own}: {rest}")))
    });
    renamed.map_or(Cow::Borrowed(refusal), Cow::Owned)
}

/// It is unknown or the other role's.
fn unknown_api(name: &str, dialect: Dialect, role: Role) -> Refusal {
    let others = match role {
        Role::Buyer => ServerKind::Seller,
        Role::Seller => ServerKind::Buyer,
    };
    let is_theirs = Api::find(others, dialect, name).is_some();
    let code = if is_theirs { ErrorCode::Forbidden } else { ErrorCode::UnknownApi };
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    Refusal::new(code, format!("there is no {name} for {}", role.plural()))
}

/// Does not quote the input, as serde's own text may.
fn json_error_text(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => format!("syntax error at line {}, column {}", error.line(), error.column()),
    }
}

// Does not show the session id.
crate::model::debug_fields!(InvalidRequest, |request| refusal: request.refusal);
