//! The checks from outside, in `/proc` and on the disk, while the attackers run.
//!
//! | invariant | broken by |
//! |---|---|
//! | `files` | a file in the daemon's folders that no daemon makes |
//! | `descriptors` | a worker with anything open besides its channels, a pipe and `/dev/null` |
//! | `processes` | a process that a worker started, or a child of the daemon that is not a worker |
//! | `memory` | a supervisor that has grown beyond its bound |
//! | `islands` | a victim's secret on another tenant's island |
//! | `tags` | a page of a victim's island without the island's key |

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use enisle_hardening::islands::tags::{self, Mapping};
use enisle_hardening::islands::{GAP_BYTES, ISLAND_BYTES};

use super::ledger::Broken;
use super::victims::{MARK, Victim};

/// The most memory that a supervisor may hold, however it is attacked: far more than it needs here.
const SUPERVISOR_BYTES: u64 = 512 << 20;

/// The daemon that is looked at, and what is known about it.
#[derive(Debug)]
pub struct Outside {
    supervisor: i32,
    folder: PathBuf,
    /// The daemon's files before any attack, with `#` in place of numbers.
    files: BTreeSet<String>,
    /// Islands that have a secret and are not known as a victim's, each with the number of rounds
    /// when it was first seen: a victim that has just moved has not yet reported its new island.
    suspected: Mutex<BTreeMap<usize, u64>>,
}

/// A process, from `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    name: String,
}

impl Outside {
    /// Takes the files that the daemon's folder has now for those that it should have.
    #[must_use]
    pub fn new(supervisor: i32, folder: &Path) -> Self {
        let files = files_in(folder);
        Self { supervisor, folder: folder.to_owned(), files, suspected: Mutex::default() }
    }

    /// Looks at everything but the memory of workers.
    #[must_use]
    pub fn look(&self) -> Vec<Broken> {
        let mut broken = strange_files(&self.files, &files_in(&self.folder));
        let processes = processes();
        broken.extend(strange_processes(&processes, self.supervisor));
        let resident = resident_bytes(self.supervisor);
        if resident > SUPERVISOR_BYTES {
            broken.push(Broken::new("memory", format!("the supervisor holds {} MiB", resident >> 20)));
        }
        for worker in processes.iter().filter(|process| process.parent == self.supervisor) {
            if is_filtered(worker.pid) {
                broken.extend(strange_descriptors(worker.pid, &descriptors(worker.pid)));
            }
        }
        broken
    }

    /// The CPU time of the daemon and of all its workers, including dead ones, in seconds.
    #[must_use]
    pub fn computed(&self) -> f64 {
        let alive = processes().into_iter().filter(|process| process.parent == self.supervisor);
        let ticks: u64 = alive.map(|worker| ticks(worker.pid, 2)).sum::<u64>() + ticks(self.supervisor, 4);
        f64::from(u32::try_from(ticks).unwrap_or(u32::MAX)) / 100.0
    }

    /// Searches the memory of all workers that have victims. Only root can do that. `round` counts
    /// the rounds of visits to all victims that have ended.
    #[must_use]
    pub fn look_at_memory(
        &self,
        homes: &BTreeMap<i32, Vec<Victim>>,
        of_victims: &BTreeSet<usize>,
        round: u64,
        keys: bool,
    ) -> Vec<Broken> {
        let (mut broken, mut secrets) = (Vec::new(), BTreeMap::new());
        for (pid, victims) in homes {
            let Some(found) = look_into(*pid, victims, of_victims) else { continue };
            if keys {
                broken.extend(wrong_keys(*pid, victims, of_victims, &found));
            }
            secrets.extend(found.secrets);
        }
        let mut suspected = self.suspected.lock().unwrap_or_else(PoisonError::into_inner);
        suspected.retain(|island, _| secrets.contains_key(island));
        for (island, said) in secrets {
            // Waits for the end of the current round and for one whole round after it, in which
            // every victim reports where it is.
            if round >= *suspected.entry(island).or_insert(round) + 2 {
                broken.push(Broken::new("islands", said));
            }
        }
        broken
    }
}

/// The paths of all files below a folder, with `#` in place of numbers.
fn files_in(folder: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path.clone());
            }
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            let mut plain = String::new();
            for letter in name.chars() {
                match (letter.is_ascii_digit(), plain.ends_with('#')) {
                    (true, true) => {}
                    (true, false) => plain.push('#'),
                    (false, _) => plain.push(letter),
                }
            }
            found.insert(plain);
        }
    }
    found
}

/// Files that a daemon makes only later, or only for a moment.
const LATER: &[&str] = &["state/audit/audit-#.jsonl", "state/audit/#.jsonl"];

fn strange_files(known: &BTreeSet<String>, found: &BTreeSet<String>) -> Vec<Broken> {
    let is_known = |name: &&String| known.contains(*name) || LATER.contains(&name.as_str());
    let strange = found.iter().filter(|name| !is_known(name) && !name.ends_with(".new"));
    strange.map(|name| Broken::new("files", format!("the daemon's folder has {name:?}"))).collect()
}

fn processes() -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain any character.
    let (begin, rest) = stat.rsplit_once(") ")?;
    let parent = rest.split(' ').nth(1)?.parse().ok()?;
    Some(Process { pid, parent, name: begin.split_once('(')?.1.to_owned() })
}

fn strange_processes(all: &[Process], supervisor: i32) -> Vec<Broken> {
    let workers: BTreeSet<_> = all.iter().filter(|one| one.parent == supervisor).map(|one| one.pid).collect();
    let of_a_worker = all.iter().filter(|one| workers.contains(&one.parent));
    let mut broken: Vec<_> =
        of_a_worker.map(|one| Broken::new("processes", format!("a worker has a child: {one:?}"))).collect();
    // Until it executes the worker program, a child has the name of the thread that started it.
    let named = |one: &&Process| !["enisle", "spawner"].iter().any(|known| one.name.starts_with(known));
    let strangers = all.iter().filter(|one| workers.contains(&one.pid)).filter(named);
    broken.extend(strangers.map(|one| Broken::new("processes", format!("the daemon has a child: {one:?}"))));
    broken
}

fn resident_bytes(pid: i32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).map_or(0, |pages| pages * 4096)
}

/// CPU time in hundredths of a second. Two fields are the process's own time; four fields include
/// the time of dead children (proc_pid_stat(5): utime, stime, cutime, cstime).
fn ticks(pid: i32, fields: usize) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').skip(11).take(fields).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Whether a worker has installed its filter, which is the last step of its start.
fn is_filtered(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| status.contains("Seccomp:\t2"))
}

fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// The worker's control channel, and one channel for each of at most 15 tenants.
const MOST_SOCKETS: usize = 16;

fn strange_descriptors(pid: i32, open: &[String]) -> Vec<Broken> {
    let known = |path: &&String| ["/dev/null", "pipe:[", "socket:["].iter().any(|begin| path.starts_with(begin));
    let strange: Vec<_> = open.iter().filter(|path| !known(path)).collect();
    let sockets = open.iter().filter(|path| path.starts_with("socket:[")).count();
    if strange.is_empty() && sockets <= MOST_SOCKETS {
        return Vec::new();
    }
    vec![Broken::new("descriptors", format!("worker {pid} has {strange:?} and {sockets} sockets open"))]
}

/// What was found on the islands of a process.
#[derive(Debug, Default)]
struct Found {
    /// The islands that have a secret and are not known as a victim's, each with a description.
    secrets: BTreeMap<usize, String>,
    /// The keys of each island's used pages.
    keys: BTreeMap<usize, BTreeSet<u8>>,
}

fn look_into(pid: i32, victims: &[Victim], of_victims: &BTreeSet<usize>) -> Option<Found> {
    let smaps = BufReader::new(File::open(format!("/proc/{pid}/smaps")).ok()?);
    let mappings: Vec<Mapping> = tags::mappings(smaps).collect::<Result<_, _>>().ok()?;
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    // A victim's last report may be about a process that it has left since.
    let is_mapped = |at: usize| mappings.iter().any(|mapping| mapping.pages.contains(&at));
    if !victims.iter().all(|victim| victim.stack().is_some_and(is_mapped)) {
        return None;
    }
    let (base, mut found) = (victims.first()?.island()?, Found::default());
    for Mapping { pages, key, resident, .. } in &mappings {
        let Some(island) = island_at(base, &mappings, pages) else { continue };
        let is_stack = pages.start < island + GAP_BYTES + (1 << 30);
        if *resident == 0 || is_stack {
            continue;
        }
        found.keys.entry(island).or_default().insert(*key);
        // On a victim's own island, its secrets are where they belong.
        if of_victims.contains(&island) {
            continue;
        }
        let mut bytes = vec![0; pages.len().min(64 << 20)];
        let Ok(read) = memory.read_at(&mut bytes, pages.start as u64) else { continue };
        if let Some(at) = secret_in(bytes.get(..read)?) {
            let text = String::from_utf8_lossy(bytes.get(at..(at + 48).min(read))?).into_owned();
            found.secrets.insert(island, format!("{text:?} is at {:#x} of worker {pid}", pages.start + at));
        }
    }
    Some(found)
}

/// Finds a whole secret: its mark and 32 digits. The mark alone is not a secret.
fn secret_in(bytes: &[u8]) -> Option<usize> {
    let is_digit = |byte: &u8| byte.is_ascii_hexdigit();
    memchr::memmem::find_iter(bytes, MARK).find(|at| {
        let digits = bytes.get(at + MARK.len()..at + MARK.len() + 32);
        digits.is_some_and(|digits| digits.iter().all(is_digit))
    })
}

/// The island that contains the pages, if there is one. Islands lie side by side. An island that is
/// in use has a stack.
fn island_at(base: usize, mappings: &[Mapping], pages: &Range<usize>) -> Option<usize> {
    // The lowest address that is a whole number of islands away from `base`.
    let first = base % ISLAND_BYTES;
    let island = first + pages.start.checked_sub(first)? / ISLAND_BYTES * ISLAND_BYTES;
    let stack = island.checked_add(GAP_BYTES)?;
    let has_stack = mappings.iter().any(|mapping| (stack..stack + (4 << 20)).contains(&mapping.pages.start));
    has_stack.then_some(island)
}

/// The pause between two looks at wrong pages.
const PAUSE: Duration = Duration::from_millis(20);

/// The victims' islands that have wrong keys in this look and in two more. One look is not enough,
/// because a page is mapped and tagged by two system calls, and a look may come between them. The
/// islands of attackers are not judged: pages that an attacker maps by its own system calls are not
/// tagged, which harms only itself.
fn wrong_keys(pid: i32, victims: &[Victim], of_victims: &BTreeSet<usize>, found: &Found) -> Vec<Broken> {
    let wrong = |found: &Found| judged_keys(pid, &found.keys, of_victims);
    let mut broken = wrong(found);
    for _ in 0..2 {
        if broken.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        broken = look_into(pid, victims, of_victims).map_or_else(Vec::new, |found| wrong(&found));
    }
    broken
}

/// Judges the keys of victims' islands. An island has one key of its own, and V8's key for compiled
/// code, which other islands have too.
fn judged_keys(pid: i32, keys_of: &BTreeMap<usize, BTreeSet<u8>>, of_victims: &BTreeSet<usize>) -> Vec<Broken> {
    let is_shared = |key: &u8| keys_of.values().filter(|keys| keys.contains(key)).count() > 1;
    let mut broken = Vec::new();
    for (island, keys) in keys_of.iter().filter(|(island, _)| of_victims.contains(island)) {
        // If a process has only one island, V8's key cannot be told from the island's own key.
        let most_own = if keys_of.len() > 1 { 1 } else { 2 };
        let own = keys.iter().filter(|key| !is_shared(key)).count();
        if keys.contains(&0) || keys.len() > 2 || own > most_own {
            broken.push(Broken::new("tags", format!("the island at {island:#x} of worker {pid} has keys {keys:?}")));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_found_and_a_later_audit_log_is_not_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("state/audit")).unwrap();
        fs::write(folder.path().join("state/audit/audit.jsonl"), "").unwrap();
        let outside = Outside::new(1, folder.path());
        assert_eq!(strange_files(&outside.files, &files_in(folder.path())), []);
        fs::write(folder.path().join("state/audit/audit-123.jsonl"), "").unwrap();
        assert_eq!(strange_files(&outside.files, &files_in(folder.path())), []);
        fs::write(folder.path().join("state/x"), "").unwrap();
        let broken = strange_files(&outside.files, &files_in(folder.path()));
        assert_eq!(broken.first().map(|broken| broken.invariant), Some("files"));
    }

    #[test]
    fn a_child_of_a_worker_and_a_stranger_are_found() {
        let one = |pid, parent, name: &str| Process { pid, parent, name: name.to_owned() };
        let honest = [one(10, 1, "enisled"), one(11, 10, "enisle-worker-a")];
        assert_eq!(strange_processes(&honest, 10), []);
        let forked = [honest.as_slice(), &[one(12, 11, "enisle-worker-a")]].concat();
        assert_eq!(strange_processes(&forked, 10).len(), 1);
        let other = [honest.as_slice(), &[one(12, 10, "sh")]].concat();
        assert_eq!(strange_processes(&other, 10).len(), 1);
    }

    #[test]
    fn this_process_and_its_descriptors_are_seen() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(processes().iter().any(|process| process.pid == own));
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = descriptors(own);
        assert!(open.iter().any(|path| Path::new(path) == file.path()), "{open:?}");
        assert_eq!(strange_descriptors(own, &open).len(), 1);
        assert_eq!(strange_descriptors(own, &["/dev/null".to_owned(), "socket:[1]".to_owned()]), []);
        assert!(resident_bytes(own) > 1 << 20);
        let begun = std::time::Instant::now();
        while ticks(own, 2) == 0 {
            assert!(begun.elapsed().as_secs() < 60, "a process that computes has computed");
        }
    }

    #[test]
    fn pages_are_on_the_island_before_them_if_it_has_a_stack() {
        let base = 7 * ISLAND_BYTES + 4096;
        let mapping = |start| Mapping { pages: start..start + 4096, key: 0, resident: 4096, is_data: true };
        let mappings = [base - ISLAND_BYTES, base].map(|island| mapping(island + GAP_BYTES));
        let on = |start: usize| island_at(base, &mappings, &(start..start + 4096));
        assert_eq!((on(base + GAP_BYTES + (9 << 30)), on(base - 4096)), (Some(base), Some(base - ISLAND_BYTES)));
        assert_eq!((on(base + ISLAND_BYTES), on(4096 + 4096)), (None, None));
    }

    #[test]
    fn a_mark_without_digits_is_not_a_secret() {
        let secret = format!("..{MARK}{:032x}", 7);
        assert_eq!((secret_in(secret.as_bytes()), secret_in(format!("{MARK}<hex>").as_bytes())), (Some(2), None));
    }

    #[test]
    fn an_island_with_a_page_of_key_0_or_of_two_keys_is_found() {
        let islands = |lists: &[&[u8]]| {
            let keys = lists.iter().enumerate().map(|(at, keys)| (at, keys.iter().copied().collect()));
            judged_keys(1, &keys.collect(), &BTreeSet::from([0, 1])).len()
        };
        assert_eq!(islands(&[&[1, 2], &[1, 3]]), 0);
        assert_eq!(islands(&[&[1, 2, 0], &[1, 3]]), 1);
        assert_eq!(islands(&[&[1, 2, 4], &[1, 3]]), 1);
        assert_eq!((islands(&[&[1, 2]]), islands(&[&[1, 2, 3]]), islands(&[&[0, 2]])), (0, 1, 1));
        assert_eq!(islands(&[&[4, 2], &[1, 3]]), 2, "what would be V8's key is not the same");
        assert_eq!(islands(&[&[1, 2], &[1, 3], &[1, 4, 0]]), 0, "the third island is an attacker's");
    }
}
