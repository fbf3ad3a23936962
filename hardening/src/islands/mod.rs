//! Where in a worker's address space each tenant lives, and what distinguishes the pages of one
//! tenant from those of another.
//!
//! This module owns islands and keys. It must not use the jail, the filters or the code that
//! records a fault.
//!
//! | module | owns |
//! |---|---|
//! | `zone` | where in the address space each tenant lives |
//! | [`keys`] | memory protection keys, and which of them a thread has open |
//! | [`tags`] | the oracle: whether every page of every island carries the right key |
//! | [`frozen`] | what later threads rely on, in a page that becomes read-only |

pub mod frozen;
pub mod keys;
pub mod tags;
mod zone;

pub use zone::{GAP_BYTES, ISLAND_BYTES, Island, SANDBOX_BYTES, Zone};
