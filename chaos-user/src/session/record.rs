//! Other owners' records.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use super::{
    folder::{Byte, Folder, JournalError, Result, error, path_of},
    journal::{Begun, Entry, FORMAT, HookRecord},
    process::Handle,
};
use crate::{
    kernel::{
        change::{Change, Family},
        counters::MapIds,
        peers::ProfileIds,
        throttle::Tally,
    },
    spec::shown,
};

/// No record is longer: each line is below 100 KB, and there are a few.
const LONGEST: u64 = 16 << 20;

/// Somebody's record, as far as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Whether its owner lives.
    pub alive: bool,
    begun: Begun,
    /// The lines after the first; a last one that is cut off is left out.
    entries: Vec<Entry>,
}

/// A record that is left as it is, because it is not understood or not trusted.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Kept {
    /// Its id.
    pub id: String,
    /// Whether its owner lives.
    pub alive: bool,
    /// Why.
    why: Why,
}

/// Why a record is left as it is.
#[derive(Debug, thiserror::Error)]
enum Why {
    /// It is not as Faultline makes it.
    #[error("{error}{}", if matches!(error, JournalError::Call { .. }) { "; `faultline sweep` tries again" } else { "" })]
    File { error: JournalError },
    /// Another version's.
    #[error(
        "{}: line {line} is {what}, which this version does not know: run `faultline sweep` of the version that wrote it",
        shown::name(path)
    )]
    Foreign { path: PathBuf, line: usize, what: String },
    /// No version's.
    #[error(
        "{}: {what}, so what there is to undo is not known: look what is left, then remove it: rm {}",
        shown::name(path),
        shown::name(path)
    )]
    Damaged { path: PathBuf, what: String },
}

/// All records.
#[derive(Debug, Default)]
pub struct Records {
    /// Those that are understood, in the order of their ids.
    pub understood: Vec<Record>,
    /// Those that are not.
    pub kept: Vec<Kept>,
}

impl Record {
    /// Reads all records. There may be none, nor a directory.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read, or is not root's own alone.
    pub fn all() -> Result<Records> {
        let Some(folder) = Folder::open()? else { return Ok(Records::default()) };
        Self::all_in(&folder)
    }

    pub(super) fn all_in(folder: &Folder) -> Result<Records> {
        let mut records = Records::default();
        for id in folder.ids()? {
            match Self::read(folder, &id) {
                Ok(record) => records.understood.extend(record),
                Err(kept) => records.kept.push(kept),
            }
        }
        Ok(records)
    }

    /// Reads one; nothing if it has been removed meanwhile.
    pub(super) fn read(folder: &Folder, id: &str) -> std::result::Result<Option<Self>, Kept> {
        let kept = |alive, why| Kept { id: id.into(), alive, why };
        let file = |error| kept(false, Why::File { error });
        let Some(mut record) = folder.open_record(id).map_err(file)? else { return Ok(None) };
        let path = path_of(id);
        // Before it is read: the dead write nothing more.
        let alive = Byte::Life
            .is_taken(&record)
            .map_err(|errno| file(error("ask for the lock of", &path)(errno.into())))?;
        let bytes = whole(&mut record)
            .map_err(|source| kept(alive, Why::File { error: error("read", &path)(source) }))?;
        let (begun, entries) = parse(&bytes).map_err(|(line, wrong)| {
            let path = path.clone();
            let why = match wrong {
                Wrong::Foreign(what) => Why::Foreign { path, line, what },
                Wrong::Damaged(what) if line > 0 => {
                    Why::Damaged { path, what: format!("line {line} is damaged ({what})") }
                }
                Wrong::Damaged(what) => Why::Damaged { path, what },
            };
            kept(alive, why)
        })?;
        Ok(Some(Self { id: id.into(), alive, begun, entries }))
    }

    /// Who does what.
    #[must_use]
    pub fn begun(&self) -> &Begun {
        &self.begun
    }

    /// The owner's number here; nothing if it is not seen from this pid namespace, or gone.
    pub(super) fn owner(&self) -> Option<i32> {
        let file = Folder::open().ok()??.open_record(&self.id).ok()??;
        Some(Handle::of_holder(&file).ok()??.pid)
    }

    /// The hooks in use, and the maps to follow the run by if it has any.
    #[must_use]
    pub fn prepared(&self) -> Option<(&[HookRecord], Option<MapIds>)> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Prepared { hooks, maps } => Some((&hooks[..], *maps)),
            _ => None,
        })
    }

    /// Its profile, and how many packets may wait, if it has one.
    #[must_use]
    pub fn profile(&self) -> Option<(ProfileIds, u32)> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Profile { ids, limit } => Some((*ids, *limit)),
            _ => None,
        })
    }

    /// What its owner changed, or was about to, that does not go back with it.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let changes = self.entries.iter().filter_map(|entry| match entry {
            Entry::Change { change, .. } => Some(change.clone()),
            _ => None,
        });
        changes.collect()
    }

    /// Whether what others may share of its changes is taken back.
    pub(super) fn is_undone(&self) -> bool {
        self.entries.contains(&Entry::Undone)
    }

    /// Writes that down, by whoever has taken it back, while nobody changes anything; over what is left of a line that was cut off.
    pub(super) fn set_undone(folder: &Folder, id: &str) -> Result<()> {
        let path = path_of(id);
        let Some(mut record) = folder.open_to_lock(id)? else { return Ok(()) };
        let bytes = whole(&mut record).map_err(error("read", &path))?;
        let length = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        record.set_len(length as u64).map_err(error("truncate", &path))?;
        let mut line =
            serde_json::to_vec(&Entry::Undone).map_err(io::Error::from).map_err(error("write", &path))?;
        line.push(b'\n');
        record.write_all_at(&line, length as u64).map_err(error("write", &path))?;
        record.sync_data().map_err(error("fsync", &path))
    }

    /// Until when it acts, if that was said.
    #[must_use]
    pub fn until(&self) -> Option<u64> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Armed { until_ns, .. } => *until_ns,
            _ => None,
        })
    }

    /// How long it takes at about until what is asked to end has become right by and by, if it does.
    #[must_use]
    pub fn settling(&self) -> Option<Duration> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Settling { for_ns } => Some(Duration::from_nanos(*for_ns)),
            _ => None,
        })
    }

    /// What had been counted before it was armed of what its changes are about.
    #[must_use]
    pub fn counted(&self) -> &[Tally] {
        let armed = self.entries.iter().find_map(|entry| match entry {
            Entry::Armed { counted, .. } => Some(&counted[..]),
            _ => None,
        });
        armed.unwrap_or_default()
    }

    /// The record as it is now; nothing if it has been removed.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read, or the record is not what it was.
    pub fn again(&self) -> std::result::Result<Option<Self>, super::SweepError> {
        let Some(folder) = Folder::open()? else { return Ok(None) };
        Ok(Self::read(&folder, &self.id)?)
    }
}

fn whole(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// It is another version's.
    Foreign(String),
    /// It is nobody's.
    Damaged(String),
}

/// The lines of a record. The owner may have died while it wrote the last one, which speaks of nothing that was done then:
/// a line is whole before its change is made.
///
/// # Errors
///
/// The number of a line that is not understood, from 1, or 0 for the whole, and why.
fn parse(bytes: &[u8]) -> std::result::Result<(Begun, Vec<Entry>), (usize, Wrong)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..whole].split_inclusive(|byte| *byte == b'\n');
    let (mut first, mut entries) = (None, Vec::new());
    for (line, number) in lines.zip(1..) {
        match (number, entry(line).map_err(|wrong| (number, wrong))?) {
            (1, Entry::Begun(begun)) => first = Some(begun),
            (1, _) | (_, Entry::Begun(_)) => return Err((number, Wrong::Damaged("not in its place".into()))),
            (_, entry) => entries.push(entry),
        }
    }
    match first {
        Some(begun) => Ok((begun, entries)),
        None => Err((0, Wrong::Damaged("it has no first line".into()))),
    }
}

fn entry(line: &[u8]) -> std::result::Result<Entry, Wrong> {
    /// What all versions write alike.
    #[derive(Deserialize)]
    struct Tags {
        entry: String,
        format: Option<u32>,
        family: Option<String>,
        version: Option<u32>,
    }
    let damaged = |error: serde_json::Error| Wrong::Damaged(error.to_string());
    let Tags { entry, format, family, version } = serde_json::from_slice(line).map_err(damaged)?;
    match &entry[..] {
        "begun" if format != Some(FORMAT) => {
            let format = format.map_or_else(|| "without a number".into(), |format| format.to_string());
            return Err(Wrong::Foreign(format!("of format {format}")));
        }
        "change" => {
            let family = family.unwrap_or_default();
            let known = Family::ALL.into_iter().find(|known| known.name() == family);
            if known.is_none_or(|known| Some(known.version()) != version) {
                let version = version.unwrap_or(0);
                return Err(Wrong::Foreign(format!("a change of family {family:?}, version {version}")));
            }
        }
        _ => {}
    }
    const KNOWN: [&str; 7] = ["begun", "change", "prepared", "profile", "armed", "settling", "undone"];
    if !KNOWN.contains(&&entry[..]) {
        return Err(Wrong::Foreign(format!("an entry {entry:?}")));
    }
    serde_json::from_slice(line).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = concat!(
        r#"{"entry":"begun","format":2,"namespaces":{"pid":1,"mnt":2,"cgroup":3},"pid":7,"start_time":9,"#,
        r#""device":null,"ifindex":0,"netns":4,"netns_cookie":5,"boot_id":"6","rules":[],"seed":null}"#,
        "\n"
    );
    const CHANGE: &str = concat!(
        r#"{"entry":"change","family":"net","version":1,"change":{"kind":"clsact","ifindex":3}}"#,
        "\n"
    );

    fn read(text: &str) -> std::result::Result<usize, (usize, Wrong)> {
        parse(text.as_bytes()).map(|(_, entries)| entries.len())
    }

    #[test]
    fn only_a_last_line_may_be_torn() {
        let all = format!("{FIRST}{CHANGE}");
        assert_eq!(read(&all), Ok(1));
        for cut in 0..all.len() {
            let found = read(&all[..cut]);
            if cut < FIRST.len() {
                assert!(matches!(found, Err((0, Wrong::Damaged(_)))), "{cut}: {found:?}");
            } else {
                assert_eq!(found, Ok(0), "{cut}");
            }
        }
        let middle = format!("{FIRST}{}\n{CHANGE}", &CHANGE[..20]);
        assert!(matches!(read(&middle), Err((2, Wrong::Damaged(_)))));
        assert!(matches!(read(CHANGE), Err((1, Wrong::Damaged(_)))));
        assert!(matches!(read(&format!("{FIRST}{FIRST}")), Err((2, Wrong::Damaged(_)))));
    }

    #[test]
    fn what_other_versions_write_is_theirs() {
        let foreign = |text: String, line: usize| {
            let found = read(&text);
            assert!(matches!(&found, Err((at, Wrong::Foreign(_))) if *at == line), "{text}: {found:?}");
        };
        foreign(FIRST.replace("\"format\":2", "\"format\":3"), 1);
        foreign(FIRST.replace("\"format\":2,", ""), 1);
        foreign(format!("{FIRST}{}", CHANGE.replace("\"version\":1", "\"version\":2")), 2);
        foreign(format!("{FIRST}{}", CHANGE.replace("\"net\"", "\"memory\"")), 2);
        foreign(format!("{FIRST}{{\"entry\":\"paused\"}}\n{CHANGE}"), 2);
    }
}
