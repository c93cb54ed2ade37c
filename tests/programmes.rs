//! The law as dated data.

use crate::support::programmes::{change, copy, service_with};
use crate::support::service::{command, said};
use crate::support::{Options, Service, Value, json};

/// Every rule of a programme names its clause and its basis.
fn sourced(value: &Value) -> usize {
    match value {
        Value::Object(members) => {
            let own = usize::from(members.contains_key("clause") && members.contains_key("basis"));
            if own == 1 {
                assert!(
                    ["text", "notice", "choice"].contains(&members["basis"].as_str().unwrap()),
                    "{value}"
                );
            }
            own + members.values().map(sourced).sum::<usize>()
        }
        Value::Array(items) => items.iter().map(sourced).sum(),
        _ => 0,
    }
}

#[test]
fn the_programmes_in_force_are_shown_each_number_with_its_source() {
    let service = Service::start();
    let till = service.retailer();
    let in_force = |at: &str| {
        let page = till.get(&format!("/v1/programmes?at={}", at.replace('+', "%2B"))).must_be(200);
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|programme| programme["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let mut now = in_force("2026-06-15T10:00:00+08:00");
    now.sort();
    assert_eq!(now, ["national-appliances-2026", "national-digital-2026", "zj-ai-25"]);
    let mut then = in_force("2025-12-31T23:59:59.999+08:00");
    then.sort();
    assert_eq!(then, ["national-digital-2025", "zj-ai-25"]);
    assert_eq!(in_force("2025-05-30T23:59:59.999+08:00"), ["national-digital-2025"]);
    assert_eq!(in_force("2028-01-01T00:00:00+08:00"), Vec::<String>::new());
    let programme = till.get("/v1/programmes/zj-ai-25").must_be(200);
    assert!(sourced(&programme) >= 6, "rate, cap, categories, days, rounding, limit: {programme}");
    let text = programme.to_string();
    for number in ["0.15", "2000.00", "2025-05-31", "2027-12-31", "down_to_fen", "choice"] {
        assert!(text.contains(number), "{number} in {text}");
    }
    till.get("/v1/programmes/no-such-programme").must_refuse("not-found");
    assert_eq!(till.get("/v1/programmes?at=yesterday").status, 400);
}

#[test]
fn a_category_and_a_programme_are_added_by_files_alone() {
    let directory = tempfile::tempdir().unwrap();
    let programmes = copy(&directory.path().join("programmes"));
    let file = programmes.join("zj-ai-25.toml");
    change(&file, "version = 1", "version = 2");
    let category = "\n[[category]]\nid = \"smart_toy\"\nzh = \"智能玩具\"\nen = \"smart toy\"\nclause = \"measure 25: and the like\"\nbasis = \"choice\"\n";
    let text = std::fs::read_to_string(&file).unwrap() + category;
    std::fs::write(&file, &text).unwrap();
    let text =
        text.replace("zj-ai-25", "zj-toys-99").replace("version = 2", "version = 1").replace("0.15", "0.20");
    let text = text.replace("value = 10\n", "value = 99\n");
    std::fs::write(programmes.join("zj-toys-99.toml"), text).unwrap();
    let service = Service::start_with(
        Options::default().env("SUBSIDY_POS__PROGRAMMES__DIR", programmes.to_str().unwrap()),
    );
    let till = service.retailer();
    let claim = till.claimed(&service.sale().category("smart_toy").price("1000.00"));
    assert_eq!((&claim["programme"], &claim["subsidy"]), (&json!("zj-toys-99"), &json!("200.00")));
    let chosen = service.sale().category("smart_toy").price("1000.00").with("/accept_programme", "zj-ai-25");
    assert_eq!(till.claimed(&chosen)["subsidy"], "150.00");
}

#[test]
fn a_claim_keeps_the_rules_it_was_made_under() {
    let directory = tempfile::tempdir().unwrap();
    let programmes = copy(&directory.path().join("programmes"));
    let options = Options::default().env("SUBSIDY_POS__PROGRAMMES__DIR", programmes.to_str().unwrap());
    let mut service = Service::start_with(options);
    let till = service.retailer();
    let sale = service.sale();
    let first = till.claim_under("first", &sale);
    let claim = first.must_be(201);
    let file = programmes.join("zj-ai-25.toml");
    change(&file, "version = 1", "version = 2");
    change(&file, "\"0.15\"", "\"0.20\"");
    service.restart();
    assert_eq!(till.claimed(&service.sale())["subsidy"], "800.00", "the new rate");
    assert_eq!(till.look_at(&claim), claim, "the old claim as it was judged");
    assert_eq!(till.claim_under("first", &sale).text(), first.text(), "and its replay, to the byte");
    service.must_verify();
}

#[test]
fn a_hold_longer_than_is_allowed_by_now_still_replays() {
    let directory = tempfile::tempdir().unwrap();
    let programmes = copy(&directory.path().join("programmes"));
    let options = Options::default().env("SUBSIDY_POS__PROGRAMMES__DIR", programmes.to_str().unwrap());
    let mut service = Service::start_with(options);
    let till = service.retailer();
    let ten_days = |service: &Service| service.sale().held().with("/hold_minutes", 10 * 24 * 60);
    let hold = ten_days(&service);
    let first = till.claim_under("long", &hold);
    first.must_be(201);
    till.cancel("spent").must_be(200);
    let file = programmes.join("zj-ai-25.toml");
    change(&file, "version = 1", "version = 2");
    change(&file, "[hold_days_max]\nvalue = 15", "[hold_days_max]\nvalue = 5");
    service.restart();

    let again = till.claim_under("long", &hold);
    assert_eq!((again.is_replay(), again.text()), (true, first.text()), "what was answered stays answered");
    let other = ten_days(&service);
    for key in ["new", "spent", "long"] {
        assert_eq!(till.claim_under(key, &other).pointers(), ["/hold_minutes"], "before what the key says");
    }
    assert_eq!(till.post("/v1/quotes", &other.body).pointers(), ["/hold_minutes"]);
    let items = json!({"items": [
        {"idempotency_key": "long", "claim": hold.body},
        {"idempotency_key": "new", "claim": other.body},
    ]});
    let results = till.post("/v1/claims/batch", &items).must_be(200);
    assert_eq!(results["results"][0]["claim"], first.json());
    assert_eq!(results["results"][1]["problem"]["errors"][0]["pointer"], "/items/1/claim/hold_minutes");
    till.claim(&other.with("/hold_minutes", 5 * 24 * 60)).must_be(201);
}

#[test]
fn a_programme_that_money_was_set_aside_for_cannot_be_left_out_or_rewritten() {
    let directory = tempfile::tempdir().unwrap();
    let programmes = copy(&directory.path().join("programmes"));
    let options = Options::default().env("SUBSIDY_POS__PROGRAMMES__DIR", programmes.to_str().unwrap());
    let mut service = Service::start_with(options);
    let till = service.retailer();
    let (file, kept) = (programmes.join("zj-ai-25.toml"), directory.path().join("kept.toml"));
    let claim = till.claimed(&service.sale());
    assert!(service.stop().success());
    let mut must_stay_out = |reason: &str| {
        let Err(exit) = service.try_start_again() else { panic!("it started") };
        assert!(exit.output.contains("zj-ai-25") && exit.output.contains(reason), "{}", exit.output);
        assert!(!exit.output.contains("panicked"), "{}", exit.output);
    };
    std::fs::rename(&file, &kept).unwrap();
    must_stay_out("left out");
    std::fs::copy(&kept, &file).unwrap();
    change(&file, "\"0.15\"", "\"0.20\"");
    must_stay_out("its version is still 1");

    // A programme ends by a version with an earlier last day, and what was made under it stays readable.
    change(&file, "\"0.20\"", "\"0.15\"");
    change(&file, "version = 1", "version = 2");
    change(&file, "\"2027-12-31\"", "\"2026-06-14\"");
    // One that no fund pays for was never more than a file.
    std::fs::remove_file(programmes.join("national-digital-2025.toml")).unwrap();
    service.start_again();
    assert_eq!(till.look_at(&claim), claim);
    assert_eq!(till.claimed(&service.sale())["programme"], "national-digital-2026");
    till.take_back(&claim).must_be(200);
    service.must_verify();
}

#[test]
fn a_malformed_programme_file_stops_the_start_with_its_place() {
    for (from, to) in [
        ("\"0.15\"", "0.15"),
        ("\"0.15\"", "\"fifteen\""),
        ("\"2000.00\"", "\"-2000.00\""),
        ("id = \"zj-ai-25\"", "id = \"zj ai 25\""),
        ("version = 1", "version = 1\ncolour = \"red\""),
        ("[rate]", "[rate"),
        ("basis = \"text\"", "basis = \"hearsay\""),
        ("\"2027-12-31\"", "\"2027-12-32\""),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let programmes = copy(&directory.path().join("programmes"));
        change(&programmes.join("zj-ai-25.toml"), from, to);
        let options = Options::default().env("SUBSIDY_POS__PROGRAMMES__DIR", programmes.to_str().unwrap());
        let Err(exit) = Service::try_start(options) else { panic!("it started with {to}") };
        assert!(!exit.status.success());
        let told = exit
            .output
            .lines()
            .find(|line| line.contains("zj-ai-25.toml"))
            .unwrap_or_else(|| panic!("{}", exit.output));
        let place = told.split("zj-ai-25.toml").nth(1).unwrap();
        assert!(place.chars().any(|c| c.is_ascii_digit()), "the line: {told}");
    }
}

#[test]
fn the_highest_subsidy_that_a_programme_may_pay_can_be_claimed() {
    let (service, _directory) = service_with(|programmes| {
        let file = programmes.join("zj-ai-25.toml");
        change(&file, "\"0.15\"", "\"1\"");
        change(&file, "\"2000.00\"", "\"42949672.95\"");
    });
    let till = service.retailer();
    let claim = till.claimed(&service.sale().category("smart_bionic").price("99999999.99"));
    assert_eq!((&claim["subsidy"], &claim["payable"]), (&json!("42949672.95"), &json!("57050327.04")));
    service.must_verify();
}

#[test]
fn one_programme_id_in_two_files_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let programmes = copy(&directory.path().join("programmes"));
    std::fs::copy(programmes.join("zj-ai-25.toml"), programmes.join("again.toml")).unwrap();
    let options = Options::default().env("SUBSIDY_POS__PROGRAMMES__DIR", programmes.to_str().unwrap());
    let Err(exit) = Service::try_start(options) else { panic!("it started") };
    assert!(exit.output.contains("zj-ai-25") && exit.output.contains("again.toml"), "{}", exit.output);
}

#[test]
fn the_command_line_quotes_without_a_service() {
    let quote = |arguments: &[&str]| {
        let output = command(&[&["quote"], arguments].concat());
        (output.status.success(), said(&output))
    };
    let (ok, text) =
        quote(&["--category", "smart_glasses", "--price", "4000.00", "--at", "2026-06-15T10:00:00+08:00"]);
    assert!(
        ok && text.contains("600.00") && text.contains("zj-ai-25") && text.contains("national-digital-2026"),
        "{text}"
    );
    let (_, text) =
        quote(&["--category", "phone", "--price", "6999.00", "--at", "2025-06-15T10:00:00+08:00"]);
    assert!(text.contains("price-not-eligible"), "{text}");
    for bad in [["--category", "phone", "--price", "4e3"], ["--category", "Phone!", "--price", "4.00"]] {
        let (ok, text) = quote(&bad);
        assert!(!ok && !text.contains("panicked"), "{text}");
    }
}
