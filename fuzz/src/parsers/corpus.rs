//! The corpora, and new cases made from them. Each target has a folder in `fuzz/corpus`. Each file
//! is a case, named after what is special about it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use fastrand::Rng;

/// The longest new case.
const MOST_BYTES: usize = 2048;
/// The most bytes that one change removes, or copies from another case.
const PIECE_BYTES: usize = 64;

/// A target's cases, by name.
#[derive(Debug)]
pub struct Corpus(Vec<(String, Vec<u8>)>);

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))
}

/// The targets that have a corpus.
#[must_use]
pub fn names() -> BTreeSet<String> {
    let folders = fs::read_dir(root()).into_iter().flatten().filter_map(Result::ok);
    folders.map(|folder| folder.file_name().to_string_lossy().into_owned()).collect()
}

/// The path of a target's case.
#[must_use]
pub fn path(target: &str, name: &str) -> PathBuf {
    root().join(target).join(name)
}

impl Corpus {
    /// # Errors
    /// The corpus cannot be read.
    pub fn read(target: &str) -> anyhow::Result<Self> {
        let folder = root().join(target);
        let mut cases = Vec::new();
        if folder.is_dir() {
            for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                cases.push((name, fs::read(&path).with_context(|| format!("reading {}", path.display()))?));
            }
        }
        cases.sort();
        Ok(Self(cases))
    }

    pub fn cases(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    fn any(&self, rng: &mut Rng) -> Vec<u8> {
        rng.choice(&self.0).map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }

    /// A new case: random bytes, or a case of the corpus with changes.
    #[must_use]
    pub fn make(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.any(rng);
        if bytes.is_empty() || rng.bool() {
            let most = [16, 64, 256, MOST_BYTES][rng.usize(0..4)];
            let length = rng.usize(0..=most);
            return std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
        }
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(0..=bytes.len());
            let behind = bytes.len() - at;
            match rng.u8(0..6) {
                0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.u8(0..8)),
                1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.u8(..)),
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..at + rng.usize(0..=behind.min(PIECE_BYTES)))),
                4 => drop(bytes.splice(at..at, std::iter::repeat_with(|| rng.u8(..)).take(1 + at % 8))),
                // A piece of another case.
                _ => {
                    let other = self.any(rng);
                    let from = rng.usize(0..=other.len());
                    let to = from + rng.usize(0..=(other.len() - from).min(PIECE_BYTES));
                    drop(bytes.splice(at..at, other[from..to].iter().copied()));
                }
            }
        }
        bytes.truncate(MOST_BYTES);
        bytes
    }
}
