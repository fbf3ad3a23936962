//! Signals that end a worker, and the record of the first one, which the supervisor reads when the
//! process is gone.
//!
//! ```text
//! fault in a thread ─▶ handler, on the thread's own signal stack, every key but 0 closed
//!                        ├─ writes one record to the shared page (the first fault wins)
//!                        └─ last words if V8 gave up; _exit: a handler never returns
//! ```
//!
//! The record's page carries a key of its own, which no thread has open while it runs a tenant's
//! code. After start-up a thread opens this key only to register, to note that it leaves or ends
//! the process, and to write the record. The page also lists which thread belongs to which slot, by
//! the kernel's thread id. Other values that the handler relies on are read-only
//! ([`crate::islands::frozen`]). So a script that can write anywhere, but cannot execute code of
//! its own, cannot forge a record. Such a script can still make another thread fault, by writing to
//! that thread's stack or isolate, which carry no key. A script that can execute its own code can
//! write any record. So a record is only an allegation, and [`FaultPage::read`] checks it as one.
//!
//! A second page follows, without a key. It has an account for each slot: the bytes that the slot's
//! thread has taken outside the islands ([`account`]). A thread that can write anywhere can also
//! write there.
//!
//! The handler also serves the filter: [`crate::filter`] traps instead of killing, so that a record
//! is written. If the handler cannot run, because the signal is blocked or the stack is gone, the
//! kernel kills the process. V8's own handler for WebAssembly is never installed: it would mistake
//! a fault on a closed key for an index out of bounds.
//!
//! | module | owns |
//! |---|---|
//! | [`page`] | the layout of the two pages |
//! | [`reading`] | the supervisor's side |
//! | [`own`] | the worker's side: threads, accounts, CPU time |
//! | [`handler`] | the handler and the record |
//! | [`room`] | how much memory the process could still commit |

mod handler;
mod own;
mod page;
mod reading;
mod room;

pub use handler::{FAULT_EXIT, handle, out_of_memory, wrong_keys};
pub use own::{account, guard, share, thread_ends_process, thread_leaves, thread_of};
pub use page::Account;
pub use reading::{Fault, FaultPage, Kind, Taken};
pub use room::may_commit;
