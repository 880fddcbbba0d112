//! Dead letters in a file: one line of JSON per letter. For development, and for services on a single host.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::message::MessageFormat;
use super::{DeadLetter, DeadLetterError, DeadLetterQueue, PartitionKeys};

/// A dead-letter queue that is a file.
///
/// Each letter becomes a line: the JSON object that [`SqsDeadLetterQueue`](super::SqsDeadLetterQueue) sends, with the payload inside, however
/// large. A letter is accepted when its line is on the disk (`fsync`). Lines are only ever appended, under a lock on the file, so several workers
/// of one host may share it; don't put it on a network file system. A line that broke off, when the disk was full or the machine lost power, is ended by the next
/// append; it belongs to a letter that was not accepted.
///
/// The file grows until you move it away. `check` makes it if it is missing; its folder must exist.
///
/// The file has payloads and keys in it: it is made for its owner alone (mode 0600). The mode of a file
/// that is there already is left as it is, and a warning is logged, once, if others may read it.
#[derive(Clone)]
pub struct FileDeadLetterQueue {
    path: Arc<PathBuf>,
    format: MessageFormat,
    /// Whether it was told that others may read the file.
    warned: Arc<AtomicBool>,
}

impl FileDeadLetterQueue {
    /// The file at this path. Nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Arc::new(path.into()), format: MessageFormat::default(), warned: Arc::default() }
    }

    /// How lines tell partition keys. Default: in clear.
    #[must_use]
    pub fn partition_keys(mut self, keys: PartitionKeys) -> Self {
        self.format.partition_keys = keys;
        self
    }

    fn error(&self, error: &io::Error) -> DeadLetterError {
        let (queue, message) = (self.path.display().to_string(), error.to_string());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                DeadLetterError::NotFound { queue, message }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                DeadLetterError::AccessDenied { queue, operation: "append", message }
            }
            _ => DeadLetterError::Unavailable { queue, message },
        }
    }

    /// Off the runtime: a disk may be slow, and leases must be renewed meanwhile.
    async fn append(&self, lines: Vec<u8>) -> Result<(), DeadLetterError> {
        let (path, warned) = (Arc::clone(&self.path), Arc::clone(&self.warned));
        let appended = spawn_blocking(move || append(&path, &lines, &warned)).await;
        appended.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| self.error(&error))
    }
}

#[async_trait]
impl DeadLetterQueue for FileDeadLetterQueue {
    async fn check(&self) -> Result<(), DeadLetterError> {
        self.append(Vec::new()).await
    }

    async fn send(&self, letters: &[DeadLetter]) -> Vec<Result<(), DeadLetterError>> {
        let lines = letters.iter().flat_map(|letter| [self.format.whole(letter).into_bytes(), b"\n".to_vec()]).flatten().collect();
        vec![self.append(lines).await; letters.len()]
    }
}

/// Puts the lines at the file's end and waits until the disk has them.
fn append(path: &Path, lines: &[u8], warned: &AtomicBool) -> io::Result<()> {
    let is_new = !path.exists();
    let mut file = private(OpenOptions::new().read(true).append(true).create(true)).open(path)?;
    if others_may_read(&file)? && !warned.swap(true, Ordering::Relaxed) {
        tracing::warn!(file = %path.display(), "others may read this file of dead letters, which has payloads and keys in it; chmod 600 it");
    }
    // Given up when the file is closed.
    file.lock()?;
    if breaks_off(&mut file)? && !lines.is_empty() {
        file.write_all(b"\n")?;
    }
    file.write_all(lines)?;
    file.sync_all()?;
    if is_new && let Some(folder) = path.parent() {
        // The file's name is on the disk when its folder is; the empty path is the working folder. Best effort: not every system syncs folders.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// Makes the file that these options create one that its owner alone can read and write.
pub(crate) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Returns whether its mode lets others than the owner read the file.
#[cfg(unix)]
fn others_may_read(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(file.metadata()?.permissions().mode() & 0o044 != 0)
}

/// Returns `false`: the system has no modes.
#[cfg(not(unix))]
fn others_may_read(_: &File) -> io::Result<bool> {
    Ok(false)
}

/// Whether the file ends in the middle of a line.
fn breaks_off(file: &mut File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

impl fmt::Debug for FileDeadLetterQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FileDeadLetterQueue").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Envelope;
    use super::super::envelope::tests::letter;
    use super::*;

    /// A folder of the test's own, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kcl-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn letters_are_lines_and_a_line_that_broke_off_is_ended() {
        let folder = Folder::new("file-queue");
        let path = folder.0.join("letters.jsonl");
        let queue = FileDeadLetterQueue::new(&path);
        queue.check().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert!(queue.send(&[letter(), letter()]).await.iter().all(Result::is_ok));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"broken").unwrap();
        queue.check().await.unwrap();
        assert!(queue.send(&[letter()]).await[0].is_ok());
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<_> = text.lines().map(|line| Envelope::parse(line).is_ok()).collect();
        assert_eq!(read, [true, true, false, true]);
        assert!(text.ends_with('\n'));
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_file_is_its_owners_alone_and_one_that_is_not_is_told_once() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::new("file-queue-private");
        let path = folder.0.join("letters.jsonl");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let queue = FileDeadLetterQueue::new(&path);
        queue.check().await.unwrap();
        assert!(queue.send(&[letter()]).await[0].is_ok());
        assert_eq!((mode(), queue.warned.load(Ordering::Relaxed)), (0o600, false));
        for (open, warns) in [(0o640, true), (0o604, true), (0o622, false), (0o600, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(open)).unwrap();
            let queue = FileDeadLetterQueue::new(&path);
            queue.check().await.unwrap();
            assert!(queue.send(&[letter()]).await[0].is_ok());
            assert_eq!((mode(), queue.warned.load(Ordering::Relaxed)), (open, warns), "its mode is left, {open:o}");
        }
    }

    #[tokio::test]
    async fn a_path_that_can_not_be_written_is_refused() {
        let folder = Folder::new("file-queue-refused");
        for path in [folder.0.join("missing").join("letters.jsonl"), folder.0.clone()] {
            let queue = FileDeadLetterQueue::new(&path);
            let error = queue.check().await.unwrap_err();
            assert!(matches!(error, DeadLetterError::NotFound { .. }), "{error:?}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert!(queue.send(&[letter()]).await[0].is_err());
        }
    }
}
