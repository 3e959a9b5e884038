//! The books on the disk: written on, rotated, read and checked. What stands in them is decided in [`crate::violation`].
//!
//! There are two, so that the service that watches, which is not root, can never rewrite what root's commands have counted: [`LEDGER`] in
//! the state directory, and [`WATCH`] in a directory of its own below it.

use std::io::{self, Read};

use crate::base::time::Timestamp;
use crate::violation::book::{self, Bounds, Check, Ending, FILE_MAX, FILES_MAX, Findings, Head, LINE_MAX, Lines, RawLine};
use crate::violation::record::{Kind, Line, Mended};
use crate::world::{FileError, Files};

/// The book of what the kernel counted.
pub const LEDGER: &str = "ledger";
/// The book of what was seen.
pub const WATCH: &str = "watch";
/// The directory of the book of what was seen, below the state directory.
pub const WATCH_DIRECTORY: &str = "watch";

/// How many octets from the end of a file are looked at for its last record.
const TAIL: u64 = 2 * LINE_MAX as u64;
/// The most records that are written at once: a part of a large batch is not larger than a file.
const PART: usize = 8192;
/// How often files are looked for again that are rotated meanwhile.
const ATTEMPTS: usize = 5;

/// Whether records are on the disk when they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// They are: a power cut loses none.
    OnTheDisk,
    /// They will be soon.
    Soon,
}

/// A book to write on. Whoever writes is alone: under the lock, or the only service.
#[derive(Debug)]
pub struct Writer {
    name: &'static str,
    /// Where the book is written on; nothing as long as that was not looked at, or where a write has failed since.
    place: Option<Place>,
}

/// Where a book is written on.
#[derive(Debug)]
struct Place {
    bounds: Bounds,
    /// How many octets of the file stay.
    size: u64,
    /// What has to be said of the book's end first.
    mended: Option<Mended>,
}

impl Writer {
    /// Writes on in this book.
    pub fn new(name: &'static str) -> Writer {
        Writer { name, place: None }
    }

    /// Where the book ends.
    pub fn head(&mut self, files: &dyn Files) -> Result<Head, FileError> {
        Ok(self.place(files)?.bounds.head.clone())
    }

    fn place(&mut self, files: &dyn Files) -> Result<&mut Place, FileError> {
        let place = match self.place.take() {
            Some(place) => place,
            None => look(self.name, files)?,
        };
        Ok(self.place.insert(place))
    }

    /// Adds these records; where the book then ends. After a failure the first of them may be there, and the others are not.
    pub fn append(&mut self, files: &mut dyn Files, at: Timestamp, kinds: &[Kind], care: Care) -> Result<Head, FileError> {
        if let Some(mended) = self.place(files)?.mended {
            self.write(files, at, &[Kind::Mended(mended)], care)?;
        }
        for kinds in kinds.chunks(PART) {
            self.write(files, at, kinds, care)?;
        }
        self.head(files)
    }

    fn write(&mut self, files: &mut dyn Files, at: Timestamp, kinds: &[Kind], care: Care) -> Result<(), FileError> {
        self.place(files)?;
        // What fails leaves nothing that is known.
        let Some(Place { mut bounds, mut size, .. }) = self.place.take() else { return Ok(()) };
        let (lines, head) = book::append(&bounds.head, at, kinds);
        let file = book::file(self.name);
        if size > 0 && size + lines.len() as u64 > FILE_MAX {
            rotate(self.name, &mut bounds, files)?;
            size = 0;
        }
        match care {
            Care::OnTheDisk => files.append(&file, size, &lines)?,
            Care::Soon => files.append_note(&file, size, &lines)?,
        }
        bounds.head = head;
        // One that is behind is healed by the next.
        let _ = files.note(&book::head_file(self.name), &bounds.print());
        self.place = Some(Place { bounds, size: size + lines.len() as u64, mended: None });
        Ok(())
    }
}

/// Looks where a book ends.
fn look(name: &str, files: &dyn Files) -> Result<Place, FileError> {
    let (file, all) = (book::file(name), book::files(name, &files.list()?));
    let tail = files.tail(&file, TAIL)?;
    let size = tail.as_ref().map_or(0, |tail| tail.size);
    let Ending { torn, head } = Ending::of(&tail.map_or_else(Vec::new, |tail| tail.octets));
    let mut held = head;
    if held.is_none()
        && let Some(before) = all.iter().rfind(|other| **other != file)
    {
        held = files.tail(before, TAIL)?.and_then(|tail| Ending::of(&tail.octets).head);
    }
    let noted = files.read(&book::head_file(name))?.and_then(|content| Bounds::parse(&content));
    // A book that was never written on has no head either.
    let headless = noted.is_none() && held.is_some();
    let (head, missing) = book::resume(held, noted.as_ref().map(|bounds| bounds.head.clone()));
    let bounds = match noted {
        Some(noted) => Bounds { head, ..noted },
        None => Bounds { head, first: all.first().map_or(Ok(1), |oldest| first_record(oldest, files))?, before: String::new() },
    };
    let mended = Mended { bytes: torn, missing, headless };
    let mended = (torn > 0 || missing > 0 || headless).then_some(mended);
    Ok(Place { bounds, size: size - torn.min(size), mended })
}

/// The number of the first record of a file; 1 when that is not known.
fn first_record(file: &str, files: &dyn Files) -> Result<u64, FileError> {
    let Some(content) = files.open(file)? else { return Ok(1) };
    let mut lines = Lines::new(content);
    match lines.next_line().map_err(|error| unreadable(file, files, &error))? {
        Some(RawLine::Whole(line)) => Ok(book::first_record(line).unwrap_or(1)),
        _ => Ok(1),
    }
}

/// Puts the full file aside and removes the oldest.
fn rotate(name: &str, bounds: &mut Bounds, files: &mut dyn Files) -> Result<(), FileError> {
    let file = book::file(name);
    let first = first_record(&file, files)?;
    files.rename(&file, &book::full_file(name, first))?;
    let mut full = book::files(name, &files.list()?);
    full.retain(|other| *other != file);
    let old = full.len().saturating_sub(FILES_MAX);
    if let (Some(last), Some(next)) = (full[..old].last(), full.get(old)) {
        let before = files.tail(last, TAIL)?.and_then(|tail| Ending::of(&tail.octets).head);
        bounds.first = book::first_of(name, next).unwrap_or(bounds.first);
        bounds.before = before.map(|head| head.chain).unwrap_or_default();
        // ORDER: first where the book begins, then what came before: killed between the two, nothing is missing.
        files.write(&book::head_file(name), &bounds.print())?;
        for oldest in &full[..old] {
            files.remove(oldest)?;
        }
    }
    Ok(())
}

/// A file of a book, to be read from its start.
pub struct Volume {
    /// Its name.
    pub name: String,
    content: Box<dyn Read>,
}

/// The files of a book, oldest first. They may be rotated and written while they are read.
pub fn volumes(name: &str, files: &dyn Files) -> Result<Vec<Volume>, FileError> {
    let mut volumes = Vec::new();
    for _ in 0..ATTEMPTS {
        let names = book::files(name, &files.list()?);
        volumes.clear();
        for name in &names {
            volumes.extend(files.open(name)?.map(|content| Volume { name: name.clone(), content }));
        }
        if book::files(name, &files.list()?) == names {
            break;
        }
    }
    Ok(volumes)
}

/// Hands every record of a book to `take`, in order; what is no record is passed over.
pub fn each(name: &str, files: &dyn Files, mut take: impl FnMut(Line<'_>)) -> Result<(), FileError> {
    for volume in volumes(name, files)? {
        Lines::new(volume.content).records(&mut take).map_err(|error| unreadable(&volume.name, files, &error))?;
    }
    Ok(())
}

/// Checks a book, of which somebody knows that it had so many records at least.
pub fn check(name: &str, files: &dyn Files, known: u64) -> Result<Findings, FileError> {
    // ORDER: the head first, so that what is written meanwhile is more than it says and not less.
    let noted = files.read(&book::head_file(name))?.and_then(|content| Bounds::parse(&content));
    let mut check = Check::new(noted);
    for volume in volumes(name, files)? {
        check.file(&volume.name, volume.content).map_err(|error| unreadable(&volume.name, files, &error))?;
    }
    Ok(check.end(name, known))
}

fn unreadable(file: &str, files: &dyn Files, error: &io::Error) -> FileError {
    FileError::Other(format!("cannot read `{}/{file}`: {error}", files.place()))
}
