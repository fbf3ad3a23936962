//! The oracle answers, from outside the process: does every page of every island carry the right
//! key?
//!
//! The kernel reports the key of each mapping as `ProtectionKey:` in `/proc/PID/smaps`
//! (`proc_pid_smaps(5)`), so nothing depends on what the worker believes it has tagged. Tests ask
//! the oracle after storms of allocations, and the supervisor asks it about running workers.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::time::Duration;

use nix::unistd::Pid;

use super::zone::Zone;

/// What a worker's islands should look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags {
    pub zone: Zone,
    /// The key of each island, in order.
    pub keys: Vec<u8>,
    /// V8's key for JIT pages. Pages with this key may be in any island's window.
    pub jit: u8,
}

/// One mapping with the wrong key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistagged {
    pub pages: Range<usize>,
    pub key: u8,
    /// The island that the mapping is on; `None` if it is not on exactly one island.
    pub slot: Option<usize>,
}

impl std::fmt::Display for Mistagged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Range { start, end } = self.pages;
        match self.slot {
            Some(slot) => write!(f, "{start:x}-{end:x} on island {slot} carries key {}", self.key),
            None => write!(f, "{start:x}-{end:x} is on no island and carries key {}, a tenant's", self.key),
        }
    }
}

/// What the oracle saw.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How many mappings are on islands, right or wrong.
    pub mappings: usize,
    /// How many mappings of the whole process are wrong.
    pub wrong: usize,
    /// The first of the wrong mappings.
    pub mistagged: Vec<Mistagged>,
}

/// How many wrong mappings are reported: a process can have tens of thousands.
const MOST_REPORTED: usize = 8;

impl Seen {
    fn add(&mut self, wrong: Mistagged) {
        self.wrong += 1;
        if self.mistagged.len() < MOST_REPORTED {
            self.mistagged.push(wrong);
        }
    }

    /// What is wrong, one sentence for each mapping.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let mut findings: Vec<_> = self.mistagged.iter().map(ToString::to_string).collect();
        if self.wrong > findings.len() {
            findings.push(format!("and {} more", self.wrong - findings.len()));
        }
        findings
    }
}

/// Inspects a process.
///
/// # Errors
/// The process has died, or the caller may not read its `/proc`.
pub fn inspect(pid: Pid, tags: &Tags) -> io::Result<Seen> {
    compare(BufReader::new(File::open(format!("/proc/{pid}/smaps"))?), tags)
}

/// The pause between two inspections when something is wrong.
const PAUSE: Duration = Duration::from_millis(20);

/// Inspects a process in which tenants run. A page is mapped by one system call and tagged by
/// another, and an inspection may come between the two. So a wrong mapping is inspected twice more,
/// and counts only if it is wrong every time.
///
/// # Errors
/// As for [`inspect`].
pub fn inspect_running(pid: Pid, tags: &Tags) -> io::Result<Seen> {
    let mut seen = inspect(pid, tags)?;
    for _ in 0..2 {
        if seen.wrong == 0 {
            break;
        }
        std::thread::sleep(PAUSE);
        let next = inspect(pid, tags)?;
        let still = |wrong: &Mistagged| {
            let overlaps =
                |other: &Mistagged| wrong.pages.start < other.pages.end && other.pages.start < wrong.pages.end;
            next.wrong > next.mistagged.len() || next.mistagged.iter().any(overlaps)
        };
        let mistagged: Vec<_> = seen.mistagged.into_iter().filter(still).collect();
        seen = Seen { mappings: next.mappings, wrong: if mistagged.is_empty() { 0 } else { next.wrong }, mistagged };
    }
    Ok(seen)
}

/// Compares the text of an `smaps` file with `tags`.
///
/// # Errors
/// Reading failed.
pub fn compare(smaps: impl BufRead, tags: &Tags) -> io::Result<Seen> {
    let mut seen = Seen::default();
    for mapping in mappings(smaps) {
        let Mapping { pages, key, .. } = mapping?;
        let zone = tags.zone.range();
        if pages.end <= zone.start || pages.start >= zone.end {
            if tags.keys.contains(&key) {
                seen.add(Mistagged { pages, key, slot: None });
            }
            continue;
        }
        seen.mappings += 1;
        let home = tags.zone.islands().zip(&tags.keys).enumerate().find(|(_, (island, _))| {
            let island = island.range();
            island.start <= pages.start && pages.end <= island.end
        });
        let right = home.is_some_and(|(_, (island, own))| {
            let within = |range: Range<usize>| range.start <= pages.start && pages.end <= range.end;
            key == *own || (key == tags.jit && within(island.window())) || (key == 0 && within(island.stack()))
        });
        if !right {
            seen.add(Mistagged { pages, key, slot: home.map(|(slot, _)| slot) });
        }
    }
    Ok(seen)
}

/// The size of several mappings together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Bytes that are in memory.
    pub resident: u64,
    /// Bytes that are private and writable, in memory or not: what `RLIMIT_DATA` counts.
    pub committed: u64,
}

/// How much memory a process holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The mappings on each island, in order.
    pub islands: Vec<Bytes>,
    /// All other mappings.
    pub outside: Bytes,
}

/// How much memory a process holds, by island.
///
/// # Errors
/// As for [`inspect`].
pub fn held(pid: Pid, zone: &Zone) -> io::Result<Held> {
    sum(BufReader::new(File::open(format!("/proc/{pid}/smaps"))?), zone)
}

fn sum(smaps: impl BufRead, zone: &Zone) -> io::Result<Held> {
    let ranges: Vec<_> = zone.islands().map(|island| island.range()).collect();
    let mut held = Held { islands: vec![Bytes::default(); ranges.len()], outside: Bytes::default() };
    for mapping in mappings(smaps) {
        let Mapping { pages, resident, is_data, .. } = mapping?;
        let home = ranges.iter().position(|range| range.contains(&pages.start));
        let bytes = home.and_then(|home| held.islands.get_mut(home)).unwrap_or(&mut held.outside);
        bytes.resident += resident;
        bytes.committed += if is_data { pages.len() as u64 } else { 0 };
    }
    Ok(held)
}

/// How many bytes a process has committed in all (`proc_pid_statm(5)`): cheap, unlike [`held`].
///
/// # Errors
/// `/proc` of that process could not be read.
pub fn committed(pid: Pid) -> io::Result<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: Option<u64> = statm.split_whitespace().nth(5).and_then(|pages| pages.parse().ok());
    let pages = pages.ok_or_else(|| io::Error::other("statm is not in the form of proc_pid_statm(5)"))?;
    Ok(pages.saturating_mul(PAGE_BYTES))
}

/// The unit of `statm`.
const PAGE_BYTES: u64 = crate::process::PAGE_BYTES as u64;

/// One mapping of a process, with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub pages: Range<usize>,
    pub key: u8,
    /// How many of its bytes are in memory.
    pub resident: u64,
    /// Whether the mapping is private and writable.
    pub is_data: bool,
}

/// The mappings in an `smaps` file. A kernel without keys prints no key, and every mapping then has
/// key 0.
pub fn mappings(smaps: impl BufRead) -> impl Iterator<Item = io::Result<Mapping>> {
    let mut lines = smaps.lines();
    let mut next: Option<Mapping> = None;
    std::iter::from_fn(move || {
        loop {
            let line = match lines.next() {
                None => return next.take().map(Ok),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(line)) => line,
            };
            if let Some((pages, is_data)) = heading(&line) {
                if let Some(complete) = next.replace(Mapping { pages, key: 0, resident: 0, is_data }) {
                    return Some(Ok(complete));
                }
            } else if let (Some(key), Some(mapping)) = (line.strip_prefix("ProtectionKey:"), next.as_mut()) {
                mapping.key = key.trim().parse().unwrap_or(u8::MAX);
            } else if let (Some(resident), Some(mapping)) = (line.strip_prefix("Rss:"), next.as_mut()) {
                let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap_or(0);
                mapping.resident = kib.saturating_mul(1024);
            }
        }
    })
}

/// The first line of a mapping: `start-end perms …`, both addresses in hexadecimal. Every other
/// line starts with a word and a colon.
fn heading(line: &str) -> Option<(Range<usize>, bool)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let pages = address(start)?..address(end)?;
    let permissions = words.next().unwrap_or_default().as_bytes();
    Some((pages, matches!(permissions, [_, b'w', _, b'p'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags() -> Tags {
        Tags { zone: Zone::place(2, || 0), keys: vec![3, 4], jit: 1 }
    }

    fn smaps(mappings: &[(Range<usize>, u8)]) -> String {
        let line = |(pages, key): &(Range<usize>, u8)| {
            format!("{:x}-{:x} rw-p 00000000 00:00 0 \nSize: 4 kB\nProtectionKey: {key:8}\n", pages.start, pages.end)
        };
        mappings.iter().map(line).collect()
    }

    fn page(start: usize) -> Range<usize> {
        start..start + 4096
    }

    #[test]
    fn a_page_with_its_tenants_key_is_right_and_with_any_other_wrong() {
        let tags = tags();
        let sandbox = tags.zone.island(1).unwrap().sandbox();
        let seen = |key| compare(smaps(&[(page(sandbox.start), key)]).as_bytes(), &tags).unwrap();
        assert_eq!(seen(4), Seen { mappings: 1, ..Seen::default() });
        for wrong in [0, 1, 3] {
            assert_eq!(seen(wrong).mistagged.len(), 1, "key {wrong}");
            assert_eq!(seen(wrong).mistagged[0].slot, Some(1));
        }
    }

    #[test]
    fn the_jit_key_is_right_only_in_a_window() {
        let tags = tags();
        let island = tags.zone.island(0).unwrap();
        let text = smaps(&[(page(island.window().start), 1), (page(island.sandbox().start), 1)]);
        let seen = compare(text.as_bytes(), &tags).unwrap();
        assert_eq!(seen.mistagged.iter().map(|wrong| wrong.pages.start).collect::<Vec<_>>(), [island.sandbox().start]);
    }

    #[test]
    fn a_page_without_a_key_is_right_only_on_a_stack() {
        let tags = tags();
        let island = tags.zone.island(0).unwrap();
        let text = smaps(&[(island.stack(), 0), (page(island.window().start), 0)]);
        let seen = compare(text.as_bytes(), &tags).unwrap();
        let wrong: Vec<_> = seen.mistagged.iter().map(|wrong| wrong.pages.start).collect();
        assert_eq!(wrong, [island.window().start]);
    }

    #[test]
    fn a_mapping_across_two_islands_is_wrong_whatever_its_key() {
        let tags = tags();
        let border = tags.zone.island(1).unwrap().range().start;
        let seen = compare(smaps(&[(border - 4096..border + 4096, 3)]).as_bytes(), &tags).unwrap();
        assert_eq!(seen.mistagged.len(), 1);
    }

    #[test]
    fn a_tenants_key_outside_the_islands_is_wrong() {
        let seen = compare(smaps(&[(page(0x1000), 4), (page(0x8000), 0)]).as_bytes(), &tags()).unwrap();
        let wrong = Mistagged { pages: page(0x1000), key: 4, slot: None };
        assert_eq!(seen, Seen { mappings: 0, wrong: 1, mistagged: vec![wrong] });
    }

    #[test]
    fn memory_is_added_up_by_island() {
        let zone = tags().zone;
        let at = |slot| zone.island(slot).unwrap().sandbox().start;
        let line = |start: usize, permissions: &str| {
            let end = start + 65536;
            format!("{start:x}-{end:x} {permissions} 0 00:00 0 \nRss: 12 kB\nProtectionKey: 3\n")
        };
        let text = [line(at(1), "rw-p"), line(at(1) + 65536, "---p"), line(0x1000, "rwxp"), line(0x20000, "rw-s")];
        let held = sum(text.concat().as_bytes(), &zone).unwrap();
        let both = Bytes { resident: 24 * 1024, committed: 65536 };
        assert_eq!(held, Held { islands: vec![Bytes::default(), both], outside: both });
    }

    #[test]
    fn committed_memory_agrees_with_the_mappings() {
        let own = nix::unistd::getpid();
        let summed = held(own, &tags().zone).unwrap().outside.committed;
        let reported = committed(own).unwrap();
        assert!(reported.abs_diff(summed) < 64 << 20, "{reported} {summed}");
    }

    #[test]
    fn only_the_first_of_many_wrong_mappings_are_reported() {
        let many: Vec<_> = (0..1000).map(|index| (page(0x10_0000 + index * 8192), 4)).collect();
        let seen = compare(smaps(&many).as_bytes(), &tags()).unwrap();
        assert_eq!((seen.wrong, seen.findings().len()), (1000, MOST_REPORTED + 1));
        assert!(seen.findings().last().unwrap().contains("992 more"));
    }

    #[test]
    fn our_own_mappings_are_read() {
        let own = mappings(BufReader::new(File::open("/proc/self/smaps").unwrap()));
        assert!(own.filter(Result::is_ok).count() > 10);
    }
}
