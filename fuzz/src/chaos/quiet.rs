//! The checks after a round, when its disturbances are undone and its load has stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use enisle_tests::wait::{found, within};
use serde_json::Value;

use super::ground;
use super::load::{Client, World};
use super::oracle::{self, Disturbed, Kind};
use super::orders::Orders;
use super::shares::{self, GIVEN_BACK};

/// How long it may take until every tenant is served again.
pub(crate) const RECOVERY: Duration = Duration::from_secs(30);
/// At rest the daemon has 23 descriptors of its own, 5 for each process and 1 for each home, as
/// measured. Three more may be open for files and connections that are in use at the moment.
const OWN_DESCRIPTORS: usize = 23 + 3;
/// The most that the daemon may hold resident, in KiB.
const MOST_KIB: u64 = 256 << 10;

/// Waits until every tenant is served, and then checks everything. Returns how long recovery took.
pub(crate) fn check(world: &World, orders: &mut Orders) -> Result<Duration> {
    let begun = Instant::now();
    let served = everyone_is_served(world);
    let took = begun.elapsed();
    if let Some(tenant) = served {
        world.found("recovery", format!("{tenant} is not served {} s after the last disturbance", RECOVERY.as_secs()));
        return Ok(took);
    }
    let events = events(world)?;
    let disturbed = world.disturbed();
    events
        .iter()
        .filter_map(|event| oracle::event(event, disturbed).err())
        .for_each(|said| world.found("events", said));
    world.set_disturbed(|disturbed| *disturbed = Disturbed::default());
    if let Some(tenant) = everyone_is_served(world) {
        world.found("recovery", format!("{tenant} is not served any more"));
    }
    at_rest(world)?;
    counts(world)?;
    leaks(world)?;
    log(world);
    orders.compare(world, |tenant| described(world, tenant));
    match world.ground().verify_audit()? {
        Ok(_) => {}
        Err(said) => world.found("audit", said),
    }
    for (isolate, numbers) in &world.book().kept {
        if let Err(said) = oracle::kept(isolate, numbers) {
            world.found("kept", said);
        }
    }
    shares::check(world);
    Ok(took)
}

/// Requests runs of every tenant until each is served. Returns the first tenant that is not served
/// in time.
fn everyone_is_served(world: &World) -> Option<String> {
    let begun = Instant::now();
    (0..world.tenants.len()).find_map(|number| {
        let mut client = Client::new(world, 1_000 + number, number);
        let left = RECOVERY.saturating_sub(begun.elapsed());
        let served = within(left, || client.run(Kind::Returns));
        (!served).then(|| world.tenants[number].name.clone())
    })
}

/// Checks that no run is in flight any more, and that no process is left over.
fn at_rest(world: &World) -> Result<()> {
    let in_flight = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
    let mut busy = Vec::new();
    let none = || {
        let Ok(rows) = tenants(world) else { return false };
        let flying = rows.iter().filter(|(_, row)| in_flight(&row["inFlight"]) > 0);
        busy = flying.map(|(name, row)| format!("{name}: {}", row["inFlight"])).collect();
        let all = world.ground().get("/v1/info").map(|info| in_flight(&info["counts"]["inFlight"]));
        busy.is_empty() && all.is_ok_and(|all| all == 0)
    };
    if !within(GIVEN_BACK, none) {
        world.found("places", format!("places of runs are not given back though nothing runs: {busy:?}"));
    }
    let mut seen = String::new();
    let agrees = || {
        let known: BTreeSet<i64> = workers(world).unwrap_or_default();
        let there: BTreeSet<i64> = world.ground().workers().into_iter().map(i64::from).collect();
        let zombies = world.ground().zombies();
        seen = format!("the daemon knows {known:?}, there are {there:?}, and {zombies} were not collected");
        known == there && zombies == 0
    };
    if !within(GIVEN_BACK, agrees) {
        world.found("leak", format!("processes: {seen}"));
    }
    Ok(())
}

/// Checks that the daemon's counts agree with the answers that clients got.
fn counts(world: &World) -> Result<()> {
    let (life, rows, events) = (world.lives.current(), tenants(world)?, events(world)?);
    for (number, tenant) in world.tenants.iter().enumerate() {
        let tally = world.book().tallies.get(&(life, number)).cloned().unwrap_or_default();
        let usage = rows.get(&tenant.name).map_or(Value::Null, |row| row["usage"].clone());
        if let Err(said) = oracle::usage(&tally, &usage, oracle::attempts(&events, &tenant.name)) {
            world.found("counts", format!("{}: {said}", tenant.name));
        }
    }
    Ok(())
}

/// Checks the daemon's descriptors and memory.
fn leaks(world: &World) -> Result<()> {
    let pid = world.ground().pid().context("there is no daemon")?;
    let processes = world.ground().workers().len();
    let homes = tenants(world)?.values().filter(|row| !row["resident"].is_null()).count();
    // Each place on standby has a channel, as each home has.
    let ready = listed(world)?.iter().filter_map(|worker| worker["placesReady"].as_u64()).sum::<u64>();
    let most = OWN_DESCRIPTORS + 5 * processes + homes + usize::try_from(ready)?;
    let mut open = 0;
    let few = || {
        open = ground::descriptors(pid);
        open <= most
    };
    if !within(GIVEN_BACK, few) {
        let there = format!("{processes} processes, {homes} homes and {ready} places on standby");
        world.found("leak", format!("{open} descriptors with {there}"));
    }
    let held = ground::status_of(pid, "VmRSS").unwrap_or_default();
    if held > MOST_KIB {
        world.found("leak", format!("the daemon holds {held} KiB"));
    }
    println!("  at rest: {processes} processes, {homes} homes, {open} descriptors, {held} KiB");
    Ok(())
}

/// Checks that the daemon itself wrote every line in the logs of its last 21 lives.
fn log(world: &World) {
    let (ground, life) = (world.ground(), world.lives.current());
    for life in life.saturating_sub(20).max(1)..=life {
        let log = ground.log(life);
        // The last line may be incomplete, because the daemon was killed.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        if let Some(said) = whole.lines().find_map(|line| oracle::log_line(line).err()) {
            world.found("log", said);
        }
    }
}

/// The scores of all tenants, by name.
pub(crate) fn scores(world: &World) -> Result<BTreeMap<String, f64>> {
    let score = |row: &Value| row["cordon"]["score"].as_f64().unwrap_or_default();
    Ok(tenants(world)?.iter().map(|(name, row)| (name.clone(), score(row))).collect())
}

/// Compares the scores after an orderly restart with those before it.
pub(crate) fn compare_scores(world: &World, before: &BTreeMap<String, f64>) -> Result<()> {
    let after = scores(world)?;
    for (name, before) in before {
        let after = after.get(name).copied().unwrap_or_default();
        // Scores decay, and the daemon forgets tenants that have only a few points.
        if *before > 15.0 && after < before * 0.95 - 1.0 {
            world
                .found("standings", format!("the score of {name} was {before:.1} before a restart, and is {after:.1}"));
        }
    }
    Ok(())
}

/// The rows of `GET /v1/tenants`, by name.
fn tenants(world: &World) -> Result<BTreeMap<String, Value>> {
    let page = world.ground().get("/v1/tenants")?;
    ensure!(page["next"].is_null(), "more tenants than a page has");
    let rows = page["tenants"].as_array().context("no tenants")?;
    Ok(rows.iter().map(|row| (row["name"].as_str().unwrap_or_default().to_owned(), row.clone())).collect())
}

/// One tenant, if the daemon knows it.
fn described(world: &World, tenant: &str) -> Result<Option<Value>> {
    let path = format!("/v1/tenants/{tenant}");
    let answer = found(GIVEN_BACK, || world.ground().ask("GET", &path, b"").ok()).context("no answer")?;
    match answer.status {
        200 => Ok(Some(serde_json::from_slice(&answer.body)?)),
        404 => Ok(None),
        status => bail!("GET {path}: {status}"),
    }
}

/// The workers that the daemon lists.
pub(crate) fn listed(world: &World) -> Result<Vec<Value>> {
    let page = world.ground().get("/v1/workers")?;
    Ok(page["workers"].as_array().cloned().unwrap_or_default())
}

fn workers(world: &World) -> Result<BTreeSet<i64>> {
    Ok(listed(world)?.iter().filter_map(|worker| worker["pid"].as_i64()).collect())
}

/// The events that the current life of the daemon remembers.
fn events(world: &World) -> Result<Vec<Value>> {
    let answer = world.ground().ask("GET", "/v1/events", b"")?;
    ensure!(answer.status == 200, "GET /v1/events: {}", answer.status);
    let lines = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).context("an event is not JSON")).collect()
}
