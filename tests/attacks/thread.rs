//! The one thread: what costs much for all must not be had for nothing.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::ground::{Ground, probed};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S10 info", title: "/v1/info by a user without rights, with many tenants", run: info },
    Case { id: "S10 lists", title: "lists of many tenants, by operators", run: lists },
    Case { id: "S10 errors", title: "errors that repeat what was sent", run: errors },
    Case { id: "S10 pipelined", title: "pipelined requests of clients that never read", run: pipelined },
];

/// Makes the daemon know many tenants, whose they ever are.
fn populate(ground: &Ground, count: usize) -> usize {
    let paths: Vec<_> = (0..count).map(|n| format!("/v1/tenants/acme-{n}/scripts/s")).collect();
    ground.root.flood(4, "PUT", &paths, br#"{"code":"1"}"#, 201)
}

const MANY: usize = 90_000;
const ASKED: usize = 2000;

fn info(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let known = populate(&ground, MANY);
    let ((refused, allowed), pings) = probed(&ground, || {
        let paths = vec!["/v1/info".to_owned(); ASKED];
        let refused = ground.stranger.flood(3, "GET", &paths, b"", 403);
        // Also who may ask for it must not be able to stall the others.
        (refused, ground.attacker.flood(20, "GET", &paths, b"", 200))
    });
    let said = format!("{known} tenants; {refused} of {ASKED} refused to the one, {allowed} told to the other");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if refused == ASKED && allowed == ASKED { Ok(format!("{said}; {pings}")) } else { Err(format!("{said}; {pings}")) }
}

fn lists(options: Options) -> Result<String, String> {
    const PAGE: usize = 4 << 20;
    let ground = Ground::start("");
    let known = populate(&ground, MANY);
    let gauge = ground.gauge();
    gauge.quiet(Duration::from_secs(10));
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let (largest, pings) = probed(&ground, || {
        let paths = ["/v1/tenants", "/v1/workers", "/v1/events", "/v1/info"];
        let sizes = paths.map(|path| {
            let begun = Instant::now();
            let size = ground.root.ask("GET", path, b"").map_or(0, |answer| answer.body.len());
            (size, path, begun.elapsed().as_millis())
        });
        sizes.into_iter().max().unwrap_or_default()
    });
    let peak = gauge.peak().ok_or("the daemon died")?;
    let (size, path, ms) = largest;
    let said = format!("{known} tenants; {path} has {size} bytes after {ms} ms, peak {peak} MiB, {before} before");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if size <= PAGE && peak <= before + 64 { Ok(format!("{said}; {pings}")) } else { Err(format!("{said}; {pings}")) }
}

/// A script that throws what is as long as it may be, of what becomes six bytes each.
fn errors(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let throws = "()=>{ const e = new Error('\\u0001'.repeat(900000)); e.stack = e.message; throw e }";
    let body = json!({ "code": throws }).to_string();
    let (told, pings) = probed(&ground, || {
        let paths: Vec<_> = (0..24).map(|n| format!("/v1/tenants/acme-{}/load", n % 3)).collect();
        ground.attacker.flood(3, "POST", &paths, body.as_bytes(), 200)
    });
    let said = format!("{told} of 24 errors told");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if told == 24 { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

fn pipelined(options: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let gauge = ground.gauge();
    ground.victim.served("good-1", "()=>1")?;
    let before = gauge.rss().ok_or("the daemon died")?;
    gauge.reset();
    let request = b"GET /v1/version HTTP/1.1\r\nhost: d\r\n\r\n".repeat(1000);
    let (sent, pings) = probed(&ground, || {
        let streams: Vec<_> = (0..10).filter_map(|_| ground.attacker.connect().ok()).collect();
        let mut sent = 0;
        for mut stream in &streams {
            let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
            while std::io::Write::write_all(&mut stream, &request).is_ok() {
                sent += 1000;
            }
        }
        sent
    });
    let peak = gauge.peak().ok_or("the daemon died")?;
    let said = format!("more than {sent} requests unread, peak {peak} MiB, {before} before");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    if peak <= before + 64 { Ok(format!("{said}; {pings}")) } else { Err(format!("{said}; {pings}")) }
}
