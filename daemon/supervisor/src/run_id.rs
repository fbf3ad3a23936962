//! Run ids: 128 random bits each, so that an id tells nothing about how many other runs there were.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};

use enisle_wire::tenant::RunId;

/// The source of run ids. Ids are drawn so often that the file stays open.
#[derive(Debug)]
pub(crate) struct RunIds(File);

impl RunIds {
    pub(crate) fn open() -> io::Result<Self> {
        File::open("/dev/urandom").map(Self)
    }

    pub(crate) fn next(&self) -> RunId {
        let mut bytes = [0; 16];
        match (&self.0).read_exact(&mut bytes) {
            Ok(()) => RunId(u128::from_ne_bytes(bytes)),
            // Reading this file does not fail. If it did, two random numbers of the standard
            // library would do.
            Err(_) => RunId(u128::from(number()) << 64 | u128::from(number())),
        }
    }
}

fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_do_not_repeat_and_each_bit_is_set_half_of_the_time() {
        const NAMES: u32 = 10_000;
        let ids = RunIds::open().unwrap();
        let names: BTreeSet<_> = (0..NAMES).map(|_| ids.next().0).collect();
        assert_eq!(names.len(), NAMES as usize);
        for bit in 0..u128::BITS {
            let set = names.iter().filter(|name| **name >> bit & 1 == 1).count();
            // The bound is ten standard deviations.
            assert!(set.abs_diff(NAMES as usize / 2) < 500, "bit {bit}: {set}");
        }
        assert_ne!(number(), number());
    }
}
