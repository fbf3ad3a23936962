//! The audit log's chain of lines. Each line carries its own hash and that of the line before it,
//! so a changed, removed or inserted line is detected. Lines that are missing at the end are
//! detected by comparison with the last hash, which the daemon also keeps elsewhere.
//!
//! ```text
//! {"seq":2,"prev":"<hash of line 1>","unixMs":…,"entry":{…},"hash":"<SHA-256 of all before>"}
//! ```

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The highest number that a line may have. No log becomes that long. The number is far below the
/// type's maximum, so that even a line with a forged number can have lines after it.
pub const MOST_LINES: u64 = 1 << 53;

/// The last line of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The line's number; the first line has number 1.
    pub seq: u64,
    pub hash: String,
}

impl Default for Head {
    /// The head before the first line.
    fn default() -> Self {
        Self { seq: 0, hash: "0".repeat(64) }
    }
}

/// What is wrong with a chain, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("line {0} is not a line of an audit log")]
    Malformed(usize),
    #[error("line {line} (number {seq}) was changed: its hash does not match")]
    Changed { line: usize, seq: u64 },
    #[error("line {line} has number {found}, where {expected} was expected: lines were removed or inserted")]
    Gap { line: usize, found: u64, expected: u64 },
    #[error("line {line} (number {seq}) does not continue the line before it")]
    Unchained { line: usize, seq: u64 },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a, E> {
    seq: u64,
    prev: &'a str,
    unix_ms: u64,
    entry: &'a E,
}

#[derive(Deserialize)]
struct Link {
    seq: u64,
    prev: String,
    hash: String,
}

const HASH_KEY: &str = ",\"hash\":\"";

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the next line of a chain. Returns the line, without a line break, and the new head.
///
/// # Errors
/// `entry` cannot be serialized as JSON.
pub fn append<E: Serialize>(head: &Head, unix_ms: u64, entry: &E) -> Result<(String, Head), serde_json::Error> {
    let seq = head.seq + 1;
    let mut line = serde_json::to_string(&Body { seq, prev: &head.hash, unix_ms, entry })?;
    line.pop();
    let hash = hash(&line);
    line.push_str(HASH_KEY);
    line.push_str(&hash);
    line.push_str("\"}");
    Ok((line, Head { seq, hash }))
}

/// Reads a chain line by line. Any line may be the first, because older files may have been
/// deleted.
#[derive(Debug, Default)]
pub struct Verifier {
    before: Option<Head>,
    head: Option<Head>,
    lines: usize,
}

impl Verifier {
    /// Reads the next line.
    ///
    /// # Errors
    /// The line does not continue the chain.
    pub fn read(&mut self, text: &str) -> Result<(), Broken> {
        self.lines += 1;
        let line = self.lines;
        let link: Link = serde_json::from_str(text).map_err(|_| Broken::Malformed(line))?;
        let seq = link.seq;
        if seq > MOST_LINES {
            return Err(Broken::Malformed(line));
        }
        let body = text.rsplit_once(HASH_KEY).map(|(body, _)| body).ok_or(Broken::Malformed(line))?;
        if hash(body) != link.hash {
            return Err(Broken::Changed { line, seq });
        }
        let begin = Head::default();
        if let Some(last) = self.head.as_ref().or_else(|| (seq == 1).then_some(&begin)) {
            let expected = last.seq + 1;
            if seq != expected {
                return Err(Broken::Gap { line, found: seq, expected });
            }
            if link.prev != last.hash {
                return Err(Broken::Unchained { line, seq });
            }
        }
        self.before.get_or_insert_with(|| Head { seq: seq.saturating_sub(1), hash: link.prev });
        self.head = Some(Head { seq, hash: link.hash });
        Ok(())
    }

    /// The head before the first line that was read, as that line states it.
    #[must_use]
    pub fn before(&self) -> Option<&Head> {
        self.before.as_ref()
    }

    /// The last line read.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chain(entries: &[String]) -> Vec<String> {
        let mut head = Head::default();
        let lines = entries.iter().map(|entry| {
            let (line, next) = append(&head, 7, entry).unwrap();
            head = next;
            line
        });
        lines.collect()
    }

    fn read(lines: &[String]) -> Result<(), Broken> {
        let mut verifier = Verifier::default();
        lines.iter().try_for_each(|line| verifier.read(line))
    }

    proptest! {
        #[test]
        fn a_whole_chain_is_valid_and_every_change_but_a_cut_at_an_end_is_detected(
            entries in proptest::collection::vec(".{0,30}", 3..8),
            at in 0_usize..100,
            byte in 0_usize..1000,
        ) {
            let lines = chain(&entries);
            prop_assert_eq!(read(&lines), Ok(()));
            let at = at % lines.len();
            let mut removed = lines.clone();
            removed.remove(at);
            // A chain without its first or last line is still valid, only shorter.
            prop_assert_eq!(read(&removed).is_ok(), at == 0 || at + 1 == lines.len());
            let mut swapped = lines.clone();
            swapped.swap(at, (at + 1) % lines.len());
            prop_assert!(read(&swapped).is_err());
            let mut changed = lines.clone();
            let mut bytes = changed[at].clone().into_bytes();
            let byte = byte % bytes.len();
            bytes[byte] ^= 1;
            if let Ok(text) = String::from_utf8(bytes) {
                changed[at] = text;
                prop_assert!(read(&changed).is_err());
            }
        }
    }

    #[test]
    fn a_line_with_a_number_beyond_any_log_is_not_a_line() {
        let before = |seq| Head { seq: seq - 1, ..Head::default() };
        let read = |seq| Verifier::default().read(&append(&before(seq), 7, &"x").unwrap().0);
        assert_eq!(
            [read(MOST_LINES), read(MOST_LINES + 1), read(u64::MAX)],
            [Ok(()), Err(Broken::Malformed(1)), Err(Broken::Malformed(1))]
        );
        let mut verifier = Verifier::default();
        let lines = [append(&before(u64::MAX), 7, &"x"), append(&before(1), 7, &"x")];
        lines.into_iter().for_each(|line| drop(verifier.read(&line.unwrap().0)));
    }

    #[test]
    fn an_entry_that_looks_like_a_hash_is_not_taken_for_one() {
        let lines = chain(&["x\",\"hash\":\"y".to_owned()]);
        assert_eq!(read(&lines), Ok(()));
    }
}
