//! Settings and commands: what is wrong is told at the start, with its place, and not at the till.

use std::path::{Path, PathBuf};

use crate::support::identifiers::fresh_uscc;
use crate::support::programmes::{add_smart_rings, change, copy};
use crate::support::service::{command, key_settings, said};
use crate::support::{Options, Service};

/// A directory with the keys that a service for development has made, to be used by one that is not.
fn keys() -> (Service, PathBuf) {
    let mut service = Service::start();
    assert!(service.stop().success());
    let data = service.data().to_owned();
    (service, data)
}

/// A complete configuration for `data` with the keys in `keys`.
fn settings(keys: &Path, data: &Path) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\noperations_listen = \"127.0.0.1:0\"\n\
         [ledger]\ndata_dir = \"{}\"\n{}",
        data.display(),
        key_settings(keys)
    )
}

fn written(directory: &Path, text: &str) -> PathBuf {
    let file = directory.join("settings.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn check(file: &Path) -> (bool, String) {
    let output = command(&["check-config", "--config", file.to_str().unwrap()]);
    (output.status.success(), said(&output))
}

#[test]
fn a_service_with_a_configuration_and_keys_serves_without_dev() {
    let (keys, key_directory) = keys();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let config = written(directory.path(), &settings(&key_directory, &data));
    let (ok, text) = check(&config);
    assert!(ok, "{text}");
    let options =
        Options { dev: false, clock: None, config: Some(config), data: Some(data), ..Options::default() };
    let mut service = Service::start_with(options);
    let subject = fresh_uscc();
    let till = service.nobody().bearing(&subject, &keys.token("retailer", &subject, &[]));
    let officer = service.nobody().bearing("officer", &keys.token("regulator", "officer", &[]));
    // Nobody has opened a fund.
    till.claim(&service.sale().category("smart_bionic")).must_refuse("fund-not-open");
    let today = service.now().day().to_string();
    let fund = serde_json::json!({"fund_id": "first", "programme": "zj-ai-25", "region_code": "330000", "from": today, "to": today, "budget": "10000.00"});
    officer.post_under("first", "/v1/funds", &fund).must_be(201);
    till.claimed(&service.sale().category("smart_bionic"));
    let notes = &service.nobody().get("/readyz").must_be(200)["notes"];
    assert!(notes.to_string().contains("single copy"), "operators are told of a single copy: {notes}");
    assert!(service.stop().success());
    service.must_verify();
}

#[test]
fn programmes_apply_once_they_are_activated_by_command() {
    let (keys, key_directory) = keys();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let programmes = copy(&directory.path().join("programmes"));
    let text = settings(&key_directory, &data);
    let text = format!("{text}[programmes]\ndir = \"{}\"\n", programmes.display());
    let config = written(directory.path(), &text);
    let options = Options {
        dev: false,
        clock: None,
        config: Some(config.clone()),
        data: Some(data),
        ..Options::default()
    };
    let mut service = Service::start_with(options);
    let subject = fresh_uscc();
    let token = keys.token("retailer", &subject, &[]);
    let knows_rings = |service: &Service| {
        let told = service.nobody().bearing(&subject, &token).get("/v1/programmes").must_be(200);
        told.to_string().contains("smart_ring")
    };
    let activate = || command(&["activate", "--config", config.to_str().unwrap()]);
    let beside = activate();
    assert!(!beside.status.success() && said(&beside).contains("another process"), "{}", said(&beside));
    assert!(service.stop().success());

    let file = programmes.join("zj-ai-25.toml");
    add_smart_rings(&programmes);
    change(&file, "\nversion = 2\n", "\nversion = 1\n");
    let refused = activate();
    assert!(
        !refused.status.success() && said(&refused).contains("its version is still 1"),
        "{}",
        said(&refused)
    );
    change(&file, "\nversion = 1\n", "\nversion = 2\n");
    let Err(exit) = service.try_start_again() else { panic!("it started on files that do not apply") };
    assert!(exit.output.contains("`subsidy-pos activate` makes them apply"), "{}", exit.output);
    let done = activate();
    assert!(done.status.success() && said(&done).contains("the programmes are activated"), "{}", said(&done));
    let again = activate();
    assert!(again.status.success() && said(&again).contains("nothing to activate"), "{}", said(&again));
    service.start_again();
    assert!(knows_rings(&service));
    assert!(service.stop().success());
    service.must_verify();
}

#[test]
fn without_keys_and_secrets_the_service_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let options =
        Options { dev: false, clock: None, data: Some(directory.path().join("data")), ..Options::default() };
    let Err(exit) = Service::try_start(options) else { panic!("it started") };
    assert!(!exit.status.success());
    for missing in ["auth.jwks_file", "auth.issuer", "privacy.hash_keys", "journal.signing_key_file"] {
        assert!(exit.output.contains(missing), "{missing} in {}", exit.output);
    }
}

#[test]
fn every_fault_of_the_settings_is_told_with_file_and_line() {
    let (_service, keys) = keys();
    let directory = tempfile::tempdir().unwrap();
    let good = settings(&keys, &directory.path().join("data"));
    for (from, to, told) in [
        ("listen = \"127.0.0.1:0\"", "listen = \"everywhere\"", "listen"),
        ("[server]", "[server]\ncolour = \"red\"", "colour"),
        ("[server]", "[sever]", "sever"),
        ("[server]", "[server]\nworkers = -1", "workers"),
        ("[server]", "[server", "unclosed"),
        ("use = \"write\"", "use = \"check\"", "hash_keys"),
        ("id = \"k1\"", "id = \"K 1\"", "id"),
        ("[auth]", "[shield]\nretailer_per_second = 0\n[auth]", "retailer_per_second"),
        ("[auth]", "[shield]\nurl = \"memcached://x\"\n[auth]", "url"),
    ] {
        let file = written(directory.path(), &good.replacen(from, to, 1));
        let (ok, text) = check(&file);
        assert!(!ok, "{to}: {text}");
        assert!(
            // A fault that only shows when settings are seen together has no line of its own.
            (text.contains("settings.toml:") || told == "hash_keys")
                && text.contains(told)
                && !text.contains("panicked"),
            "{to}: {text}"
        );
        let options = Options { dev: false, clock: None, config: Some(file), ..Options::default() };
        assert!(Service::try_start(options).is_err(), "{to}");
    }
    let two = good.replacen("[server]", "[server]\nworkers = \"two\"", 1).replacen("issuer =", "colour =", 1);
    let (ok, text) = check(&written(directory.path(), &two));
    assert!(!ok && text.contains("workers") && text.contains("colour"), "all faults at once: {text}");
    let (ok, text) = check(Path::new("no-such-file.toml"));
    assert!(!ok && text.contains("no-such-file.toml"), "{text}");
}

#[test]
fn malformed_key_files_stop_the_start_and_are_named_but_not_shown() {
    let (_service, keys) = keys();
    for (name, text) in [
        (
            "dev-jwks.json",
            "{\"keys\": [{\"kty\": \"oct\", \"k\": \"VERYSECRET\", \"kid\": \"x\", \"alg\": \"HS256\"}]}",
        ),
        ("dev-jwks.json", "{\"keys\": VERYSECRET"),
        ("dev-hash.key", "VERYSECRET"),
        ("dev-head.pem", "-----BEGIN PRIVATE KEY-----\nVERYSECRET\n-----END PRIVATE KEY-----\n"),
        ("dev-head.pem", ""),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mine = directory.path().join("keys");
        std::fs::create_dir(&mine).unwrap();
        for file in ["dev-jwks.json", "dev-hash.key", "dev-head.pem"] {
            std::fs::copy(keys.join(file), mine.join(file)).unwrap();
        }
        std::fs::write(mine.join(name), text).unwrap();
        let file = written(directory.path(), &settings(&mine, &directory.path().join("data")));
        let (ok, told) = check(&file);
        assert!(!ok && told.contains(name), "{name}: {told}");
        assert!(!told.contains("VERYSECRET"), "{told}");
        let options = Options { dev: false, clock: None, config: Some(file), ..Options::default() };
        let Err(exit) = Service::try_start(options) else { panic!("it started with a broken {name}") };
        assert!(exit.output.contains(name) && !exit.output.contains("VERYSECRET"), "{}", exit.output);
    }
}

#[test]
fn the_environment_overrides_the_file_and_a_flag_the_environment() {
    let options = Options::default()
        .env("SUBSIDY_POS__SERVER__LISTEN", "127.0.0.1:1")
        .env("SUBSIDY_POS__SERVER__WORKERS", "1");
    // The flag of the tests, a free port, wins over port 1.
    let service = Service::start_with(options);
    assert_eq!(service.nobody().get("/healthz").status, 200);
    let Err(exit) = Service::try_start(Options::default().env("SUBSIDY_POS__SERVER__COLOUR", "red")) else {
        panic!("an unknown variable is not ignored")
    };
    assert!(exit.output.contains("SUBSIDY_POS__SERVER__COLOUR"), "{}", exit.output);
    let Err(exit) = Service::try_start(Options::default().env("SUBSIDY_POS__SERVER__WORKERS", "many")) else {
        panic!("a malformed variable is not ignored")
    };
    assert!(exit.output.contains("SUBSIDY_POS__SERVER__WORKERS"), "{}", exit.output);
}

#[test]
fn a_changed_secret_under_a_known_name_is_noticed() {
    let (mut service, data) = keys();
    std::fs::write(
        data.join("dev-hash.key"),
        "0123456789abcdeffedcba98765432100f1e2d3c4b5a69788796a5b4c3d2e1f0",
    )
    .unwrap();
    let Err(exit) = service.try_start_again() else { panic!("it started with another secret") };
    assert!(exit.output.contains("hash_keys") && exit.output.contains("secret"), "{}", exit.output);
}

#[test]
fn tokens_are_made_for_whom_they_can_be() {
    let service = Service::start();
    let data = service.data().to_str().unwrap();
    let token = |arguments: &[&str]| command(&[&["token", "--data", data], arguments].concat());
    for good in [
        vec!["--role", "retailer", "--subject", "91110000600037341L"],
        vec![
            "--role",
            "platform",
            "--subject",
            "mall",
            "--retailers",
            "91110000600037341L,91350100M000100Y43",
        ],
        vec!["--role", "regulator", "--subject", "officer", "--regions", "330100,330200", "--ttl", "30m"],
    ] {
        let output = token(&good);
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!((text.lines().count(), text.trim().split('.').count()), (1, 3), "one token: {text}");
    }
    for bad in [
        vec!["--role", "retailer", "--subject", "91110000600037341N"],
        vec!["--role", "admin", "--subject", "x"],
        vec!["--role", "platform", "--subject", "mall", "--retailers", "nonsense"],
        vec!["--role", "regulator", "--subject", "officer", "--regions", "33"],
        vec!["--role", "regulator", "--subject", "officer", "--ttl", "soon"],
        vec!["--role", "retailer"],
    ] {
        let output = token(&bad);
        assert!(!output.status.success() && output.stdout.is_empty(), "{bad:?}: {}", said(&output));
        assert!(!said(&output).contains("panicked"), "{}", said(&output));
    }
    let output = command(&["token", "--data", "/no/such/directory", "--role", "regulator", "--subject", "x"]);
    assert!(!output.status.success() && said(&output).contains("/no/such/directory"), "{}", said(&output));
}

#[test]
fn commands_explain_themselves() {
    for arguments in [
        vec!["--help"],
        vec!["serve", "--help"],
        vec!["verify", "--help"],
        vec!["quote", "--help"],
        vec!["--version"],
    ] {
        let output = command(&arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}: {}", said(&output));
    }
    for arguments in [
        vec![],
        vec!["sell"],
        vec!["serve", "--colour", "red"],
        vec!["verify"],
        vec!["verify", "--data", "/no/such/directory"],
    ] {
        let output = command(&arguments);
        assert!(
            !output.status.success() && !said(&output).contains("panicked"),
            "{arguments:?}: {}",
            said(&output)
        );
    }
}
