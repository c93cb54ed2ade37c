//! What making a claim costs, counted and not timed, so that it is the same on a slow machine and on a busy
//! one. Whoever makes a part cheaper lowers its line here; whoever has to make it dearer raises it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that meets the unexpected shall end")]

use std::fs;
use std::process::Command;

use subsidy_pos_loadtest::desk::Desk;
use subsidy_pos_loadtest::parts::{Part, Parts, SALES};

/// What a part was seen to take for one sale: instructions in a build for debugging, allocations, and the
/// bytes they had together.
const SEEN: [(Part, u64, u64, u64); 16] = [
    (Part::DocumentNumber, 25_100, 0, 0),
    (Part::Gtin, 13_500, 0, 0),
    (Part::SerialNumber, 5_700, 1, 21),
    (Part::Imei, 11_600, 0, 0),
    (Part::Uscc, 12_800, 0, 0),
    (Part::Read, 171_000, 9, 1_557),
    (Part::Determine, 9_400, 0, 0),
    (Part::Prepare, 126_000, 7, 1_459),
    (Part::Decide, 20_800, 1, 592),
    (Part::Replay, 5_100, 1, 248),
    (Part::Encode, 100_000, 1, 1_105),
    (Part::Hash, 37_100, 0, 0),
    (Part::Fold, 29_000, 0, 0),
    (Part::Answer, 160_000, 1, 1_536),
    (Part::Decode, 164_000, 14, 1_939),
    (Part::DecodeEffects, 90_400, 4, 600),
];

/// Compilers and processors differ in how many instructions the same work takes, but not by half.
const fn most_instructions(seen: u64) -> u64 {
    seen * 8 / 5
}

/// Little room: nothing but a change of the code or of a library moves these.
const fn most_allocated(seen: u64) -> u64 {
    seen * 5 / 4
}

/// Counts the instructions of each part, for all sales together, in the order of [`Part::ALL`].
fn instructions() -> Vec<u64> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("counted");
    let output = Command::new("valgrind")
        .args(["-q", "--tool=callgrind", "--zero-before=*part_begins*", "--dump-before=*part_ends*"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .args([env!("CARGO_BIN_EXE_subsidy-pos-loadtest"), "parts"])
        // It would look for the system's debug information on the network.
        .env_remove("DEBUGINFOD_URLS")
        .output()
        .expect("valgrind is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let total = |dump: usize| {
        let text = fs::read_to_string(file.with_extension(dump.to_string())).expect("a dump for every part");
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
        total.parse().expect("a number")
    };
    (1..=Part::ALL.len()).map(total).collect()
}

#[test]
fn no_part_takes_many_more_instructions_than_it_did() {
    let counted = instructions();
    let mut faults = Vec::new();
    for ((part, seen, ..), all) in SEEN.into_iter().zip(&counted) {
        let one = all / SALES;
        eprintln!("{:20} {one:>8} instructions, {seen} seen", part.name());
        assert!(one > 0, "{part:?} was not counted");
        if one > most_instructions(seen) {
            faults.push(format!("{} takes {one} instructions for a sale, not {seen}", part.name()));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn no_part_allocates_more_than_it_did() {
    let mut parts = Parts::new(SALES).unwrap();
    let mut faults = Vec::new();
    for (part, _, seen, seen_bytes) in SEEN {
        let mut counted = Default::default();
        // The first time some set aside what they keep.
        for _ in 0..2 {
            parts.run(part, &mut |work| counted = allocation_counter::measure(work)).unwrap();
        }
        let (count, bytes) = (counted.count_total.div_ceil(SALES), counted.bytes_total.div_ceil(SALES));
        eprintln!("{:20} {count:>2} allocations, {bytes} bytes", part.name());
        if count > most_allocated(seen) || bytes > most_allocated(seen_bytes) {
            faults.push(format!(
                "{} allocates {count} times, {bytes} bytes, for a sale, not {seen} times, {seen_bytes} bytes",
                part.name()
            ));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn every_part_has_a_line() {
    assert_eq!(SEEN.map(|(part, ..)| part), Part::ALL);
}

#[test]
fn the_entry_of_an_ordinary_claim_stays_small() {
    let parts = Parts::new(SALES).unwrap();
    for entry in parts.encoded() {
        assert!(entry.len() <= 1_150, "{} bytes: {}", entry.len(), String::from_utf8_lossy(entry));
    }
}

#[test]
fn a_stored_claim_takes_little_memory() {
    // Fewer claims take more memory each; with a million it is less than 200 bytes.
    const CLAIMS: u64 = 40_000;
    let mut desk = Desk::new().unwrap();
    let before = desk.claim_bytes();
    let counted = allocation_counter::measure(|| desk.fill(CLAIMS).unwrap());
    // The claims themselves are in memory that is not counted there.
    let claims = desk.claim_bytes() - before;
    let one = (claims as u64 + u64::try_from(counted.bytes_current).unwrap()) / CLAIMS;
    eprintln!("{one} bytes");
    assert!((100..=225).contains(&one), "{one} bytes for a claim");
}
