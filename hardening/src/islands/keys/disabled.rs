//! Without keys: `Key` and `KeyRing` have no values, so no code that holds a key can run.

use std::ops::Range;

use super::KeyError;

/// Uninhabited.
#[derive(Debug)]
pub enum Key {}

impl Key {
    #[must_use]
    pub fn number(&self) -> u8 {
        match *self {}
    }

    /// # Safety
    /// There is no key to call this with.
    ///
    /// # Errors
    /// Never.
    pub unsafe fn tag(&self, _: &Range<usize>, _: i32) -> Result<(), KeyError> {
        match *self {}
    }
}

/// Uninhabited.
#[derive(Debug)]
pub enum KeyRing {}

impl KeyRing {
    /// # Errors
    /// Always.
    pub fn take(tenants: usize) -> Result<Self, KeyError> {
        Err(KeyError::TooFew { taken: 0, wanted: tenants + 1 })
    }

    #[must_use]
    pub fn split(self) -> (u8, Key, Vec<Key>) {
        match self {}
    }
}

#[must_use]
pub fn jit_key() -> Option<u8> {
    None
}

#[must_use]
pub fn available() -> usize {
    0
}

#[must_use]
pub fn delivers_faults() -> bool {
    false
}

pub mod pkru {
    //! The register does not exist, so its values are empty and installing one does nothing.

    use super::Key;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Pkru(());

    impl Pkru {
        pub const CLOSED: Self = Self(());

        #[must_use]
        pub fn open(self, key: &Key) -> Self {
            match *key {}
        }

        #[must_use]
        pub fn of_worker_thread(_: u8) -> Self {
            Self(())
        }

        #[must_use]
        pub fn current() -> Self {
            Self(())
        }

        pub(crate) fn open_number(self, _: u8) -> Self {
            self
        }

        pub(crate) fn open_number_for_reading(self, _: u8) -> Self {
            self
        }

        #[must_use]
        pub fn readable(self) -> u32 {
            0
        }

        pub fn install(self) {}

        pub(crate) fn from_bits(_: u32) -> Self {
            Self(())
        }

        #[must_use]
        pub fn bits(self) -> u32 {
            0
        }
    }
}
