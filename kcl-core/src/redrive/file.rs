//! Letters from a file that [`FileDeadLetterQueue`](crate::FileDeadLetterQueue) wrote.
//!
//! The file itself is never changed: a worker may be appending to it. What was put back is noted in a second file beside it, a line for each
//! letter with the place where its line begins and that line's SHA-256, on the disk before the letter counts as deleted.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::source::{LetterSource, ReceivedLetter, SourceError};
use crate::dead_letter::file::private;
use crate::dead_letter::identity::sha256_hex;

/// Letters given at a time.
const AT_A_TIME: usize = 10;

/// A file that dead letters are read from.
///
/// Letters that were put back are noted in `PATH.redriven` and are passed over from then on; the file keeps them. When all of it is done with, move both
/// files away together.
#[derive(Clone, Debug)]
pub struct FileLetters {
    path: Arc<PathBuf>,
    reading: Arc<Mutex<Reading>>,
}

/// How far the file has been read, and what was put back.
#[derive(Debug, Default)]
struct Reading {
    position: u64,
    redriven: Option<BTreeSet<String>>,
}

impl FileLetters {
    /// The file at this path. Nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Arc::new(path.into()), reading: Arc::default() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Path, &mut Reading) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SourceError> {
        let this = self.clone();
        let done = spawn_blocking(move || work(&this.path, &mut this.reading.lock().unwrap_or_else(PoisonError::into_inner))).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| SourceError {
            queue: self.path.display().to_string(),
            operation,
            message: error.to_string(),
            is_retryable: false,
            is_gone: false,
            is_full: false,
        })
    }
}

#[async_trait]
impl LetterSource for FileLetters {
    /// A file hides no letters.
    async fn invisible(&self) -> Result<Option<u64>, SourceError> {
        Ok(Some(0))
    }

    async fn receive(&self) -> Result<Vec<ReceivedLetter>, SourceError> {
        self.blocking("read", read).await
    }

    async fn delete(&self, letter: &ReceivedLetter) -> Result<(), SourceError> {
        let handle = letter.handle.clone();
        self.blocking("note", move |path, reading| {
            note(path, &handle)?;
            reading.redriven.get_or_insert_default().insert(handle);
            Ok(())
        })
        .await
    }

    /// Nothing is held back from anybody.
    async fn release(&self, _letter: &ReceivedLetter) -> Result<(), SourceError> {
        Ok(())
    }
}

fn notes(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".redriven");
    name.into()
}

fn read(path: &Path, reading: &mut Reading) -> io::Result<Vec<ReceivedLetter>> {
    if reading.redriven.is_none() {
        let noted = match std::fs::read_to_string(notes(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            noted => noted?,
        };
        reading.redriven = Some(noted.lines().map(str::to_owned).collect());
    }
    let redriven = reading.redriven.get_or_insert_default();
    let mut file = BufReader::new(File::open(path)?);
    file.seek(SeekFrom::Start(reading.position))?;
    let mut letters = Vec::new();
    while letters.len() < AT_A_TIME {
        let mut line = Vec::new();
        let bytes = file.read_until(b'\n', &mut line)?;
        // A line without its end may be being written.
        if line.pop() != Some(b'\n') {
            break;
        }
        let begin = reading.position;
        reading.position += bytes as u64;
        let handle = format!("{begin} {}", sha256_hex(&line));
        if !line.is_empty() && !redriven.contains(&handle) {
            // What is not UTF-8 is no letter, and is told so.
            letters.push(ReceivedLetter { id: begin.to_string(), handle, body: String::from_utf8_lossy(&line).into_owned() });
        }
    }
    Ok(letters)
}

fn note(path: &Path, handle: &str) -> io::Result<()> {
    let mut file = private(OpenOptions::new().append(true).create(true)).open(notes(path))?;
    // The first newline ends a note that broke off; empty lines mean nothing.
    file.write_all(format!("\n{handle}\n").as_bytes())?;
    file.sync_all()
}
