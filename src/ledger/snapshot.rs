//! Snapshots: images of the state in files, from which the ledger opens without folding its whole journal.
//!
//! A snapshot is believed only if the journal says so: an entry after its position must name that position
//! and the SHA-256 of the file, and the journal must still have the entry that was the last one folded into
//! it. Any other file is passed over, with the reason in the log, and nothing is lost but time. What lies
//! before the snapshot is not looked at when the ledger opens from it; the audit does that soon after.
//!
//! Each process keeps its own. The same journal gives the same file at the same position, so a file may be
//! copied to another machine.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;

use super::Stored;
use super::entry::{Effects, Event, Hash};
use super::state::image::{Image, ImageFault};
use super::state::{self, State};
use super::writer::{self, OpenError};
use crate::journal::{Head, Journal, JournalError, Row};
use crate::limits;
use crate::programme::ProgrammeHistory;

/// The format that a journal must have to name snapshots.
pub const FORMAT_MIN: u16 = 2;
/// How the file of a snapshot is called after its position.
const FILE: &str = "snapshot";
/// How it is called once it was found to differ from its journal.
const DISTRUSTED: &str = "distrusted";
/// How it is called while it is being written.
const PART: &str = "part";

/// Which snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The last entry folded into it.
    pub position: u64,
    /// The SHA-256 of its file.
    pub digest: Hash,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Its file.
    #[error(transparent)]
    Image(#[from] ImageFault),
    /// The journal does not have, at this position, the entry that the snapshot says it has.
    #[error("the journal has another entry {0}, or none: it is an older copy, or another journal")]
    NotOfThisJournal(u64),
    /// No entry names this position with the digest of this file.
    #[error("no entry of the journal names it as it is (SHA-256 {0}): it was altered, or never named")]
    Unnamed(Hash),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] OpenError),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Image(error.into())
    }
}

impl From<JournalError> for Unusable {
    fn from(error: JournalError) -> Self {
        Self::Journal(error.into())
    }
}

/// Reads at most so many rows after a position.
pub type Read<'a> = &'a mut dyn FnMut(u64, usize) -> Result<Vec<Row>, JournalError>;

/// The snapshots that this process keeps.
#[derive(Clone, Debug)]
pub struct Snapshots {
    directory: PathBuf,
}

impl Snapshots {
    /// Those in a directory, which is made when there is something to put there.
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The state at the end of `journal`, made of the newest snapshot that can be believed and the entries
    /// after it; none if there is no such snapshot.
    pub fn open(&self, journal: &mut dyn Journal) -> Option<(State, Snapshot)> {
        for (_, file) in self.files(FILE) {
            let began = Instant::now();
            match open(&file, journal) {
                Ok((state, snapshot)) => {
                    let (position, folded) = (snapshot.position, state.head().position - snapshot.position);
                    let ms = began.elapsed().as_millis() as u64;
                    tracing::info!(position, folded, ms, "opened from a snapshot");
                    return Some((state, snapshot));
                }
                Err(why) => {
                    tracing::warn!(file = %file.display(), %why, "a snapshot is passed over");
                }
            }
        }
        None
    }

    /// The state in a snapshot of this directory, as of its position. `pace` is told of every some bytes
    /// that were read, and may wait or say why to stop.
    ///
    /// # Errors
    /// When it is not there, is altered, or the journal has other entries; and what `pace` says.
    pub fn load(
        &self,
        snapshot: Snapshot,
        read: Read<'_>,
        pace: impl FnMut(usize) -> io::Result<()> + Send,
    ) -> Result<State, Unusable> {
        let (state, digest) = load(&self.file(snapshot.position), read, pace)?;
        match digest == snapshot.digest {
            true => Ok(state),
            false => Err(Unusable::Unnamed(digest)),
        }
    }

    /// Writes a snapshot of a state durably and in one step. It is of use once the journal names it.
    /// After every few megabytes `pace` is told how long they took, and may wait or say why to stop.
    ///
    /// # Errors
    /// When the file cannot be written, and what `pace` says.
    pub fn write(
        &self,
        state: &State,
        pace: &mut dyn FnMut(Duration) -> io::Result<()>,
    ) -> io::Result<Snapshot> {
        fs::create_dir_all(&self.directory)?;
        let position = state.head().position;
        let part = self.directory.join(format!("{}.{PART}", std::process::id()));
        let written = write_part(&part, state, pace).and_then(|digest| {
            fs::rename(&part, self.file(position))?;
            File::open(&self.directory)?.sync_all()?;
            Ok(Snapshot { position, digest })
        });
        if written.is_err() {
            // Whatever is left of it is removed with the next one.
            let _ = fs::remove_file(&part);
        }
        written
    }

    /// Bytes of a snapshot's file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn bytes(&self, position: u64) -> io::Result<u64> {
        Ok(fs::metadata(self.file(position))?.len())
    }

    /// Removes a snapshot that the journal does not name after all.
    pub fn remove(&self, position: u64) {
        remove(&self.file(position));
    }

    /// Removes all but the newest few.
    pub fn remove_old(&self) {
        for (_, file) in self.files(FILE).into_iter().skip(limits::SNAPSHOTS_KEPT) {
            remove(&file);
        }
        for (_, file) in self.files(PART) {
            remove(&file);
        }
    }

    /// Sees that none of the snapshots is used again: the journal or they were tampered with. The newest
    /// few are left under another name, for whoever looks into it.
    pub fn distrust(&self) {
        for (_, file) in self.files(FILE) {
            if let Err(error) = fs::rename(&file, file.with_extension(DISTRUSTED)) {
                tracing::error!(file = %file.display(), %error, "a snapshot could not be renamed");
                remove(&file);
            }
        }
        for (_, file) in self.files(DISTRUSTED).into_iter().skip(limits::SNAPSHOTS_KEPT) {
            remove(&file);
        }
    }

    fn file(&self, position: u64) -> PathBuf {
        self.directory.join(format!("{position:020}.{FILE}"))
    }

    /// The files called so, those with the highest number first.
    fn files(&self, extension: &str) -> Vec<(u64, PathBuf)> {
        let listed = match fs::read_dir(&self.directory) {
            Ok(listed) => listed,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(directory = %self.directory.display(), %error, "snapshots cannot be listed");
                }
                return Vec::new();
            }
        };
        let numbered = |file: PathBuf| {
            let is_one = file.extension().is_some_and(|found| found == extension);
            let number = file.file_stem()?.to_str()?.parse().ok()?;
            is_one.then_some((number, file))
        };
        let mut files: Vec<_> = listed.flatten().filter_map(|entry| numbered(entry.path())).collect();
        files.sort_unstable_by(|one, other| other.cmp(one));
        files
    }
}

fn remove(file: &Path) {
    if let Err(error) = fs::remove_file(file) {
        tracing::warn!(file = %file.display(), %error, "a file could not be removed");
    }
}

fn write_part(
    part: &Path,
    state: &State,
    pace: &mut dyn FnMut(Duration) -> io::Result<()>,
) -> io::Result<Hash> {
    let mut file = File::create(part)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut unsynced_bytes = 0;
    state.write_image(&mut |piece| {
        let began = Instant::now();
        context.update(piece);
        file.write_all(piece)?;
        // Little by little: the journal is on the same disk, and waits for what is being carried there.
        unsynced_bytes += piece.len();
        if unsynced_bytes >= limits::SNAPSHOT_SYNC_BYTES {
            file.sync_data()?;
            unsynced_bytes = 0;
        }
        pace(began.elapsed())
    })?;
    file.sync_all()?;
    Hash::from_slice(context.finish().as_ref()).ok_or_else(|| io::Error::other("no digest"))
}

/// The state at the journal's end.
fn open(file: &Path, journal: &mut dyn Journal) -> Result<(State, Snapshot), Unusable> {
    let (mut state, digest) = load(file, &mut |after, limit| journal.read(after, limit), |_| Ok(()))?;
    let snapshot = Snapshot { position: state.head().position, digest };
    let mut is_named = false;
    writer::catch_up(&mut state, journal, &mut |stored: Stored<Effects>| {
        if let Event::SnapshotTaken { position, digest } = stored.entry.event {
            is_named |= Snapshot { position, digest } == snapshot;
        }
    })?;
    if is_named { Ok((state, snapshot)) } else { Err(Unusable::Unnamed(digest)) }
}

/// A file that is read at a pace.
struct Paced<P> {
    file: File,
    pace: P,
}

impl<P: FnMut(usize) -> io::Result<()>> io::Read for Paced<P> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(bytes)?;
        (self.pace)(read)?;
        Ok(read)
    }
}

/// The state in a file, and the SHA-256 of it.
fn load(
    file: &Path,
    read: Read<'_>,
    pace: impl FnMut(usize) -> io::Result<()> + Send,
) -> Result<(State, Hash), Unusable> {
    let file = File::open(file)?;
    let len = file.metadata()?.len();
    let image = Image::open(Paced { file, pace }, len)?;
    row(image.head(), read)?;
    let mut trouble = None;
    let read = image.read(|activations| {
        programmes(activations, read).map_err(|why| {
            let told = ImageFault::Foreign(why.to_string());
            trouble = Some(why);
            told
        })
    });
    match (read, trouble) {
        (Err(_), Some(why)) => Err(why),
        (read, _) => Ok(read?),
    }
}

/// The row that makes this head.
fn row(head: Head, read: Read<'_>) -> Result<Row, Unusable> {
    let Head { position, hash } = head;
    let rows = match position.checked_sub(1) {
        Some(before) => read(before, 1)?,
        None => Vec::new(),
    };
    let is_it = |row: &Row| row.position == position && row.hash == hash && row.is_hashed_right();
    rows.into_iter().find(is_it).ok_or(Unusable::NotOfThisJournal(position))
}

/// What is activated once these entries have been folded.
fn programmes(activations: &[Head], read: Read<'_>) -> Result<ProgrammeHistory, Unusable> {
    let mut history = ProgrammeHistory::default();
    for activation in activations {
        let stored: Stored<Effects> = writer::stored(&row(*activation, read)?)?;
        let Event::ProgrammesActivated { files } = &stored.entry.event else {
            return Err(Unusable::NotOfThisJournal(activation.position));
        };
        history = state::activating(&history, files)
            .map_err(|_| ImageFault::Malformed("its programmes cannot follow each other"))?;
    }
    Ok(history)
}
