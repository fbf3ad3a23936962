//! Names whose hashes collide: an attacker that knows V8's hash seed can compute any number of such
//! names, and stall a script that parses the attacker's JSON. So no two starts of the daemon have
//! the same seed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use enisle_tests::{Daemon, SHARING, altered, has, programs};
use serde_json::json;

/// The values with which V8 hashes names (`HashSeed::Data` in V8's numbers/hash-seed.h): the seed,
/// and three secrets derived from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seed {
    seed: u64,
    secrets: [u64; 3],
}

impl Seed {
    /// The number of words: the seed, its secrets, and a word for each secret. That word consists
    /// of a multiplier and its inverse, with which V8 hashes names that are whole numbers. An
    /// archive without `v8_enable_seeded_array_index_hash` hashes such names only by their value,
    /// and has no multipliers.
    const WORDS: usize = 7;

    /// Recognises a seed by its secrets: they are odd, each of their bytes has four bits set, and
    /// any two differ in 32 bits (`rapidhash_make_secret` in V8's
    /// third_party/rapidhash-v8/secret.h). Nothing else in a process looks like that, except V8's
    /// default secrets.
    fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        const BY_DEFAULT: u64 = 0x2d35_8dcc_aa6c_78a5;
        const NUMBER: u64 = (1 << 24) - 1;
        let [seed, a, b, c, multipliers @ ..] = words;
        let balanced = |word: u64| word & 1 == 1 && word.to_le_bytes().iter().all(|byte| byte.count_ones() == 4);
        let apart = |a: u64, b: u64| (a ^ b).count_ones() == 32;
        let made_of = |secret: u64, pair: u64| {
            let (multiplier, undoes) = (pair & u64::from(u32::MAX), pair >> 32);
            multiplier == (secret & NUMBER) | 1 && (multiplier * undoes) & NUMBER == 1
        };
        let secrets = [a, b, c];
        (secrets.into_iter().all(balanced)
            && apart(a, b)
            && apart(a, c)
            && apart(b, c)
            && a != BY_DEFAULT
            && secrets.into_iter().zip(multipliers).all(|(secret, pair)| made_of(secret, pair)))
        .then_some(Self { seed, secrets })
    }

    /// Finds the seed in the memory of a worker, which only root may read.
    fn of_worker(pid: i32) -> Self {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the worker lives");
        let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("we are root");
        let mut found: Vec<_> =
            maps.lines().filter_map(mapped).flat_map(|(from, to)| seeds(&memory, from, to)).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 1, "{found:x?}");
        found[0]
    }

    /// Names that all have the same hash. They differ in eight bytes, which V8 multiplies by the
    /// difference between the name's first eight bytes and the last secret (`rapidhash` in V8's
    /// third_party/rapidhash-v8/rapidhash.h). In these names that difference is zero.
    fn colliding(self, number: u64) -> Vec<String> {
        let latin = |bytes: [u8; 8]| bytes.map(char::from).iter().collect::<String>();
        // V8 compares names with equal hashes from the front. The digits that vary fastest come
        // last, so that each comparison takes long.
        let name = |n: u64| {
            format!(
                "{}{}{}",
                latin(self.secrets[2].to_le_bytes()),
                latin(n.to_be_bytes().map(|b| b | 0x40)),
                "x".repeat(16)
            )
        };
        // Each byte takes five bits of the number, so that every character is printable ASCII.
        let digits = |n: u64| (0..8).fold(0, |word, digit| word | (n >> (5 * digit) & 0x1f) << (8 * digit));
        (0..number).map(|n| name(digits(n))).collect()
    }
}

/// A readable mapping that is small enough to be searched.
fn mapped(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    (rest.starts_with('r') && to - from < 64 << 20).then_some((from, to))
}

fn seeds(memory: &fs::File, from: u64, to: u64) -> Vec<Seed> {
    let mut bytes = vec![0; usize::try_from(to - from).expect("64 bits")];
    // The seed is not in a mapping that even root cannot read.
    let read = memory.read_at(&mut bytes, from).unwrap_or(0);
    let words: Vec<_> =
        bytes[..read].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight"))).collect();
    words.windows(Seed::WORDS).filter_map(|words| Seed::from_words(words.try_into().expect("seven"))).collect()
}

fn start(worker: &Path) -> Daemon {
    let daemon = Daemon::start(&format!("{SHARING}program = {:?}\n", worker.display().to_string()));
    assert_eq!(daemon.run("t", "() => 1")["outcome"], "ok");
    daemon
}

/// The outcome of a script that has a quarter of a second to parse an object with these names.
fn reads(daemon: &Daemon, names: &[String]) -> String {
    let object: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), json!(1))).collect();
    let code = "(text) => Object.keys(JSON.parse(text)).length";
    let request = json!({ "code": code, "args": [json!(object).to_string()], "limits": { "cpuMs": 250 } });
    let run = daemon.load("t", &request).ok();
    assert!(run["outcome"] != "ok" || run["result"] == names.len(), "{run}");
    run["outcome"].as_str().unwrap_or_default().to_owned()
}

/// To read this many names takes seconds if they collide, and a few milliseconds if they do not.
const NAMES: u64 = 30_000;

#[test]
fn names_that_collide_after_one_start_do_not_collide_after_another() {
    if !has("root", nix::unistd::geteuid().is_root()) {
        return;
    }
    let worker = programs().join("enisle-worker");
    let (first, second) = (start(&worker), start(&worker));
    let [seed, other] = [&first, &second].map(|daemon| Seed::of_worker(daemon.worker_of("t")));
    assert!(seed.seed != other.seed && seed.secrets != other.secrets, "{seed:x?}");
    let names = seed.colliding(NAMES);
    // These names were computed for the seed of the first daemon. They stall a script there, so
    // they do collide.
    assert_eq!(reads(&first, &names), "exceededCpu");
    assert_eq!(reads(&second, &names), "ok");

    // Without the defence every start has the archive's seed.
    let without = altered(&worker, &[("--rehash-snapshot", "")]);
    let (first, second) = (start(&without), start(&without));
    let [seed, same] = [&first, &second].map(|daemon| Seed::of_worker(daemon.worker_of("t")));
    assert_eq!(seed, same);
    assert_eq!(reads(&second, &seed.colliding(NAMES)), "exceededCpu");
}
