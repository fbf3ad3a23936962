//! A script that a tenant has registered under an id: its code stays here, its isolate in whatever home the tenant has.
//!
//! The code is encoded once, and goes along with a run whose home has no isolate of it: moving a
//! tenant moves its scripts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;

use crate::policy::Wish;
use crate::share::Held;

/// Scripts that one tenant may register.
pub(crate) const MOST_SCRIPTS: usize = 100;
/// Bytes of all of them together: what one script may have at the most.
pub(crate) const MOST_BYTES: usize = 64 << 20;
/// What a script is charged beside its frames.
pub(crate) const OVERHEAD_BYTES: u64 = 1024;

/// One version of a script.
#[derive(Debug)]
pub(crate) struct Script {
    /// No other version of any script of the daemon's has it: workers know isolates by it.
    pub(crate) key: u64,
    pub(crate) version: u64,
    pub(crate) draft: Draft,
    pub(crate) runs: AtomicU64,
}

/// What is registered, before it has a version. Its frames are charged to who registered it, for as
/// long as it or a run of it is there.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The `Code` frame.
    pub(crate) code: Bytes,
    /// The `Env` frame.
    pub(crate) env: Bytes,
    pub(crate) limits: Wish,
    /// Of the request, whose bytes decide whether it is the same again.
    pub(crate) digest: [u8; 32],
    /// What it is charged beside its frames.
    pub(crate) _overhead: Held,
}

impl Draft {
    /// What it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.code.len() + self.env.len()
    }
}

/// A tenant's scripts, by id.
#[derive(Debug, Default)]
pub(crate) struct Scripts(BTreeMap<String, Arc<Script>>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("{0} is registered with other content; ?replace=1 makes a new version of it")]
    Other(String),
    #[error("this tenant has {MOST_SCRIPTS} scripts, which is the most; DELETE one first")]
    TooMany,
    #[error("the scripts of this tenant would have {0} bytes together; the most is {MOST_BYTES}")]
    TooLarge(usize),
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

impl Scripts {
    /// Registers a script. The same content under the same id changes nothing.
    pub(crate) fn register(&mut self, id: &str, draft: Draft, replace: bool) -> Result<Arc<Script>, RegisterError> {
        let known = self.0.get(id);
        match known {
            Some(known) if known.draft.digest == draft.digest => return Ok(Arc::clone(known)),
            Some(_) if !replace => return Err(RegisterError::Other(id.to_owned())),
            None if self.0.len() >= MOST_SCRIPTS => return Err(RegisterError::TooMany),
            _ => {}
        }
        let others: usize =
            self.0.iter().filter(|(other, _)| *other != id).map(|(_, script)| script.draft.bytes()).sum();
        if others + draft.bytes() > MOST_BYTES {
            return Err(RegisterError::TooLarge(others + draft.bytes()));
        }
        let (key, version) = (NEXT_KEY.fetch_add(1, Ordering::Relaxed), known.map_or(1, |known| known.version + 1));
        let script = Arc::new(Script { key, version, draft, runs: AtomicU64::new(0) });
        self.0.insert(id.to_owned(), Arc::clone(&script));
        Ok(script)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Script>> {
        self.0.get(id).cloned()
    }

    pub(crate) fn remove(&mut self, id: &str) -> Option<Arc<Script>> {
        self.0.remove(id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::share::{Parts, Supply};

    fn draft(source: &str) -> Draft {
        let digest = Sha256::digest(source).into();
        let overhead = Supply::new("bytes", 1, Parts::new(&[])).none(0);
        Draft {
            code: source.to_owned().into(),
            env: Bytes::new(),
            limits: Wish::default(),
            digest,
            _overhead: overhead,
        }
    }

    #[test]
    fn the_same_again_is_the_same_and_something_else_needs_to_be_said() {
        let mut scripts = Scripts::default();
        let first = scripts.register("a", draft("1"), false).unwrap();
        assert_eq!(scripts.register("a", draft("1"), false).unwrap().key, first.key);
        assert_eq!(scripts.register("a", draft("2"), false).unwrap_err(), RegisterError::Other("a".into()));
        let second = scripts.register("a", draft("2"), true).unwrap();
        assert!(second.version == 2 && second.key != first.key);
    }

    #[test]
    fn scripts_are_bounded_in_number_and_bytes() {
        let mut scripts = Scripts::default();
        let large = "x".repeat(MOST_BYTES / 2 + 1);
        scripts.register("a", draft(&large), false).unwrap();
        assert!(matches!(scripts.register("b", draft(&large), false), Err(RegisterError::TooLarge(_))));
        scripts.register("a", draft("1"), true).unwrap();
        for n in 0..MOST_SCRIPTS - 1 {
            scripts.register(&format!("s{n}"), draft("1"), false).unwrap();
        }
        assert_eq!(scripts.register("one-more", draft("1"), false).unwrap_err(), RegisterError::TooMany);
    }
}
