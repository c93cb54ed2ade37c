//! The process killed at any moment: what was acknowledged is there, once, and what was not settles.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::client::id_of;
use crate::support::journal::Fold;
use crate::support::service::also_on_postgres;
use crate::support::{Answer, Random, Sale, Service, Value, fresh_key, json};

/// What a till knows of one claim.
struct Known {
    key: String,
    sale: Sale,
    /// The creating answer, if it came.
    made: Option<Answer>,
    /// The answer to the return, if one was sent and answered; `Some(None)` where it was lost.
    returned: Option<Option<Answer>>,
}

#[test]
fn fifty_kills_under_load_lose_and_double_nothing() {
    const KILLS: usize = 50;
    const TILLS: usize = 6;
    let mut random = Random::seeded("crash");
    let mut service = Service::start();
    let till = service.retailer();
    let fund = service.open_fund("zj-ai-25", "330106", "50000000.00");
    let mut all: Vec<Known> = Vec::new();
    let mut lost = 0;
    for kill in 0..KILLS {
        let now = service.now();
        let stopping = AtomicBool::new(false);
        let gathered: Mutex<Vec<Known>> = Mutex::default();
        let pause = Duration::from_millis(random.below(120));
        std::thread::scope(|scope| {
            for index in 0..TILLS {
                let (till, stopping, gathered) = (&till, &stopping, &gathered);
                scope.spawn(move || {
                    let mut round = index;
                    while !stopping.load(Ordering::Relaxed) {
                        round += 1;
                        let sale =
                            if round % 3 == 0 { Sale::at(now).held_with_device() } else { Sale::at(now) };
                        let mut known = Known { key: fresh_key(), sale, made: None, returned: None };
                        if let Ok(answer) = till.try_post_under(&known.key, "/v1/claims", &known.sale.body) {
                            let claim = answer.must_be(201);
                            known.made = Some(answer);
                            if round % 4 == 1 && claim["status"] == "redeemed" {
                                let body = json!({"reason": "unwanted", "returned_at": claim["sold_at"]});
                                let path = format!("/v1/claims/{}/return", id_of(&claim));
                                known.returned = Some(till.try_post_under("-", &path, &body).ok());
                            }
                        }
                        gathered.lock().unwrap().push(known);
                    }
                });
            }
            std::thread::sleep(pause);
            service.kill();
            stopping.store(true, Ordering::Relaxed);
        });
        service.start_again();
        let mut gathered = gathered.into_inner().unwrap();
        for known in &mut gathered {
            // Acknowledged or not: asked again, there is one claim, and it is the one that was acknowledged.
            let again = till.claim_under(&known.key, &known.sale);
            again.must_be(201);
            match &known.made {
                Some(made) => assert_eq!(again.text(), made.text(), "kill {kill}"),
                None => {
                    lost += 1;
                    known.made = Some(again);
                }
            }
            let claim = known.made.as_ref().unwrap().json();
            match known.returned.take() {
                Some(Some(answer)) => {
                    assert_eq!(till.look_at(&claim), answer.must_be(200), "an acknowledged return is there");
                    known.returned = Some(Some(answer));
                }
                Some(None) => {
                    let settled = till.take_back(&claim);
                    assert_eq!(settled.must_be(200)["status"], "returned", "a lost return settles");
                    known.returned = Some(Some(settled));
                }
                None => {}
            }
        }
        all.extend(gathered);
        if kill % 10 == 9 {
            service.must_verify();
        }
    }
    assert!(all.len() > KILLS, "there was load: {} claims", all.len());
    eprintln!("{} claims, {lost} answers lost, {KILLS} kills", all.len());

    let entries = service.entries();
    let fold = Fold::of(&entries);
    assert_eq!(fold.claims.len(), all.len(), "every claim exactly once, and none that nobody asked for");
    let mut due = 0;
    let mut held = 0;
    for known in &all {
        let answer = known.made.as_ref().unwrap();
        assert_eq!(till.claim_under(&known.key, &known.sale).text(), answer.text());
        let claim: Value = answer.json();
        let told = &fold.claims[id_of(&claim)];
        let expected = match (&known.returned, claim["status"].as_str()) {
            (Some(_), _) => "returned",
            (None, Some("held")) => "held",
            _ => "redeemed",
        };
        assert_eq!(told.status, expected);
        due += i64::from(expected == "redeemed") * 60_000;
        held += i64::from(expected == "held") * 60_000;
    }
    let money = fold.funds[&fund];
    assert_eq!((money.redeemed, money.held), (due, held), "the fund adds up");
    let fund = service.regulator().fund(&fund);
    assert_eq!((crate::support::fen(&fund["redeemed"]), crate::support::fen(&fund["held"])), (due, held));
    assert!(service.stop().success());
    service.must_verify();
}

also_on_postgres!(fifty_kills_under_load_lose_and_double_nothing,);
