//! Atomic files, directories and the journal: killed, torn, without room.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use expect_test::expect;
use formats::atomic::{TempPath, write_bytes, write_dir, write_file};
use formats::journal::{self, Journal};
use formats::{Error, Result};
use serde::{Deserialize, Serialize};

/// Every name in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|source| Error::Write { what: "the test's bytes".into(), source })
}

#[test]
fn a_file_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/on/the/way/x");
    write_bytes(&path, b"old").unwrap();
    let bytes = vec![7u8; 5 << 20];
    write_file(&path, |out| {
        out.reserve(9 << 20)?;
        write(out, b"head")?;
        write(out, &bytes)?;
        write(out, b"tail")
    })
    .unwrap();
    let read = std::fs::read(&path).unwrap();
    // What was reserved and not used is given back.
    assert_eq!(read.len(), bytes.len() + 8);
    assert_eq!((&read[..4], &read[read.len() - 4..]), (&b"head"[..], &b"tail"[..]));
    assert_eq!(names(path.parent().unwrap()), ["x"]);
}

#[test]
fn a_failed_writer_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    write_bytes(&path, b"old").unwrap();
    let error = write_file(&path, |out| {
        write(out, b"half of the new")?;
        Err::<(), _>(Error::NoSuchTensor { path: "base".into(), tensor: "t".into() })
    });
    assert!(matches!(error, Err(Error::NoSuchTensor { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["x"]);
}

#[test]
fn a_path_without_a_name_is_refused() {
    let error = write_bytes(Path::new("/"), b"x").unwrap_err();
    assert_eq!(error.to_string(), "cannot write /: it has no name");
}

#[test]
fn a_directory_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    let fill = |text: &'static str| {
        move |temp: &Path| -> Result<()> {
            std::fs::create_dir(temp.join("sub")).unwrap();
            write_bytes(&temp.join("sub/file"), text.as_bytes())
        }
    };
    write_dir(&path, fill("old")).unwrap();
    std::fs::write(path.join("only in the old one"), "").unwrap();
    write_dir(&path, fill("new")).unwrap();
    assert_eq!(std::fs::read(path.join("sub/file")).unwrap(), b"new");
    assert_eq!(names(&path), ["sub"]);
    let failed = write_dir(&path, |temp| {
        write_bytes(&temp.join("half"), b"")?;
        Err::<(), _>(Error::InUse { path: temp.to_owned() })
    });
    assert!(failed.is_err());
    assert_eq!(std::fs::read(path.join("sub/file")).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["adapter"]);
}

#[test]
fn a_temporary_path_goes_unless_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let dropped = TempPath::file_beside(&path).unwrap();
    assert_eq!(dropped.temp().parent(), path.parent());
    drop(dropped);
    assert!(names(dir.path()).is_empty());
    let kept = TempPath::file_beside(&path).unwrap();
    std::fs::write(kept.temp(), "x").unwrap();
    kept.commit().unwrap();
    assert_eq!(names(dir.path()), ["x"]);
}

/// What the child of the tests below does: writes half of a file, says so, and waits to be killed.
#[test]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os("TUNE_TEST_KILLED_AT").map(PathBuf::from) else { return };
    let _: Result<()> = write_file(&path, |out| {
        write(out, &vec![1; 3 << 20])?;
        out.flush().unwrap();
        println!("half");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        panic!("the parent has not killed this process");
    });
}

/// Runs the child until it has written half, then kills it.
fn kill_a_writer(path: &Path) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env("TUNE_TEST_KILLED_AT", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(std::result::Result::ok).any(|line| line.contains("half")));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    write_bytes(&path, b"old").unwrap();
    kill_a_writer(&path);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()).len(), 2, "the killed writer's half is there");
    write_bytes(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["x"]);
}

#[test]
fn a_living_writer_is_not_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    write_file(&path, |out| {
        write(out, b"slow")?;
        write_bytes(&path, b"quick")
    })
    .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"slow");
}

/// A file system of `kib` KiB, unmounted on drop; `None` (and a line that says so) where mounting is forbidden.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(kib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: this user may not mount a small disk");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_is_seen_before_the_first_byte() {
    let Some(disk) = SmallDisk::mount(256) else { return };
    let path = disk.path().join("x");
    write_bytes(&path, b"old").unwrap();
    let error = write_file(&path, |out| out.reserve(1 << 20)).unwrap_err();
    match error {
        Error::DiskFull { need_bytes, have_bytes, .. } => {
            assert_eq!(need_bytes, 1 << 20);
            assert!(have_bytes <= 256 << 10, "{have_bytes}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(names(disk.path()), ["x"]);
}

#[test]
fn a_full_disk_in_the_middle_names_path_need_and_have() {
    let Some(disk) = SmallDisk::mount(256) else { return };
    let path = disk.path().join("x");
    write_bytes(&path, b"old").unwrap();
    // Smaller than the buffer: without the flush before the rename this would seem to have worked.
    let error = write_bytes(&path, &vec![1; 400 << 10]).unwrap_err();
    let text = error.to_string().replace(&disk.path().display().to_string(), "DISK");
    assert!(text.starts_with("no room for DISK/x: it needs 409600 bytes, "), "{text}");
    let error = write_bytes(&path, &vec![1; 4 << 20]).unwrap_err();
    assert!(error.to_string().contains("it needs 4194304 bytes"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(disk.path()), ["x"]);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Step {
    name: String,
    tokens: u32,
}

fn step(tokens: u32) -> Step {
    Step { name: "extract \"quoted\"\n}".into(), tokens }
}

fn journal_of(dir: &Path, count: u32) -> PathBuf {
    let path = dir.join("runs/1/journal.jsonl");
    let (_, mut journal) = Journal::open::<Step>(&path).unwrap();
    (0..count).for_each(|tokens| journal.append(&step(tokens)).unwrap());
    path
}

#[test]
fn a_journal_is_read_back_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal_of(dir.path(), 2);
    let (records, mut journal) = Journal::open::<Step>(&path).unwrap();
    assert_eq!(records, [step(0), step(1)]);
    journal.append(&step(2)).unwrap();
    assert_eq!(journal::read::<Step>(&path).unwrap(), [step(0), step(1), step(2)]);
    // Each line is JSON that other programs can read.
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["record"]["name"], step(0).name);
    }
}

#[test]
fn a_journal_torn_anywhere_in_its_last_line_loses_only_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal_of(dir.path(), 2);
    let whole = std::fs::read(&path).unwrap();
    let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for cut in first..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let (records, mut journal) = Journal::open::<Step>(&path).unwrap();
        assert_eq!(records, [step(0)], "cut at {cut}");
        journal.append(&step(1)).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_journal_whose_last_line_is_zeros_loses_only_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal_of(dir.path(), 1);
    let mut torn = std::fs::read(&path).unwrap();
    torn.extend([0; 40]);
    std::fs::write(&path, torn).unwrap();
    assert_eq!(Journal::open::<Step>(&path).unwrap().0, [step(0)]);
}

#[test]
fn a_journal_damaged_in_the_middle_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal_of(dir.path(), 3);
    let mut damaged = std::fs::read(&path).unwrap();
    let at = damaged.windows(12).rposition(|window| window == b"\"tokens\":1}}").unwrap() + 9;
    damaged[at] = b'7';
    std::fs::write(&path, &damaged).unwrap();
    let text = Journal::open::<Step>(&path).unwrap_err().to_string();
    expect!["DIR/runs/1/journal.jsonl: line 2 is damaged, expected record 1 with its checksum"]
        .assert_eq(&text.replace(&dir.path().display().to_string(), "DIR"));
    assert_eq!(std::fs::read(&path).unwrap(), damaged, "nothing was cut off");
}

#[test]
fn a_journal_without_one_of_its_lines_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal_of(dir.path(), 3);
    let text = std::fs::read_to_string(&path).unwrap();
    let without: String = text.split_inclusive('\n').filter(|line| !line.contains("\"n\":1")).collect();
    std::fs::write(&path, without + "\n").unwrap();
    assert!(matches!(Journal::open::<Step>(&path), Err(Error::Malformed { .. })));
}

#[test]
fn a_journal_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = journal_of(dir.path(), 1);
    let (_, journal) = Journal::open::<Step>(&path).unwrap();
    assert!(matches!(Journal::open::<Step>(&path), Err(Error::InUse { .. })));
    drop(journal);
    Journal::open::<Step>(&path).unwrap();
}

#[test]
fn a_journal_on_a_full_disk_keeps_its_records_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let (path, ballast) = (disk.path().join("journal"), disk.path().join("ballast"));
    let (_, mut journal) = Journal::open::<Step>(&path).unwrap();
    journal.append(&step(0)).unwrap();
    std::fs::write(&ballast, vec![0; 48 << 10]).unwrap();
    let large = Step { name: "x".repeat(32 << 10), tokens: 1 };
    let error = journal.append(&large).unwrap_err();
    assert!(matches!(error, Error::DiskFull { need_bytes, .. } if need_bytes > 32 << 10), "{error}");
    assert_eq!(journal::read::<Step>(&path).unwrap(), [step(0)]);
    std::fs::remove_file(&ballast).unwrap();
    journal.append(&large).unwrap();
    drop(journal);
    assert_eq!(Journal::open::<Step>(&path).unwrap().0, [step(0), large]);
}
