//! `subsidy-pos verify`.

use subsidy_pos::heads::SignedHead;
use subsidy_pos::secrets::PublicKey;
use subsidy_pos::verify;

use super::store::Store;
use super::{Failed, Verify, failed};

/// Verifies a journal, beside a live service or without one.
pub fn verify(arguments: &Verify) -> Result<(), Failed> {
    let signed = match (&arguments.head, &arguments.public_key) {
        (Some(head), Some(key)) => {
            let head = SignedHead::load(head).map_err(failed)?;
            head.check(&PublicKey::load(key).map_err(failed)?).map_err(failed)?;
            Some(head)
        }
        _ => None,
    };
    let store = Store::named(&arguments.place)?;
    let read = store.existing_journal()?;
    // The book first: whatever it says, the journal said before.
    let book = store.cube()?;
    let verified = verify::verify(read, book, signed.as_ref()).map_err(failed)?;
    println!(
        "the journal verifies: {} entries, {} claims, {} funds",
        verified.head.position, verified.claims, verified.funds
    );
    println!("head   {}", verified.head.hash);
    println!("digest {}", verified.digest);
    match verified.book_at {
        Some(position) => println!("the book's totals are right at position {position}"),
        None => println!("there is no book to compare"),
    }
    if let Some(position) = verified.head_at {
        println!("the signed head at position {position} is this journal's");
    }
    Ok(())
}
