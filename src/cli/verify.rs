//! `subsidy-pos verify`.

use subsidy_pos::book;
use subsidy_pos::heads::SignedHead;
use subsidy_pos::journal::sqlite::SqliteReader;
use subsidy_pos::secrets::PublicKey;
use subsidy_pos::verify;

use super::{Failed, Verify, failed, journal_in};

/// Verifies an embedded journal, beside a live service or without one.
pub fn verify(arguments: &Verify) -> Result<(), Failed> {
    let signed = match (&arguments.head, &arguments.public_key) {
        (Some(head), Some(key)) => {
            let head = SignedHead::load(head).map_err(failed)?;
            head.check(&PublicKey::load(key).map_err(failed)?).map_err(failed)?;
            Some(head)
        }
        _ => None,
    };
    if !journal_in(&arguments.data).is_file() {
        return Err(failed(format!("{}: there is no journal", journal_in(&arguments.data).display())));
    }
    // The book first: whatever it says, the journal said before.
    let book_file = arguments.data.join(book::sqlite::FILE);
    let book = match book_file.is_file() {
        true => Some(book::sqlite::read_cube(&book_file).map_err(failed)?),
        false => None,
    };
    let reader = SqliteReader::new(&arguments.data).map_err(failed)?;
    let verified = verify::verify(|after, limit| reader.read_after(after, limit), book, signed.as_ref())
        .map_err(failed)?;
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
