//! Programme files on disk.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::limits;

/// Why the programme files could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ProgrammeFilesError {
    /// A directory or file could not be read, or is not UTF-8.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There are no programmes to apply.
    #[error("{} holds no programme files (*.toml)", .path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// More than a set may hold.
    #[error("{} holds more than {} files or {} bytes", .path.display(), limits::PROGRAMMES_MAX,
        limits::PROGRAMME_SET_BYTES_MAX)]
    TooMuch {
        /// The directory.
        path: PathBuf,
    },
}

/// Reads every `*.toml` of a directory (not of those below it, and none that begins with a dot) as name
/// and text, ordered by name, for [`crate::programme::ProgrammeSet::parse`].
pub fn read_dir(dir: &Path) -> Result<Vec<(String, String)>, ProgrammeFilesError> {
    let unreadable = |path: &Path, source| ProgrammeFilesError::Unreadable { path: path.to_owned(), source };
    let mut files = Vec::new();
    let mut bytes_left = limits::PROGRAMME_SET_BYTES_MAX;
    for entry in fs::read_dir(dir).map_err(|error| unreadable(dir, error))? {
        let path = entry.map_err(|error| unreadable(dir, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with('.') || !name.ends_with(".toml") {
            continue;
        }
        let bytes = read_at_most(&path, bytes_left).map_err(|error| unreadable(&path, error))?;
        let left = bytes_left.checked_sub(bytes.len()).filter(|_| files.len() < limits::PROGRAMMES_MAX);
        bytes_left = left.ok_or_else(|| ProgrammeFilesError::TooMuch { path: dir.to_owned() })?;
        let text = String::from_utf8(bytes)
            .map_err(|error| unreadable(&path, io::Error::new(io::ErrorKind::InvalidData, error)))?;
        files.push((name.to_owned(), text));
    }
    if files.is_empty() {
        return Err(ProgrammeFilesError::Empty { path: dir.to_owned() });
    }
    files.sort();
    Ok(files)
}

/// The file, or one byte more than `bytes_max` of it.
fn read_at_most(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let taken = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    fs::File::open(path)?.take(taken).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::identity::RegionCode;
    use crate::money::Fen;
    use crate::programme::{ProgrammeSet, shipped};
    use crate::rules::{self, Refused, Verdict};
    use crate::time::Timestamp;

    fn programmes_dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("config/programmes")
    }

    #[test]
    fn the_shipped_programmes_are_those_in_the_directory() {
        let mut shipped = shipped();
        shipped.sort();
        assert_eq!(read_dir(&programmes_dir()).unwrap(), shipped);
    }

    #[test]
    fn a_directory_without_programmes_is_refused_and_other_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_dir(&dir.path().join("none")), Err(ProgrammeFilesError::Unreadable { .. })));
        fs::write(dir.path().join("README.md"), "").unwrap();
        fs::write(dir.path().join(".draft.toml"), "").unwrap();
        fs::create_dir(dir.path().join("cases")).unwrap();
        assert!(matches!(read_dir(dir.path()), Err(ProgrammeFilesError::Empty { .. })));
        fs::write(dir.path().join("b.toml"), "two").unwrap();
        fs::write(dir.path().join("a.toml"), "one").unwrap();
        let files = [("a.toml", "one"), ("b.toml", "two")].map(|(name, text)| (name.into(), text.into()));
        assert_eq!(read_dir(dir.path()).unwrap(), files);
        fs::write(dir.path().join("c.toml"), [0xff]).unwrap();
        let error = read_dir(dir.path()).unwrap_err();
        assert!(error.to_string().contains("c.toml"), "{error}");
        fs::write(dir.path().join("c.toml"), "x".repeat(limits::PROGRAMME_SET_BYTES_MAX - 5)).unwrap();
        assert!(matches!(read_dir(dir.path()), Err(ProgrammeFilesError::TooMuch { .. })));
        fs::write(dir.path().join("c.toml"), "x".repeat(limits::PROGRAMME_SET_BYTES_MAX - 6)).unwrap();
        assert_eq!(read_dir(dir.path()).unwrap().len(), 3);
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Cases {
        case: Vec<Case>,
    }

    /// A sale and the answer it must get: `programme` and `amount`, or `refused`, the programme `cited` and
    /// the `basis` of what is cited.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        category: String,
        price: String,
        sold_at: String,
        region: String,
        energy_grade: Option<u8>,
        trade_in_value: Option<String>,
        accept_programme: Option<String>,
        programme: Option<String>,
        amount: Option<String>,
        refused: Option<String>,
        cited: Option<String>,
        basis: Option<String>,
        #[serde(default)]
        considered: Vec<ConsideredCase>,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct ConsideredCase {
        programme: String,
        amount: String,
        reason: Option<String>,
    }

    impl ConsideredCase {
        fn of(considered: &rules::Considered) -> Self {
            Self {
                programme: considered.programme.id.to_string(),
                amount: considered.amount.to_string(),
                reason: considered.verdict.reason().map(str::to_owned),
            }
        }
    }

    fn code(refused: &Refused) -> &'static str {
        match refused {
            Refused::CategoryNotEligible(_) => "category-not-eligible",
            Refused::ProgrammeNotApplicable(_) => "programme-not-applicable",
            Refused::RegionNotCovered(_) => "region-not-covered",
            Refused::NotInForce(_) => "not-in-force",
            Refused::PriceNotEligible(_) => "price-not-eligible",
            Refused::ConditionNotMet(_) => "condition-not-met",
        }
    }

    fn run(set: &ProgrammeSet, case: &Case) {
        let name = &case.name;
        let sale = rules::Sale {
            category: &case.category,
            price: Fen::parse_yuan(&case.price).expect(name),
            region: RegionCode::parse(&case.region).expect(name),
            sold_at: Timestamp::parse(&case.sold_at).expect(name),
            energy_grade: case.energy_grade,
            trade_in_value: case.trade_in_value.as_deref().map(|value| Fen::parse_yuan(value).expect(name)),
            accept_programme: case.accept_programme.as_deref(),
        };
        let (considered, outcome) = match rules::determine(set, &sale) {
            Ok(determination) => {
                let chosen = determination.chosen();
                assert_eq!(chosen.verdict, Verdict::Chosen, "{name}");
                let outcome = (Some(chosen.programme.id.to_string()), Some(chosen.amount.to_string()), None);
                (determination.considered().map(ConsideredCase::of).collect(), outcome)
            }
            Err(refused) => {
                let cited = refused.cited().expect(name);
                assert_eq!(Some(cited.programme.id.as_str()), case.cited.as_deref(), "{name}");
                assert_eq!(Some(cited.reference.basis.name()), case.basis.as_deref(), "{name}");
                let considered: Vec<_> = refused.considered().iter().map(ConsideredCase::of).collect();
                (considered, (None, None, Some(code(&refused).to_owned())))
            }
        };
        assert_eq!(outcome, (case.programme.clone(), case.amount.clone(), case.refused.clone()), "{name}");
        assert_eq!(considered, case.considered, "{name}");
    }

    #[test]
    fn every_case_beside_the_programmes_gets_the_answer_it_names() {
        let files = read_dir(&programmes_dir()).unwrap();
        let set = ProgrammeSet::parse(&files).unwrap();
        let case_files = read_dir(&programmes_dir().join("cases")).unwrap();
        for (name, text) in &case_files {
            let cases: Cases = toml::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!cases.case.is_empty(), "{name} holds no case");
            for case in &cases.case {
                run(&set, case);
            }
        }
        for programme in set.iter() {
            let id = programme.id.as_str();
            assert!(case_files.iter().any(|(_, text)| text.contains(id)), "there is no case for {id}");
        }
    }
}
