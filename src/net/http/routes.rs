//! One route table per API. Requests are matched by it, 404 and 405 follow from it, and the API's description (OpenAPI)
//! is generated from it; so none of them can contradict the others. Who may use a route is what its handler says
//! ([`RouteHandler::access`]): what is described is what is enforced. In debug builds each response is checked against
//! its description ([`Route::assert_conforms`]).

use serde_json::Value;

use super::{
    Body, HttpError, Method, Request, Response, StatusCode, header, method_not_allowed, not_found, path_segments,
};

pub type HandlerResult = Result<Response, HttpError>;

#[derive(Debug)]
pub struct RouteCall<'a> {
    pub request: &'a Request,
    /// The values of the `{…}` of the route's path, in order, decoded.
    pub params: Vec<String>,
}

impl RouteCall<'_> {
    /// Empty if the route has no `{…}` at that position.
    pub fn param(&self, place: usize) -> &str {
        self.params.get(place).map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schema {
    Text,
    OneOf(&'static [&'static str]),
    /// A whole number, 0 or more.
    Integer,
    Number,
    Boolean,
    /// Always this boolean.
    Constant(bool),
    Nullable(&'static Schema),
    List(&'static Schema),
    /// An array with one item of each of these schemas, in this order.
    Tuple(&'static [Schema]),
    /// An object with any field names, whose values have this schema.
    Map(&'static Schema),
    Object(&'static [FieldSchema]),
    /// An object with a name of its own in the description.
    Named(&'static str, &'static [FieldSchema]),
    Any,
}

/// A field of an object, or a query parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FieldSchema {
    pub name: &'static str,
    pub schema: Schema,
    pub is_optional: bool,
    /// The meaning, where the name does not tell it.
    pub description: &'static str,
}

pub const fn field(name: &'static str, schema: Schema) -> FieldSchema {
    FieldSchema { name, schema, is_optional: false, description: "" }
}

pub const fn optional(name: &'static str, schema: Schema) -> FieldSchema {
    FieldSchema { name, schema, is_optional: true, description: "" }
}

impl FieldSchema {
    #[must_use]
    pub const fn described_as(self, description: &'static str) -> FieldSchema {
        FieldSchema { description, ..self }
    }
}

/// The fields of one schema and those of another, for a schema that has both; `N` is how many that are.
pub const fn joined<const N: usize>(first: &[FieldSchema], second: &[FieldSchema]) -> [FieldSchema; N] {
    let (mut all, mut at) = ([field("", Schema::Any); N], 0);
    while at < N {
        all[at] = if at < first.len() { first[at] } else { second[at - first.len()] };
        at += 1;
    }
    all
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteAccess {
    /// Every client that can connect.
    Anybody,
    User,
    Admin,
}

/// HEAD is GET without a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteMethod {
    Get,
    Post,
}

impl RouteMethod {
    pub fn method(self) -> Method {
        match self {
            RouteMethod::Get => Method::GET,
            RouteMethod::Post => Method::POST,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BodyKind {
    /// There is none, or it is ignored.
    None,
    Json(&'static [FieldSchema]),
    /// The body may be missing.
    OptionalJson(&'static [FieldSchema]),
    /// A file's content, of any type and length.
    Content,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ResponseKind {
    /// A JSON object with these fields and `success`.
    Json(&'static [FieldSchema]),
    /// Server-sent events, each with a name and a JSON object.
    Events(&'static [(&'static str, Schema)]),
    /// A file or a range of it.
    Content,
    /// A text of this content type.
    Text(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorCase {
    pub status: u16,
    pub why: &'static str,
    /// The fields in addition to `success` and `error`.
    pub fields: &'static [FieldSchema],
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouteSpec {
    pub method: RouteMethod,
    /// The path, with `{name}` for a parameter.
    pub path: &'static str,
    /// What the route is for, one line.
    pub summary: &'static str,
    pub query: &'static [FieldSchema],
    pub request_body: BodyKind,
    /// The response on success.
    pub response: ResponseKind,
    /// Errors in addition to those that every route has.
    pub error_cases: &'static [ErrorCase],
}

/// What stands behind the routes of an API.
pub trait RouteHandler: Copy + 'static {
    /// Who may use its route: the token that the API requires before it calls the handler.
    fn access(self) -> RouteAccess;
}

/// A route and its handler.
#[derive(Debug, Clone, Copy)]
pub struct Route<H: RouteHandler> {
    pub spec: RouteSpec,
    pub handler: H,
}

impl<H: RouteHandler> Route<H> {
    const fn new(verb: RouteMethod, path: &'static str, summary: &'static str, handler: H) -> Route<H> {
        let spec = RouteSpec {
            method: verb,
            path,
            summary,
            query: &[],
            request_body: BodyKind::None,
            response: ResponseKind::Json(&[]),
            error_cases: &[],
        };
        Route { spec, handler }
    }

    pub const fn get(path: &'static str, summary: &'static str, handler: H) -> Route<H> {
        Route::new(RouteMethod::Get, path, summary, handler)
    }

    pub const fn post(path: &'static str, summary: &'static str, handler: H) -> Route<H> {
        Route::new(RouteMethod::Post, path, summary, handler)
    }

    #[must_use]
    pub const fn query(self, query: &'static [FieldSchema]) -> Route<H> {
        Route { spec: RouteSpec { query, ..self.spec }, ..self }
    }

    #[must_use]
    pub const fn request_body(self, takes: BodyKind) -> Route<H> {
        Route { spec: RouteSpec { request_body: takes, ..self.spec }, ..self }
    }

    #[must_use]
    pub const fn responds_with(self, gives: ResponseKind) -> Route<H> {
        Route { spec: RouteSpec { response: gives, ..self.spec }, ..self }
    }

    #[must_use]
    pub const fn responds_with_json(self, fields: &'static [FieldSchema]) -> Route<H> {
        self.responds_with(ResponseKind::Json(fields))
    }

    #[must_use]
    pub const fn error_cases(self, error_cases: &'static [ErrorCase]) -> Route<H> {
        Route { spec: RouteSpec { error_cases, ..self.spec }, ..self }
    }
}

pub const fn error_case(status: u16, why: &'static str) -> ErrorCase {
    ErrorCase { status, why, fields: &[] }
}

impl RouteSpec {
    /// The name in the metrics: the path without `/api/` and parameters.
    pub fn name(&self) -> &'static str {
        let path = self.path.trim_start_matches('/');
        let path = path.strip_prefix("api/").unwrap_or(path);
        path.split_once("/{").map_or(path, |(before, _)| before)
    }

    /// The path parameters, if the path is this route's.
    fn matches(&self, path: &[String]) -> Option<Vec<String>> {
        let mut params = Vec::new();
        let mut parts = self.path.trim_start_matches('/').split('/');
        for segment in path {
            let part = parts.next()?;
            if part.starts_with('{') {
                params.push(segment.clone());
            } else if part != segment {
                return None;
            }
        }
        parts.next().is_none().then_some(params)
    }

    /// Every error status that it can respond with, including those common to all routes of its kind.
    pub fn statuses(&self, access: RouteAccess) -> Vec<u16> {
        let mut all: Vec<u16> = self.error_cases.iter().map(|refused| refused.status).collect();
        // Host, Origin and malformed requests: see `policy.rs` and `service.rs`.
        all.extend([400, 403, 408, 421, 431, 501, 503]);
        match access {
            RouteAccess::Anybody => {}
            RouteAccess::User | RouteAccess::Admin => all.push(401),
        }
        match self.request_body {
            // An unexpected body is refused like any other.
            BodyKind::None | BodyKind::Json(_) | BodyKind::OptionalJson(_) => all.extend([413, 415]),
            BodyKind::Content => {}
        }
        if self.response == ResponseKind::Content {
            all.extend([304, 412, 416]);
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn parse_json(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|wrong| format!("no JSON: {wrong}"))
}

impl<H: RouteHandler> Route<H> {
    /// What of a response does not conform to the description.
    fn check_response(&self, status: StatusCode, content_type: &str, body: &[u8]) -> Result<(), String> {
        let is_json = content_type == "application/json";
        let fields = if status.is_success() {
            match (self.spec.response, is_json) {
                (ResponseKind::Json(fields), true) => fields,
                (ResponseKind::Json(_), false) => return Err(format!("{content_type} instead of JSON")),
                (ResponseKind::Events(_) | ResponseKind::Content | ResponseKind::Text(_), _) => return Ok(()),
            }
        } else {
            let known = self.spec.error_cases.iter().find(|refused| refused.status == status.as_u16());
            match known {
                Some(refused) => refused.fields,
                None if self.spec.statuses(self.handler.access()).contains(&status.as_u16()) => &[],
                None => return Err(format!("status {status} is not described")),
            }
        };
        if !is_json {
            // A 304 for a file has no body.
            return if body.is_empty() { Ok(()) } else { Err(format!("{content_type} instead of JSON")) };
        }
        let value = parse_json(body)?;
        let common_fields = if status.is_success() {
            &[field("success", Schema::Constant(true))][..]
        } else {
            &[field("success", Schema::Constant(false)), field("error", Schema::Text)][..]
        };
        check_fields(fields, common_fields, &value, "the answer")
    }

    /// Checks a response against the route's description in debug builds: a deviation is a bug in this program, and
    /// ends the request.
    ///
    /// # Panics
    /// When the response does not conform.
    pub fn assert_conforms(&self, response: &Response) {
        if !cfg!(debug_assertions) {
            return;
        }
        let Body::Bytes(body) = &response.body else { return };
        let content_type = response.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if let Err(wrong) = self.check_response(response.status, content_type.unwrap_or_default(), body) {
            let spec = &self.spec;
            let body = String::from_utf8_lossy(body);
            panic!("{:?} {} answered what its description does not have: {wrong}: {body}", spec.method, spec.path);
        }
    }
}

/// The result of matching a request against a route table.
pub enum RouteMatch<'a, H: RouteHandler> {
    /// The route, with the request's path parameters.
    Route(&'static Route<H>, RouteCall<'a>),
    /// The path has these methods.
    MethodNotAllowed(Vec<Method>),
    NotFound,
    /// The path is not valid UTF-8.
    MalformedPath,
}

impl<H: RouteHandler> RouteMatch<'_, H> {
    /// The response if there is no route.
    pub fn error_response(&self) -> Option<Response> {
        match self {
            RouteMatch::Route(..) => None,
            RouteMatch::MethodNotAllowed(methods) => Some(method_not_allowed(methods)),
            RouteMatch::NotFound => Some(not_found()),
            RouteMatch::MalformedPath => Some(HttpError::bad_request("the path: expected UTF-8 behind %XX").into()),
        }
    }
}

/// The routes of a table, each with who may use it, to describe the API.
pub fn specs<H: RouteHandler>(table: &'static [Route<H>]) -> impl Iterator<Item = (RouteAccess, &'static RouteSpec)> {
    table.iter().map(|route| (route.handler.access(), &route.spec))
}

/// Finds the route of a request.
pub fn match_route<'a, H: RouteHandler>(table: &'static [Route<H>], request: &'a Request) -> RouteMatch<'a, H> {
    let Some(path) = path_segments(&request.path) else { return RouteMatch::MalformedPath };
    let mut methods = Vec::new();
    for route in table {
        if let Some(params) = route.spec.matches(&path) {
            if route.spec.method.method() == request.method {
                return RouteMatch::Route(route, RouteCall { request, params });
            }
            methods.push(route.spec.method.method());
        }
    }
    if methods.is_empty() { RouteMatch::NotFound } else { RouteMatch::MethodNotAllowed(methods) }
}

impl Schema {
    /// `at` names the value's position in the error, which says what does not conform.
    pub fn check(&self, value: &Value, at: &str) -> Result<(), String> {
        let expected = |what: &str| Err(format!("{at}: expected {what}, not {value}"));
        match self {
            Schema::Text if !value.is_string() => expected("a text"),
            Schema::OneOf(texts) if !value.as_str().is_some_and(|text| texts.contains(&text)) => {
                expected(&texts.join(" or "))
            }
            Schema::Integer if !value.is_u64() => expected("a whole number"),
            Schema::Number if !value.is_number() => expected("a number"),
            Schema::Boolean if !value.is_boolean() => expected("true or false"),
            Schema::Constant(always) if *value != Value::Bool(*always) => expected(&always.to_string()),
            Schema::Nullable(schema) if !value.is_null() => schema.check(value, at),
            Schema::List(schema) => match value {
                Value::Array(items) => items.iter().try_for_each(|item| schema.check(item, &format!("{at}[]"))),
                _ => expected("a list"),
            },
            Schema::Tuple(schemas) => match value {
                Value::Array(items) if items.len() == schemas.len() => {
                    items.iter().zip(*schemas).try_for_each(|(item, schema)| schema.check(item, &format!("{at}[]")))
                }
                _ => expected("a list of that length"),
            },
            Schema::Map(schema) => match value {
                Value::Object(fields) => fields.values().try_for_each(|item| schema.check(item, &format!("{at}{{}}"))),
                _ => expected("an object"),
            },
            Schema::Object(fields) | Schema::Named(_, fields) => check_fields(fields, &[], value, at),
            _ => Ok(()),
        }
    }
}

fn check_fields(fields: &[FieldSchema], more: &[FieldSchema], value: &Value, at: &str) -> Result<(), String> {
    let Value::Object(object) = value else { return Err(format!("{at}: expected an object, not {value}")) };
    let known = || fields.iter().chain(more);
    for field in known() {
        match object.get(field.name) {
            Some(value) => field.schema.check(value, &format!("{at}.{}", field.name))?,
            None if field.is_optional => {}
            None => return Err(format!("{at}.{}: missing", field.name)),
        }
    }
    match object.keys().find(|name| !known().any(|field| field.name == *name)) {
        Some(name) => Err(format!("{at}.{name}: not described")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::HeaderMap;
    use serde_json::json;

    #[derive(Debug, Clone, Copy)]
    struct Handler(&'static str, RouteAccess);

    impl RouteHandler for Handler {
        fn access(self) -> RouteAccess {
            self.1
        }
    }

    const fn user(name: &'static str) -> Handler {
        Handler(name, RouteAccess::User)
    }

    const TABLE: &[Route<Handler>] = &[
        Route::get("/api/things", "All things", user("list")).responds_with_json(&[
            field("things", Schema::List(&Schema::Named("Thing", &[field("name", Schema::Text)]))),
            optional("next", Schema::Integer),
        ]),
        Route::post("/api/things", "A new thing", user("make"))
            .request_body(BodyKind::Json(&[field("name", Schema::Text)])),
        Route::get("/api/things/{name}/parts/{part}", "A part", user("part")).error_cases(&[
            error_case(404, "no such thing"),
            ErrorCase { status: 409, why: "several", fields: &[field("owners", Schema::List(&Schema::Text))] },
        ]),
        Route::get("/api/about", "About it", Handler("about", RouteAccess::Anybody)),
    ];

    fn request(method: Method, path: &str) -> Request {
        Request {
            method,
            path: path.to_owned(),
            query: String::new(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            source: ([127, 0, 0, 1], 1).into(),
        }
    }

    #[test]
    fn a_request_finds_its_route_by_method_and_path() {
        let found = |method: Method, path: &str| {
            let request = request(method, path);
            match match_route(TABLE, &request) {
                RouteMatch::Route(route, call) => format!("{} {}", route.handler.0, call.params.join(" ")),
                other => other.error_response().unwrap().status.as_u16().to_string(),
            }
        };
        assert_eq!(found(Method::GET, "/api/things"), "list ");
        assert_eq!(found(Method::POST, "/api/things"), "make ");
        assert_eq!(found(Method::GET, "/api/things/a%2Fb/parts/c%20d"), "part a/b c d");
        assert_eq!(found(Method::PUT, "/api/things"), "405");
        assert_eq!(found(Method::POST, "/api/about"), "405");
        for none in ["/", "/api", "/api/things/", "/api/things/a", "/api/things/a/parts", "/api/about/x", "//api/about"]
        {
            assert_eq!(found(Method::GET, none), "404", "{none}");
        }
        assert_eq!(found(Method::GET, "/api/%ff"), "400");
        let request = request(Method::DELETE, "/api/things");
        let refusal = match_route(TABLE, &request).error_response().unwrap();
        assert_eq!(refusal.headers[header::ALLOW], "GET, POST, HEAD");
    }

    #[test]
    fn names_for_who_counts_have_nothing_of_the_client() {
        let names: Vec<_> = TABLE.iter().map(|route| route.spec.name()).collect();
        assert_eq!(names, ["things", "things", "things", "about"]);
    }

    #[test]
    fn answers_are_held_against_their_description() {
        let check = |place: usize, status: u16, body: Value| {
            let status = StatusCode::from_u16(status).unwrap();
            TABLE[place].check_response(status, "application/json", body.to_string().as_bytes())
        };
        assert_eq!(check(0, 200, json!({"success": true, "things": [{"name": "a"}]})), Ok(()));
        assert_eq!(check(0, 200, json!({"success": true, "things": [], "next": 5})), Ok(()));
        assert_eq!(check(0, 401, json!({"success": false, "error": "no"})), Ok(()));
        assert_eq!(check(2, 409, json!({"success": false, "error": "no", "owners": ["a"]})), Ok(()));
        for (place, status, body, wrong) in [
            (0, 200, json!({"success": true}), "the answer.things: missing"),
            (0, 200, json!({"success": true, "things": [{"name": 5}]}), "the answer.things[].name: expected a text"),
            (
                0,
                200,
                json!({"success": true, "things": [{"name": "a", "x": 1}]}),
                "the answer.things[].x: not described",
            ),
            (0, 200, json!({"success": true, "things": [], "next": -5}), "the answer.next: expected a whole number"),
            (0, 200, json!({"success": false, "things": []}), "the answer.success: expected true"),
            (0, 404, json!({"success": false, "error": "no"}), "status 404 Not Found is not described"),
            (2, 409, json!({"success": false, "error": "no"}), "the answer.owners: missing"),
            (3, 401, json!({"success": false, "error": "no"}), "status 401 Unauthorized is not described"),
            (2, 404, json!([]), "the answer: expected an object"),
        ] {
            let message = check(place, status, body).unwrap_err();
            assert!(message.starts_with(wrong), "{message} instead of {wrong}");
        }
    }

    #[test]
    fn shapes_are_told_apart() {
        const THING: &[FieldSchema] = &[field("a", Schema::Nullable(&Schema::Integer)), optional("b", Schema::Any)];
        let thing = Schema::Object(THING);
        for (schema, value, is_so) in [
            (Schema::OneOf(&["x", "y"]), json!("y"), true),
            (Schema::OneOf(&["x", "y"]), json!("z"), false),
            (Schema::Integer, json!(-5), false),
            (Schema::Integer, json!(0.5), false),
            (Schema::Number, json!(0.5), true),
            (Schema::Boolean, json!(0), false),
            (Schema::Tuple(&[Schema::Text, Schema::Integer]), json!(["a", 1]), true),
            (Schema::Tuple(&[Schema::Text, Schema::Integer]), json!(["a"]), false),
            (Schema::Map(&Schema::Integer), json!({"a": 1, "b": 2}), true),
            (Schema::Map(&Schema::Integer), json!({"a": "x"}), false),
            (thing, json!({"a": null}), true),
            (thing, json!({"a": 1, "b": [1]}), true),
            (thing, json!({"b": 1}), false),
        ] {
            assert_eq!(schema.check(&value, "it").is_ok(), is_so, "{schema:?} {value}");
        }
    }
}
