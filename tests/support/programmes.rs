//! Programme files that a test may change.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Options, Service};

/// Where the shipped files are.
fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/programmes")
}

/// Copies the shipped files into `directory`, which is made.
pub fn copy(directory: &Path) -> PathBuf {
    std::fs::create_dir_all(directory).expect("a directory");
    for entry in std::fs::read_dir(shipped()).expect("the shipped files") {
        let path = entry.expect("a file").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            std::fs::copy(&path, directory.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    directory.to_owned()
}

/// A service on the shipped programmes as `edit` leaves them in a directory of their own.
#[track_caller]
pub fn service_with(edit: impl FnOnce(&Path)) -> (Service, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let programmes = copy(&directory.path().join("programmes"));
    edit(&programmes);
    let programmes = programmes.to_str().expect("a path in UTF-8");
    (Service::start_with(Options::default().env("SUBSIDY_POS__PROGRAMMES__DIR", programmes)), directory)
}

/// Gives a category of measure 25 a limit of its own for each person.
#[track_caller]
pub fn limit_persons(directory: &Path, category: &str, value: u16, clause: &str, basis: &str) {
    let id = format!("id = \"{category}\"\n");
    let limit = format!("person_limit = {{ value = {value}, clause = \"{clause}\", basis = \"{basis}\" }}\n");
    change(&directory.join("zj-ai-25.toml"), &id, &(id.clone() + &limit));
}

/// Puts `to` in the place of the first `from`, which must be there.
#[track_caller]
pub fn change(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).expect("a file");
    assert!(text.contains(from), "{from} in {text}");
    std::fs::write(file, text.replacen(from, to, 1)).expect("written");
}

/// Makes measure 25 in `directory` pay for smart rings, in its second version.
#[track_caller]
pub fn add_smart_rings(directory: &Path) {
    let file = directory.join("zj-ai-25.toml");
    change(&file, "\nversion = 1\n", "\nversion = 2\n");
    let text = std::fs::read_to_string(&file).expect("a file");
    let category = "\n[[category]]\nid = \"smart_ring\"\nzh = \"智能戒指\"\nen = \"smart ring\"\n\
                    clause = \"measure 25, whose list is open\"\nbasis = \"choice\"\n";
    std::fs::write(&file, text + category).expect("written");
}
