//! An API's description (OpenAPI 3.1), made from the table that its requests are matched by.

use serde_json::{Map, Value, json};

use crate::net::http::StatusCode;
use crate::net::http::routes::{Field, Gives, Outline, Shape, Takes, Verb, Who, field};

/// What every refusal says.
const REFUSED: &[Field] = &[field("success", Shape::Always(false)), field("error", Shape::Text)];
const GRANTED: &[Field] = &[field("success", Shape::Always(true))];

/// The description of these routes.
pub(super) fn describe(title: &str, about: &str, outlines: impl Iterator<Item = &'static Outline>) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for outline in outlines {
        let verb = match outline.verb {
            Verb::Get => "get",
            Verb::Post => "post",
        };
        let operation = operation(outline, verb, &mut schemas);
        let path = paths.entry(outline.path).or_insert_with(|| json!({}));
        path[verb] = operation;
    }
    schemas.insert("Refused".to_owned(), object(REFUSED, &[], &mut Map::new()));
    json!({
        "openapi": "3.1.0",
        "info": {"title": title, "description": about, "version": env!("CARGO_PKG_VERSION")},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    })
}

fn operation(outline: &Outline, verb: &str, schemas: &mut Map<String, Value>) -> Value {
    let id: String = outline.path.chars().filter(|c| !matches!(c, '{' | '}')).collect();
    let id = id.trim_start_matches('/').replace(['/', '-', '.'], "_");
    let mut operation = json!({
        "operationId": format!("{verb}_{id}"),
        "summary": outline.about,
        "responses": responses(outline, schemas),
    });
    // None is said too: what has nothing said of it could want anything.
    operation["security"] = match outline.who {
        Who::Anybody => json!([]),
        Who::User | Who::Admin => json!([{"token": []}]),
    };
    let parameters = parameters(outline, schemas);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = request_body(outline.takes, schemas) {
        operation["requestBody"] = body;
    }
    operation
}

fn parameters(outline: &Outline, schemas: &mut Map<String, Value>) -> Vec<Value> {
    let in_path = outline.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut all: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .collect();
    for field in outline.query {
        let mut parameter = json!({
            "name": field.name, "in": "query", "required": !field.is_optional, "schema": schema(&field.shape, schemas),
        });
        if !field.about.is_empty() {
            parameter["description"] = field.about.into();
        }
        all.push(parameter);
    }
    all
}

fn request_body(takes: Takes, schemas: &mut Map<String, Value>) -> Option<Value> {
    let (is_required, content) = match takes {
        Takes::Nothing => return None,
        Takes::Json(fields) => (true, json!({"application/json": {"schema": object(fields, &[], schemas)}})),
        Takes::MaybeJson(fields) => (false, json!({"application/json": {"schema": object(fields, &[], schemas)}})),
        Takes::Content => (true, json!({"application/octet-stream": {}})),
    };
    Some(json!({"required": is_required, "content": content}))
}

fn responses(outline: &Outline, schemas: &mut Map<String, Value>) -> Value {
    let mut all = Map::new();
    let good = |content: Value| json!({"description": "as asked", "content": content});
    let whole = match outline.gives {
        Gives::Json(fields) => good(json!({"application/json": {"schema": object(fields, GRANTED, schemas)}})),
        // Without a schema: it would be held against each event instead of the whole.
        Gives::Events(events) => {
            let names: Vec<&str> = events.iter().map(|(name, _)| *name).collect();
            let about = format!("server-sent events, each a JSON object: {}", names.join(", "));
            json!({"description": about, "content": {"text/event-stream": {}}})
        }
        Gives::Content => {
            let part = json!({"description": "the part that was asked for", "content": {"*/*": {}}});
            all.insert("206".to_owned(), part);
            json!({"description": "the whole of it", "content": {"*/*": {}}})
        }
        Gives::Text(kind) => good(json!({kind: {"schema": {"type": "string"}}})),
    };
    all.insert("200".to_owned(), whole);
    for status in outline.statuses() {
        let told = outline.refuses.iter().find(|refused| refused.status == status);
        let why = told.map_or_else(|| usual(status), |refused| refused.why);
        let mut answer = json!({"description": why});
        // It alone has no body.
        if status != 304 {
            let more = told.map_or(&[][..], |refused| refused.fields);
            let schema = if more.is_empty() {
                json!({"$ref": "#/components/schemas/Refused"})
            } else {
                object(more, REFUSED, schemas)
            };
            answer["content"] = json!({"application/json": {"schema": schema}});
        }
        all.insert(status.to_string(), answer);
    }
    all.into()
}

/// What a status means where the route says nothing of its own.
fn usual(status: u16) -> &'static str {
    match status {
        304 => "it is still what is known",
        400 => "a field, the query or the request itself is not as it must be",
        401 => "the token is missing, or not good",
        403 => "not with this token, not from this page, or not without TLS",
        408 => "the request was not complete in time",
        412 => "it is not what is known any more",
        413 => "the body is too long",
        415 => "the body is no JSON",
        416 => "the file has no such part",
        421 => "the Host is no name of this port",
        431 => "the headers are too long",
        501 => "the body is coded in a way that is not known: chunked alone is",
        503 => "too much at once, or what is needed for it is away; try again",
        status => StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default(),
    }
}

fn object(fields: &[Field], more: &[Field], schemas: &mut Map<String, Value>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in more.iter().chain(fields) {
        let mut shown = schema(&field.shape, schemas);
        if !field.about.is_empty() {
            shown["description"] = field.about.into();
        }
        properties.insert(field.name.to_owned(), shown);
        if !field.is_optional {
            required.push(field.name);
        }
    }
    let mut object = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

fn schema(shape: &Shape, schemas: &mut Map<String, Value>) -> Value {
    match shape {
        Shape::Text => json!({"type": "string"}),
        Shape::OneOf(texts) => json!({"type": "string", "enum": texts}),
        Shape::Whole => json!({"type": "integer", "minimum": 0}),
        Shape::Number => json!({"type": "number"}),
        Shape::Flag => json!({"type": "boolean"}),
        // Beside its type: some of those who make clients from this drop it else.
        Shape::Always(always) => json!({"type": "boolean", "const": always}),
        Shape::Nullable(shape) => json!({"anyOf": [schema(shape, schemas), {"type": "null"}]}),
        Shape::List(shape) => json!({"type": "array", "items": schema(shape, schemas)}),
        // By what each of them may be, and their number: `prefixItems` would say more, and some of those who read
        // this take it for a list of schemas where one is expected.
        Shape::Row(shapes) => {
            let kinds: Vec<Value> = shapes.iter().map(|shape| schema(shape, schemas)).collect();
            json!({"type": "array", "items": {"anyOf": kinds}, "minItems": shapes.len(), "maxItems": shapes.len()})
        }
        Shape::Map(shape) => json!({"type": "object", "additionalProperties": schema(shape, schemas)}),
        Shape::Object(fields) => object(fields, &[], schemas),
        Shape::Named(name, fields) => {
            if !schemas.contains_key(*name) {
                let object = object(fields, &[], schemas);
                schemas.insert((*name).to_owned(), object);
            }
            json!({"$ref": format!("#/components/schemas/{name}")})
        }
        Shape::Any => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::routes::{Refused, Route, optional, refused};
    use crate::share::client_api::ClientApi;
    use crate::share::server_api::ServerApi;
    use std::collections::BTreeMap;

    const THING: Shape = Shape::Named("Thing", &[field("name", Shape::Text), optional("size", Shape::Whole)]);
    const TABLE: &[Route<()>] = &[
        Route::get("/api/things/{name}", "A thing", ())
            .query(&[optional("limit", Shape::Whole)])
            .answers(&[field("thing", THING), field("other", Shape::Nullable(&THING))])
            .refuses(&[
                refused(404, "no such thing"),
                Refused { status: 409, why: "several", fields: &[field("owners", Shape::List(&Shape::Text))] },
            ]),
        Route::post("/api/things/{name}", "Makes it", ()).by(Who::Anybody).takes(Takes::Content),
        Route::get("/api/things/{name}/content", "What is in it", ()).gives(Gives::Content),
    ];

    #[test]
    fn what_is_told_is_what_the_table_has() {
        let told = describe("Things", "All of them.", TABLE.iter().map(|route| &route.outline));
        assert_eq!((&told["openapi"], &told["info"]["title"]), (&json!("3.1.0"), &json!("Things")));
        let get = &told["paths"]["/api/things/{name}"]["get"];
        assert_eq!((&get["operationId"], &get["summary"]), (&json!("get_api_things_name"), &json!("A thing")));
        let parameters: Vec<(&str, &str, bool)> = get["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it["name"].as_str().unwrap(), it["in"].as_str().unwrap(), it["required"].as_bool().unwrap()))
            .collect();
        assert_eq!(parameters, [("name", "path", true), ("limit", "query", false)]);
        assert_eq!(get["security"], json!([{"token": []}]));
        let answer = &get["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(answer["required"], json!(["success", "thing", "other"]));
        assert_eq!(answer["properties"]["success"], json!({"type": "boolean", "const": true}));
        let reference = json!({"$ref": "#/components/schemas/Thing"});
        assert_eq!(answer["properties"]["thing"], reference);
        assert_eq!(answer["properties"]["other"], json!({"anyOf": [reference, {"type": "null"}]}));
        assert_eq!(told["components"]["schemas"]["Thing"]["required"], json!(["name"]));
        assert_eq!(get["responses"]["404"]["description"], "no such thing");
        let several = &get["responses"]["409"]["content"]["application/json"]["schema"];
        assert_eq!(several["required"], json!(["success", "error", "owners"]));
        assert!(get["responses"]["401"].is_object() && get["responses"]["507"].is_null());
        let post = &told["paths"]["/api/things/{name}"]["post"];
        assert_eq!((&post["security"], post["responses"]["401"].is_null()), (&json!([]), true));
        assert_eq!(post["requestBody"]["content"]["application/octet-stream"], json!({}));
        let content = &told["paths"]["/api/things/{name}/content"]["get"]["responses"];
        let has_body = |status: &str| content[status]["content"]["application/json"].is_object();
        assert_eq!(["304", "412", "416"].map(has_body), [false, true, true]);
    }

    #[test]
    fn both_apis_are_described_and_one_name_stands_for_one_thing() {
        let outlines: [Vec<&Outline>; 2] = [ClientApi::outlines().collect(), ServerApi::outlines().collect()];
        for outlines in outlines {
            let told = describe("x", "x", outlines.iter().copied());
            assert_eq!(told["paths"].as_object().unwrap().len(), {
                let mut paths: Vec<&str> = outlines.iter().map(|outline| outline.path).collect();
                paths.sort_unstable();
                paths.dedup();
                paths.len()
            });
            let mut named: BTreeMap<&str, &[Field]> = BTreeMap::new();
            let mut look = |fields: &'static [Field]| {
                let mut left: Vec<&'static [Field]> = vec![fields];
                while let Some(fields) = left.pop() {
                    for field in fields {
                        let mut shape = &field.shape;
                        loop {
                            match shape {
                                Shape::Nullable(inner) | Shape::List(inner) | Shape::Map(inner) => shape = inner,
                                Shape::Named(name, fields) => {
                                    let known = named.entry(name).or_insert(fields);
                                    assert_eq!(known, fields, "{name}");
                                    left.push(fields);
                                    break;
                                }
                                Shape::Object(fields) => {
                                    left.push(fields);
                                    break;
                                }
                                _ => break,
                            }
                        }
                    }
                }
            };
            for outline in &outlines {
                if let Gives::Json(fields) = outline.gives {
                    look(fields);
                }
                outline.refuses.iter().for_each(|refused| look(refused.fields));
            }
            for name in named.keys() {
                assert!(told["components"]["schemas"][name].is_object(), "{name}");
            }
        }
    }
}
