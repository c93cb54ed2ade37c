//! The API's own description (OpenAPI 3.1), made of the route table, the handlers' attributes and the
//! types they take and give.

use std::sync::LazyLock;

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::path::{HttpMethod, Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, InfoBuilder, LicenseBuilder, Ref, Required};

use super::extract::{Call, Everyone, Who};
use super::problem::Problem;
use super::{Described, ROUTES, Reply, Route};

const DESCRIPTION: &str = "\
Decides, holds, redeems and takes back trade-in subsidies at the point of sale.

**Money** is a decimal string in yuan, such as `\"4000.00\"`; answers carry two decimals. **Times** are \
RFC 3339 with an offset; answers use `+08:00`, and a day is a day in Asia/Shanghai. Unknown, repeated and \
mistyped members are refused.

**Who calls** is told by `Authorization: Bearer <JWT>`. Retailers act for themselves; platforms name the \
retailer they act for in `X-Retailer` on every POST; regulators see their regions.

**Repeating a request** is safe: where an `Idempotency-Key` is required, the same key and content get the \
first answer again with `Idempotency-Replayed: true`; the same key with other content is refused. The \
verbs on a claim are idempotent by its state.

**Errors** are `application/problem+json` (RFC 9457) in English or Chinese, as `Accept-Language` says; \
each `code` is explained under `/problems/<code>`. Every answer carries `X-Request-Id`; those to callers \
with a token carry `RateLimit-Policy` and `RateLimit`; 429 and 503 carry `Retry-After`.";

/// The document.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document = serde_json::to_value(described()).unwrap_or_default();
    close_requests(&mut document);
    document
});
static BYTES: LazyLock<Bytes> = LazyLock::new(|| DOCUMENT.to_string().into());

/// The routes as their handlers describe them, and what follows from their rows.
fn described() -> utoipa::openapi::OpenApi {
    let mut document = Described::openapi();
    document.info = InfoBuilder::new()
        .title("subsidy-pos")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    for route in ROUTES {
        let item = document.paths.paths.get_mut(route.path);
        let operation = item.and_then(|item| match method(route) {
            HttpMethod::Post => item.post.as_mut(),
            _ => item.get.as_mut(),
        });
        if let Some(operation) = operation {
            complete(operation, route);
        }
    }
    document
}

/// The method a route is described under.
fn method(route: &Route) -> HttpMethod {
    if route.method == "POST" { HttpMethod::Post } else { HttpMethod::Get }
}

/// Adds to a description what follows from the route's row.
fn complete(operation: &mut Operation, route: &Route) {
    let who = match route.who {
        Who::Everyone => {
            operation.security = Some(Vec::new());
            "Needs no token."
        }
        Who::AnyCaller => "For retailers, platforms and regulators, each what is theirs.",
        Who::RetailerOrPlatform => "For retailers and platforms.",
        Who::Regulator => "For regulators.",
        Who::RegulatorOfAllRegions => "For regulators without region limits.",
    };
    let description = operation.description.get_or_insert_default();
    if !description.is_empty() {
        description.push_str("\n\n");
    }
    description.push_str(who);
    if route.who != Who::Everyone {
        operation.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
        let problem = ResponseBuilder::new()
            .description("A problem (RFC 9457)")
            .content(
                "application/problem+json",
                ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build(),
            )
            .build();
        operation.responses.responses.insert("default".to_owned(), problem.into());
    }
    if route.is_keyed {
        let meaning = "Names this request: 1 to 255 visible ASCII characters, quoted or not. The same key and content get the first answer again.";
        header(operation, "Idempotency-Key", Required::True, meaning);
    }
    let retailer = match route.who {
        Who::RetailerOrPlatform => {
            "The retailer a platform acts for; platforms must, and nobody else may, send it."
        }
        Who::AnyCaller => {
            "The one retailer whose claims a platform wants to see; platforms may, and nobody else may, send it."
        }
        Who::Everyone | Who::Regulator | Who::RegulatorOfAllRegions => return,
    };
    header(operation, "X-Retailer", Required::False, retailer);
}

/// Says of everything callers send that other members than the described ones are refused.
fn close_requests(document: &mut Value) {
    let mut open: Vec<String> = Vec::new();
    let operations = document["paths"].as_object_mut().into_iter().flatten();
    for operation in operations.filter_map(|(_, item)| item.get_mut("post")) {
        close(&mut operation["requestBody"], &mut open);
    }
    let mut closed: Vec<String> = Vec::new();
    while let Some(name) = open.pop() {
        if let Some(schema) = document["components"]["schemas"].get_mut(&name) {
            close(schema, &mut open);
            if schema["type"] == "object" {
                schema["additionalProperties"] = Value::Bool(false);
            }
        }
        closed.push(name);
        open.retain(|name| !closed.contains(name));
    }
}

/// Closes every object in `value`, and tells which schemas it refers to.
fn close(value: &mut Value, refers: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| close(item, refers)),
        Value::Object(members) => {
            if let Some(name) =
                members.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next())
            {
                refers.push(name.to_owned());
            }
            members
                .iter_mut()
                .filter(|(name, _)| *name != "example")
                .for_each(|(_, member)| close(member, refers));
            if members.contains_key("properties") {
                members.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
        }
        _ => {}
    }
}

fn header(operation: &mut Operation, name: &str, required: Required, description: &str) {
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(required)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
        .build();
    operation.parameters.get_or_insert_default().push(parameter.into());
}

/// This description
///
/// OpenAPI 3.1, made of the same code that serves the calls.
#[utoipa::path(get, path = "/openapi.json", tag = "For people", responses(
    (status = 200, description = "The description", body = serde_json::Value),
))]
pub async fn document(_: Call<Everyone>) -> Result<Reply, Problem> {
    Ok(Reply::new(StatusCode::OK, "application/json", BYTES.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Pointer and whether it is required, of every member of a schema.
    fn members(schema: &Value, pointer: &str, found: &mut BTreeSet<(String, bool)>) {
        let schemas = &DOCUMENT["components"]["schemas"];
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            return members(&schemas[name], pointer, found);
        }
        for alternative in
            ["oneOf", "anyOf", "allOf"].iter().filter_map(|of| schema[*of].as_array()).flatten()
        {
            members(alternative, pointer, found);
        }
        if schema["items"].is_object() {
            members(&schema["items"], &format!("{pointer}/0"), found);
        }
        let required =
            |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let pointer = format!("{pointer}/{name}");
            found.insert((pointer.clone(), required(name)));
            members(property, &pointer, found);
        }
    }

    fn operation(route: &Route) -> &'static Value {
        let method = if route.method == "POST" { "post" } else { "get" };
        &DOCUMENT["paths"][route.path][method]
    }

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let described =
            DOCUMENT["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len());
        assert_eq!(described.sum::<usize>(), ROUTES.len());
        for route in ROUTES {
            assert!(operation(route).is_object(), "{} {}", route.method, route.path);
            assert!(operation(route)["summary"].is_string(), "{} {}", route.method, route.path);
        }
    }

    #[test]
    fn what_is_read_is_what_is_described() {
        for route in ROUTES {
            let operation = operation(route);
            let mut described = BTreeSet::new();
            if route.method == "POST" {
                members(
                    &operation["requestBody"]["content"]["application/json"]["schema"],
                    "",
                    &mut described,
                );
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if parameter["in"] == "query" {
                    let required = parameter["required"].as_bool().unwrap_or_default();
                    described.insert((format!("/{}", parameter["name"].as_str().unwrap()), required));
                }
            }
            let asked = (route.asked)().into_iter().map(|asked| (asked.pointer, asked.required));
            assert_eq!(asked.collect::<BTreeSet<_>>(), described, "{} {}", route.method, route.path);
        }
    }

    #[test]
    fn path_parameters_and_headers_are_described() {
        for route in ROUTES {
            let named = |place: &str, name: &str| {
                let parameters = operation(route)["parameters"].as_array().into_iter().flatten();
                parameters.filter(|one| one["in"] == place && one["name"] == name).count()
            };
            assert_eq!(named("path", "id"), route.path.matches("{id}").count(), "{}", route.path);
            assert_eq!(named("header", "Idempotency-Key") == 1, route.is_keyed, "{}", route.path);
            let public = operation(route)["security"].as_array().is_some_and(Vec::is_empty);
            assert_eq!(public, route.who == Who::Everyone, "{}", route.path);
        }
    }

    #[test]
    fn every_schema_that_is_referred_to_is_there() {
        let text = DOCUMENT.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(DOCUMENT["components"]["schemas"][name].is_object(), "{name}");
        }
        assert!(!text.contains("[`"), "a description has a link that only the source can follow");
        assert_eq!(DOCUMENT["openapi"], "3.1.0");
        assert_eq!(DOCUMENT["components"]["schemas"]["FundOpening"]["additionalProperties"], false);
    }
}
