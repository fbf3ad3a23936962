//! What V8 and ICU create only once in a process, for all its threads, at the first use.

use enisle_tests::{Daemon, SHARING, is_alive, wait_until};
use serde_json::json;

use crate::cordon::{lives, order};

/// Uses everything that V8 and ICU create only once in a process, for all threads, at the first
/// use.
const EVERYTHING: &str = "() => {
    const attempt = (work) => { try { work() } catch {} };
    for (const locale of ['en', 'de', 'ar', 'th-u-nu-thai', 'fa-u-ca-persian', 'zh-u-ca-chinese']) {
        attempt(() => new Intl.DateTimeFormat(locale, { dateStyle: 'full', timeStyle: 'long', timeZone: 'Asia/Tokyo' }).format(1e12));
        attempt(() => new Intl.DateTimeFormat(locale, { hour: 'numeric', dayPeriod: 'long' }).formatRange(1e12, 2e12));
        attempt(() => new Intl.NumberFormat(locale, { style: 'unit', unit: 'kilometer-per-hour' }).formatToParts(1234.5));
        attempt(() => new Intl.NumberFormat(locale, { style: 'currency', currency: 'EUR', notation: 'compact' }).format(1e6));
        attempt(() => new Intl.Collator(locale).compare('a', 'ä') + new Intl.PluralRules(locale).select(3));
        attempt(() => new Intl.RelativeTimeFormat(locale).format(-1, 'day') + new Intl.ListFormat(locale).format(['a', 'b']));
        for (const type of ['language', 'currency', 'calendar']) attempt(() => new Intl.DisplayNames(locale, { type }).of('eur'));
        attempt(() => [...new Intl.Segmenter(locale, { granularity: 'word' }).segment('hello สวัสดี')]);
        attempt(() => new Intl.DurationFormat(locale).format({ hours: 1 }) + new Intl.Locale(locale).maximize().getCalendars());
        attempt(() => 'I'.toLocaleLowerCase(locale) + 'i'.toLocaleUpperCase(locale) + new Date(1e12).toLocaleString(locale));
    }
    for (const key of ['calendar', 'collation', 'currency', 'numberingSystem', 'timeZone', 'unit']) attempt(() => Intl.supportedValuesOf(key));
    attempt(() => 'é'.normalize('NFKD') + new Date(2020, 1, 1));
    attempt(() => /(a+)+\\p{Script=Greek}[\\p{L}--[a-z]]/v.test('aaaa') || /ſ/iu.test('s'));
    let sum = 0;
    for (let i = 0; i < 300_000; i++) sum += (i * 7) % 13;
    const add = (a, b) => a.x + b.y;
    for (let i = 0; i < 100_000; i++) sum += add({ x: i, q: 1 }, { y: 1 });
    attempt(() => JSON.parse(JSON.stringify(Array.from({ length: 20_000 }, (_, i) => ({ i })))));
    attempt(() => structuredClone({ a: [1, new Map([[1, 2]]), new Date(), new Uint8Array(100)] }));
    attempt(() => 2n ** 5000n / 3n ** 1000n + (123.456e200).toFixed(10) + (1e21 / 3).toString(36));
    attempt(() => { (function recurse() { recurse() })() });
    return sum
}";

/// Memory that V8 creates for all tenants at one tenant's request must not lie on that tenant's
/// island, because islands are unmapped when their tenants leave. A debug build of the worker also
/// checks that no such memory is left on an island.
#[test]
fn what_all_tenants_of_a_process_share_outlives_the_tenant_that_created_it() {
    let daemon = Daemon::start(SHARING);
    for tenant in ["stays", "goes"] {
        daemon.run(tenant, "() => 1");
    }
    let pid = daemon.worker_of("goes");
    assert_eq!(daemon.worker_of("stays"), pid);
    let expected = daemon.run("goes", EVERYTHING)["result"].clone();
    assert!(expected.is_number(), "{expected}");
    order(&daemon, "goes", "solo");
    wait_until("the tenant has moved out", || daemon.home_of("goes").is_none_or(|home| home != pid));
    daemon.await_event("retired", |event| event["tenant"] == "goes");
    for tenant in ["stays", "comes", "stays"] {
        assert_eq!(daemon.run(tenant, EVERYTHING)["result"], expected);
    }
    assert_eq!(daemon.worker_of("stays"), pid, "its worker has not been replaced");
    assert!(is_alive(pid));
}

/// A process of one tenant does not use any of this before the filter is installed, so that the
/// process starts sooner. What the first use looks up must not be in a file.
#[test]
fn a_process_of_one_tenant_needs_no_file_for_what_is_created_at_the_first_use() {
    let daemon = Daemon::start("");
    for level in ["solo", "sealed"] {
        order(&daemon, level, level);
        let zone = "() => [String(new Date(2020, 1, 1)), new Intl.DateTimeFormat().resolvedOptions().timeZone]";
        let zone = daemon.run(level, zone)["result"].clone();
        assert_eq!(zone, json!(["Sat Feb 01 2020 00:00:00 GMT+0000 (Coordinated Universal Time)", "UTC"]));
        let result = daemon.run(level, EVERYTHING);
        assert!(result["result"].is_number(), "{result}");
        lives(&daemon, level, level);
    }
    let died: Vec<_> = daemon.events().into_iter().filter(|event| event["event"] == "workerDied").collect();
    assert!(died.is_empty(), "{died:?}");
}
