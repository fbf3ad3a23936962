//! Worker processes and their slots, without tenants: [`crate::homes`] decides which tenant has
//! which slot, and what the end of a process means for its tenants.

pub(crate) mod birth;
pub(crate) mod channel;
pub(crate) mod death;
pub(crate) mod exit;
pub(crate) mod holdings;
pub(crate) mod inspection;
pub(crate) mod listeners;
pub(crate) mod machine;
pub(crate) mod owner;
pub(crate) mod process;
pub(crate) mod slots;
pub(crate) mod threads;
pub(crate) mod violation;
