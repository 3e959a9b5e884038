//! Files: the state directory with its lock, and the documents that the user names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::system::git;
use crate::world::{Documents, FileError, Files, RevisionError, Tail};

/// The name of the lock file.
const LOCK: &str = "lock";
/// How names of files end that are being written.
const BESIDE: &str = ".new";
/// How long the lock is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest document that is read, in octets: what is larger is no policy and no pins file.
const DOCUMENT_MAX: u64 = 256 << 20;

/// The state directory. Made when something is first written.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    /// Held until the process ends.
    lock: Option<File>,
}

impl StateDirectory {
    /// The directory at this path.
    pub fn new(path: PathBuf) -> StateDirectory {
        StateDirectory { path, lock: None }
    }

    fn make(&self) -> Result<(), FileError> {
        // Pins and policies are nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(|error| explain("make", &self.path, &error))
    }

    /// Removes what runs that were killed have half written. Nobody else writes while the lock is held; what cannot be removed is
    /// never read either.
    fn sweep(&self) {
        for name in self.list().unwrap_or_default().iter().filter(|name| name.ends_with(BESIDE)) {
            let _ = fs::remove_file(self.path.join(name));
        }
    }
}

impl Files for StateDirectory {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.path.join(name);
        let explained = |error: io::Error| explain("read", &path, &error);
        let Some(file) = open(&path).map_err(explained)? else { return Ok(None) };
        let mut content = Vec::new();
        file.take(DOCUMENT_MAX).read_to_end(&mut content).map_err(explained)?;
        Ok(Some(content))
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.make()?;
        replace(&self.path.join(name), content, 0o600, Disk::Wait)
    }

    fn write_all(&mut self, files: &[(&str, &[u8])]) -> Result<(), FileError> {
        self.make()?;
        let files: Vec<(PathBuf, &[u8])> = files.iter().map(|(name, content)| (self.path.join(name), *content)).collect();
        let changed: Vec<_> = files.iter().filter(|(path, content)| !fs::read(path).is_ok_and(|there| there == *content)).collect();
        let undo = |from: usize| changed.iter().skip(from).for_each(|(path, _)| drop(fs::remove_file(beside(path))));
        for (path, content) in &changed {
            write_beside(path, content, 0o600, Disk::Wait).map_err(|error| {
                undo(0);
                explain("write", path, &error)
            })?;
        }
        for (position, (path, _)) in changed.iter().enumerate() {
            rename_beside(path, Disk::Trust).map_err(|error| {
                undo(position);
                explain("write", path, &error)
            })?;
        }
        match changed.is_empty() {
            true => Ok(()),
            false => sync_directory(&self.path).map_err(|error| explain("write", &self.path, &error)),
        }
    }

    fn prepare(&mut self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.make()?;
        let path = self.path.join(name);
        write_beside(&path, content, 0o600, Disk::Wait).map_err(|error| explain("write", &path, &error))
    }

    fn publish(&mut self, name: &str) -> Result<(), FileError> {
        let path = self.path.join(name);
        rename_beside(&path, Disk::Wait).map_err(|error| explain("replace", &path, &error))
    }

    fn note(&mut self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.make()?;
        replace(&self.path.join(name), content, 0o600, Disk::Trust)
    }

    fn append(&mut self, name: &str, keep: u64, content: &[u8]) -> Result<(), FileError> {
        self.make()?;
        add(&self.path.join(name), keep, content, Disk::Wait)
    }

    fn append_note(&mut self, name: &str, keep: u64, content: &[u8]) -> Result<(), FileError> {
        self.make()?;
        add(&self.path.join(name), keep, content, Disk::Trust)
    }

    fn tail(&self, name: &str, octets: u64) -> Result<Option<Tail>, FileError> {
        let path = self.path.join(name);
        let explained = |error: io::Error| explain("read", &path, &error);
        let Some(mut file) = open(&path).map_err(explained)? else { return Ok(None) };
        let mut read = || {
            let size = file.metadata()?.len();
            file.seek(SeekFrom::Start(size.saturating_sub(octets)))?;
            let mut tail = Vec::new();
            (&file).take(octets).read_to_end(&mut tail)?;
            Ok(Some(Tail { size, octets: tail }))
        };
        read().map_err(explained)
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read>>, FileError> {
        let path = self.path.join(name);
        let opened = open(&path).map_err(|error| explain("read", &path, &error))?;
        Ok(opened.map(|file| Box::new(file) as Box<dyn Read>))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), FileError> {
        let path = self.path.join(from);
        let renamed = fs::rename(&path, self.path.join(to)).and_then(|()| sync_directory(&self.path));
        renamed.map_err(|error| explain("rename", &path, &error))
    }

    fn remove(&mut self, name: &str) -> Result<(), FileError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(explain("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<String>, FileError> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| explain("list", &self.path, &error))?,
        };
        let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    fn lock(&mut self, purpose: &str) -> Result<(), FileError> {
        self.make()?;
        let path = self.path.join(LOCK);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|error| explain("open", &path, &error))?;
        let start = Instant::now();
        while let Err(error) = file.try_lock() {
            match error {
                fs::TryLockError::WouldBlock if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(25)),
                fs::TryLockError::WouldBlock => {
                    let mut holder = String::new();
                    let _ = (&file).take(200).read_to_string(&mut holder);
                    let holder: String = holder.trim().chars().filter(|c| !c.is_control()).collect();
                    // The note of somebody who has ended says nothing about who holds it now.
                    let holder = if is_alive(&holder) { &holder } else { "another process" };
                    return Err(FileError::Locked(format!(
                        "{holder} holds the lock `{}` since more than {} s",
                        path.display(),
                        PATIENCE.as_secs()
                    )));
                }
                fs::TryLockError::Error(error) => return Err(explain("lock", &path, &error)),
            }
        }
        let note = format!("`egressguard {purpose}` (pid {})\n", std::process::id());
        // Only words for those who wait: the lock holds without them, on a full disk too.
        let _ = file.set_len(0).and_then(|()| (&file).rewind()).and_then(|()| (&file).write_all(note.as_bytes()));
        self.lock = Some(file);
        self.sweep();
        Ok(())
    }

    fn unlock(&mut self) {
        self.lock = None;
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

/// The documents that the user names.
#[derive(Debug, Default)]
pub struct NamedDocuments;

impl Documents for NamedDocuments {
    fn read(&self, path: &str) -> Result<Vec<u8>, FileError> {
        let mut content = Vec::new();
        let read = if path == "-" {
            io::stdin().lock().take(DOCUMENT_MAX).read_to_end(&mut content)
        } else {
            File::open(path).and_then(|file| file.take(DOCUMENT_MAX).read_to_end(&mut content))
        };
        read.map_err(|error| explain("read", Path::new(path), &error))?;
        Ok(content)
    }

    fn write(&mut self, path: &str, content: &[u8]) -> Result<(), FileError> {
        if path == "-" {
            return io::stdout().lock().write_all(content).map_err(|error| explain("write", Path::new(path), &error));
        }
        refuse_planted_link(Path::new(path))?;
        // A link stays one, and what it leads to is written.
        let place = fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
        match fs::metadata(&place) {
            // A terminal, a pipe, a device: nothing stands beside it, and it is not there to be replaced.
            Ok(there) if !there.is_file() && !there.is_dir() => {
                let written = OpenOptions::new().write(true).open(&place).and_then(|mut file| file.write_all(content));
                written.map_err(|error| explain("write", &place, &error))
            }
            _ => replace(&place, content, 0o644, Disk::Wait),
        }
    }

    fn at_revision(&self, path: &str, revision: &str) -> Result<Vec<u8>, RevisionError> {
        git::show(path, revision)
    }
}

/// A link in a directory that everybody may write to can be somebody's trap for root (see protected_symlinks in proc_sys_fs(5)).
fn refuse_planted_link(path: &Path) -> Result<(), FileError> {
    let Ok(link) = fs::symlink_metadata(path) else { return Ok(()) };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_everybodys = fs::metadata(parent).is_ok_and(|parent| parent.mode() & 0o002 != 0);
    let is_ours = link.uid() == nix::unistd::geteuid().as_raw();
    match link.is_symlink() && is_everybodys && !is_ours {
        true => Err(FileError::Denied(format!("`{}` is somebody else's link, in a directory that everybody may write to", path.display()))),
        false => Ok(()),
    }
}

/// Whether a write is on the disk when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    Wait,
    Trust,
}

/// Whether the process that a lock's note names still runs.
fn is_alive(note: &str) -> bool {
    let pid = note.rsplit_once("(pid ").and_then(|(_, pid)| pid.strip_suffix(')')).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

/// A file to be read; nothing when there is none. The directory may be another user's: no link is followed, and no pipe waited for.
fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Ok(file) if !file.metadata()?.is_file() => Err(io::Error::other("it is no regular file")),
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Adds to a file behind its first `keep` octets.
fn add(path: &Path, keep: u64, content: &[u8], disk: Disk) -> Result<(), FileError> {
    let add = || {
        let is_new = !path.exists();
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let there = file.metadata()?.len();
        if there > keep {
            file.set_len(keep)?;
        }
        let end = there.min(keep);
        file.seek(SeekFrom::Start(end))?;
        let added = file.write_all(content).and_then(|()| if disk == Disk::Wait { file.sync_data() } else { Ok(()) });
        if let Err(error) = added {
            // Where even that fails, the next one cuts it off.
            let _ = file.set_len(end);
            return Err(error);
        }
        match path.parent() {
            Some(parent) if is_new && disk == Disk::Wait => sync_directory(parent),
            _ => Ok(()),
        }
    };
    add().map_err(|error| explain("write", path, &error))
}

/// Where a file stands while it is being written.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}{BESIDE}", std::process::id()));
    PathBuf::from(beside)
}

/// Writes beside the file; leaves nothing when that fails.
fn write_beside(path: &Path, content: &[u8], mode: u32, disk: Disk) -> io::Result<()> {
    let beside = beside(path);
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside).and_then(|mut file| {
        file.write_all(content)?;
        if disk == Disk::Wait { file.sync_all() } else { Ok(()) }
    });
    written.inspect_err(|_| drop(fs::remove_file(&beside)))
}

/// Replaces a file by what was written beside it; leaves nothing beside it when that fails.
fn rename_beside(path: &Path, disk: Disk) -> io::Result<()> {
    let beside = beside(path);
    fs::rename(&beside, path).inspect_err(|_| drop(fs::remove_file(&beside)))?;
    match path.parent() {
        // The name is on the disk only when the directory is.
        Some(parent) if disk == Disk::Wait => sync_directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }),
        _ => Ok(()),
    }
}

/// Puts the names in a directory on the disk.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes beside the file and renames, so that a reader sees the old content or the new one.
fn replace(path: &Path, content: &[u8], mode: u32, disk: Disk) -> Result<(), FileError> {
    let replaced = write_beside(path, content, mode, disk).and_then(|()| rename_beside(path, disk));
    replaced.map_err(|error| explain("write", path, &error))
}

fn explain(verb: &str, path: &Path, error: &io::Error) -> FileError {
    let name = error.raw_os_error().map(|number| format!("{:?}", nix::errno::Errno::from_raw(number)));
    let text = format!("cannot {verb} `{}`: {} ({})", path.display(), words(error), name.unwrap_or_else(|| error.kind().to_string()));
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => FileError::Denied(text),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FileError::Full(text),
        _ => FileError::Other(text),
    }
}

/// The error without the number that the standard library adds.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}
