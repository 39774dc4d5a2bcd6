//! Generates an API's OpenAPI 3.1 description from the route table that its requests are matched by.

use serde_json::{Map, Value, json};

use crate::net::http::StatusCode;
use crate::net::http::routes::{
    BodyKind, FieldSchema, ResponseKind, RouteAccess, RouteMethod, RouteSpec, Schema, field,
};

const ERROR_FIELDS: &[FieldSchema] = &[field("success", Schema::Constant(false)), field("error", Schema::Text)];
const SUCCESS_FIELDS: &[FieldSchema] = &[field("success", Schema::Constant(true))];

/// Builds the OpenAPI document of these routes.
pub(super) fn describe(
    title: &str,
    about: &str,
    specs: impl Iterator<Item = (RouteAccess, &'static RouteSpec)>,
) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for (access, spec) in specs {
        let verb = match spec.method {
            RouteMethod::Get => "get",
            RouteMethod::Post => "post",
        };
        let operation = operation(access, spec, verb, &mut schemas);
        let path = paths.entry(spec.path).or_insert_with(|| json!({}));
        path[verb] = operation;
    }
    schemas.insert("Refused".to_owned(), object_schema(ERROR_FIELDS, &[], &mut Map::new()));
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

fn operation(access: RouteAccess, spec: &RouteSpec, verb: &str, schemas: &mut Map<String, Value>) -> Value {
    let id: String = spec.path.chars().filter(|c| !matches!(c, '{' | '}')).collect();
    let id = id.trim_start_matches('/').replace(['/', '-', '.'], "_");
    let mut operation = json!({
        "operationId": format!("{verb}_{id}"),
        "summary": spec.summary,
        "responses": responses(access, spec, schemas),
    });
    // Public routes say so with an empty list: without one, a client could not know what they require.
    operation["security"] = match access {
        RouteAccess::Anybody => json!([]),
        RouteAccess::User | RouteAccess::Admin => json!([{"token": []}]),
    };
    let parameters = parameters(spec, schemas);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = request_body(spec.request_body, schemas) {
        operation["requestBody"] = body;
    }
    operation
}

fn parameters(spec: &RouteSpec, schemas: &mut Map<String, Value>) -> Vec<Value> {
    let in_path = spec.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut all: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .collect();
    for field in spec.query {
        let mut parameter = json!({
            "name": field.name, "in": "query", "required": !field.is_optional, "schema": schema(&field.schema, schemas),
        });
        if !field.description.is_empty() {
            parameter["description"] = field.description.into();
        }
        all.push(parameter);
    }
    all
}

fn request_body(body_kind: BodyKind, schemas: &mut Map<String, Value>) -> Option<Value> {
    let (is_required, content) = match body_kind {
        BodyKind::None => return None,
        BodyKind::Json(fields) => (true, json!({"application/json": {"schema": object_schema(fields, &[], schemas)}})),
        BodyKind::OptionalJson(fields) => {
            (false, json!({"application/json": {"schema": object_schema(fields, &[], schemas)}}))
        }
        BodyKind::Content => (true, json!({"application/octet-stream": {}})),
    };
    Some(json!({"required": is_required, "content": content}))
}

fn responses(access: RouteAccess, spec: &RouteSpec, schemas: &mut Map<String, Value>) -> Value {
    let mut all = Map::new();
    let ok_response = |content: Value| json!({"description": "as asked", "content": content});
    let success_response = match spec.response {
        ResponseKind::Json(fields) => {
            ok_response(json!({"application/json": {"schema": object_schema(fields, SUCCESS_FIELDS, schemas)}}))
        }
        // Without a schema: validators would apply it to each event instead of to the whole stream.
        ResponseKind::Events(events) => {
            let names: Vec<&str> = events.iter().map(|(name, _)| *name).collect();
            let about = format!("server-sent events, each a JSON object: {}", names.join(", "));
            json!({"description": about, "content": {"text/event-stream": {}}})
        }
        ResponseKind::Content => {
            let part = json!({"description": "the part that was asked for", "content": {"*/*": {}}});
            all.insert("206".to_owned(), part);
            json!({"description": "the whole of it", "content": {"*/*": {}}})
        }
        ResponseKind::Text(kind) => ok_response(json!({kind: {"schema": {"type": "string"}}})),
    };
    all.insert("200".to_owned(), success_response);
    for status in spec.statuses(access) {
        let refusal = spec.error_cases.iter().find(|refused| refused.status == status);
        let why = refusal.map_or_else(|| default_description(status), |refused| refused.why);
        let mut response = json!({"description": why});
        // 304 is the only status without a body.
        if status != 304 {
            let fields = refusal.map_or(&[][..], |refused| refused.fields);
            let schema = if fields.is_empty() {
                json!({"$ref": "#/components/schemas/Refused"})
            } else {
                object_schema(fields, ERROR_FIELDS, schemas)
            };
            response["content"] = json!({"application/json": {"schema": schema}});
        }
        all.insert(status.to_string(), response);
    }
    all.into()
}

/// What a status means where the route gives no description of its own.
fn default_description(status: u16) -> &'static str {
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

fn object_schema(fields: &[FieldSchema], common_fields: &[FieldSchema], schemas: &mut Map<String, Value>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in common_fields.iter().chain(fields) {
        let mut property = schema(&field.schema, schemas);
        if !field.description.is_empty() {
            property["description"] = field.description.into();
        }
        properties.insert(field.name.to_owned(), property);
        if !field.is_optional {
            required.push(field.name);
        }
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

fn schema(shape: &Schema, schemas: &mut Map<String, Value>) -> Value {
    match shape {
        Schema::Text => json!({"type": "string"}),
        Schema::OneOf(texts) => json!({"type": "string", "enum": texts}),
        Schema::Integer => json!({"type": "integer", "minimum": 0}),
        Schema::Number => json!({"type": "number"}),
        Schema::Boolean => json!({"type": "boolean"}),
        // With its type as well: some client generators drop a schema that has only `const`.
        Schema::Constant(always) => json!({"type": "boolean", "const": always}),
        Schema::Nullable(shape) => json!({"anyOf": [schema(shape, schemas), {"type": "null"}]}),
        Schema::List(shape) => json!({"type": "array", "items": schema(shape, schemas)}),
        // `prefixItems` would be more precise, but some tools reject it, as they expect one schema here, not a list.
        Schema::Tuple(shapes) => {
            let kinds: Vec<Value> = shapes.iter().map(|shape| schema(shape, schemas)).collect();
            json!({"type": "array", "items": {"anyOf": kinds}, "minItems": shapes.len(), "maxItems": shapes.len()})
        }
        Schema::Map(shape) => json!({"type": "object", "additionalProperties": schema(shape, schemas)}),
        Schema::Object(fields) => object_schema(fields, &[], schemas),
        Schema::Named(name, fields) => {
            if !schemas.contains_key(*name) {
                let schema = object_schema(fields, &[], schemas);
                schemas.insert((*name).to_owned(), schema);
            }
            json!({"$ref": format!("#/components/schemas/{name}")})
        }
        Schema::Any => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http::routes::{ErrorCase, Route, RouteHandler, error_case, optional, specs};
    use crate::share::client_api::ClientApi;
    use crate::share::server_api::ServerApi;
    use std::collections::BTreeMap;

    const THING: Schema = Schema::Named("Thing", &[field("name", Schema::Text), optional("size", Schema::Integer)]);
    impl RouteHandler for RouteAccess {
        fn access(self) -> RouteAccess {
            self
        }
    }

    const TABLE: &[Route<RouteAccess>] = &[
        Route::get("/api/things/{name}", "A thing", RouteAccess::User)
            .query(&[optional("limit", Schema::Integer)])
            .responds_with_json(&[field("thing", THING), field("other", Schema::Nullable(&THING))])
            .error_cases(&[
                error_case(404, "no such thing"),
                ErrorCase { status: 409, why: "several", fields: &[field("owners", Schema::List(&Schema::Text))] },
            ]),
        Route::post("/api/things/{name}", "Makes it", RouteAccess::Anybody).request_body(BodyKind::Content),
        Route::get("/api/things/{name}/content", "What is in it", RouteAccess::User)
            .responds_with(ResponseKind::Content),
    ];

    #[test]
    fn what_is_told_is_what_the_table_has() {
        let description = describe("Things", "All of them.", specs(TABLE));
        assert_eq!((&description["openapi"], &description["info"]["title"]), (&json!("3.1.0"), &json!("Things")));
        let get = &description["paths"]["/api/things/{name}"]["get"];
        assert_eq!((&get["operationId"], &get["summary"]), (&json!("get_api_things_name"), &json!("A thing")));
        let parameters: Vec<(&str, &str, bool)> = get["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it["name"].as_str().unwrap(), it["in"].as_str().unwrap(), it["required"].as_bool().unwrap()))
            .collect();
        assert_eq!(parameters, [("name", "path", true), ("limit", "query", false)]);
        assert_eq!(get["security"], json!([{"token": []}]));
        let response = &get["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(response["required"], json!(["success", "thing", "other"]));
        assert_eq!(response["properties"]["success"], json!({"type": "boolean", "const": true}));
        let reference = json!({"$ref": "#/components/schemas/Thing"});
        assert_eq!(response["properties"]["thing"], reference);
        assert_eq!(response["properties"]["other"], json!({"anyOf": [reference, {"type": "null"}]}));
        assert_eq!(description["components"]["schemas"]["Thing"]["required"], json!(["name"]));
        assert_eq!(get["responses"]["404"]["description"], "no such thing");
        let several = &get["responses"]["409"]["content"]["application/json"]["schema"];
        assert_eq!(several["required"], json!(["success", "error", "owners"]));
        assert!(get["responses"]["401"].is_object() && get["responses"]["507"].is_null());
        let post = &description["paths"]["/api/things/{name}"]["post"];
        assert_eq!((&post["security"], post["responses"]["401"].is_null()), (&json!([]), true));
        assert_eq!(post["requestBody"]["content"]["application/octet-stream"], json!({}));
        let content = &description["paths"]["/api/things/{name}/content"]["get"]["responses"];
        let has_body = |status: &str| content[status]["content"]["application/json"].is_object();
        assert_eq!(["304", "412", "416"].map(has_body), [false, true, true]);
    }

    #[test]
    fn both_apis_are_described_and_one_name_stands_for_one_thing() {
        let specs: [Vec<_>; 2] = [ClientApi::route_specs().collect(), ServerApi::route_specs().collect()];
        for specs in specs {
            let description = describe("x", "x", specs.iter().copied());
            assert_eq!(description["paths"].as_object().unwrap().len(), {
                let mut paths: Vec<&str> = specs.iter().map(|(_, spec)| spec.path).collect();
                paths.sort_unstable();
                paths.dedup();
                paths.len()
            });
            let mut named: BTreeMap<&str, &[FieldSchema]> = BTreeMap::new();
            let mut look = |fields: &'static [FieldSchema]| {
                let mut left: Vec<&'static [FieldSchema]> = vec![fields];
                while let Some(fields) = left.pop() {
                    for field in fields {
                        let mut shape = &field.schema;
                        loop {
                            match shape {
                                Schema::Nullable(inner) | Schema::List(inner) | Schema::Map(inner) => shape = inner,
                                Schema::Named(name, fields) => {
                                    let known = named.entry(name).or_insert(fields);
                                    assert_eq!(known, fields, "{name}");
                                    left.push(fields);
                                    break;
                                }
                                Schema::Object(fields) => {
                                    left.push(fields);
                                    break;
                                }
                                _ => break,
                            }
                        }
                    }
                }
            };
            for (_, spec) in &specs {
                if let ResponseKind::Json(fields) = spec.response {
                    look(fields);
                }
                spec.error_cases.iter().for_each(|refused| look(refused.fields));
            }
            for name in named.keys() {
                assert!(description["components"]["schemas"][name].is_object(), "{name}");
            }
        }
    }
}
