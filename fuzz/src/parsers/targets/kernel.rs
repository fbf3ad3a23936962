//! What the daemon reads from the kernel and from a worker's memory: `smaps`, `/proc/PID/stat`, the
//! fault page.
//!
//! Attacked: the readers of text in which a worker chooses the names of threads and mappings, and
//! the reader of a page that a worker can write at will. Oracles: the mappings that were printed as
//! `smaps`, a model of where each key may be, and the fields of the page at their offsets in the
//! bytes that were written.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use arbitrary::Unstructured;
use enisle_hardening::fault::{FaultPage, Kind};
use enisle_hardening::islands::tags::{self, Tags};
use enisle_hardening::islands::{ISLAND_BYTES, Zone};
use enisle_hardening::verify;
use enisle_supervisor::seams;

use crate::parsers::draw::{Draw, damaged, ensure, same};

fn zone(u: &mut Unstructured<'_>) -> Zone {
    let mut random = u.number();
    Zone::place(1 + u.below(4), || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random >> 16
    })
}

/// An address near an edge of one of the zone's parts, or any address.
fn address(u: &mut Unstructured<'_>, zone: &Zone) -> usize {
    let edges: Vec<usize> = zone
        .islands()
        .flat_map(|island| [island.range(), island.stack(), island.window(), island.sandbox()])
        .flat_map(|range| [range.start, range.end])
        .collect();
    let offset = 4096 * u.below(3);
    if u.rarely(6) { u.below(usize::MAX) } else { u.pick(&edges).wrapping_add(offset).wrapping_sub(4096) }
}

/// One mapping as `smaps` prints it.
#[derive(Debug, Clone)]
struct Mapping {
    pages: Range<usize>,
    permissions: &'static str,
    name: String,
    resident_kib: u64,
    key: Option<u8>,
}

impl Mapping {
    fn draw(u: &mut Unstructured<'_>, zone: &Zone) -> Self {
        let start = address(u, zone);
        let pages = start..if u.flag() { start } else { address(u, zone) }.max(start.saturating_add(4096));
        let permissions = ["rw-p", "r-xp", "---p", "rw-s", "rwxp", "r--p"][u.below(6)];
        // The worker chooses the name of an anonymous mapping. The kernel allows no line break.
        let name = u.text(2).replace(['\n', '\r'], "?");
        let key = u.flag().then(|| u8::try_from(u.below(16)).unwrap_or(0));
        Self { pages, permissions, name, resident_kib: u.below(1 << 20) as u64, key }
    }

    fn print(&self) -> String {
        let Self { pages, permissions, name, resident_kib, key } = self;
        let key = key.map(|key| format!("ProtectionKey:  {key:8}\n")).unwrap_or_default();
        format!(
            "{:x}-{:x} {permissions} 00000000 00:00 0                          [anon:{name}]\nSize: 4 kB\n\
             Rss:        {resident_kib:8} kB\nPss: 1 kB\n{key}VmFlags: rd wr mr\n",
            pages.start, pages.end
        )
    }

    /// The slot of the island that contains the whole mapping.
    fn home(&self, zone: &Zone) -> Option<usize> {
        let base = zone.range().start;
        let slot = self.pages.start.checked_sub(base)? / ISLAND_BYTES;
        (slot < zone.islands().count() && self.pages.end <= base + (slot + 1) * ISLAND_BYTES).then_some(slot)
    }

    /// Whether the mapping may have the key that it has.
    fn is_right(&self, tags: &Tags) -> bool {
        let (zone, key) = (tags.zone.range(), self.key.unwrap_or(0));
        if self.pages.end <= zone.start || zone.end <= self.pages.start {
            return !tags.keys.contains(&key);
        }
        let Some(slot) = self.home(&tags.zone) else { return false };
        let Some(island) = tags.zone.island(slot) else { return false };
        let inside = |part: Range<usize>| part.start <= self.pages.start && self.pages.end <= part.end;
        tags.keys.get(slot) == Some(&key)
            || (key == tags.jit && tags.keys.len() > slot && inside(island.window()))
            || (key == 0 && tags.keys.len() > slot && inside(island.stack()))
    }
}

pub(in crate::parsers) fn smaps(u: &mut Unstructured<'_>) -> Result<(), String> {
    let zone = zone(u);
    let slots = zone.islands().count();
    same("the zone from its parts", &Zone::from_parts(&zone.parts()), &Some(zone.clone()))?;
    let tags = Tags { keys: (0..slots).map(|slot| u8::try_from(slot + 3).unwrap_or(3)).collect(), zone, jit: 1 };
    if u.rarely(100) {
        return of_this_process(&tags);
    }
    if u.flag() {
        let mut text = Mapping::draw(u, &tags.zone).print().into_bytes();
        text.extend(u.rest());
        let text = damaged(text, &mut Unstructured::new(&[7, 200, 9, 4, 77, 2, 50]));
        let count = tags::mappings(text.as_slice()).take_while(Result::is_ok).count();
        ensure(count <= text.len() / 3, || format!("{count} mappings in {} bytes", text.len()))?;
        return tags::compare(text.as_slice(), &tags).map_or(Ok(()), |seen| {
            ensure(seen.findings().len() <= 9 && seen.mistagged.len() <= seen.wrong, || format!("{seen:?}"))
        });
    }
    let drawn: Vec<_> = (0..u.below(12)).map(|_| Mapping::draw(u, &tags.zone)).collect();
    let text: String = drawn.iter().map(Mapping::print).collect();
    let read: Result<Vec<_>, _> = tags::mappings(text.as_bytes()).collect();
    let read = read.map_err(|error| format!("{error}: {text}"))?;
    let expected = drawn.iter().map(|mapping| tags::Mapping {
        pages: mapping.pages.clone(),
        key: mapping.key.unwrap_or(0),
        resident: mapping.resident_kib * 1024,
        is_data: mapping.permissions.starts_with("rw") && mapping.permissions.ends_with('p'),
    });
    same("the mappings", &read, &expected.collect())?;
    let seen = tags::compare(text.as_bytes(), &tags).map_err(|error| error.to_string())?;
    let wrong: Vec<_> =
        drawn.iter().filter(|mapping| !mapping.is_right(&tags)).map(|wrong| wrong.pages.start).collect();
    same(&format!("{drawn:?} with {tags:?}: how many are wrong"), &seen.wrong, &wrong.len())?;
    let reported: Vec<_> = seen.mistagged.iter().map(|wrong| wrong.pages.start).collect();
    same("the first wrong ones", &reported, &wrong.into_iter().take(reported.len()).collect())?;
    ensure(reported.len() == seen.wrong.min(8), || format!("{seen:?}"))
}

/// Reads the mappings of this process, which has no island and no key. The sums must agree.
fn of_this_process(tags: &Tags) -> Result<(), String> {
    let this = nix::unistd::getpid();
    let failed = |error: std::io::Error| error.to_string();
    let seen = tags::inspect(this, tags).map_err(failed)?;
    same("wrong mappings", &(seen.wrong, seen.findings()), &(0, Vec::new()))?;
    same("wrong mappings while it runs", &tags::inspect_running(this, tags).map_err(failed)?.wrong, &0)?;
    // All its mappings have key 0. If key 0 were a tenant's, every mapping would be wrong.
    let wrong = Tags { keys: vec![0], ..tags.clone() };
    let seen = tags::inspect_running(this, &wrong).map_err(failed)?;
    ensure(seen.wrong > 8 && seen.findings().len() == 9, || format!("{seen:?}"))?;
    let (held, committed) = (tags::held(this, &tags.zone).map_err(failed)?, tags::committed(this).map_err(failed)?);
    let on_islands: u64 = held.islands.iter().map(|bytes| bytes.committed).sum();
    same("on islands", &(held.islands.len(), on_islands), &(tags.keys.len(), 0))?;
    ensure(held.outside.committed.abs_diff(committed) < 256 << 20, || format!("{held:?}, and {committed} in all"))
}

pub(in crate::parsers) fn proc_stat(u: &mut Unstructured<'_>) -> Result<(), String> {
    if u.flag() {
        let text = String::from_utf8_lossy(u.rest());
        let _ = (seams::page_faults(&text), verify::is_ending(&text));
        return Ok(());
    }
    // A thread's name is any text of up to 15 bytes. The kernel escapes line breaks.
    let name: String = u.text(3).replace('\n', "\\n").chars().take(15).collect();
    let fields: Vec<u64> = (0..30).map(|_| u.number()).collect();
    let numbers = fields.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    // Field 3 is the state, a letter; field 9 has the flags, with PF_EXITING as bit 2; field 10 is
    // the count of minor faults (proc_pid_stat(5)).
    let stat = format!("{} ({name}) S {numbers}\n", u.small());
    same(&stat, &verify::is_ending(&stat), &(fields[5] & 4 != 0))?;
    same(&stat, &seams::page_faults(&stat), &Some(fields[6]))
}

/// The fields of the fault page's record, in order. Their offsets follow from their sizes.
struct Record<'a>(&'a [u8]);

impl Record<'_> {
    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap_or_default())
    }

    fn long(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap_or_default())
    }

    /// The kind of fault, if the record is complete and its signal is one that a fault raises.
    fn kind(&self) -> Option<Kind> {
        let (state, signal, code) = (self.word(0), self.word(4).cast_signed(), self.word(8).cast_signed());
        let address = self.long(24);
        let said = match (signal, code) {
            // SEGV_PKUERR.
            (11, 4) => Kind::ClosedKey { address, key: self.word(12) },
            (11 | 7, _) => Kind::Access { address },
            (31, _) => Kind::Refused { call: self.word(20).cast_signed() },
            (6, i32::MIN) => Kind::WrongKeys,
            (6, code) if code == i32::MIN + 1 => Kind::OutOfMemory,
            (4..=6, _) => Kind::GaveUp,
            _ => return None,
        };
        (state == 2).then_some(said)
    }
}

pub(in crate::parsers) fn fault_page(u: &mut Unstructured<'_>) -> Result<(), String> {
    let zone = zone(u);
    let page = FaultPage::new().map_err(|error| error.to_string())?;
    let mut bytes = vec![0; 8192];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &(if u.rarely(8) { u.small() } else { 2 }).to_le_bytes());
    put(4, &[11_u32, 7, 31, 6, 4, 5, 15, u.small()][u.below(8)].to_le_bytes());
    put(8, &[0_u32, 1, 4, 0x80, 1 << 31, (1 << 31) + 1, u.small()][u.below(7)].to_le_bytes());
    put(16, &[0_u32, 1, 3, u32::MAX, u.small()][u.below(5)].to_le_bytes());
    put(24, &(address(u, &zone) as u64).to_le_bytes());
    let rest = u.rest();
    let from = if rest.len() % 2 == 0 { 32 } else { 4096 };
    put(from, &rest[..rest.len().min(4096)]);
    let file = File::from(page.descriptor().try_clone_to_owned().map_err(|error| error.to_string())?);
    file.write_all_at(&bytes, 0).map_err(|error| error.to_string())?;

    let (record, fault) = (Record(&bytes), page.read());
    same("the kind of fault", &fault.map(|fault| fault.kind), &record.kind())?;
    let accounts = page.taken();
    for (slot, taken) in accounts.iter().enumerate() {
        let now = u64::try_from(record.long(4096 + 16 * slot).cast_signed()).unwrap_or(0);
        same("an account", &(taken.now, taken.ever), &(now, record.long(4096 + 16 * slot + 8)))?;
    }
    let slots = u32::try_from(accounts.len()).unwrap_or(0);
    ensure((slots..slots + 3).all(|slot| page.computed(slot).is_none()), || "a slot that does not exist".to_owned())?;
    let Some(fault) = fault else { return Ok(()) };
    same("the slot", &fault.slot, &Some(record.word(16)).filter(|slot| *slot != u32::MAX))?;
    same(
        "the rest",
        &(fault.pc, fault.room, fault.in_allocator),
        &(record.long(32), record.long(40), record.word(48) == 1),
    )?;
    attributed(&fault, &zone)
}

/// Checks which layer an attack is attributed to, and whose island it is said to have touched.
fn attributed(fault: &enisle_hardening::fault::Fault, zone: &Zone) -> Result<(), String> {
    let island_of = |address: u64| {
        let offset = address.checked_sub(zone.range().start as u64)?;
        let slot = u32::try_from(offset / ISLAND_BYTES as u64).ok()?;
        ((slot as usize) < zone.islands().count() && Some(slot) != fault.slot).then_some(slot)
    };
    let expected = match fault.kind {
        Kind::ClosedKey { address, .. } => Some(("keys", Some(address), island_of(address))),
        Kind::Refused { .. } => Some((if fault.slot.is_some() { "thread-filter" } else { "seccomp" }, None, None)),
        Kind::WrongKeys => Some(("keys", None, None)),
        Kind::Access { address } => {
            let victim = island_of(address).filter(|_| fault.slot.is_some());
            victim.map(|victim| ("v8-sandbox", Some(address), Some(victim)))
        }
        Kind::GaveUp | Kind::OutOfMemory => None,
    };
    same(&format!("the attack of {fault:?}"), &seams::attack(fault, zone), &expected)
}
