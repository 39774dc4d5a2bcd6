//! One table an API: which routes there are, who may ask, what they take, and every answer that they give.
//!
//! The table is what requests are matched by, what 404 and 405 are told from, and what the API's description (OpenAPI)
//! is made of; so none of them can say something else than the others. What a route answers is described by [`Shape`]s.
//! A program that was built for tests holds each answer against its description ([`Route::hold`]).

use serde_json::Value;

use super::{Body, Method, Refusal, Request, Response, StatusCode, header, method_not_allowed, not_found, segments};

/// What a handler says.
pub type Answered = Result<Response, Refusal>;

/// A request that a route was found for.
#[derive(Debug)]
pub struct Call<'a> {
    /// The request.
    pub request: &'a Request,
    /// What stands for the `{…}` of the route's path, in order, decoded.
    pub params: Vec<String>,
}

impl Call<'_> {
    /// What stands for the route's `{…}` at that place; empty where the route has none.
    pub fn param(&self, place: usize) -> &str {
        self.params.get(place).map_or("", String::as_str)
    }
}

/// What a value is, as JSON has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// A text.
    Text,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A whole number, 0 or more.
    Whole,
    /// Any number.
    Number,
    /// True or false.
    Flag,
    /// Always this.
    Always(bool),
    /// That, or null.
    Nullable(&'static Shape),
    /// A list of those.
    List(&'static Shape),
    /// So many of different kinds, one after the other.
    Row(&'static [Shape]),
    /// An object with names of any kind, whose values are those.
    Map(&'static Shape),
    /// An object with these fields.
    Object(&'static [Field]),
    /// The same under a name of its own in the description.
    Named(&'static str, &'static [Field]),
    /// Anything.
    Any,
}

/// A field of an object, of a query or of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub shape: Shape,
    /// It may be left out.
    pub is_optional: bool,
    /// What it says, where the name does not.
    pub about: &'static str,
}

/// A field that is always there.
pub const fn field(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, is_optional: false, about: "" }
}

/// One that may be left out.
pub const fn optional(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, is_optional: true, about: "" }
}

impl Field {
    /// The same with a word about it.
    #[must_use]
    pub const fn about(self, about: &'static str) -> Field {
        Field { about, ..self }
    }
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Whoever reaches the port.
    Anybody,
    /// Whoever bears the token of a user.
    User,
    /// Whoever bears the admin's token.
    Admin,
}

/// The methods that routes have. (HEAD is GET without a body.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET and HEAD.
    Get,
    /// POST.
    Post,
}

impl Verb {
    /// As HTTP has it.
    pub fn method(self) -> Method {
        match self {
            Verb::Get => Method::GET,
            Verb::Post => Method::POST,
        }
    }
}

/// What a request's body is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Takes {
    /// There is none, or nobody looks at it.
    Nothing,
    /// A JSON object with these fields.
    Json(&'static [Field]),
    /// The same, which may be left out.
    MaybeJson(&'static [Field]),
    /// A file's content, of any type and length.
    Content,
}

/// What the answer is when all went well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gives {
    /// A JSON object with these fields beside `success`.
    Json(&'static [Field]),
    /// Server-sent events, each of which has a name and a JSON object.
    Events(&'static [(&'static str, Shape)]),
    /// A file, or the part of it that was asked for.
    Content,
    /// A text of that type.
    Text(&'static str),
}

/// A status other than 200, why it is given, and what it says beside `success` and `error`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refused {
    /// The status.
    pub status: u16,
    /// When it is given.
    pub why: &'static str,
    /// Which fields it has beside the error.
    pub fields: &'static [Field],
}

/// What a route is, whoever handles it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outline {
    /// Its method.
    pub verb: Verb,
    /// Its path, with `{name}` for a part that may be anything.
    pub path: &'static str,
    /// What it is for, one line.
    pub about: &'static str,
    /// Who may ask.
    pub who: Who,
    /// What its query may have.
    pub query: &'static [Field],
    /// What its body is.
    pub takes: Takes,
    /// What it answers.
    pub gives: Gives,
    /// What it refuses, beside what every route does.
    pub refuses: &'static [Refused],
}

/// A route, and what handles it.
#[derive(Debug, Clone, Copy)]
pub struct Route<H: Copy + 'static> {
    /// What it is.
    pub outline: Outline,
    /// What handles it.
    pub handler: H,
}

impl<H: Copy> Route<H> {
    const fn new(verb: Verb, path: &'static str, about: &'static str, handler: H) -> Route<H> {
        let outline = Outline {
            verb,
            path,
            about,
            who: Who::User,
            query: &[],
            takes: Takes::Nothing,
            gives: Gives::Json(&[]),
            refuses: &[],
        };
        Route { outline, handler }
    }

    /// One that is read, with a user's token.
    pub const fn get(path: &'static str, about: &'static str, handler: H) -> Route<H> {
        Route::new(Verb::Get, path, about, handler)
    }

    /// One that changes something, with a user's token.
    pub const fn post(path: &'static str, about: &'static str, handler: H) -> Route<H> {
        Route::new(Verb::Post, path, about, handler)
    }

    /// The same for others.
    #[must_use]
    pub const fn by(self, who: Who) -> Route<H> {
        Route { outline: Outline { who, ..self.outline }, ..self }
    }

    /// The same with a query.
    #[must_use]
    pub const fn query(self, query: &'static [Field]) -> Route<H> {
        Route { outline: Outline { query, ..self.outline }, ..self }
    }

    /// The same with a body.
    #[must_use]
    pub const fn takes(self, takes: Takes) -> Route<H> {
        Route { outline: Outline { takes, ..self.outline }, ..self }
    }

    /// The same with an answer.
    #[must_use]
    pub const fn gives(self, gives: Gives) -> Route<H> {
        Route { outline: Outline { gives, ..self.outline }, ..self }
    }

    /// The same with an answer of these fields.
    #[must_use]
    pub const fn answers(self, fields: &'static [Field]) -> Route<H> {
        self.gives(Gives::Json(fields))
    }

    /// The same with what it refuses.
    #[must_use]
    pub const fn refuses(self, refuses: &'static [Refused]) -> Route<H> {
        Route { outline: Outline { refuses, ..self.outline }, ..self }
    }
}

/// A status that a route refuses by.
pub const fn refused(status: u16, why: &'static str) -> Refused {
    Refused { status, why, fields: &[] }
}

impl Outline {
    /// Its name for those who count requests: the path without `/api/` and what varies.
    pub fn name(&self) -> &'static str {
        let path = self.path.trim_start_matches('/');
        let path = path.strip_prefix("api/").unwrap_or(path);
        path.split_once("/{").map_or(path, |(before, _)| before)
    }

    /// What stands for each `{…}` if the path is this route's.
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

    /// Holds an answer of this route against its description.
    ///
    /// # Errors
    /// What of it is not as described.
    pub fn check(&self, status: StatusCode, content_type: &str, body: &[u8]) -> Result<(), String> {
        let is_json = content_type == "application/json";
        let fields = if status.is_success() {
            match (self.gives, is_json) {
                (Gives::Json(fields), true) => fields,
                (Gives::Json(_), false) => return Err(format!("{content_type} instead of JSON")),
                (Gives::Events(_) | Gives::Content | Gives::Text(_), _) => return Ok(()),
            }
        } else {
            let known = self.refuses.iter().find(|refused| refused.status == status.as_u16());
            match known {
                Some(refused) => refused.fields,
                None if self.statuses().contains(&status.as_u16()) => &[],
                None => return Err(format!("status {status} is not described")),
            }
        };
        if !is_json {
            // 304 of a file has no body.
            return if body.is_empty() { Ok(()) } else { Err(format!("{content_type} instead of JSON")) };
        }
        let value = parsed(body)?;
        let said = if status.is_success() {
            &[field("success", Shape::Always(true))][..]
        } else {
            &[field("success", Shape::Always(false)), field("error", Shape::Text)][..]
        };
        check_fields(fields, said, &value, "the answer")
    }

    /// Every status that it gives but the good one, the common ones of its kind among them.
    pub fn statuses(&self) -> Vec<u16> {
        let mut all: Vec<u16> = self.refuses.iter().map(|refused| refused.status).collect();
        // Host, Origin and what is no HTTP: see `rules.rs` and `service.rs`.
        all.extend([400, 403, 408, 421, 431, 501, 503]);
        match self.who {
            Who::Anybody => {}
            Who::User | Who::Admin => all.push(401),
        }
        match self.takes {
            // A body that nobody asked for is refused like any other.
            Takes::Nothing | Takes::Json(_) | Takes::MaybeJson(_) => all.extend([413, 415]),
            Takes::Content => {}
        }
        if self.gives == Gives::Content {
            all.extend([304, 412, 416]);
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn parsed(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|wrong| format!("no JSON: {wrong}"))
}

impl<H: Copy> Route<H> {
    /// Holds an answer against the route's description, where the program was built for tests: what does not fit is
    /// a mistake in this program, and stops the request.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn hold(&self, response: &Response) {
        if !cfg!(debug_assertions) {
            return;
        }
        let Body::Bytes(body) = &response.body else { return };
        let content_type = response.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if let Err(wrong) = self.outline.check(response.status, content_type.unwrap_or_default(), body) {
            let outline = &self.outline;
            let body = String::from_utf8_lossy(body);
            panic!("{:?} {} answered what its description does not have: {wrong}: {body}", outline.verb, outline.path);
        }
    }
}

/// What the table says of a request.
pub enum Found<'a, H: Copy + 'static> {
    /// This route, with what stands for its `{…}`.
    Route(&'static Route<H>, Call<'a>),
    /// The path is known, and takes these methods.
    OtherMethods(Vec<Method>),
    /// There is no such path.
    Nothing,
    /// The path is none.
    NoPath,
}

impl<H: Copy> Found<'_, H> {
    /// The answer where there is no route.
    pub fn refusal(&self) -> Option<Response> {
        match self {
            Found::Route(..) => None,
            Found::OtherMethods(methods) => Some(method_not_allowed(methods)),
            Found::Nothing => Some(not_found()),
            Found::NoPath => Some(Refusal::bad("the path: expected UTF-8 behind %XX").into()),
        }
    }
}

/// Looks a request up.
pub fn find<'a, H: Copy>(table: &'static [Route<H>], request: &'a Request) -> Found<'a, H> {
    let Some(path) = segments(&request.path) else { return Found::NoPath };
    let mut methods = Vec::new();
    for route in table {
        if let Some(params) = route.outline.matches(&path) {
            if route.outline.verb.method() == request.method {
                return Found::Route(route, Call { request, params });
            }
            methods.push(route.outline.verb.method());
        }
    }
    if methods.is_empty() { Found::Nothing } else { Found::OtherMethods(methods) }
}

impl Shape {
    /// Whether a value is of that shape.
    ///
    /// # Errors
    /// What is not, and where.
    pub fn check(&self, value: &Value, at: &str) -> Result<(), String> {
        let expected = |what: &str| Err(format!("{at}: expected {what}, not {value}"));
        match self {
            Shape::Text if !value.is_string() => expected("a text"),
            Shape::OneOf(texts) if !value.as_str().is_some_and(|text| texts.contains(&text)) => {
                expected(&texts.join(" or "))
            }
            Shape::Whole if !value.is_u64() => expected("a whole number"),
            Shape::Number if !value.is_number() => expected("a number"),
            Shape::Flag if !value.is_boolean() => expected("true or false"),
            Shape::Always(always) if *value != Value::Bool(*always) => expected(&always.to_string()),
            Shape::Nullable(shape) if !value.is_null() => shape.check(value, at),
            Shape::List(shape) => match value {
                Value::Array(items) => items.iter().try_for_each(|item| shape.check(item, &format!("{at}[]"))),
                _ => expected("a list"),
            },
            Shape::Row(shapes) => match value {
                Value::Array(items) if items.len() == shapes.len() => {
                    items.iter().zip(*shapes).try_for_each(|(item, shape)| shape.check(item, &format!("{at}[]")))
                }
                _ => expected("a list of that length"),
            },
            Shape::Map(shape) => match value {
                Value::Object(fields) => fields.values().try_for_each(|item| shape.check(item, &format!("{at}{{}}"))),
                _ => expected("an object"),
            },
            Shape::Object(fields) | Shape::Named(_, fields) => check_fields(fields, &[], value, at),
            _ => Ok(()),
        }
    }
}

fn check_fields(fields: &[Field], more: &[Field], value: &Value, at: &str) -> Result<(), String> {
    let Value::Object(object) = value else { return Err(format!("{at}: expected an object, not {value}")) };
    let known = || fields.iter().chain(more);
    for field in known() {
        match object.get(field.name) {
            Some(value) => field.shape.check(value, &format!("{at}.{}", field.name))?,
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

    type Name = &'static str;
    const TABLE: &[Route<Name>] = &[
        Route::get("/api/things", "All things", "list").answers(&[
            field("things", Shape::List(&Shape::Named("Thing", &[field("name", Shape::Text)]))),
            optional("next", Shape::Whole),
        ]),
        Route::post("/api/things", "A new thing", "make").takes(Takes::Json(&[field("name", Shape::Text)])),
        Route::get("/api/things/{name}/parts/{part}", "A part", "part").refuses(&[
            refused(404, "no such thing"),
            Refused { status: 409, why: "several", fields: &[field("owners", Shape::List(&Shape::Text))] },
        ]),
        Route::get("/api/about", "About it", "about").by(Who::Anybody),
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
            match find(TABLE, &request) {
                Found::Route(route, call) => format!("{} {}", route.handler, call.params.join(" ")),
                other => other.refusal().unwrap().status.as_u16().to_string(),
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
        let refusal = find(TABLE, &request).refusal().unwrap();
        assert_eq!(refusal.headers[header::ALLOW], "GET, POST, HEAD");
    }

    #[test]
    fn names_for_who_counts_have_nothing_of_the_client() {
        let names: Vec<_> = TABLE.iter().map(|route| route.outline.name()).collect();
        assert_eq!(names, ["things", "things", "things", "about"]);
    }

    #[test]
    fn answers_are_held_against_their_description() {
        let check = |place: usize, status: u16, body: Value| {
            let status = StatusCode::from_u16(status).unwrap();
            TABLE[place].outline.check(status, "application/json", body.to_string().as_bytes())
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
            let said = check(place, status, body).unwrap_err();
            assert!(said.starts_with(wrong), "{said} instead of {wrong}");
        }
    }

    #[test]
    fn shapes_are_told_apart() {
        const THING: &[Field] = &[field("a", Shape::Nullable(&Shape::Whole)), optional("b", Shape::Any)];
        let thing = Shape::Object(THING);
        for (shape, value, is_so) in [
            (Shape::OneOf(&["x", "y"]), json!("y"), true),
            (Shape::OneOf(&["x", "y"]), json!("z"), false),
            (Shape::Whole, json!(-5), false),
            (Shape::Whole, json!(0.5), false),
            (Shape::Number, json!(0.5), true),
            (Shape::Flag, json!(0), false),
            (Shape::Row(&[Shape::Text, Shape::Whole]), json!(["a", 1]), true),
            (Shape::Row(&[Shape::Text, Shape::Whole]), json!(["a"]), false),
            (Shape::Map(&Shape::Whole), json!({"a": 1, "b": 2}), true),
            (Shape::Map(&Shape::Whole), json!({"a": "x"}), false),
            (thing, json!({"a": null}), true),
            (thing, json!({"a": 1, "b": [1]}), true),
            (thing, json!({"b": 1}), false),
        ] {
            assert_eq!(shape.check(&value, "it").is_ok(), is_so, "{shape:?} {value}");
        }
    }
}
