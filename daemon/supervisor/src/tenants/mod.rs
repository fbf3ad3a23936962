//! Tenants as data, and their rules: policy, quota, scripts. Nothing here depends on processes.

pub(crate) mod in_flight;
pub(crate) mod policy;
pub(crate) mod quota;
pub(crate) mod scripts;
pub(crate) mod tenant;
