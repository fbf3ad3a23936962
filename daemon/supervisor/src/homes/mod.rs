//! Decides which tenant is in which process, moves tenants, and speaks with their threads.

pub(crate) mod blame;
pub(crate) mod demand;
pub(crate) mod entries;
pub(crate) mod exchange;
pub(crate) mod find;
mod frames;
pub(crate) mod home;
pub(crate) mod job;
mod keeper;
pub(crate) mod pool;
mod rehome;
mod report;
pub(crate) mod residence;
mod sending;
mod speaker;
mod standby;
pub(crate) mod starting;
