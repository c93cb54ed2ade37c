//! Several processes on one journal, whatever happens to them and to what they stand on: every acknowledged
//! claim exists once, no device or person is subsidised twice, the money adds up, the chain verifies, every
//! process has the same state, every lost outcome is found by asking again.
//!
//! Each fault goes on for a few seconds; `SUBSIDY_POS_TEST_FAULT_SECONDS=60` makes it a minute.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::fleet::{Fleet, May, Run};
use crate::support::postgres::Stop;
use crate::support::proxy::Way;
use crate::support::redis::NONSENSE;

/// PostgreSQL is waited for 3 seconds.
const LONGER_THAN_ANYONE_WAITS: Duration = Duration::from_millis(3500);

/// Does something again and again for `span`, at this pace.
fn again_and_again(span: Duration, pace: Duration, mut what: impl FnMut()) {
    let began = Instant::now();
    while began.elapsed() < span {
        what();
        std::thread::sleep(pace);
    }
}

#[test]
fn nothing_is_lost_or_doubled_and_sales_go_on_while_redis_suffers() {
    let fleet = Fleet::start(3);
    let mut run = Run::new(&fleet, "redis suffers");
    run.through("nothing happens", May::Nothing, |_| std::thread::sleep(Duration::from_secs(1)));
    let redis = || fleet.redis.lock().unwrap();
    run.through("Redis is emptied every 200 ms", May::Nothing, |span| {
        again_and_again(span, Duration::from_millis(200), || assert_eq!(redis().say("FLUSHALL"), "+OK"));
    });
    run.through("Redis stands still", May::Nothing, |span| {
        redis().signal("-STOP");
        std::thread::sleep(span);
        redis().signal("-CONT");
    });
    run.through("Redis is killed, and comes back empty", May::Nothing, |span| {
        redis().kill();
        std::thread::sleep(span / 2);
        redis().run();
        std::thread::sleep(span / 2);
    });
    let mut nonsense = NONSENSE.iter().cycle();
    run.through("Redis is filled with nonsense", May::Nothing, |span| {
        again_and_again(span, Duration::from_millis(30), || {
            let keys = redis().keys();
            redis().poison(&keys, nonsense.next().unwrap());
        });
    });
    run.through("Redis is slow", May::Nothing, |span| {
        fleet.redis_network.delay(Duration::from_millis(50));
        std::thread::sleep(span);
        fleet.redis_network.delay(Duration::ZERO);
    });
    run.through("connections to Redis are reset", May::Nothing, |span| {
        again_and_again(span, Duration::from_millis(100), || fleet.redis_network.reset_all());
    });
    run.through("connections to Redis are half open", May::Nothing, |span| {
        fleet.redis_network.be_silent(true);
        std::thread::sleep(span);
        fleet.redis_network.be_silent(false);
    });
}

#[test]
fn nothing_is_lost_or_doubled_and_sales_go_on_while_redis_lies() {
    let fleet = Fleet::start(3);
    let mut run = Run::new(&fleet, "redis lies");
    let redis = || fleet.redis.lock().unwrap();
    run.through(
        "Redis says that what was in flight has just come to another process",
        May::Nothing,
        |span| {
            // Every request is in flight for long enough to be told, so that there is much to repeat.
            fleet.postgres_network.delay(Duration::from_millis(10));
            let mut marks = BTreeSet::new();
            again_and_again(span, Duration::from_millis(10), || {
                // No more than is listened to: what were dropped and told anew would be another request.
                if marks.len() < 500 {
                    marks.extend(redis().marks());
                }
                redis().lie_about_requests(7, &marks);
            });
            fleet.postgres_network.delay(Duration::ZERO);
            assert!(marks.len() > 10, "{} requests were told", marks.len());
        },
    );
    // Long past, just past, the latest that can be meant, and what cannot.
    const LATEST: Duration = Duration::from_micros(1_900_000);
    let latest = LATEST.as_micros() as i64;
    let mut instants = [-3_600_000_000, -1_000, 1_000_000, latest, 3_600_000_000].into_iter().cycle();
    run.through("Redis has other instants for rates", May::Wait, |span| {
        again_and_again(span, Duration::from_millis(30), || {
            let instant = instants.next().unwrap();
            let keys = redis().keys();
            for key in keys.iter().filter(|key| key.contains(":rate:")) {
                redis().lie_about_a_rate(key, instant);
            }
        });
        // Until then the last of them may still be meant, and those who check are to be let in.
        std::thread::sleep(LATEST);
    });
}

#[test]
fn nothing_is_lost_or_doubled_while_postgresql_suffers() {
    let fleet = Fleet::start(3);
    let mut run = Run::new(&fleet, "postgresql suffers");
    run.through("connections to PostgreSQL are terminated", May::Interrupt, |span| {
        again_and_again(span, Duration::from_millis(150), || {
            fleet.database.terminate_backends();
        });
    });
    run.through("PostgreSQL is restarted without a shutdown", May::Interrupt, |span| {
        again_and_again(span, Duration::from_millis(1500), || fleet.database.server.restart_immediately());
    });
    run.through("PostgreSQL is away", May::Interrupt, |span| {
        fleet.database.server.stop(Stop::Fast);
        std::thread::sleep(span / 2);
        fleet.database.server.start_again();
        std::thread::sleep(span / 2);
    });
    run.through("PostgreSQL stands still", May::Interrupt, |span| {
        fleet.database.server.signal_all("STOP");
        std::thread::sleep(LONGER_THAN_ANYONE_WAITS);
        fleet.database.server.signal_all("CONT");
        std::thread::sleep(span.saturating_sub(LONGER_THAN_ANYONE_WAITS));
    });
    run.through("PostgreSQL is slow", May::Nothing, |span| {
        fleet.postgres_network.delay(Duration::from_millis(20));
        std::thread::sleep(span);
        fleet.postgres_network.delay(Duration::ZERO);
    });
    run.through("connections to PostgreSQL are reset", May::Interrupt, |span| {
        again_and_again(span, Duration::from_millis(150), || fleet.postgres_network.reset_all());
    });
    run.through("connections to PostgreSQL are half open", May::Interrupt, |span| {
        again_and_again(span, Duration::from_secs(2), || {
            // What was on the way arrives all the same, long after it was given up.
            fleet.postgres_network.be_silent(true);
            std::thread::sleep(LONGER_THAN_ANYONE_WAITS);
            fleet.postgres_network.be_silent(false);
        });
    });
}

#[test]
fn nothing_is_lost_or_doubled_while_what_is_said_one_way_is_lost() {
    let fleet = Fleet::start(3);
    let mut run = Run::new(&fleet, "one way is lost");
    for (what, way) in
        [("what Redis is asked is lost", Way::There), ("what Redis answers is lost", Way::Back)]
    {
        run.through(what, May::Nothing, |span| {
            fleet.redis_network.lose(Some(way));
            for number in 0..fleet.len() {
                eventually("it is told that Redis is away", Duration::from_secs(5), || {
                    let ready = fleet.service(number).operator().get("/readyz").must_be(200);
                    (ready["shield"]["degraded"] == true).then_some(())
                });
            }
            std::thread::sleep(span / 2);
            fleet.redis_network.lose(None);
        });
    }
    for (what, way) in [
        ("what PostgreSQL is asked is lost", Way::There),
        // It does all that it is asked, and nobody hears of it.
        ("what PostgreSQL answers is lost", Way::Back),
    ] {
        run.through(what, May::Interrupt, |span| {
            // Whoever waits for what was lost waits on when nothing is lost any more, and gives up by itself.
            again_and_again(span, LONGER_THAN_ANYONE_WAITS, || {
                fleet.postgres_network.lose(Some(way));
                std::thread::sleep(LONGER_THAN_ANYONE_WAITS);
                fleet.postgres_network.lose(None);
            });
        });
    }
}

#[test]
fn nothing_is_lost_or_doubled_while_processes_are_killed() {
    let fleet = Fleet::start(3);
    let mut run = Run::new(&fleet, "processes are killed");
    let mut victims = (0..fleet.len()).cycle();
    run.through("one process after the other is killed", May::Interrupt, |span| {
        again_and_again(span, Duration::from_millis(300), || {
            let mut service = fleet.service(victims.next().unwrap());
            service.kill();
            service.start_again();
        });
    });
    run.through("one process stands still, and is decided past", May::Interrupt, |span| {
        again_and_again(span, Duration::from_millis(300), || {
            let service = fleet.service(victims.next().unwrap());
            service.signal("STOP");
            std::thread::sleep(Duration::from_millis(700));
            service.signal("CONT");
        });
    });
}
