//! The part of a worker's address space where each tenant lives, and what tells one's pages from
//! another's.
//!
//! This room owns places and keys. It knows the kernel's interface to both, and may not know the
//! jail, the filters or who records a fault.
//!
//! | module | owns |
//! |---|---|
//! | `zone` | where in the address space each tenant lives |
//! | [`keys`] | memory protection keys, and which of them a thread has open |
//! | [`tags`] | the oracle: whether every page of every island carries the key that it should |
//! | [`frozen`] | what later threads go by, in a page that is read-only before the first tenant |

pub mod frozen;
pub mod keys;
pub mod tags;
mod zone;

pub use zone::{GAP_BYTES, ISLAND_BYTES, Island, SANDBOX_BYTES, Zone};
