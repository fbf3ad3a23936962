//! ICU's cache of the parts of formatters, by locale: one for all threads of the process.
//!
//! An entry of the cache is on the account of the tenant whose thread added it, and stays there
//! when it is unused. ICU itself would keep a thousand unused entries (`unifiedcache.cpp`), of up
//! to about 200 KiB each, and a script chooses the locales. So the worker has ICU keep fewer.

use std::ffi::{c_int, c_void};
use std::io;

/// How many unused entries the cache keeps. A formatter takes three or four.
const MOST_UNUSED: c_int = 64;

unsafe extern "C" {
    /// `icu::UnifiedCache::getInstance(UErrorCode&)`, in the archive.
    #[link_name = "_ZN6icu_7812UnifiedCache11getInstanceER10UErrorCode"]
    fn instance(error: *mut c_int) -> *mut c_void;
    /// `icu::UnifiedCache::setEvictionPolicy(int32_t, int32_t, UErrorCode&)`, in the archive.
    #[link_name = "_ZN6icu_7812UnifiedCache17setEvictionPolicyEiiR10UErrorCode"]
    fn set_eviction_policy(cache: *mut c_void, most_unused: c_int, percent_of_used: c_int, error: *mut c_int);
}

/// Has ICU keep few unused entries. To be called before the first tenant.
pub(in crate::engine) fn bound() -> io::Result<()> {
    let mut error = 0;
    // SAFETY: `error` is writable and zero, which means that nothing has failed yet.
    let cache = unsafe { instance(&raw mut error) };
    if error <= 0 {
        // SAFETY: the cache lives as long as the process; `error` is as above.
        unsafe { set_eviction_policy(cache, MOST_UNUSED, 0, &raw mut error) };
    }
    if error <= 0 { Ok(()) } else { Err(io::Error::other(format!("ICU's cache could not be bounded: error {error}"))) }
}
