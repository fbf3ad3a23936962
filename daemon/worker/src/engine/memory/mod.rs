//! A tenant's memory: where it comes from, which key it carries, how much of it the tenant may
//! have.
//!
//! This module owns every page that a tenant's thread takes. It knows threads, cages and limits,
//! and must not know what runs in an isolate: neither runs, modules nor natives.
//!
//! | module | owns |
//! |---|---|
//! | [`cage`] | one isolate group per tenant thread, on its island, tagged with its key |
//! | [`heap_limit`] | what happens when a run meets its limit |
//! | [`quota`] | what a tenant may hold outside V8's heap, and what a script sees of that |
//! | [`hooks`] | what V8, ICU and C++ allocate |
//! | [`commons`] | the heaps of memory that other threads may use too |
//! | [`heap`] | the heap on the tenant's island |
//! | [`mappings`] | where V8's mappings go |
//! | [`oversized`] | the object that a run was ended for |
//! | [`account`] | how much a thread holds, and the thresholds at which the worker acts |
//! | [`date_patterns`] | V8's cache of date patterns, which all tenants share too |
//! | [`icu_caches`] | the bound of ICU's cache, which all tenants share |
//! | [`confinement`] | whether the thread has the right keys open |

pub(super) mod account;
pub(crate) mod cage;
pub(crate) mod commons;
pub(super) mod confinement;
pub(crate) mod date_patterns;
pub(crate) mod heap;
pub(super) mod heap_limit;
pub(super) mod hooks;
pub(super) mod icu_caches;
pub(super) mod mappings;
pub(crate) mod oversized;
pub(crate) mod quota;
