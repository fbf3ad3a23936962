//! What is known of tenants, and the rules for it. This module knows no process.

pub(crate) mod in_flight;
pub(crate) mod policy;
pub(crate) mod quota;
pub(crate) mod scripts;
pub(crate) mod tenant;
