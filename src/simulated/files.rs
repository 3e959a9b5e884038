//! A state directory in memory, for tests: it fills up, and dies in the middle of a write.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::rc::Rc;

use crate::world::{FileError, Files, Tail};

/// A directory in memory.
#[derive(Debug, Default, Clone)]
pub struct MemoryFiles {
    files: BTreeMap<String, Vec<u8>>,
    prepared: BTreeMap<String, Vec<u8>>,
    fate: Fate,
    dead: Rc<Cell<bool>>,
}

/// What becomes of the next writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fate {
    /// They are done.
    #[default]
    Fine,
    /// There is no room for them.
    Full,
    /// So many are done; of the next one so many octets, if it adds to a file. Then nothing is done any more.
    Dies(usize, usize),
}

impl MemoryFiles {
    /// An empty one.
    pub fn new() -> MemoryFiles {
        MemoryFiles::default()
    }

    /// Lets whoever writes die after so many more writes, with so many octets of the next one done.
    pub fn die_after(&mut self, writes: usize, octets: usize) {
        self.fate = Fate::Dies(writes, octets);
    }

    /// Leaves no room for any write.
    pub fn fill_up(&mut self) {
        self.fate = Fate::Full;
    }

    /// Lets everything be fine again. What was prepared and not published is gone.
    pub fn live(&mut self) {
        self.fate = Fate::Fine;
        self.dead.set(false);
        self.prepared.clear();
    }

    /// Whether whoever wrote has died, now and later: a dead process talks to no kernel either.
    pub fn death(&self) -> Rc<Cell<bool>> {
        self.dead.clone()
    }

    /// Changes a file behind everybody's back.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.files.entry(name.to_string()).or_default());
    }

    /// Whether a write is done; if not, how many of its octets are.
    fn step(&mut self) -> Result<(), (FileError, usize)> {
        let dead = || FileError::Other("killed".to_string());
        match self.fate {
            _ if self.dead.get() => Err((dead(), 0)),
            Fate::Fine => Ok(()),
            Fate::Full => Err((FileError::Full("cannot write: no space left on device (ENOSPC)".to_string()), 0)),
            Fate::Dies(0, octets) => {
                self.dead.set(true);
                Err((dead(), octets))
            }
            Fate::Dies(writes, octets) => {
                self.fate = Fate::Dies(writes - 1, octets);
                Ok(())
            }
        }
    }

    fn whole(&mut self) -> Result<(), FileError> {
        self.step().map_err(|(error, _)| error)
    }
}

impl Files for MemoryFiles {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        Ok(self.files.get(name).cloned())
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.whole()?;
        self.files.insert(name.to_string(), content.to_vec());
        Ok(())
    }

    fn write_all(&mut self, files: &[(&str, &[u8])]) -> Result<(), FileError> {
        files.iter().try_for_each(|(name, content)| self.write(name, content))
    }

    fn prepare(&mut self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.whole()?;
        self.prepared.insert(name.to_string(), content.to_vec());
        Ok(())
    }

    fn publish(&mut self, name: &str) -> Result<(), FileError> {
        self.whole()?;
        let prepared = self.prepared.remove(name).ok_or_else(|| FileError::Other(format!("`{name}` was not prepared")))?;
        self.files.insert(name.to_string(), prepared);
        Ok(())
    }

    fn note(&mut self, name: &str, content: &[u8]) -> Result<(), FileError> {
        self.write(name, content)
    }

    fn append(&mut self, name: &str, keep: u64, content: &[u8]) -> Result<(), FileError> {
        let (done, outcome) = match self.step() {
            Ok(()) => (content.len(), Ok(())),
            Err((error, octets)) => (octets.min(content.len()), Err(error)),
        };
        if done > 0 || outcome.is_ok() {
            let file = self.files.entry(name.to_string()).or_default();
            file.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            file.extend_from_slice(&content[..done]);
        }
        outcome
    }

    fn append_note(&mut self, name: &str, keep: u64, content: &[u8]) -> Result<(), FileError> {
        self.append(name, keep, content)
    }

    fn tail(&self, name: &str, octets: u64) -> Result<Option<Tail>, FileError> {
        Ok(self.files.get(name).map(|file| {
            let from = file.len().saturating_sub(usize::try_from(octets).unwrap_or(usize::MAX));
            Tail { size: file.len() as u64, octets: file[from..].to_vec() }
        }))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read>>, FileError> {
        Ok(self.files.get(name).map(|file| Box::new(Cursor::new(file.clone())) as Box<dyn Read>))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), FileError> {
        self.whole()?;
        let file = self.files.remove(from).ok_or_else(|| FileError::Other(format!("there is no `{from}`")))?;
        self.files.insert(to.to_string(), file);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), FileError> {
        self.whole()?;
        self.files.remove(name);
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, FileError> {
        Ok(self.files.keys().cloned().collect())
    }

    fn lock(&mut self, _: &str) -> Result<(), FileError> {
        Ok(())
    }

    fn unlock(&mut self) {}

    fn place(&self) -> String {
        "memory".to_string()
    }
}
