//! A tenant's memory: where it comes from, which key it carries, how much of it the tenant may
//! have.
//!
//! This module owns every page that a tenant's thread takes. It deals with threads, cages and
//! limits. It must not depend on what an isolate executes: runs, modules and natives.
//!
//! | module | owns |
//! |---|---|
//! | [`cage`] | one isolate group per tenant thread, on its island, tagged with its key |
//! | [`heap_limit`] | what happens when a run reaches its limit |
//! | [`quota`] | what a tenant may hold outside V8's heap, and what a script sees of that |
//! | [`hooks`] | the functions by which V8, ICU and C++ allocate |
//! | [`commons`] | the heaps of memory that other threads may use too |
//! | [`heap`] | the heap on the tenant's island |
//! | [`mappings`] | where V8's mappings go, and their keys |
//! | [`oversized`] | an object that is larger than its run's limit |
//! | [`account`] | how much a thread holds, and the thresholds at which the worker acts |
//! | [`date_patterns`] | V8's cache of date patterns, which all tenants share |
//! | [`icu_caches`] | the bound of ICU's cache, which all tenants share as well |
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
