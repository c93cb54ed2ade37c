//! Pages for people: what each problem means, and the API described. Without scripts, fonts or anything
//! else from elsewhere.

use std::fmt::Write as _;
use std::sync::LazyLock;

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use serde_json::Value;

use super::Reply;
use super::extract::{Call, Everyone};
use super::openapi::DOCUMENT;
use super::problem::{Code, Language, Problem, Row, TABLE};

/// Nothing may be loaded or run but the page's own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const STYLE: &str = include_str!("pages.css");

/// A page. `body` is HTML already.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{} · subsidy-pos</title><style>{STYLE}</style></head><body>\
         <header><a href=\"/docs\">subsidy-pos</a><nav><a href=\"/docs\">API</a>\
         <a href=\"/problems/\">Problems 错误码</a><a href=\"/openapi.json\">OpenAPI</a></nav></header>\
         <main>{body}</main></body></html>",
        Escaped(title)
    )
}

/// Text in HTML.
struct Escaped<'t>(&'t str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                plain => f.write_char(plain)?,
            }
        }
        Ok(())
    }
}

/// Text with the little of Markdown that descriptions use: paragraphs, `code` and **bold**.
fn prose(text: &str) -> String {
    text.split("\n\n").map(|paragraph| format!("<p>{}</p>", line_of_prose(paragraph))).collect()
}

/// The same within a line: `code` and **bold**.
fn line_of_prose(text: &str) -> String {
    let mut html = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index % 2 == 1 {
            let _ = write!(html, "<code>{}</code>", Escaped(part));
            continue;
        }
        for (index, part) in part.split("**").enumerate() {
            let _ = match index % 2 {
                1 => write!(html, "<b>{}</b>", Escaped(part)),
                _ => write!(html, "{}", Escaped(part)),
            };
        }
    }
    html
}

// --- Problems ---

static PROBLEMS: LazyLock<Bytes> = LazyLock::new(|| {
    let mut rows = String::new();
    for row in TABLE {
        let _ = write!(
            rows,
            "<tr><td><a href=\"/problems/{name}\"><code>{name}</code></a></td><td><span class=\"status s{}\">{}</span></td>\
             <td>{}</td><td lang=\"zh\">{}</td></tr>",
            row.status / 100,
            row.status,
            Escaped(&row.title.en),
            Escaped(&row.title.zh),
            name = row.name,
        );
    }
    let body = format!(
        "<h1>Problems <span lang=\"zh\">错误码</span></h1>\
         <p>Every error of this service, in order of precedence: of several that apply, the first is told.</p>\
         <p lang=\"zh\">本服务的全部错误，按优先顺序排列：同时存在多个错误时返回排在最前者。</p>\
         <table><thead><tr><th>code</th><th>status</th><th>Meaning</th><th lang=\"zh\">含义</th></tr></thead>\
         <tbody>{rows}</tbody></table>"
    );
    page("Problems", &body).into()
});

fn problem_page(row: &Row) -> String {
    let again = if row.retryable {
        ("May be sent again unchanged, after the time in Retry-After.", "可在Retry-After所示时间后原样重发。")
    } else {
        (
            "Sent again unchanged it will be refused again, unless its cause is gone.",
            "除非原因已消除，原样重发仍会被拒绝。",
        )
    };
    let section = |language: Language, meaning: &str, remedy: &str, repeat: &str, again: &str| {
        format!(
            "<section lang=\"{}\"><h2>{}</h2><dl><dt>{meaning}</dt><dd>{}</dd><dt>{remedy}</dt><dd>{}</dd>\
             <dt>{repeat}</dt><dd>{again}</dd></dl></section>",
            language.tag(),
            Escaped(row.title.in_language(language)),
            Escaped(row.detail.in_language(language)),
            Escaped(row.remedy.in_language(language)),
        )
    };
    let body = format!(
        "<h1><code>{}</code> <span class=\"status s{}\">{}</span></h1><div class=\"two\">{}{}</div>\
         <p><a href=\"/problems/\">All problems <span lang=\"zh\">全部错误码</span></a></p>",
        row.name,
        row.status / 100,
        row.status,
        section(Language::English, "Meaning", "What to do", "Again?", again.0),
        section(Language::Chinese, "含义", "处理办法", "能否重发", again.1),
    );
    page(row.name, &body)
}

/// The page of one problem.
fn explained(name: &str) -> Result<String, Problem> {
    let row = TABLE.iter().find(|row| row.name == name).ok_or(Code::NotFound)?;
    Ok(problem_page(row))
}

/// Every problem
///
/// A page that lists them, in English and Chinese.
#[utoipa::path(get, path = "/problems/", tag = "For people", responses(
    (status = 200, description = "The page", body = String, content_type = "text/html"),
))]
pub async fn problems(_: Call<Everyone>) -> Result<Reply, Problem> {
    Ok(Reply::html(StatusCode::OK, POLICY, PROBLEMS.clone()))
}

/// One problem
///
/// What a `code` means and what to do about it, in English and Chinese.
#[utoipa::path(get, path = "/problems/{id}", tag = "For people", params(
    ("id" = String, Path, description = "The code"),
), responses(
    (status = 200, description = "The page", body = String, content_type = "text/html"),
    (status = 404, description = "No such code", body = super::problem::ProblemBody, content_type = "application/problem+json"),
))]
pub async fn problem(call: Call<Everyone>) -> Result<Reply, Problem> {
    let page = explained(call.path_id())?;
    Ok(Reply::html(StatusCode::OK, POLICY, page))
}

// --- The API ---

/// The API's description
///
/// The same as `/openapi.json`, for reading.
#[utoipa::path(get, path = "/docs", tag = "For people", responses(
    (status = 200, description = "The page", body = String, content_type = "text/html"),
))]
pub async fn docs(_: Call<Everyone>) -> Result<Reply, Problem> {
    Ok(Reply::html(StatusCode::OK, POLICY, DOCS.clone()))
}

static DOCS: LazyLock<Bytes> = LazyLock::new(|| page("API", &described(&DOCUMENT)).into());

/// The document as HTML: what it says, its operations by tag, its schemas.
fn described(document: &Value) -> String {
    let info = &document["info"];
    let mut html = format!(
        "<h1>{} <small>{}</small></h1>{}",
        Escaped(text(&info["title"])),
        Escaped(text(&info["version"])),
        prose(text(&info["description"])),
    );
    let operations: Vec<Described<'_>> = members(&document["paths"])
        .flat_map(|(path, item)| {
            members(item).map(move |(method, operation)| Described { path, method, operation })
        })
        .collect();
    let mut tags: Vec<&str> = Vec::new();
    for operation in &operations {
        if !tags.contains(&operation.tag()) {
            tags.push(operation.tag());
        }
    }
    for tag in tags {
        let _ = write!(html, "<h2>{}</h2>", Escaped(tag));
        for operation in operations.iter().filter(|operation| operation.tag() == tag) {
            html.push_str(&operation.html());
        }
    }
    html.push_str("<h2>Schemas</h2>");
    for (name, schema) in members(&document["components"]["schemas"]) {
        let _ = write!(
            html,
            "<details><summary><b>{name}</b> <span>{}</span></summary><div id=\"{name}\">{}</div></details>",
            line_of_prose(text(&schema["description"]).lines().next().unwrap_or_default()),
            properties(schema),
        );
    }
    html
}

struct Described<'d> {
    path: &'d str,
    method: &'d str,
    operation: &'d Value,
}

impl<'d> Described<'d> {
    fn tag(&self) -> &'d str {
        text(&self.operation["tags"][0])
    }

    fn html(&self) -> String {
        let mut html = format!(
            "<details><summary><span class=\"method {method}\">{method}</span> <code>{}</code> <span>{}</span></summary>{}",
            Escaped(self.path),
            line_of_prose(text(&self.operation["summary"])),
            prose(text(&self.operation["description"])),
            method = self.method,
        );
        let parameters = items(&self.operation["parameters"]);
        if !parameters.is_empty() {
            html.push_str("<h3>Parameters</h3><table><tbody>");
            for parameter in parameters {
                let required = parameter["required"].as_bool().unwrap_or_default();
                let place = format!("{}, {}", text(&parameter["in"]), kind(&parameter["schema"]));
                html.push_str(&line(
                    text(&parameter["name"]),
                    required,
                    &place,
                    text(&parameter["description"]),
                    &Value::Null,
                ));
            }
            html.push_str("</tbody></table>");
        }
        for (_, content) in members(&self.operation["requestBody"]["content"]) {
            let _ = write!(html, "<h3>Body</h3><p>{}</p>", kind(&content["schema"]));
        }
        html.push_str("<h3>Answers</h3><table><tbody>");
        for (status, response) in members(&self.operation["responses"]) {
            let kinds: Vec<_> =
                members(&response["content"]).map(|(_, content)| kind(&content["schema"])).collect();
            let name = if status == "default" { "else" } else { status };
            html.push_str(&line(
                name,
                false,
                &kinds.join(", "),
                text(&response["description"]),
                &Value::Null,
            ));
        }
        html.push_str("</tbody></table></details>");
        html
    }
}

/// A schema's members as a table, or what else it is.
fn properties(schema: &Value) -> String {
    let required: Vec<&str> = items(&schema["required"]).iter().map(text).collect();
    let rows: String = members(&schema["properties"])
        .map(|(name, property)| {
            line(
                name,
                required.contains(&name),
                &kind(property),
                text(&property["description"]),
                &property["example"],
            )
        })
        .collect();
    if rows.is_empty() {
        format!("<p>{}</p>", kind(schema))
    } else {
        format!("<table><tbody>{rows}</tbody></table>")
    }
}

/// A row: name, kind (HTML), description, example.
fn line(name: &str, required: bool, kind: &str, description: &str, example: &Value) -> String {
    let required = if required { " <em>required</em>" } else { "" };
    let example = match example {
        Value::Null => String::new(),
        example => format!(" <span class=\"example\">{}</span>", Escaped(&example.to_string())),
    };
    format!(
        "<tr><td><code>{}</code>{required}</td><td>{kind}</td><td>{}{example}</td></tr>",
        Escaped(name),
        prose(description),
    )
}

/// What a schema is, in a word or two, as HTML; schemas with a name are linked to.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#{name}\">{name}</a>");
    }
    let choices: Vec<_> = items(&schema["enum"]).iter().map(Value::to_string).collect();
    if !choices.is_empty() {
        return Escaped(&choices.join(" · ")).to_string();
    }
    let alternatives = ["oneOf", "anyOf", "allOf"].iter().flat_map(|of| items(&schema[*of])).map(kind);
    let alternatives: Vec<_> = alternatives.collect();
    if !alternatives.is_empty() {
        return alternatives.join(" or ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("array of {}", self::kind(&schema["items"])),
        Value::String(kind) => Escaped(kind).to_string(),
        Value::Array(kinds) => kinds.iter().map(text).collect::<Vec<_>>().join(" or "),
        _ if schema["properties"].is_object() => "object".to_owned(),
        _ => "any".to_owned(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}
