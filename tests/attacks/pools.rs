//! Every pool that all clients share: one uid takes all that it can get, and another uid must still
//! be served.
//!
//! With `share_percent = 100` the attacker may hold all of a pool. The pool must then be used up,
//! or there was no attack.
//!
//! This file is long because each pool is one entry of one table, and the entries share their
//! helpers.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enisle_tests::SHARING;
use serde_json::json;

use crate::ground::{Ground, Peer, answered, wait};
use crate::pings::probed;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S6a names", title: "a peer takes all names of tenants", run: |options| attack(&NAMES, options) },
    Case { id: "S6b homes", title: "a peer takes all worker processes", run: |options| attack(&HOMES, options) },
    Case { id: "S6b abandoned", title: "starts of processes whose clients hang up at once", run: abandoned },
    Case { id: "S6c alone", title: "a peer takes all single-tenant homes", run: |options| attack(&ALONE, options) },
    Case { id: "S6d announced", title: "bodies announced, and never sent", run: |options| attack(&ANNOUNCED, options) },
    Case { id: "S6d arrived", title: "bodies sent up to the last byte", run: |options| attack(&ARRIVED, options) },
    Case {
        id: "S6d chunks",
        title: "bodies without an announced length, never finished",
        run: |options| attack(&CHUNKS, options),
    },
    Case { id: "S6d sizes", title: "the size of a body that is served beside a peer's half", run: sizes },
    Case { id: "S6e scripts", title: "a peer takes all memory for scripts", run: |options| attack(&SCRIPTS, options) },
    Case { id: "S6e small", title: "the same with scripts of one byte", run: |options| attack(&SMALL, options) },
    Case { id: "S6f connections", title: "a peer takes all connections", run: |options| attack(&CONNECTIONS, options) },
    Case { id: "S6f churn", title: "connections that end as soon as they begin", run: churn },
    Case { id: "S6f two", title: "a peer and a user without rights take all connections", run: two_uids },
    Case { id: "S6f stranger", title: "a user without rights has eight connections", run: stranger },
    Case { id: "S6g files", title: "a peer takes all open files, by tenants and connections", run: open_files },
    Case { id: "S6 percent", title: "a share of a quarter is a quarter", run: quarter },
    Case { id: "S6 root", title: "root has no share imposed on it", run: root },
    Case { id: "S6 third", title: "idle processes of a third uid, while the largest holder is busy", run: third },
    Case { id: "S6 tiny", title: "pools of one or two units", run: tiny },
    Case { id: "S6 processes", title: "tenants of different uids share no process", run: processes },
];

struct Pool {
    config: &'static str,
    /// Whether the attack must succeed if the attacker may hold everything.
    control: bool,
    /// Takes what the attacker can get; returns what that was, with the connections that keep it.
    take: fn(&Ground) -> Taken,
    /// The time until the victim is served, or why it is not.
    serve: fn(&Ground) -> Result<Duration, String>,
}

struct Taken {
    what: String,
    _held: Vec<UnixStream>,
}

/// With these settings the daemon cuts no client off before the victim must be served.
const PATIENT: &str = "[api]\nread_secs = 120\nwrite_secs = 120\n";

fn attack(pool: &Pool, options: Options) -> Result<String, String> {
    let try_with = |share| {
        let ground = Ground::with(pool.config, share);
        let ((taken, served), pings) = probed(&ground, || ((pool.take)(&ground), (pool.serve)(&ground)));
        (taken.what, served, pings)
    };
    let (taken, served, pings) = try_with(None);
    let took = served.map_err(|refused| format!("the attacker has {taken}; the victim: {refused}"))?;
    let said = format!("the attacker has {taken}; the victim is served in {:.3} s; ", took.as_secs_f64());
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}{pings}"))?;
    if took > options.served_within() {
        return Err(said);
    }
    if !pool.control {
        return Ok(format!("{said}{pings}"));
    }
    match try_with(Some(100)) {
        (taken, Err(refused), _) => Ok(format!("{said}{pings}; without shares it has {taken}, the victim: {refused}")),
        (taken, Ok(_), _) => Err(format!("{said}but also where the attacker may have everything ({taken}): no attack")),
    }
}

fn script(bytes: usize) -> Vec<u8> {
    json!({ "code": format!("()=>1//{}", "x".repeat(bytes)) }).to_string().into_bytes()
}

/// As many names as the daemon remembers.
const MOST_NAMES: usize = 100_000;

const NAMES: Pool = Pool {
    config: SHARING,
    control: true,
    take: |ground| {
        let paths: Vec<_> = (0..MOST_NAMES).map(|n| format!("/v1/tenants/acme-{n}/scripts/s")).collect();
        let got = ground.attacker.flood(4, "PUT", &paths, br#"{"code":"1"}"#, 201);
        Taken { what: format!("{got} of {MOST_NAMES} names"), _held: Vec::new() }
    },
    serve: |ground| ground.victim.answered("PUT", "/v1/tenants/good-new/scripts/s", br#"{"code":"1"}"#),
};

/// A run that sleeps for longer than the attack takes, and so holds a home.
const SLEEPS: &str = r#"{"code":"()=>new Promise(r=>setTimeout(r,100000))","limits":{"wallMs":110000}}"#;

/// Starts a run for each tenant, and waits until each tenant has a home or was refused one.
fn take_homes(ground: &Ground, tenants: &[String]) -> Taken {
    let run = |tenant: &String| {
        let stream = ground.attacker.begin("POST", &format!("/v1/tenants/{tenant}/load"), SLEEPS.as_bytes());
        stream.expect("the attacker may connect")
    };
    let held: Vec<_> = tenants.iter().map(run).collect();
    let lives = |tenant: &String| ground.tenant(tenant)["resident"].is_object();
    let settled = |(tenant, stream): (&String, &UnixStream)| answered(stream) || lives(tenant);
    wait(Duration::from_secs(30), || tenants.iter().zip(&held).all(settled));
    let got = tenants.iter().filter(|tenant| lives(tenant)).count();
    Taken { what: format!("{got} homes of {} tenants", tenants.len()), _held: held }
}

fn names(beginning: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{beginning}{n}")).collect()
}

const HOMES: Pool = Pool {
    config: "[workers]\nmax = 6\nkeys = \"off\"\n[defaults.limits]\nwall_ms = 120000\n",
    control: true,
    take: |ground| take_homes(ground, &names("acme-", 9)),
    serve: |ground| ground.victim.served("good-1", "()=>1"),
};

/// A start costs a process, descriptors and a turn, even if its client no longer waits for it.
fn abandoned(options: Options) -> Result<String, String> {
    const MOST: usize = 6;
    const SECONDS: u64 = 5;
    let ground = Ground::with("[workers]\nmax = 6\nkeys = \"off\"\n[api]\nconnections = 64\n", None);
    let pid = ground.daemon.pid();
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let before = descriptors();
    let body = br#"{"code":"()=>1"}"#;
    let done = AtomicBool::new(false);
    let ((begun, most, served), pings) = probed(&ground, || {
        std::thread::scope(|scope| {
            let (ground, done) = (&ground, &done);
            let attack = |thread: usize| {
                let mut begun = 0;
                while !done.load(Ordering::Relaxed) {
                    let path = format!("/v1/tenants/acme-{thread}-{begun}/load");
                    begun += usize::from(ground.attacker.begin("POST", &path, body).is_ok());
                }
                begun
            };
            let threads: Vec<_> = (0..6).map(|thread| scope.spawn(move || attack(thread))).collect();
            let (begin, mut most, mut served) = (Instant::now(), 0, Ok::<_, String>(Duration::ZERO));
            // Each request is for a tenant that has no process yet.
            let mut tenant = 0;
            while begin.elapsed() < Duration::from_secs(SECONDS) && served.is_ok() {
                most = most.max(descriptors());
                tenant += 1;
                let took = ground.victim.served(&format!("good-{tenant}"), "()=>1");
                served = served.and_then(|longest| Ok(longest.max(took?)));
            }
            done.store(true, Ordering::Relaxed);
            (threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum::<usize>(), most, served)
        })
    });
    let said = format!("{begun} starts abandoned, at most {most} descriptors, {before} before; the victim: {served:?}");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let in_time = served.is_ok_and(|took| took <= options.served_within());
    // The bound allows for the descriptors of connections, and for 20 for each process.
    if in_time && most <= before + EACH * 64 + 20 * MOST { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

const ALONE: Pool = Pool {
    config: "[workers]\nshare_without_keys = true\nmax = 16\n[cordon]\nmax_alone = 4\nqueue_secs = 2\n[defaults.limits]\nwall_ms = 120000\n",
    control: true,
    take: |ground| {
        // An order replaces the misbehaviour that would isolate these tenants.
        let tenants = names("acme-alone-", 7);
        for tenant in tenants.iter().map(String::as_str).chain(["good-alone"]) {
            let order = br#"{"level":"solo","reason":"as if it had misbehaved"}"#;
            let answer = ground.root.ask("PUT", &format!("/v1/tenants/{tenant}/cordon"), order);
            answer.expect("root may order that").ok();
        }
        take_homes(ground, &tenants)
    },
    serve: |ground| ground.victim.served("good-alone", "()=>1"),
};

/// A request that is large enough to be charged.
fn serve_large(ground: &Ground) -> Result<Duration, String> {
    ground.victim.answered("POST", "/v1/tenants/good-1/load", &script(1 << 20))
}

/// Sends many requests at once, each on a connection of its own that stays open.
fn hold(ground: &Ground, how_many: usize, request: impl Fn(&mut UnixStream, usize) + Sync) -> Vec<UnixStream> {
    let hold = |number: usize| {
        let mut stream = ground.attacker.connect().expect("the attacker may connect");
        // The timeout ends a request that the daemon stops reading.
        stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        request(&mut stream, number);
        stream
    };
    std::thread::scope(|scope| {
        let hold = &hold;
        let threads: Vec<_> = (0..how_many).map(|number| scope.spawn(move || hold(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it connects and writes")).collect()
    })
}

fn open(held: &[UnixStream]) -> String {
    let open = held.iter().filter(|stream| !answered(stream)).count();
    format!("{open} of {} requests waiting", held.len())
}

const ANNOUNCED: Pool = Pool {
    config: "[workers]\nshare_without_keys = true\n[api]\nbody_mb = 256\nread_secs = 120\n",
    // The daemon does not charge bytes that were only announced.
    control: false,
    take: |ground| {
        let held = hold(ground, 12, |stream, number| {
            let path = format!("/v1/tenants/acme-{number}/load");
            let head = format!("POST {path} HTTP/1.1\r\nhost: d\r\ncontent-length: {}\r\n\r\n", 60 << 20);
            let _ = stream.write_all(head.as_bytes());
        });
        Taken { what: open(&held), _held: held }
    },
    serve: serve_large,
};

/// Bodies of one MiB whose last byte never comes.
fn unfinished(ground: &Ground, how_many: usize) -> Vec<UnixStream> {
    let body = vec![b' '; 1 << 20];
    hold(ground, how_many, |stream, number| {
        let path = format!("/v1/tenants/acme-{number}/load");
        let head = format!("POST {path} HTTP/1.1\r\nhost: d\r\ncontent-length: {}\r\n\r\n", body.len() + 1);
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    })
}

/// More bodies of one MiB than the pool holds, so that less is left than one more body needs.
const ALMOST: usize = 150;

const ARRIVED: Pool = Pool {
    config: ANNOUNCED.config,
    control: true,
    take: |ground| {
        let held = unfinished(ground, ALMOST);
        Taken { what: open(&held), _held: held }
    },
    serve: serve_large,
};

const CHUNKS: Pool = Pool {
    config: ANNOUNCED.config,
    control: true,
    take: |ground| {
        let chunk = [b"1000\r\n", [b' '; 0x1000].as_slice(), b"\r\n"].concat();
        let chunks = chunk.repeat((1 << 20) / 0x1000);
        let held = hold(ground, ALMOST, |stream, number| {
            let path = format!("/v1/tenants/acme-{}/scripts/s{}", number / 50, number % 50);
            let head = format!("PUT {path} HTTP/1.1\r\nhost: d\r\ntransfer-encoding: chunked\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&chunks));
        });
        Taken { what: open(&held), _held: held }
    },
    serve: serve_large,
};

/// The attacker holds half of the pool, the victim may hold half of the rest, and a body is charged
/// twice. So a body of an eighth of the pool fits. A larger body is refused without a wait, because
/// the attacker does not return what it holds.
fn sizes(options: Options) -> Result<String, String> {
    const MIB: usize = 1 << 20;
    let ground = Ground::with(ANNOUNCED.config, None);
    // These bodies leave less of the attacker's share than one more of them needs.
    let held = unfinished(&ground, 63);
    ground.gauge().quiet(Duration::from_secs(10));
    let (fits, too_large) = (script(30 * MIB), script(40 * MIB));
    let ask = |body: &[u8]| {
        let begun = Instant::now();
        let asked = ground.victim.ask("POST", "/v1/tenants/good-1/load", body);
        (asked.map_or(0, |answer| answer.status), begun.elapsed())
    };
    let served = ask(&fits);
    // When the victim sends the second request, the attacker has held its memory for so long that
    // the daemon no longer waits for that memory.
    let (first, refused) = (ask(&too_large), ask(&too_large));
    let said = format!("beside {}: 30 MiB {served:?}, 40 MiB {first:?}, {refused:?}", open(&held));
    let in_time = refused.1 <= options.served_within() && (!options.bench || served.1 <= options.served_within());
    if !held.iter().any(answered) && served.0 == 200 && refused.0 == 503 && in_time { Ok(said) } else { Err(said) }
}

/// Registers scripts until the daemon refuses one; returns how many.
fn register(peer: &Peer, beginning: &str, bytes: usize, most: usize) -> usize {
    let body = script(bytes);
    let put = |number: usize| {
        let path = format!("/v1/tenants/{beginning}{}/scripts/s{}", number / 50, number % 50);
        peer.ask("PUT", &path, &body).map_or(0, |answer| answer.status)
    };
    (0..most).take_while(|number| put(*number) == 201).count()
}

const SCRIPT_MB: usize = 64;
const SCRIPT_CONFIG: &str = "[workers]\nshare_without_keys = true\n[api]\nscript_mb = 64\n";

const SCRIPTS: Pool = Pool {
    config: SCRIPT_CONFIG,
    control: true,
    take: |ground| {
        let got = register(&ground.attacker, "acme-", 1 << 20, 2 * SCRIPT_MB);
        Taken { what: format!("{got} of {SCRIPT_MB} MiB for scripts"), _held: Vec::new() }
    },
    serve: |ground| ground.victim.answered("PUT", "/v1/tenants/good-1/scripts/s", &script(1 << 20)),
};

const SMALL: Pool = Pool {
    // Every script has an overhead beyond its bytes.
    config: "[workers]\nshare_without_keys = true\n[api]\nscript_mb = 4\n",
    control: true,
    take: |ground| {
        let path = |number| format!("/v1/tenants/acme-{}/scripts/s{}", number / 100, number % 100);
        let paths: Vec<_> = (0..40_000).map(path).collect();
        let got = ground.attacker.flood(2, "PUT", &paths, br#"{"code":"1"}"#, 201);
        Taken { what: format!("{got} scripts in 4 MiB"), _held: Vec::new() }
    },
    serve: |ground| ground.victim.answered("PUT", "/v1/tenants/good-1/scripts/s", &script(512 << 10)),
};

const MOST_CONNECTIONS: usize = 64;
const CONNECTION_CONFIG: &str = "[workers]\nshare_without_keys = true\n[api]\nconnections = 64\nread_secs = 120\n";

/// Opens connections and sends half a head on each; returns those that the daemon did not close.
fn half_heads(peer: &Peer, how_many: usize) -> Vec<UnixStream> {
    let open = |_| {
        let mut stream = peer.connect().ok()?;
        // A peer over its share may find the connection closed already.
        let _ = stream.write_all(b"GET /v1");
        Some(stream)
    };
    let mut held: Vec<_> = (0..how_many).map_while(open).collect();
    // An answer on the last connection shows that the daemon has accepted all before it. A daemon
    // that no longer accepts connections gives no answer.
    wait(Duration::from_secs(2), || held.last().is_none_or(answered));
    held.retain(|stream| !answered(stream));
    held
}

const CONNECTIONS: Pool = Pool {
    config: CONNECTION_CONFIG,
    control: true,
    take: |ground| {
        let held = half_heads(&ground.attacker, MOST_CONNECTIONS + 16);
        Taken { what: format!("{} of {MOST_CONNECTIONS} connections", held.len()), _held: held }
    },
    serve: |ground| ground.victim.served("good-1", "()=>1"),
};

/// The daemon has the most work with a connection when it accepts the connection.
fn churn(options: Options) -> Result<String, String> {
    const SERVED: usize = 100;
    let ground = Ground::start("");
    let done = AtomicBool::new(false);
    ground.victim.served("good-1", "()=>1")?;
    let ((begun, served), pings) = probed(&ground, || {
        std::thread::scope(|scope| {
            let (ground, done) = (&ground, &done);
            let attack = || {
                let mut begun = 0_usize;
                while !done.load(Ordering::Relaxed) {
                    begun += usize::from(ground.attacker.connect().is_ok());
                }
                begun
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(attack)).collect();
            let served = (0..SERVED).try_fold(Duration::ZERO, |longest: Duration, _| {
                Ok::<_, String>(longest.max(ground.victim.served("good-1", "()=>1")?))
            });
            done.store(true, Ordering::Relaxed);
            (threads.into_iter().map(|thread| thread.join().unwrap_or_default()).sum::<usize>(), served)
        })
    });
    let said = format!("{begun} connections begun; the victim {SERVED} times: {served:?}");
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let in_time = served.is_ok_and(|took| took <= options.served_within());
    if in_time { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

/// The result of an attack: whether the victim was served, and in time.
fn in_time(options: Options, said: String, served: Result<Duration, String>) -> Result<String, String> {
    let took = served.map_err(|refused| format!("{said}; the victim: {refused}"))?;
    let said = format!("{said}; the victim is served in {:.3} s", took.as_secs_f64());
    if took <= options.served_within() { Ok(said) } else { Err(said) }
}

fn two_uids(options: Options) -> Result<String, String> {
    let ground = Ground::with(CONNECTION_CONFIG, None);
    let first = half_heads(&ground.attacker, MOST_CONNECTIONS);
    let second = half_heads(&ground.stranger, MOST_CONNECTIONS);
    let said = format!("the peer has {}, the user without rights {} connections", first.len(), second.len());
    in_time(options, said, ground.victim.served("good-1", "()=>1"))
}

/// How many connections uids without rules may have together.
const STRANGERS: usize = 8;
/// The open files of a connection: the socket, and a second descriptor that reports its end.
const EACH: usize = 2;

fn stranger(options: Options) -> Result<String, String> {
    // Workers that are started ahead would count as well.
    let ground = Ground::start(&format!("standby = 0\n{PATIENT}"));
    ground.victim.served("good-1", "()=>1")?;
    // A connection over the bound may be closed or left waiting: only what the daemon holds counts.
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", ground.daemon.pid())).map_or(0, Iterator::count);
    let before = descriptors();
    let held = half_heads(&ground.stranger, 200);
    // Another uid without rules shares the same bound.
    let another = Peer::call(ground.daemon.folder.path(), 5004, "connect", &ground.daemon.socket());
    let more = half_heads(&another, 200);
    let served = ground.victim.served("good-1", "()=>1");
    let taken = descriptors().saturating_sub(before);
    drop((held, more));
    let said = in_time(options, format!("{taken} of 400 connections of two such users are held"), served)?;
    if taken <= EACH * STRANGERS { Ok(said) } else { Err(format!("{said}; {STRANGERS} together allowed")) }
}

/// Connections, processes and tenants' channels are all open files, whose number the kernel limits.
fn open_files(options: Options) -> Result<String, String> {
    const LIMIT: u32 = 640;
    const CONNECTIONS: usize = 128;
    const TENANTS: usize = 400;
    // The limit on open files does not allow this many processes.
    let config = format!("{SHARING}max = 200\n[api]\nconnections = {CONNECTIONS}\nread_secs = 120\n");
    let ground = Ground::with_open_files(&config, LIMIT);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", ground.daemon.pid())).map_or(0, Iterator::count);
    ground.victim.served("good-1", "()=>1")?;
    let ((lived, held, most, served), pings) = probed(&ground, || {
        let paths: Vec<_> = (0..TENANTS).map(|n| format!("/v1/tenants/acme-{n}/load")).collect();
        let lived = ground.attacker.flood(4, "POST", &paths, br#"{"code":"()=>1"}"#, 200);
        let held = half_heads(&ground.attacker, CONNECTIONS);
        let most = descriptors();
        // The first of these tenants has a home, and the second has none.
        let served = ["good-1", "good-2"].iter().try_fold(Duration::ZERO, |longest: Duration, tenant| {
            Ok::<_, String>(longest.max(ground.victim.served(tenant, "()=>1")?))
        });
        (lived, held.len(), most, served)
    });
    let refused = ground.daemon.log().lines().filter(|line| line.contains("could not be accepted")).count();
    let said = format!(
        "{lived} tenants and {held} connections: {most} of {LIMIT} open files, accepting failed {refused} times; the \
         victim: {served:?}"
    );
    let pings = pings.verdict(options.bench).map_err(|pings| format!("{said}; {pings}"))?;
    let in_time = served.is_ok_and(|took| took <= options.served_within());
    // The attacker must hold its share of the processes, and its half of the connections.
    let attacked = lived >= 12 && held >= CONNECTIONS / 2 - 4;
    if attacked && refused == 0 && in_time { Ok(format!("{said}; {pings}")) } else { Err(said) }
}

fn quarter(_: Options) -> Result<String, String> {
    let ground = Ground::with(SCRIPT_CONFIG, Some(25));
    let got = register(&ground.attacker, "acme-", 1 << 20, SCRIPT_MB);
    let said = format!("{got} of {SCRIPT_MB} MiB for scripts with share_percent = 25");
    if (SCRIPT_MB / 8..=SCRIPT_MB / 4).contains(&got) { Ok(said) } else { Err(said) }
}

fn root(_: Options) -> Result<String, String> {
    let ground = Ground::with(SCRIPT_CONFIG, None);
    let got = register(&ground.root, "acme-", 1 << 20, SCRIPT_MB);
    // A rule that names root binds root.
    let limited = format!("{SCRIPT_CONFIG}[[peers]]\nuid = 0\ntenants = [\"*\"]\nshare_percent = 50\n");
    let half = register(&Ground::with(&limited, None).root, "acme-", 1 << 20, SCRIPT_MB);
    let said = format!("{got} of {SCRIPT_MB} MiB for scripts, {half} where a rule says half");
    if got >= SCRIPT_MB * 9 / 10 && half <= SCRIPT_MB / 2 { Ok(said) } else { Err(said) }
}

fn processes(_: Options) -> Result<String, String> {
    let ground = Ground::start("");
    ground.attacker.served("acme-1", "()=>1")?;
    ground.victim.served("good-1", "()=>1")?;
    ground.attacker.served("acme-2", "()=>1")?;
    let pid = |tenant| ground.tenant(tenant)["resident"]["pid"].as_i64();
    let (one, two, other) = (pid("acme-1"), pid("acme-2"), pid("good-1"));
    let said = format!("two tenants of the attacker's: {one:?}, {two:?}; the victim's: {other:?}");
    if other.is_some() && one == two && other != one { Ok(said) } else { Err(said) }
}

/// Half of the processes belong to one uid and are busy, and the other half belong to another uid
/// and are idle. A third uid must get one of the idle processes.
fn third(options: Options) -> Result<String, String> {
    let ground = Ground::with(HOMES.config, None);
    let busy = take_homes(&ground, &names("acme-", 3));
    // Root takes the other processes, because no share bounds root.
    for tenant in names("own-", 3) {
        ground.root.served(&tenant, "()=>1")?;
    }
    let workers = ground.root.ask("GET", "/v1/workers", b"").map_err(|error| error.to_string())?;
    let workers = workers.json()["workers"].as_array().map_or(0, Vec::len);
    let said = format!("{} are busy, of {workers} processes", busy.what);
    let said = in_time(options, said, ground.victim.served("good-1", "()=>1"))?;
    if workers == 6 { Ok(said) } else { Err(said) }
}

/// A uid that holds the only unit of a pool must give it up as soon as the unit is idle.
fn tiny(options: Options) -> Result<String, String> {
    let mut said = Vec::new();
    let mut serve = |config: &str, what: &str, take: &dyn Fn(&Ground) -> Result<Vec<UnixStream>, String>| {
        let ground = Ground::with(config, None);
        let order = br#"{"level":"solo","reason":"as if it had misbehaved"}"#;
        for tenant in ["acme-alone", "good-alone"].into_iter().filter(|_| what.contains("single-tenant")) {
            let ordered = ground.root.ask("PUT", &format!("/v1/tenants/{tenant}/cordon"), order);
            ordered.map_err(|error| error.to_string())?;
        }
        let _held = take(&ground)?;
        let served =
            ground.victim.served(if what.contains("single-tenant") { "good-alone" } else { "good-1" }, "()=>1");
        said.push(in_time(options, what.to_owned(), served)?);
        Ok::<_, String>(())
    };
    let off = "keys = \"off\"\n[defaults.limits]\nwall_ms = 120000\n";
    serve(&format!("[workers]\nmax = 1\n{off}"), "one process, idle", &|ground| {
        ground.attacker.served("acme-1", "()=>1").map(|_| Vec::new())
    })?;
    serve(&format!("[workers]\nmax = 2\n{off}"), "two processes, one busy", &|ground| {
        Ok(take_homes(ground, &names("acme-", 3))._held)
    })?;
    serve(&format!("[cordon]\nmax_alone = 1\n[workers]\nmax = 3\n{off}"), "one single-tenant home, idle", &|ground| {
        ground.attacker.served("acme-alone", "()=>1").map(|_| Vec::new())
    })?;
    serve(&format!("{SHARING}[api]\nconnections = 3\nread_secs = 120\n"), "three connections", &|ground| {
        Ok(half_heads(&ground.attacker, 8))
    })?;
    serve(&format!("{SHARING}[api]\nscript_mb = 1\nbody_mb = 16\n"), "the least of memory", &|ground| {
        register(&ground.attacker, "acme-", 100 << 10, 20);
        ground.victim.answered("PUT", "/v1/tenants/good-1/scripts/s", &script(100 << 10))?;
        Ok(hold(ground, 40, |stream, number| {
            let head =
                format!("POST /v1/tenants/acme-{number}/load HTTP/1.1\r\nhost: d\r\ncontent-length: 1000000\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b' '; 999_999]));
        }))
    })?;
    Ok(said.join("; "))
}
