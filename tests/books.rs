//! The books as files: other programs can check them, they survive whoever writes them, and they lie where only their owner reads.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use egressguard::base::time::Timestamp;
use egressguard::simulated::files::MemoryFiles;
use egressguard::state::books::{self, Care, LEDGER, Writer, check, each};
use egressguard::system::files::StateDirectory;
use egressguard::violation::book::{self, FILE_MAX, FILES_MAX, Findings, Head};
use egressguard::violation::record::{Kind, Mended};
use egressguard::world::{FileError, Files};

/// What docs/violations.md says of the chain, in another language.
const PYTHON: &str = r#"
import hashlib, json, sys
before, seq = "", 0
for line in open(sys.argv[1], "rb"):
    body, end, chain = line.rstrip(b"\n").rpartition(b',"chain":"')
    chain = chain[:-2].decode()
    assert chain == hashlib.sha256(before.encode() + body + b"}").hexdigest(), seq + 1
    record = json.loads(line)
    assert record["seq"] == seq + 1 and record["chain"] == chain and list(record)[:3] == ["seq", "at", "kind"]
    before, seq = chain, record["seq"]
print(seq)
"#;

fn write(directory: &Path, count: std::ops::RangeInclusive<u64>, care: Care) {
    let mut files = StateDirectory::new(directory.to_path_buf());
    let kinds: Vec<Kind> = count.map(|count| Kind::Alert { count, outcome: "bad \"\u{1b}\" dö".into() }).collect();
    Writer::new(LEDGER).append(&mut files, Timestamp(1_795_492_320), &kinds, care).unwrap();
}

fn python(directory: &Path) -> Result<String, String> {
    let output = Command::new("python3").args(["-c", PYTHON]).arg(directory.join("ledger.jsonl")).output().expect("python3");
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_string()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

#[test]
fn ten_lines_of_python_check_a_book() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 1..=3, Care::OnTheDisk);
    write(directory.path(), 4..=9, Care::Soon);
    assert_eq!(python(directory.path()), Ok("9".to_string()));
    let file = directory.path().join("ledger.jsonl");
    let edited = fs::read_to_string(&file).unwrap().replace("\"count\":5", "\"count\":6");
    fs::write(&file, edited).unwrap();
    assert!(python(directory.path()).unwrap_err().contains("AssertionError: 5"));
}

#[test]
fn the_documented_check_is_the_one_that_is_tested() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/violations.md")).unwrap();
    assert!(page.contains(PYTHON.trim()), "docs/violations.md shows another program");
}

#[test]
fn a_torn_line_on_the_disk_is_cut_off_by_the_next_run() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 1..=3, Care::OnTheDisk);
    let file = directory.path().join("ledger.jsonl");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 40]).unwrap();
    write(directory.path(), 4..=4, Care::OnTheDisk);
    let files = StateDirectory::new(directory.path().to_path_buf());
    let mut kinds = Vec::new();
    books::each(LEDGER, &files, |record| kinds.push((record.seq, record.kind.to_string()))).unwrap();
    // The third was written once and is torn now: the head knows of it.
    let expected = [(1, "alert"), (2, "alert"), (4, "mended"), (5, "alert")];
    assert_eq!(kinds, expected.map(|(seq, kind)| (seq, kind.to_string())));
}

#[test]
fn a_book_is_nobody_elses_business_and_no_link_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    write(&state, 1..=1, Care::OnTheDisk);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&state.join("ledger.jsonl")), mode(&state.join("ledger.head"))), (0o700, 0o600, 0o600));
    symlink("/etc/passwd", state.join("watch.jsonl")).unwrap();
    let files = StateDirectory::new(state);
    let error = files.open("watch.jsonl").err().expect("a link");
    assert!(error.to_string().contains("ELOOP"), "{error}");
    assert!(books::each("watch", &files, |_| {}).is_err());
}

const AT: Timestamp = Timestamp(1_795_492_320);

fn lost(numbers: std::ops::RangeInclusive<u64>) -> Vec<Kind> {
    numbers.map(|count| Kind::Lost { count }).collect()
}

fn counts(files: &dyn Files) -> Vec<u64> {
    let mut counts = Vec::new();
    each(LEDGER, files, |record| counts.extend(record.count)).unwrap();
    counts
}

fn append(files: &mut dyn Files, kinds: &[Kind]) -> Result<Head, FileError> {
    Writer::new(LEDGER).append(files, AT, kinds, Care::OnTheDisk)
}

#[test]
fn what_is_written_by_many_runs_is_one_book() {
    let mut files = MemoryFiles::new();
    for number in 1..=20 {
        append(&mut files, &lost(number..=number)).unwrap();
    }
    assert_eq!(counts(&files), (1..=20).collect::<Vec<_>>());
    assert_eq!(check(LEDGER, &files, 0).unwrap(), Findings { records: 20, ..Findings::default() });
}

#[test]
fn killed_at_any_step_of_any_append_the_book_goes_on_whole() {
    for step in 0..40 {
        for part in [0, 1, 70, 150, 1000] {
            let mut files = MemoryFiles::new();
            append(&mut files, &lost(1..=3)).unwrap();
            files.die_after(step, part);
            let died = append(&mut files, &lost(4..=6)).is_err();
            files.live();
            append(&mut files, &lost(7..=7)).unwrap();
            let found = check(LEDGER, &files, 0).unwrap();
            assert!(!found.has_fault() && found.findings.is_empty(), "{step} {part}: {found:?}");
            let counts = counts(&files);
            assert_eq!((&counts[..3], counts.last()), (&[1, 2, 3][..], Some(&7)), "{step} {part}");
            assert!(died || counts == (1..=7).collect::<Vec<_>>(), "{step} {part}: {counts:?}");
        }
    }
}

#[test]
fn a_torn_end_is_cut_off_and_said() {
    let mut files = MemoryFiles::new();
    append(&mut files, &lost(1..=2)).unwrap();
    files.change("ledger.jsonl", |content| content.extend(b"{\"seq\":3,\"at\":"));
    let found = check(LEDGER, &files, 0).unwrap();
    assert_eq!(found.findings[0].what, book::What::Torn(14));
    assert!(!found.has_fault());
    append(&mut files, &lost(3..=3)).unwrap();
    let mut mended = Vec::new();
    each(LEDGER, &files, |record| mended.extend(record.kind().filter(|_| record.kind == "mended"))).unwrap();
    assert_eq!(mended, [Kind::Mended(Mended { bytes: 14, missing: 0, headless: false })]);
    assert_eq!(check(LEDGER, &files, 0).unwrap(), Findings { records: 4, mended: 1, ..Findings::default() });
}

#[test]
fn an_end_that_somebody_cut_off_is_said_for_ever() {
    let mut files = MemoryFiles::new();
    append(&mut files, &lost(1..=5)).unwrap();
    files.change("ledger.jsonl", |content| {
        let end = content.iter().enumerate().filter(|(_, octet)| **octet == b'\n').nth(2).unwrap().0;
        content.truncate(end + 1);
    });
    assert_eq!(check(LEDGER, &files, 0).unwrap().findings[0].what, book::What::CutOff(4, 5));
    append(&mut files, &lost(6..=6)).unwrap();
    let found = check(LEDGER, &files, 0).unwrap();
    assert_eq!(found.findings.iter().map(|finding| (finding.line, &finding.what)).collect::<Vec<_>>(), [(4, &book::What::Missing(4, 5))]);
}

#[test]
fn a_full_disk_loses_only_what_did_not_fit() {
    let mut files = MemoryFiles::new();
    append(&mut files, &lost(1..=2)).unwrap();
    files.fill_up();
    assert!(matches!(append(&mut files, &lost(3..=3)), Err(FileError::Full(_))));
    files.live();
    append(&mut files, &lost(4..=4)).unwrap();
    assert_eq!(counts(&files), [1, 2, 4]);
    assert!(check(LEDGER, &files, 0).unwrap().findings.is_empty());
}

#[test]
fn a_book_is_bounded_and_its_beginning_is_still_checked() {
    let mut files = MemoryFiles::new();
    let mut writer = Writer::new(LEDGER);
    let long = vec![Kind::Alert { count: 1, outcome: "x".repeat(60_000) }; 100];
    for _ in 0..55 {
        writer.append(&mut files, AT, &long, Care::Soon).unwrap();
    }
    let names = book::files(LEDGER, &files.list().unwrap());
    assert_eq!(names.len(), FILES_MAX + 1, "{names:?}");
    let size: u64 = names.iter().map(|name| files.tail(name, 0).unwrap().unwrap().size).sum();
    assert!(size <= (FILES_MAX as u64 + 1) * FILE_MAX, "{size}");
    assert!(check(LEDGER, &files, 0).unwrap().findings.is_empty());
    files.remove(&names[0]).unwrap();
    let found = check(LEDGER, &files, 0).unwrap();
    assert!(matches!(found.findings[0].what, book::What::Missing(..)), "{found:?}");
    files.remove("ledger.head").unwrap();
    writer = Writer::new(LEDGER);
    writer.append(&mut files, AT, &lost(1..=1), Care::Soon).unwrap();
    let found = check(LEDGER, &files, 0).unwrap();
    let [finding] = found.findings.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.what, book::What::Beheaded, "without its head file a book begins where it begins, and says so");
}
