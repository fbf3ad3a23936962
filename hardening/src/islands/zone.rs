//! Where in a worker's address space each tenant lives: one zone, cut into islands of equal size,
//! one for each slot.
//!
//! ```text
//! zone ─┬─ island 0 ─┬─ island 1 ─┬─ … ─┐
//!       │ gap │ stack │ window │ … │ V8's sandbox of the tenant (1376 GiB, with its guards) │
//! ```
//!
//! The stack is that of the tenant's thread. The window is for what V8 maps for the tenant outside
//! the sandbox (trusted range, pointer tables, code range). Everything on an island carries the
//! tenant's key, with two exceptions: pages of the window may carry V8's key for JIT pages, and the
//! stack carries no key. It cannot carry one: a thread that waits for one of V8's locks describes
//! itself on its own stack, and the thread that hands the lock over reads that description
//! (abseil's `Mutex`). All islands are known before the first tenant moves in, and they lie side by
//! side. So for a filter, the islands of all other tenants are only two ranges, and one reading of
//! `smaps` from outside checks the keys of all islands.
//!
//! The filter lets a thread name only ranges that are shorter than the gap in front of every
//! island, except for the thread's own sandbox. So no range that begins outside another tenant's
//! island reaches what is mapped there.
//!
//! The numbers: an island of 2 TiB has room for the gap, the window and the 1376 GiB that V8
//! reserves for a sandbox (the patch's `v8_tenant_group_sandbox`), aligned to 4 GiB. The zone has
//! room for 30 islands; a process has at most 12 tenants.

use std::ops::Range;

const GIB: usize = 1 << 30;

/// The distance from the start of one island to the start of the next.
pub const ISLAND_BYTES: usize = 2048 * GIB;
/// The gap at the start of every island: nothing is ever mapped there.
pub const GAP_BYTES: usize = 64 * GIB;
/// Scripts may fill 984 KiB of a thread's stack (`--stack-size`) before V8 throws a `RangeError`;
/// the rest is for native code that scripts call.
const STACK_BYTES: usize = 4 << 20;
/// The space for the stack and the window. A live isolate's pointer tables take 1.4 GiB of it.
const WINDOW_BYTES: usize = 256 * GIB;
/// What V8 reserves for a sandbox. A thread may name a range of this length, but only at the start
/// of its own sandbox; the filter traps longer ranges.
pub const SANDBOX_BYTES: usize = 1376 * GIB;
/// Sandboxes, and so cages, begin at a multiple of this.
const SANDBOX_ALIGNMENT: usize = 4 * GIB;
/// The zone lies within these bounds: above the addresses of a program that is not a PIE, and below
/// those that the kernel chooses for a PIE (two thirds of the address space and up), its heap and
/// other mappings.
const LOWEST: usize = 4096 * GIB;
const HIGHEST: usize = 64 * 1024 * GIB;

/// All islands of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    base: usize,
    /// Where each sandbox begins.
    sandboxes: Vec<usize>,
}

/// One island.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Island {
    base: usize,
    sandbox: usize,
}

impl Zone {
    /// A zone of `count` islands. `random` decides where the zone begins, and where on its island
    /// each sandbox begins.
    #[must_use]
    pub fn place(count: usize, mut random: impl FnMut() -> u64) -> Self {
        let mut below = |bound: usize| usize::try_from(random() % bound.max(1) as u64).unwrap_or(0);
        let room = HIGHEST - LOWEST - count * ISLAND_BYTES;
        let base = LOWEST + below(room / SANDBOX_ALIGNMENT) * SANDBOX_ALIGNMENT;
        // One step less: V8 first reserves one alignment more than a sandbox, and gives the rest
        // back.
        let slack = (ISLAND_BYTES - GAP_BYTES - WINDOW_BYTES - SANDBOX_BYTES) / SANDBOX_ALIGNMENT - 1;
        let sandbox = |island: usize, steps: usize| {
            base + island * ISLAND_BYTES + GAP_BYTES + WINDOW_BYTES + steps * SANDBOX_ALIGNMENT
        };
        let sandboxes = (0..count).map(|island| sandbox(island, below(slack))).collect();
        Self { base, sandboxes }
    }

    /// The zone that [`Self::parts`] described.
    #[must_use]
    pub fn from_parts(parts: &[u64]) -> Option<Self> {
        let mut parts = parts.iter().map(|part| usize::try_from(*part).ok());
        let base = parts.next()??;
        Some(Self { base, sandboxes: parts.collect::<Option<_>>()? })
    }

    /// The start of the zone and of each sandbox, for the wire.
    #[must_use]
    pub fn parts(&self) -> Vec<u64> {
        std::iter::once(self.base).chain(self.sandboxes.iter().copied()).map(|part| part as u64).collect()
    }

    /// The range from the gap of the first island to the end of the last.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.base..self.base + self.sandboxes.len() * ISLAND_BYTES
    }

    #[must_use]
    pub fn island(&self, slot: usize) -> Option<Island> {
        let sandbox = *self.sandboxes.get(slot)?;
        Some(Island { base: self.base + slot * ISLAND_BYTES, sandbox })
    }

    pub fn islands(&self) -> impl Iterator<Item = Island> {
        (0..self.sandboxes.len()).filter_map(|slot| self.island(slot))
    }
}

impl Island {
    /// The whole island, the gap included.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.base..self.base + ISLAND_BYTES
    }

    /// The stack of the tenant's thread, which has no key.
    #[must_use]
    pub fn stack(self) -> Range<usize> {
        self.base + GAP_BYTES..self.base + GAP_BYTES + STACK_BYTES
    }

    /// The range for everything except the stack and the sandbox.
    #[must_use]
    pub fn window(self) -> Range<usize> {
        self.base + GAP_BYTES + GIB..self.base + GAP_BYTES + WINDOW_BYTES
    }

    /// V8's sandbox, guards included.
    #[must_use]
    pub fn sandbox(self) -> Range<usize> {
        self.sandbox..self.sandbox + SANDBOX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// For all random numbers: nothing overlaps, nothing leaves the zone, and no gap is shorter
        /// than [`GAP_BYTES`].
        #[test]
        fn islands_never_touch(count in 1_usize..16, seed in any::<u64>()) {
            let mut state = seed;
            let zone = Zone::place(count, || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state
            });
            let (mut end_before, mut seen) = (zone.range().start, 0);
            for island in zone.islands() {
                prop_assert_eq!(island.range().start, end_before);
                prop_assert!(island.stack().start - island.range().start >= GAP_BYTES);
                prop_assert!(island.stack().end <= island.window().start);
                prop_assert!(island.window().end <= island.sandbox().start);
                prop_assert!(island.sandbox().end <= island.range().end);
                prop_assert_eq!(island.sandbox().start % SANDBOX_ALIGNMENT, 0);
                end_before = island.range().end;
                seen += 1;
            }
            prop_assert_eq!((seen, end_before), (count, zone.range().end));
            prop_assert!(zone.range().end <= 1 << 47);
            prop_assert_eq!(Zone::from_parts(&zone.parts()), Some(zone));
        }
    }
}
