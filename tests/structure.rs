//! Which room may know which, and what the pure rooms never name. Read from the source itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The code of a file: without comments, texts, and what is compiled for tests only.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("#[cfg(test)]") && line == line.trim_start() {
            // Unit tests stand at the end of a file; a module of tests in a file of its own is not read.
            break;
        }
        let line = line.trim_start();
        if line.starts_with("//") {
            continue;
        }
        let mut in_text = false;
        let mut before = ' ';
        for character in line.chars() {
            if character == '"' && before != '\\' && before != '\'' {
                in_text = !in_text;
            }
            if !in_text {
                code.push(character);
            }
            before = if before == '\\' { ' ' } else { character };
        }
        code.push('\n');
    }
    code
}

/// Every source file of the library and the binary by its path below `src`, without unit test modules.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = crate::support::service::files_below(&root);
    let name = |file: &PathBuf| file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
    files
        .iter()
        .filter(|file| {
            file.extension().is_some_and(|extension| extension == "rs") && !file.ends_with("tests.rs")
        })
        .map(|file| (name(file), code_of(&std::fs::read_to_string(file).unwrap())))
        .collect()
}

fn is_word(code: &str, start: usize, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    let before = code[..start].chars().next_back();
    let after = code[start + word.len()..].chars().next();
    !before.is_some_and(joins) && !after.is_some_and(joins)
}

fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(start, _)| is_word(code, start, word))
}

/// The room a file belongs to: `ledger/apply.rs` to `ledger`.
fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// What a file names of the crate, as `room` or `room::file`: `use crate::ledger::{entry::Hash, Stored}`
/// names `ledger`, `ledger::entry` and `ledger::Stored`.
fn named_rooms(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut add = |path: &str| {
        let room = word(path);
        let rest = path[room.len()..].trim_start_matches("::");
        if path[room.len()..].starts_with("::") && !rest.starts_with('{') {
            named.insert(format!("{room}::{}", word(rest)));
        }
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut part = String::new();
            for character in list.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        named.insert(format!("{room}::{}", word(part.trim())));
                        part.clear();
                        continue;
                    }
                    _ => {}
                }
                part.push(character);
            }
            named.insert(format!("{room}::{}", word(part.trim())));
        }
        named.insert(room);
    };
    for (start, _) in code.match_indices("crate::") {
        if is_word(code, start, "crate") {
            let path = &code[start + "crate::".len()..];
            if let Some(list) = path.strip_prefix('{') {
                for part in list.split(['{', '}', ',']) {
                    let part = part.trim();
                    if part.starts_with(|c: char| c.is_ascii_lowercase()) {
                        add(part);
                    }
                    if part.contains(';') {
                        break;
                    }
                }
            } else {
                add(path);
            }
        }
    }
    named
}

/// The rooms in which everything follows from arguments.
const PURE: &[&str] = &[
    "identity.rs",
    "money.rs",
    "time.rs",
    "claim.rs",
    "json.rs",
    "programme.rs",
    "rules.rs",
    "ledger/entry.rs",
    "ledger/state.rs",
    "ledger/apply.rs",
    "ledger/keys.rs",
    "ledger/command.rs",
    "book/batch.rs",
    "book/cube.rs",
];

#[test]
fn the_pure_rooms_name_no_clock_no_randomness_no_thread_and_no_input_or_output() {
    let sources = sources();
    let worldly = [
        "tokio",
        "actix",
        "actix_web",
        "actix_http",
        "rusqlite",
        "sqlx",
        "redis",
        "postgres",
        "tokio_postgres",
        "rand",
        "governor",
        "SystemTime",
        "Instant",
        "now_utc",
        "now_local",
        "crate::clock",
        "std::fs",
        "std::io",
        "std::net",
        "std::env",
        "std::thread",
        "std::process",
        "println",
        "tracing",
        "f32",
        "f64",
    ];
    for file in PURE {
        let code = sources.get(*file).unwrap_or_else(|| panic!("{file} is gone; say where it went"));
        for word in worldly {
            if *file == "json.rs" && ["f32", "f64"].contains(&word) {
                // It names floats to refuse them.
                continue;
            }
            assert!(!names(code, word), "{file} names {word}");
        }
    }
}

/// Which rooms each room may know.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("bytes", &[]),
    ("time", &["bytes", "limits"]),
    ("money", &["bytes", "limits"]),
    ("json", &["bytes"]),
    ("background", &[]),
    ("identity", &["bytes", "limits", "time"]),
    ("programme", &["identity", "limits", "money", "time"]),
    ("programme_files", &["limits", "programme"]),
    ("claim", &["bytes", "identity", "limits", "money", "programme", "time"]),
    ("rules", &["identity", "limits", "money", "programme", "time"]),
    ("clock", &["time"]),
    ("journal", &["background", "ledger::entry", "limits", "telemetry", "time"]),
    (
        "ledger",
        &[
            "bytes",
            "claim",
            "clock",
            "identity",
            "journal",
            "json",
            "limits",
            "money",
            "programme",
            "rules",
            "telemetry",
            "time",
        ],
    ),
    (
        "book",
        &[
            "background",
            "claim",
            "identity",
            "journal",
            "ledger::entry",
            "limits",
            "money",
            "programme",
            "telemetry",
            "time",
        ],
    ),
    ("shield", &["identity", "limits", "telemetry"]),
    ("secrets", &["limits"]),
    ("telemetry", &["limits"]),
    ("auth", &["identity", "limits", "secrets", "telemetry", "time"]),
    ("config", &["auth", "limits", "secrets", "telemetry"]),
    ("heads", &["journal", "ledger", "secrets", "time"]),
    ("audit", &["background", "book", "book::cube", "journal", "ledger", "limits", "verify"]),
    ("verify", &["book::cube", "claim", "heads", "journal", "ledger", "limits", "money"]),
    (
        "http",
        &[
            "auth",
            "book",
            "bytes",
            "claim",
            "clock",
            "heads",
            "identity",
            "journal",
            "json",
            "ledger",
            "limits",
            "money",
            "programme",
            "rules",
            "secrets",
            "shield",
            "telemetry",
            "time",
        ],
    ),
];

#[test]
fn compose_names_settings_that_there_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let (compose, settings) = (read("compose.yaml"), read("config/default.toml"));
    let mut found = 0;
    for name in compose.lines().filter_map(|line| line.trim().strip_prefix("SUBSIDY_POS__")) {
        let (name, _) = name.split_once(':').unwrap();
        let (section, key) = name.split_once("__").unwrap();
        let (_, rest) = settings.split_once(&format!("\n[{}]\n", section.to_lowercase())).unwrap();
        let keys = rest.split("\n[").next().unwrap();
        assert!(keys.contains(&format!("\n{} = ", key.to_lowercase())), "{name}");
        found += 1;
    }
    assert!(found > 2, "{compose}");
    let balancer = read("packaging/haproxy.cfg");
    for process in compose.lines().filter_map(|line| line.trim().strip_suffix(": *process")) {
        assert!(balancer.contains(&format!("server {process} {process}:8080")), "{process}");
        found += 1;
    }
    assert!(found > 5, "{compose}");
}

#[test]
fn every_room_knows_only_the_rooms_it_may() {
    for (file, code) in sources() {
        let own = room(&file);
        if ["main", "lib", "cli"].contains(&own) {
            // The binary wires everything together; the library's root lists the rooms.
            continue;
        }
        let (_, known) = MAY_KNOW
            .iter()
            .find(|(name, _)| *name == own)
            .unwrap_or_else(|| panic!("{file} is in no known room"));
        let named = named_rooms(&code);
        for name in &named {
            let (whole, _) = name.split_once("::").unwrap_or((name, ""));
            let is_deeper = |known: &&str| known.split_once("::").is_some_and(|(room, _)| room == whole);
            let fits = whole == own
                || known.contains(&whole)
                || known.contains(&name.as_str())
                // `ledger` alone is named by every path into it.
                || (name == whole && known.iter().any(is_deeper));
            // What a room shows at its door stands for the file it comes from.
            let shown = known.contains(&"ledger::entry") && ["ledger::Stored"].contains(&name.as_str());
            assert!(fits || shown, "{file} names {name}; {own} may know {known:?}");
        }
    }
}

#[test]
fn sql_http_and_limits_are_each_named_in_one_room() {
    for (file, code) in sources() {
        let own = room(&file);
        if names(&code, "actix_web") || names(&code, "actix_http") {
            // The binary runs the server's runtime.
            assert!(["http", "cli", "main"].contains(&own), "{file} names the web server");
        }
        for driver in ["rusqlite", "tokio_postgres", "deadpool_postgres", "sqlx"] {
            if names(&code, driver) {
                assert!(["journal", "book"].contains(&own), "{file} names {driver}");
            }
        }
        if names(&code, "governor") || names(&code, "redis") {
            assert!(["shield", "config", "cli"].contains(&own), "{file} names a limiter");
        }
        if names(&code, "jsonwebtoken") {
            assert_eq!(own, "auth", "{file} names the tokens' library");
        }
        if names(&code, "SystemTime") {
            assert!(["clock", "telemetry"].contains(&own), "{file} reads the time by itself");
        }
    }
}

#[test]
fn the_reading_of_the_source_sees_what_it_should() {
    let code = code_of(
        "//! crate::http\nuse crate::ledger::{entry::Hash, Stored};\nuse crate::{book, time::Day};\n\
         fn f() { crate::journal::sqlite::open(\"crate::auth tokio\"); } // fine\n\
         #[cfg(test)]\nmod tests { use rand::Rng; }\n",
    );
    let named: Vec<_> = named_rooms(&code).into_iter().collect();
    assert_eq!(
        named,
        [
            "book",
            "journal",
            "journal::sqlite",
            "ledger",
            "ledger::Stored",
            "ledger::entry",
            "time",
            "time::Day"
        ]
    );
    assert!(!names(&code, "tokio") && !names(&code, "rand"));
    assert!(names("use rand::Rng;", "rand") && !names("brand operand rand_core", "rand"));
}
