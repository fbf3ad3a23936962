//! Compares what a script finds in its global object with `surface.txt`, in every kind of worker.
//!
//! A new V8 adds properties. A patch or a flag may remove properties
//! (`v8/patches/05-features-in-snapshot.patch`), or bring back one that no tenant may have
//! (`WebAssembly`). Each of these changes makes this test fail. Examine the difference before you
//! change the list.

use std::collections::BTreeSet;

use enisle_tests::{Daemon, SHARING};
use serde_json::json;

const SCRIPT: &str = include_str!("surface.js");
const KNOWN: &str = include_str!("surface.txt");

#[test]
fn a_script_finds_the_known_properties_and_no_others() {
    let daemon = Daemon::start(SHARING);
    let order = json!({ "level": "sealed", "reason": "a test" }).to_string();
    daemon.request("PUT", "/v1/tenants/sealed/cordon", order.as_bytes()).ok();
    let known: BTreeSet<_> = KNOWN.lines().collect();
    for tenant in ["shared", "sealed"] {
        let run = daemon.run(tenant, SCRIPT);
        let found = run["result"].as_array().unwrap_or_else(|| panic!("{tenant}: {run}"));
        let found: BTreeSet<_> = found.iter().filter_map(|line| line.as_str()).collect();
        let (new, gone): (Vec<_>, Vec<_>) = (found.difference(&known).collect(), known.difference(&found).collect());
        assert!(new.is_empty() && gone.is_empty(), "{tenant}: new: {new:?}, missing: {gone:?}");
    }
    for forbidden in ["WebAssembly", "SharedArrayBuffer", "Atomics", "fetch", "process", "require"] {
        let path = format!("globalThis.{forbidden} ");
        assert!(!KNOWN.lines().any(|line| line.starts_with(&path)), "{forbidden} is on the list");
    }
}
