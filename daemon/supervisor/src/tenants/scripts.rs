//! Scripts that a tenant has registered under an id. The code stays here; an isolate of it may
//! exist in the tenant's current home.
//!
//! The code is encoded once, and is sent along with a run if the run's home has no isolate of the
//! script. So a tenant that moves takes its scripts with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;

use crate::share::Held;
use enisle_wire::limits::RequestedLimits;

/// How many scripts one tenant may register.
pub(crate) const MOST_SCRIPTS: usize = 100;
/// The bytes of all scripts of one tenant together; a single script may use all of them.
pub(crate) const MOST_BYTES: usize = 64 << 20;
/// What a script is charged beside its frames.
pub(crate) const OVERHEAD_BYTES: u64 = 1024;

/// One version of a script. There may be a hundred thousand of them, so it is small.
#[derive(Debug)]
pub(crate) struct Script {
    id: Box<str>,
    /// Unique among all versions of all scripts of the daemon: workers identify isolates by it.
    pub(crate) key: u64,
    pub(crate) version: u64,
    content: NewScript,
    pub(crate) runs: AtomicU64,
}

/// What is registered, before it has a version. It is charged to the uid that registered it for as
/// long as the script, or a run of it, exists.
#[derive(Debug)]
pub(crate) struct NewScript {
    /// The `Env` frame, followed by the `Code` frame.
    pub(crate) frames: Box<[u8]>,
    /// Where the `Code` frame begins.
    pub(crate) code_at: usize,
    /// `None` if the request set none.
    pub(crate) limits: Option<Box<RequestedLimits>>,
    /// Digest of the request. A script is unchanged if the bytes of the request are the same.
    pub(crate) digest: [u8; 32],
    pub(crate) _held: Held,
}

impl Script {
    /// The length of the script's frames.
    pub(crate) fn bytes(&self) -> usize {
        self.content.frames.len()
    }

    pub(crate) fn limits(&self) -> RequestedLimits {
        self.content.limits.as_deref().cloned().unwrap_or_default()
    }

    /// The `Env` frame and the `Code` frame for a run, which keeps the script in memory as long as
    /// it has them.
    pub(crate) fn frames(self: &Arc<Self>) -> (Bytes, Bytes) {
        struct Frames(Arc<Script>);

        impl AsRef<[u8]> for Frames {
            fn as_ref(&self) -> &[u8] {
                &self.0.content.frames
            }
        }

        let mut env = Bytes::from_owner(Frames(Arc::clone(self)));
        let code = env.split_off(self.content.code_at.min(env.len()));
        (env, code)
    }
}

/// A tenant's scripts.
#[derive(Debug, Default)]
pub(crate) struct Scripts(Vec<Arc<Script>>);

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
    pub(crate) fn register(&mut self, id: &str, new: NewScript, replace: bool) -> Result<Arc<Script>, RegisterError> {
        let index = self.0.iter().position(|script| &*script.id == id);
        let known = index.and_then(|index| self.0.get(index));
        match known {
            Some(known) if known.content.digest == new.digest => return Ok(Arc::clone(known)),
            Some(_) if !replace => return Err(RegisterError::Other(id.to_owned())),
            None if self.0.len() >= MOST_SCRIPTS => return Err(RegisterError::TooMany),
            _ => {}
        }
        let others: usize = self.0.iter().filter(|script| &*script.id != id).map(|script| script.bytes()).sum();
        let bytes = others + new.frames.len();
        if bytes > MOST_BYTES {
            return Err(RegisterError::TooLarge(bytes));
        }
        let (key, version) = (NEXT_KEY.fetch_add(1, Ordering::Relaxed), known.map_or(1, |known| known.version + 1));
        let script = Arc::new(Script { id: id.into(), key, version, content: new, runs: AtomicU64::new(0) });
        match index.and_then(|index| self.0.get_mut(index)) {
            Some(known) => *known = Arc::clone(&script),
            None => {
                // Most tenants have one script.
                self.0.reserve_exact(self.0.len().max(1));
                self.0.push(Arc::clone(&script));
            }
        }
        Ok(script)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Script>> {
        self.0.iter().find(|script| &*script.id == id).cloned()
    }

    pub(crate) fn remove(&mut self, id: &str) -> Option<Arc<Script>> {
        let index = self.0.iter().position(|script| &*script.id == id)?;
        Some(self.0.remove(index))
    }

    /// Whether this version is registered now.
    pub(crate) fn has(&self, key: u64) -> bool {
        self.0.iter().any(|script| script.key == key)
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

    fn new_script(source: &str) -> NewScript {
        let digest = Sha256::digest(source).into();
        let held = Supply::new("bytes", 1, Parts::new(&[])).none(0);
        NewScript { frames: source.as_bytes().into(), code_at: 0, limits: None, digest, _held: held }
    }

    #[test]
    fn registering_the_same_again_changes_nothing_and_replacing_needs_consent() {
        let mut scripts = Scripts::default();
        let first = scripts.register("a", new_script("1"), false).unwrap();
        assert_eq!(scripts.register("a", new_script("1"), false).unwrap().key, first.key);
        assert_eq!(scripts.register("a", new_script("2"), false).unwrap_err(), RegisterError::Other("a".into()));
        let second = scripts.register("a", new_script("2"), true).unwrap();
        assert!(second.version == 2 && second.key != first.key);
    }

    #[test]
    fn a_run_keeps_the_script_whose_frames_it_has() {
        let mut scripts = Scripts::default();
        let script = scripts.register("a", NewScript { code_at: 3, ..new_script("envcode") }, false).unwrap();
        let (env, code) = script.frames();
        let weak = Arc::downgrade(&script);
        drop((script, scripts, env));
        assert_eq!((&*code, weak.strong_count()), (b"code".as_slice(), 1));
        drop(code);
        assert_eq!(weak.strong_count(), 0);
    }

    #[test]
    fn scripts_are_bounded_in_number_and_bytes() {
        let mut scripts = Scripts::default();
        let large = "x".repeat(MOST_BYTES / 2 + 1);
        scripts.register("a", new_script(&large), false).unwrap();
        assert!(matches!(scripts.register("b", new_script(&large), false), Err(RegisterError::TooLarge(_))));
        scripts.register("a", new_script("1"), true).unwrap();
        for n in 0..MOST_SCRIPTS - 1 {
            scripts.register(&format!("s{n}"), new_script("1"), false).unwrap();
        }
        assert_eq!(scripts.register("one-more", new_script("1"), false).unwrap_err(), RegisterError::TooMany);
    }
}
