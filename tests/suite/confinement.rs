//! What the kernel reports about a running worker, and what happens to a worker that is not
//! confined as it should be.
//!
//! `hardening/tests/layers` shows that each layer stops its attack, and that the attack succeeds
//! without the layer.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use enisle_hardening::process::spawn::NAMESPACES;
use enisle_hardening::{Layer, Posture};
use enisle_tests::{Daemon, SHARING, has, is_alive, programs, wait_until};
use serde_json::json;

fn machine_has(layer: Layer) -> bool {
    let name = match layer {
        Layer::Namespaces | Layer::EmptyRoot => "userns",
        Layer::Keys => "pku",
        other => other.name(),
    };
    has(name, Posture::probe().layers().has(layer))
}

/// The scheduling policy of a thread (`SCHED_*`), field 41 of its `stat`. The name before it, field
/// 2, may contain any character.
fn scheduling_policy(stat: &str) -> libc::c_int {
    let behind_name = stat.rsplit_once(')').expect("a name in brackets").1;
    behind_name.split_whitespace().nth(38).and_then(|field| field.parse().ok()).expect("41 fields")
}

#[test]
fn the_kernel_confirms_that_a_worker_is_confined() {
    // A thread that is being made ready for the next tenant would be listed as well.
    let daemon = Daemon::start(&format!("{SHARING}standby = 0\n"));
    daemon.run("t", "() => 1");
    let proc = format!("/proc/{}", daemon.worker_of("t"));
    // A thread sets its own name after it has started.
    wait_until("the watchdog to run", || {
        let names = fs::read_dir(format!("{proc}/task")).expect("the worker is there");
        names
            .flatten()
            .any(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "watchdog\n"))
    });
    let mut threads = Vec::new();
    for thread in fs::read_dir(format!("{proc}/task")).expect("the worker is there") {
        let thread = thread.expect("a thread").path();
        let read = |file| fs::read_to_string(thread.join(file)).expect("the worker is there");
        let (status, stat) = (read("status"), read("stat"));
        for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line} is not in\n{status}");
        }
        // An ordinary user without a namespace cannot empty the bounding set, and gains nothing
        // from it (no_new_privs).
        let emptied = nix::unistd::geteuid().is_root() || Posture::probe().layers().has(Layer::Namespaces);
        assert!(!emptied || status.contains("CapBnd:\t0000000000000000"), "{status}");
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        threads.push((field("Name:\t"), field("Seccomp_filters:\t"), scheduling_policy(&stat)));
    }
    threads.sort();
    // Only the tenants' threads are SCHED_BATCH, because the watchdog must wake up beside a tenant
    // that computes.
    let expected = [
        ("enisle-worker", "2", libc::SCHED_OTHER),
        ("tenant-0", "5", libc::SCHED_BATCH),
        ("watchdog", "2", libc::SCHED_OTHER),
    ];
    assert_eq!(threads, expected.map(|(name, count, policy)| (name.to_owned(), count.to_owned(), policy)));
    if machine_has(Layer::EmptyRoot) {
        let mounts = fs::read_to_string(format!("{proc}/mountinfo")).expect("the worker is there");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert_eq!(fs::read_dir(format!("{proc}/root")).expect("the root is there").count(), 0);
    }
    if machine_has(Layer::Namespaces) {
        for (name, _) in NAMESPACES {
            let theirs = fs::read_link(format!("{proc}/ns/{name}")).expect("the worker is there");
            assert_ne!(theirs, fs::read_link(format!("/proc/self/ns/{name}")).expect("we are here"), "{name}");
        }
    }
    assert!(fs::read(format!("{proc}/environ")).expect("the worker is there").is_empty());
}

/// A daemon that runs as an ordinary user. `through` names the programs through which the test
/// executes it, if any.
fn as_ordinary_user(through: &[&str]) -> Daemon {
    const USER: u32 = 4_000_003;
    let folder = tempfile::Builder::new().prefix("enisle-user-").tempdir().expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).expect("the folder is ours");
    // The programs are copied, because the build folder may be closed to other users.
    for program in ["enisled", "enisle-worker", "without-userns"] {
        fs::copy(programs().join(program), folder.path().join(program)).expect("the program is built");
    }
    let id = |raw| Some(nix::unistd::Uid::from_raw(raw));
    nix::unistd::chown(folder.path(), id(USER), None).expect("root may give a folder away");
    // If the daemon is in the namespace of `without-userns`, it sees this test's uid as the
    // overflow uid.
    let rule = "[[peers]]\nuid = 65534\ntenants = [\"*\"]\noperate = true\n";
    fs::write(folder.path().join("enisled.toml"), rule).expect("a configuration");
    let words: Vec<_> = through.iter().chain(&["enisled"]).map(|program| folder.path().join(program)).collect();
    let words: Vec<_> = words.iter().map(|word| word.as_os_str()).collect();
    let process = Daemon::command_of(&words, folder.path(), &folder.path().join("s"))
        .env_clear()
        .env("HOME", folder.path())
        .uid(USER)
        .gid(USER)
        .current_dir("/")
        .spawn()
        .expect("enisled runs");
    Daemon::await_answer(process, folder)
}

#[test]
fn an_ordinary_user_has_the_same_jail_as_root() {
    if !has("root", nix::unistd::geteuid().is_root()) || !machine_has(Layer::Namespaces) {
        return;
    }
    let daemon = as_ordinary_user(&[]);
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.worker_of("t"))).expect("the worker is there");
    for line in
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t4000003"]
    {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
}

#[test]
fn without_user_namespaces_an_ordinary_user_keeps_the_other_layers() {
    if !has("root", nix::unistd::geteuid().is_root()) || !machine_has(Layer::Namespaces) {
        return;
    }
    let daemon = as_ordinary_user(&["without-userns"]);
    let info = daemon.get("/v1/info");
    let is_on = |name: &str| {
        info["posture"]["layers"]
            .as_array()
            .is_some_and(|all| all.iter().any(|l| l["layer"] == name && l["on"] == true))
    };
    assert!(!is_on("namespaces") && is_on("seccomp"), "{info}");
    assert_eq!(is_on("landlock"), Posture::probe().layers().has(Layer::Landlock), "{info}");
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.worker_of("t"))).expect("the worker is there");
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
}

#[test]
fn a_daemon_that_requires_a_missing_layer_does_not_start() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("enisled.toml"), "required = [\"namespaces\"]\n").expect("a configuration");
    // `without-userns` makes any machine look like one without user namespaces.
    let (without, daemon) = (programs().join("without-userns"), programs().join("enisled"));
    let words = [without.as_os_str(), daemon.as_os_str()];
    let out = Daemon::command_of(&words, folder.path(), &folder.path().join("s"))
        .stderr(Stdio::piped())
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("namespaces") && said.contains("requires"), "{said}");
}

/// Starts a daemon whose workers are the rogue `name`; returns the daemon and its answer to the
/// first load. A rogue takes no keys, so keys are off, except in tests of the keys themselves.
fn with_rogue(name: &str) -> (Daemon, String) {
    with_rogue_at(name, None)
}

/// Like [`with_rogue`], for a tenant at this cordon level.
fn with_rogue_at(name: &str, level: Option<&str>) -> (Daemon, String) {
    let keys = if name.contains("keys") { "auto" } else { "off" };
    let folder = tempfile::Builder::new().prefix("enisle-rogue-").tempdir().expect("a folder");
    let program = folder.path().join(name);
    fs::copy(programs().join("rogue-worker"), &program).expect("the rogue is built");
    let config = format!("{SHARING}standby = 0\nprogram = {:?}\nkeys = \"{keys}\"\n", program.display().to_string());
    let daemon = Daemon::start_in(folder, &config);
    if let Some(level) = level {
        let order = json!({ "level": level, "reason": "a test" }).to_string();
        daemon.request("PUT", "/v1/tenants/t/cordon", order.as_bytes()).ok();
    }
    let answer = daemon.load("t", &json!({ "code": "() => 1", "limits": { "wallMs": 100 } }));
    (daemon, String::from_utf8_lossy(&answer.body).into_owned())
}

fn assert_rejected(name: &str, finding: &str) {
    assert_rejected_at(name, None, finding);
}

fn assert_rejected_at(name: &str, level: Option<&str>, finding: &str) {
    let (daemon, answer) = with_rogue_at(name, level);
    assert!(answer.contains("failed verification") && answer.contains(finding), "{name}: {answer}");
    let events = daemon.events();
    assert!(events.iter().any(|event| event["event"] == "workerRejected"), "{name}: {events:?}");
    assert_eq!(daemon.get("/v1/tenants/t")["usage"]["begun"], 0, "{name} got a run: {events:?}");
    assert_eq!(daemon.get("/v1/workers")["workers"], json!([]));
}

#[test]
fn a_worker_that_skips_a_step_of_its_jail_never_gets_a_tenant() {
    for (layer, finding) in [
        (Layer::EmptyRoot, "mounts are not one empty"),
        (Layer::Rlimits, "Max core file size"),
        (Layer::Capabilities, "CapEff"),
        (Layer::Seccomp, "seccomp mode 0"),
        (Layer::Keys, "keys: it reports none"),
    ] {
        if machine_has(layer) {
            assert_rejected(&format!("rogue-without-{layer}"), finding);
        }
    }
}

#[test]
fn a_worker_without_speculation_controls_never_gets_a_tenant_if_the_machine_offers_them() {
    let posture = Posture::probe();
    let speculation = posture.findings.iter().find(|finding| finding.layer == Layer::Speculation);
    let speculation = speculation.expect("every layer is probed");
    if speculation.on {
        assert_rejected("rogue-without-speculation", "Speculation");
    } else {
        // If the machine decides about speculation, and not the process, the daemon promises
        // nothing. The tests of `verify` cover both cases.
        let (daemon, _) = with_rogue("rogue-without-speculation");
        assert!(!daemon.events().iter().any(|event| event["event"] == "workerRejected"), "{speculation:?}");
    }
}

#[test]
fn a_sealed_worker_is_verified_like_any_other_and_for_its_filter() {
    if machine_has(Layer::SealedFilter) {
        assert_rejected_at("rogue-without-sealed-filter", Some("sealed"), "with 2 filters");
        assert_rejected_at("rogue-without-capabilities", Some("sealed"), "CapEff");
        assert_rejected_at("rogue-without-capabilities", Some("solo"), "CapEff");
    }
}

#[test]
fn a_worker_that_lies_about_its_keys_never_gets_a_tenant() {
    if machine_has(Layer::Keys) {
        assert_rejected("rogue-lies-of-keys", "only 0 mappings are on its islands");
        assert_rejected("rogue-shares-keys", "are not one for each of 12 slots");
    }
}

#[test]
fn a_worker_that_keeps_a_descriptor_never_gets_a_tenant() {
    assert_rejected("rogue-with-descriptor", "/etc/passwd");
}

#[test]
fn a_worker_that_sends_noise_before_it_is_ready_never_gets_a_tenant() {
    let (daemon, answer) = with_rogue("rogue-says-noise");
    assert!(answer.contains("did not become ready: a frame of 4294967295 bytes"), "{answer}");
    assert_eq!(daemon.get("/v1/workers")["workers"], json!([]));
    assert_eq!(daemon.get("/v1/tenants/t")["usage"]["begun"], 0);
}

#[test]
fn a_worker_that_breaks_the_protocol_is_killed_and_reported() {
    for (name, word) in [
        ("rogue-says-ready-twice", "Ready from a worker that is ready already"),
        ("rogue-says-another-tenant", "slot 7, which this worker does not hold"),
        ("rogue-says-too-much", "a frame of 4294967295 bytes"),
    ] {
        let (daemon, _) = with_rogue(name);
        let event = daemon.await_event("the violation", |event| event["event"] == "protocolViolation");
        assert!(event["what"].as_str().is_some_and(|what| what.contains(word)), "{name}: {event}");
        let pid = event["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("the event names the process");
        wait_until("the end of the worker", || !is_alive(pid));
        assert_eq!(daemon.request("GET", "/_ping", b"").status, 200);
    }
}

/// A worker without memory for one more thread used to count as a worker that breaks the protocol.
#[test]
fn a_worker_without_memory_for_a_tenants_thread_is_no_evidence_of_an_attack() {
    let (daemon, _) = with_rogue("rogue-fails-at-admission");
    let died = daemon.await_event("the death", |event| event["event"] == "workerDied");
    assert_eq!(died["reason"], "it could not go on", "{died}");
    let violations = || daemon.events().into_iter().filter(|event| event["event"] == "protocolViolation");
    assert_eq!(violations().count(), 0, "{:?}", violations().next());
    let signals = daemon.get("/v1/tenants/t")["cordon"]["signals"].clone();
    let names = signals.as_array().expect("signals").iter().map(|signal| &signal["signal"]);
    assert!(names.clone().all(|name| name != "protocol"), "{signals}");
}

#[test]
fn a_worker_that_floods_its_tenants_channel_is_killed_and_reported() {
    for (how, word) in [
        ("says-ready-again", "Ready was sent twice"),
        ("logs-nothing", "a log frame without a line"),
        ("logs-in-small-frames", "bytes of log in one run"),
        ("logs-too-many-lines", "does not decode"),
        ("has-a-long-error", "an error of more than"),
    ] {
        let (daemon, answer) = with_rogue(&format!("rogue-tenant-{how}"));
        assert!(answer.contains("\"outcome\":\"violation\"") && answer.contains(word), "{how}: {answer}");
        let event = daemon.await_event("the violation", |event| event["event"] == "protocolViolation");
        assert_eq!(event["tenant"], "t", "{event}");
        // The audit log keeps the traces of the attack, with their details.
        let log = daemon.folder.path().join("state/audit/audit.jsonl");
        wait_until("the audit log", || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("protocolViolation") && log.contains(word))
        });
    }
}

#[test]
fn a_refused_call_in_a_process_that_held_only_one_tenant_is_attributed_to_that_tenant() {
    let (daemon, answer) = with_rogue("rogue-tenant-opens-a-file");
    assert!(answer.contains("\"outcome\":\"violation\"") && answer.contains("the filter stopped"), "{answer}");
    assert!(!daemon.events().iter().any(|event| event["event"] == "retried"), "the run is not restarted");
}

#[test]
fn with_keys_off_every_tenant_has_a_process_of_its_own_and_the_posture_says_so() {
    let daemon = Daemon::start("[workers]\nkeys = \"off\"\n");
    assert_eq!((&daemon.run("a", "() => 1")["result"], &daemon.run("b", "() => 2")["result"]), (&json!(1), &json!(2)));
    assert_ne!(daemon.worker_of("a"), daemon.worker_of("b"));
    let info = daemon.get("/v1/info");
    let layers = info["posture"]["layers"].as_array().expect("layers");
    let keys = layers.iter().find(|layer| layer["layer"] == "keys").expect("the layer is named");
    assert_eq!(keys["on"], false, "{keys}");
    assert!(keys["consequence"].as_str().is_some_and(|text| text.contains("one tenant a process")), "{keys}");
    assert!(info["posture"]["consequence"].as_str().is_some_and(|text| text.contains("process of its own")), "{info}");
}

#[test]
fn with_keys_every_page_of_a_tenant_carries_its_own_key() {
    if !machine_has(Layer::Keys) {
        return;
    }
    // A slot on standby would have a heap, and a key, too.
    let daemon = Daemon::start("[workers]\nstandby = 0\n");
    for tenant in ["a", "b", "c"] {
        daemon.run(tenant, "() => new ArrayBuffer(1 << 20).byteLength");
    }
    let worker = daemon.worker_of("a");
    assert_eq!(
        (daemon.worker_of("b"), daemon.worker_of("c")),
        (worker, worker),
        "keys allow tenants to share a process"
    );
    let smaps = fs::read_to_string(format!("/proc/{worker}/smaps")).expect("the worker is there");
    let mut dirty = std::collections::BTreeMap::new();
    let mut kib = 0;
    for line in smaps.lines() {
        let number = |text: &str| text.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        if let Some(rest) = line.strip_prefix("Private_Dirty:") {
            kib = number(rest);
        } else if let Some(rest) = line.strip_prefix("ProtectionKey:") {
            *dirty.entry(number(rest)).or_insert(0) += kib;
        }
    }
    // Three tenants have a heap each. The default key and V8's key are not counted.
    let tenants = dirty.iter().filter(|(key, kib)| **key > 1 && **kib > 500).count();
    assert_eq!(tenants, 3, "KiB by key: {dirty:?}");
}
