//! The OpenAPI 3.1 document, generated from [`OPERATIONS`] and the schemas of the types. It is
//! committed as `openapi.json` and served from there. A test fails if that file is out of date.
//!
//! Schemas of requests describe what a client may send. Schemas of answers describe what a client
//! can rely on. (These are the two contracts of `schemars`.) Their dialect is OpenAPI 3.1's own,
//! JSON Schema 2020-12.

use std::collections::{BTreeMap, BTreeSet};

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::API_VERSION;
use crate::bounds::MAX_NAME_BYTES;
use crate::operations::{Answered, Body, OPERATIONS, Operation, Parameter, ParameterValue};
use crate::types::problem::{Problem, ProblemKind};
use crate::types::{about, audit, cordon, event, policy, run, script, tenant, worker};

/// Where the schemas are in the document.
const SCHEMAS: &str = "/components/schemas";

/// The document as text, as it is committed.
#[must_use]
pub fn text() -> String {
    let mut text = format!("{:#}", document());
    text.push('\n');
    text
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in OPERATIONS {
        let described = describe(operation, &mut schemas);
        paths.entry(operation.path).or_default().insert(operation.method.as_str().to_lowercase(), described);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "enisled",
            "version": API_VERSION,
            "description": "Runs untrusted JavaScript, each tenant on an island of its own. HTTP/1.1 on a Unix socket; \
                a caller is identified by the uid of its process.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas.all() },
    })
}

/// Schemas of requests and of answers, each collected under its own contract.
struct Schemas {
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = || {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = SCHEMAS.into();
            settings
        };
        Self {
            requests: settings().with_transform(WithoutNull).into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    fn of(&mut self, body: Body) -> Value {
        let (requests, answers) = (&mut self.requests, &mut self.answers);
        let schema = match body {
            Body::Text => json!({ "type": "string" }).try_into().unwrap_or_default(),
            Body::Document => json!({ "type": "object" }).try_into().unwrap_or_default(),
            Body::Events => answers.subschema_for::<event::EventLine>(),
            Body::AuditHead => answers.subschema_for::<audit::AuditHead>(),
            Body::Answer => answers.subschema_for::<run::Answer>(),
            Body::CordonRequest => requests.subschema_for::<cordon::CordonRequest>(),
            Body::Info => answers.subschema_for::<about::Info>(),
            Body::LoadRequest => requests.subschema_for::<run::LoadRequest>(),
            Body::PolicyRequest => requests.subschema_for::<policy::PolicyRequest>(),
            Body::RunRequest => requests.subschema_for::<run::RunRequest>(),
            Body::Script => answers.subschema_for::<script::Script>(),
            Body::ScriptRequest => requests.subschema_for::<script::ScriptRequest>(),
            Body::TenantPage => answers.subschema_for::<tenant::TenantPage>(),
            Body::TenantView => answers.subschema_for::<tenant::TenantView>(),
            Body::Version => answers.subschema_for::<about::Version>(),
            Body::WorkerPage => answers.subschema_for::<worker::WorkerPage>(),
        };
        schema.to_value()
    }

    /// All schemas by name. If both contracts define a name, a test checks that the two schemas are
    /// equal.
    fn all(mut self) -> BTreeMap<String, Value> {
        let answers = self.answers.take_definitions(true);
        answers.into_iter().chain(self.requests.take_definitions(true)).collect()
    }
}

/// Removes `null` from the types of a request's optional fields: a client writes a value or leaves
/// the field out. A field whose only value is `null` (`globalOutbound`) keeps it.
#[derive(Debug, Clone)]
struct WithoutNull;

impl Transform for WithoutNull {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let is_null = |value: &Value| value == "null" || *value == json!({ "type": "null" });
        if let Some(Value::Array(kinds)) = schema.get_mut("type") {
            kinds.retain(|kind| !is_null(kind));
            if let [kind] = kinds.as_mut_slice() {
                let kind = kind.take();
                schema.insert("type".to_owned(), kind);
            }
        }
        if let Some(Value::Array(any)) = schema.get_mut("anyOf") {
            any.retain(|one| !is_null(one));
            if let [one] = any.as_mut_slice() {
                let one = one.take();
                schema.remove("anyOf");
                schema.ensure_object().extend(one.as_object().cloned().unwrap_or_default());
            }
        }
    }
}

fn describe(operation: &Operation, schemas: &mut Schemas) -> Value {
    let parameters: Vec<_> = in_path(operation.path).chain(operation.query.iter().map(in_query)).collect();
    let mut answers: BTreeMap<String, Value> = BTreeMap::new();
    for answer in operation.answers {
        answers.insert(answer.status.to_string(), answered(answer, schemas));
    }
    let statuses: BTreeSet<_> = operation.problems.iter().map(|problem| problem.status()).collect();
    for status in statuses {
        answers.insert(status.to_string(), problem(status, operation.problems, schemas));
    }
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "description": operation.who.in_words(),
        "responses": answers,
    });
    if !parameters.is_empty() {
        add(&mut described, "parameters", parameters.into());
    }
    if let Some(body) = operation.request {
        let required = body != Body::RunRequest;
        let body = json!({ "required": required, "content": content(body, schemas) });
        add(&mut described, "requestBody", body);
    }
    described
}

fn add(described: &mut Value, field: &str, value: Value) {
    described.as_object_mut().map(|described| described.insert(field.to_owned(), value));
}

/// The parameters of a path. Script ids follow the same rules as tenant names.
fn in_path(path: &'static str) -> impl Iterator<Item = Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| {
        let pattern = format!("^[A-Za-z0-9][A-Za-z0-9._-]{{0,{}}}$", MAX_NAME_BYTES - 1);
        let schema = json!({ "type": "string", "pattern": pattern });
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    })
}

fn in_query(parameter: &Parameter) -> Value {
    let schema = match parameter.value {
        ParameterValue::Flag => json!({ "type": "integer", "enum": [0, 1] }),
        ParameterValue::Text => json!({ "type": "string" }),
        ParameterValue::UpTo(most) => json!({ "type": "integer", "minimum": 1, "maximum": most }),
    };
    json!({
        "name": parameter.name, "in": "query", "required": parameter.required, "description": parameter.summary,
        "schema": schema,
    })
}

fn content(body: Body, schemas: &mut Schemas) -> Value {
    let kind = match body {
        Body::Text => "text/plain",
        Body::Events => "application/x-ndjson",
        _ => "application/json",
    };
    json!({ kind: { "schema": schemas.of(body) } })
}

fn answered(answer: &Answered, schemas: &mut Schemas) -> Value {
    match answer.body {
        Some(body) => json!({ "description": answer.summary, "content": content(body, schemas) }),
        None => json!({ "description": answer.summary }),
    }
}

/// All problems of an operation with this status.
fn problem(status: u16, problems: &[ProblemKind], schemas: &mut Schemas) -> Value {
    let these: Vec<_> = problems.iter().filter(|problem| problem.status() == status).collect();
    let sentences: Vec<_> =
        these.iter().map(|problem| format!("`{}`: {}.", problem.urn(), problem.parts().2)).collect();
    let schema = schemas.answers.subschema_for::<Problem>();
    let mut described =
        json!({ "description": sentences.join(" "), "content": { "application/problem+json": { "schema": schema } } });
    if these.iter().any(|problem| problem.says_when_to_retry()) {
        let header = json!({ "description": "In seconds.", "schema": { "type": "integer" } });
        add(&mut described, "headers", json!({ "Retry-After": header }));
    }
    described
}

/// The JSON field names of a type that is an object, or a choice of objects.
#[must_use]
pub fn fields_of<T: JsonSchema>() -> BTreeSet<String> {
    let schema = SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    let several = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    let objects = several.chain([&schema]).filter_map(|one| one.get("properties")?.as_object());
    objects.flat_map(Map::keys).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_the_generated_one() {
        assert!(text() == crate::OPENAPI, "daemon/api/openapi.json is out of date; run cargo xtask generate");
    }

    #[test]
    fn a_name_stands_for_one_schema() {
        let mut schemas = Schemas::new();
        for operation in OPERATIONS {
            let bodies = operation.request.into_iter().chain(operation.answers.iter().filter_map(|answer| answer.body));
            bodies.for_each(|body| drop(schemas.of(body)));
        }
        let (answers, requests) = (schemas.answers.take_definitions(true), schemas.requests.take_definitions(true));
        for (name, schema) in &requests {
            assert!(answers.get(name).is_none_or(|answered| answered == schema), "{name} stands for two schemas");
        }
    }

    #[test]
    fn every_reference_resolves_and_every_schema_is_referenced() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let all: BTreeSet<_> = schemas.keys().map(|name| format!("#{SCHEMAS}/{name}")).collect();
        assert_eq!(found, all);
    }

    #[test]
    fn a_request_is_closed_and_allows_null_only_where_it_is_the_only_value() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        for name in ["LoadRequest", "RunRequest", "ScriptRequest", "PolicyRequest", "CordonRequest", "RequestedLimits"]
        {
            let closed =
                schemas[name]["additionalProperties"] == false || schemas[name]["unevaluatedProperties"] == false;
            assert!(closed, "{name}: {:#}", schemas[name]);
            assert_eq!(schemas[name].get("required").is_some(), name == "CordonRequest", "{name}");
            for (field, schema) in schemas[name]["properties"].as_object().unwrap() {
                let null = schema.to_string().contains("null\"");
                assert_eq!(null, field == "globalOutbound", "{name}.{field}: {schema}");
            }
        }
    }

    #[test]
    fn fields_have_their_json_names() {
        let quota = fields_of::<policy::Quota>();
        assert_eq!(quota, ["burst", "inFlight", "perSecond"].map(str::to_owned).into());
        assert!(fields_of::<run::LoadRequest>().is_superset(&fields_of::<run::Call>()));
    }
}
