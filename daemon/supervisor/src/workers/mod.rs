//! Processes and their slots. Knows no tenant.

pub(crate) mod birth;
pub(crate) mod channel;
pub(crate) mod death;
pub(crate) mod holdings;
pub(crate) mod look;
pub(crate) mod machine;
pub(crate) mod process;
pub(crate) mod violation;
