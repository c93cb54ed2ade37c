//! The API's own description (OpenAPI 3.1), made of the route table, the handlers' attributes and the
//! types they take and give.

use std::sync::LazyLock;

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
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
pub static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(document_of_routes);
static BYTES: LazyLock<Bytes> = LazyLock::new(|| serde_json::to_vec(&*DOCUMENT).unwrap_or_default().into());

fn document_of_routes() -> utoipa::openapi::OpenApi {
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
    if route.who == Who::RetailerOrPlatform {
        let meaning = "The retailer a platform acts for; platforms must, and nobody else may, send it.";
        header(operation, "X-Retailer", Required::False, meaning);
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
