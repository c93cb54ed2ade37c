//! What the README says is so.

use std::collections::BTreeMap;

use crate::support::{Service, Value};

const README: &str = include_str!("../README.md");
const DEFAULTS: &str = include_str!("../config/default.toml");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("\n```{language}\n");
    let blocks: Vec<_> =
        README.split(&opening).skip(1).map(|rest| rest.split("\n```").next().expect("an end")).collect();
    assert!(!blocks.is_empty(), "there are {language} blocks");
    blocks
}

/// `section.key` and value of every setting in a document.
fn settings(document: &str) -> BTreeMap<String, toml::Value> {
    let table: toml::Table =
        toml::from_str(document).unwrap_or_else(|fault| panic!("{fault} in\n{document}"));
    table
        .into_iter()
        .flat_map(|(section, keys)| match keys {
            toml::Value::Table(keys) => {
                keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)).collect()
            }
            value => vec![(section, value)],
        })
        .collect()
}

#[test]
fn every_setting_stands_in_the_readme_with_its_default_and_no_other_does() {
    let defaults = settings(DEFAULTS);
    let rows =
        README.split("\n## Configuration\n").nth(1).expect("the section").split("\n## ").next().unwrap();
    let rows = rows.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let (key, default) = (cells.next().unwrap(), cells.next().unwrap());
        (key.trim_matches('`').to_owned(), default.trim_matches('`').to_owned())
    });
    let told: BTreeMap<_, _> = rows.collect();
    let plain = |value: &toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let defaults: BTreeMap<_, _> = defaults.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
    assert_eq!(told, defaults);
}

#[test]
fn every_block_of_the_readme_can_be_read() {
    for block in blocks("json") {
        serde_json::from_str::<Value>(block).unwrap_or_else(|fault| panic!("{fault} in\n{block}"));
    }
    let known = settings(DEFAULTS);
    for block in blocks("toml") {
        for key in settings(block).keys() {
            assert!(known.contains_key(key), "{key} is no setting");
        }
    }
}

#[test]
fn every_refusal_stands_in_the_readme_and_has_a_page() {
    let service = Service::start();
    for code in subsidy_pos::http::problem::NAMES {
        assert!(README.contains(&format!("`{code}`")), "{code} is not in the README");
        let page = service.nobody().get(&format!("/problems/{code}"));
        assert_eq!(page.status, 200, "{code}");
        assert!(page.text().contains(code), "{code}");
    }
}

#[test]
fn every_metric_the_readme_names_is_there() {
    let metrics = Service::start().metrics();
    let is_role = |name: &str| include_str!("../packaging/postgresql-roles.sql").contains(name);
    let named = README.split('`').filter(|part| part.starts_with("subsidy_pos_") && !is_role(part));
    assert!(named.clone().count() > 5);
    for name in named {
        assert!(metrics.contains(name), "{name} in\n{metrics}");
    }
}
