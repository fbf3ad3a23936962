//! The shares of a uid, at rest. The uid must get half of a pool and no more. If it gets less,
//! something that it held before was not given back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use enisle_tests::wait::{found, within};
use serde_json::json;

use super::ground::{BODY_MIB, CONNECTIONS, MOST_WORKERS, SCRIPT_MIB};
use super::load::World;
use super::quiet::listed;

/// How long the daemon may take to give back what nothing uses any more.
pub(crate) const GIVEN_BACK: Duration = Duration::from_secs(15);
/// A tenant for these checks alone.
const TENANT: &str = "/v1/tenants/share";
/// More than what the uid holds besides the bytes that a check sends: the load's scripts and
/// policies, and the rest of the request.
const BESIDE: usize = 96 << 10;

pub(crate) fn check(world: &World) {
    connections(world);
    homes(world);
    // The share is half of the pool, and a body is charged twice.
    let half = (BODY_MIB << 20) / 2 / 2;
    bytes(world, "a body", half, &[200], &[413], |code| {
        world.ground().ask("POST", &format!("{TENANT}/load"), code).ok().map(|answer| answer.status)
    });
    let path = format!("{TENANT}/scripts/big");
    bytes(world, "a script", (SCRIPT_MIB << 20) / 2, &[201], &[503], |code| {
        let _ = world.ground().ask("DELETE", &path, b"");
        world.ground().ask("PUT", &path, code).ok().map(|answer| answer.status)
    });
    let _ = world.ground().ask("DELETE", &path, b"");
}

/// The most workers that may be on standby. They are no uid's.
const MOST_STANDBY: usize = MOST_WORKERS / 4;

/// Checks that there are no more worker processes than the uid's share and those on standby. This
/// holds at any time.
pub(crate) fn processes(world: &World) {
    let processes = world.ground().workers().len();
    if processes > MOST_WORKERS / 2 + MOST_STANDBY {
        world.found("share", format!("one uid has {processes} of {MOST_WORKERS} processes, more than half"));
    }
}

/// Checks that the uid's tenants live in no more processes than its share.
fn homes(world: &World) {
    let Ok(workers) = listed(world) else { return };
    let inhabited = workers.iter().filter(|worker| worker["tenants"] != json!([])).count();
    if inhabited > MOST_WORKERS / 2 {
        world.found("share", format!("one uid's tenants live in {inhabited} of {MOST_WORKERS} processes"));
    }
}

/// Sends a little less than the share, which must be accepted, and a little more, which must be
/// refused.
fn bytes(world: &World, what: &str, share: usize, fits: &[u16], not: &[u16], send: impl Fn(&[u8]) -> Option<u16>) {
    for (bytes, expected) in [(share - BESIDE, fits), (share + BESIDE, not)] {
        let code = json!({ "code": format!("() => 1 //{}", "x".repeat(bytes)) }).to_string();
        let mut last = None;
        let answered = within(GIVEN_BACK, || {
            last = send(code.as_bytes());
            last.is_some_and(|status| expected.contains(&status))
        });
        if !answered {
            world.found(
                "share",
                format!("{what} of {bytes} bytes: {last:?}, and not {expected:?}; the share is {share}"),
            );
        }
    }
}

/// Checks that the uid gets half of all connections, and that they are given back.
fn connections(world: &World) {
    let mut had = 0;
    let half = || {
        had = hoard(world);
        had == CONNECTIONS / 2
    };
    if !within(GIVEN_BACK, half) {
        world.found("share", format!("one uid has {had} of {CONNECTIONS} connections, and should have half"));
    }
    let served = || world.ground().ask("HEAD", "/_ping", b"").ok().filter(|answer| answer.status == 200);
    if found(GIVEN_BACK, served).is_none() {
        world.found("share", "connections that were closed are not given back");
    }
}

/// How many connections this uid can have at one time.
fn hoard(world: &World) -> usize {
    let socket = world.ground().socket();
    let served = |_| {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.set_read_timeout(Some(GIVEN_BACK)).ok()?;
        stream.write_all(b"HEAD /_ping HTTP/1.1\r\nhost: enisle\r\n\r\n").ok()?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).ok()?;
        status.ends_with(b"200").then_some(stream)
    };
    // All connections stay open until they are counted.
    (0..CONNECTIONS * 2).map_while(served).collect::<Vec<_>>().len()
}
