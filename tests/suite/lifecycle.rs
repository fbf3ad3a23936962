//! Processes that die and what replaces them, how the daemon drains, and its socket.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use enisle_tests::{Daemon, SHARING, is_alive, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

fn kill_worker(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the worker is there");
}

const WAITS: &str = "() => new Promise((r) => setTimeout(() => r('done'), 2000))";

#[test]
fn a_run_whose_worker_is_killed_is_run_again_elsewhere() {
    let daemon = Daemon::start(SHARING);
    assert_eq!(daemon.run("neighbour", "() => 1")["result"], 1);
    let worker = daemon.worker_of("neighbour");
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.run("t", WAITS));
        let beside = scope.spawn(|| daemon.run("neighbour", WAITS));
        daemon.wait_for("/v1/tenants", |all| {
            all["tenants"].as_array().is_some_and(|all| {
                all.iter().filter(|t| t["inFlight"] == 1 && t["resident"]["warm"] == false).count() == 2
            })
        });
        assert_eq!(daemon.worker_of("t"), worker, "both share a process");
        kill_worker(worker);
        for run in [run, beside] {
            let run = run.join().expect("the run is answered");
            assert_eq!(
                (&run["outcome"], &run["result"], &run["cordon"]),
                (&json!("ok"), &json!("done"), &json!("solo")),
                "{run}"
            );
        }
    });
    assert!(!is_alive(worker));
    assert_eq!(daemon.run("t", "() => 'next'")["result"], "next");
    let retried = daemon.events().iter().filter(|event| event["event"] == "retried").count();
    assert_eq!(retried, 2);
}

#[test]
fn a_run_whose_worker_is_killed_twice_is_lost_and_the_next_one_works() {
    let daemon = Daemon::start(SHARING);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.run("t", WAITS));
        // The end of a worker in which the run has not begun does not count as a loss, so the test
        // kills every worker that the tenant gets.
        let mut last = 0;
        wait_until("the end of the run", || {
            if let Some(worker) = daemon.home_of("t").filter(|worker| *worker != last && is_alive(*worker)) {
                kill_worker(worker);
                last = worker;
            }
            run.is_finished()
        });
        let run = run.join().expect("the run is answered");
        assert_eq!(run["outcome"], "workerLost", "{run}");
        assert!(run["error"]["message"].as_str().is_some_and(|message| message.contains("SIGKILL")), "{run}");
    });
    assert_eq!(daemon.run("t", "() => 'next'")["result"], "next");
}

/// How much the run computed is unknown. No other tenant was in the process, so the run's tenant is
/// blamed, and charged for all the time that passed.
#[test]
fn a_run_whose_worker_is_killed_is_charged_for_the_time_that_passed() {
    let daemon = Daemon::start(SHARING);
    daemon.run("t", "() => 1");
    let cpu_ms = |of: &serde_json::Value| of["usage"]["cpuMs"].as_f64().unwrap_or_default();
    let tenant = || daemon.get("/v1/tenants/t");
    let before = cpu_ms(&tenant());
    std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.run("t", WAITS));
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["usage"]["begun"] == 2);
        let begun = Instant::now();
        wait_until("300 ms have passed", || begun.elapsed() >= Duration::from_millis(300));
        kill_worker(daemon.worker_of("t"));
        let run = run.join().expect("the run is answered");
        assert_eq!(run["result"], "done", "{run}");
        // The answer gives only the usage of the successful attempt, which waited and computed
        // little.
        assert!(cpu_ms(&run) < 200.0, "{run}");
        let charged = cpu_ms(&tenant()) - before;
        // The charge goes at most to the run's limit: the default of `cpuMs` is one second.
        assert!((300.0..1200.0).contains(&charged), "{charged}");
    });
}

#[test]
fn an_idle_worker_that_dies_is_replaced_unnoticed() {
    let daemon = Daemon::start(SHARING);
    daemon.run("t", "() => 1");
    kill_worker(daemon.worker_of("t"));
    let run = daemon.run("t", "() => 2");
    assert_eq!((&run["outcome"], &run["result"]), (&json!("ok"), &json!(2)), "{run}");
}

#[test]
fn no_worker_outlives_the_daemon_and_a_new_one_takes_the_same_socket() {
    let daemon = Daemon::start(SHARING);
    daemon.run("a", "() => 1");
    daemon.load("b", &json!({ "code": "() => 1", "limits": { "memoryMb": 16 } })).ok();
    let workers: Vec<_> = ["a", "b"].map(|tenant| daemon.worker_of(tenant)).to_vec();
    let folder = daemon.kill_hard();
    wait_until("the end of the workers", || workers.iter().all(|pid| !is_alive(*pid)));
    assert!(fs::symlink_metadata(folder.path().join("s")).is_ok(), "the dead daemon left its socket");
    let daemon = Daemon::start_in(folder, SHARING);
    assert_eq!(daemon.run("a", "() => 'again'")["result"], "again");
}

#[test]
fn a_terminating_daemon_lets_runs_finish_and_takes_no_new_ones() {
    let mut daemon = Daemon::start(SHARING);
    let socket = daemon.socket();
    let run = std::thread::scope(|scope| {
        let run = scope.spawn(|| daemon.run("t", WAITS));
        daemon.wait_for("/v1/tenants/t", |tenant| tenant["inFlight"] == 1);
        daemon.terminate();
        wait_until("the end of listening", || UnixStream::connect(&socket).is_err());
        run.join().expect("the run is answered")
    });
    assert_eq!(run["result"], "done", "{run}");
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(fs::symlink_metadata(&socket).is_err(), "the socket is removed");
}

#[test]
fn runs_that_do_not_finish_end_with_the_daemon() {
    let mut daemon = Daemon::start(&format!("{SHARING}[api]\ndrain_secs = 1\n"));
    let mut client = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    let body = json!({ "code": "() => new Promise((r) => setTimeout(r, 9000))" }).to_string();
    std::io::Write::write_all(
        &mut client,
        format!("POST /v1/tenants/t/load HTTP/1.1\r\nhost: d\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .as_bytes(),
    )
    .expect("it reads");
    let worker = daemon.wait_for("/v1/tenants/t", |tenant| tenant["resident"]["pid"].is_i64());
    let worker = i32::try_from(worker["resident"]["pid"].as_i64().unwrap_or(0)).expect("a pid");
    daemon.terminate();
    assert_eq!(daemon.exit_code(), Some(0));
    assert!(!is_alive(worker));
}

#[test]
fn a_second_daemon_does_not_take_the_socket_of_the_first() {
    let daemon = Daemon::start(SHARING);
    let second = tempfile::tempdir().expect("a folder");
    fs::write(second.path().join("enisled.toml"), SHARING).expect("a configuration");
    let status = Daemon::command(second.path(), &daemon.socket()).status().expect("enisled runs");
    assert!(!status.success());
    let said = fs::read_to_string(second.path().join("log")).expect("a log");
    assert!(said.contains("another enisled is running"), "{said}");
    assert_eq!(daemon.run("t", "() => 1")["result"], 1);
}

#[test]
fn a_tenant_that_is_idle_moves_out_and_back_in() {
    let daemon = Daemon::start("[workers]\nshare_without_keys = true\nidle_secs = 1\n");
    daemon.run("t", "() => 1");
    let worker = daemon.worker_of("t");
    daemon.wait_for("/v1/tenants/t", |tenant| tenant["resident"].is_null());
    wait_until("the end of the empty worker", || !is_alive(worker));
    assert_eq!(daemon.run("t", "() => 2")["result"], 2);
}

#[test]
fn a_slot_is_not_used_twice_and_a_full_machine_evicts_idle_tenants() {
    // The test uses one tenant more than two processes have slots. Without keys a process has one
    // slot.
    let daemon = Daemon::start("[workers]\nmax = 2\n");
    let capacity = daemon.get("/v1/info")["capacity"]["tenantsPerProcess"].as_u64().unwrap_or(1);
    let tenants = 2 * capacity + 1;
    for n in 0..tenants {
        assert_eq!(daemon.run(&format!("t{n}"), "() => 1")["result"], 1, "tenant {n}");
    }
    assert!(daemon.get("/v1/workers")["workers"].as_array().is_some_and(|workers| workers.len() <= 2));
    assert_eq!(daemon.run("t0", "() => 'back'")["result"], "back");
}

#[test]
fn a_machine_full_of_busy_tenants_refuses_the_next_one() {
    let daemon = Daemon::start("[workers]\nmax = 1\n");
    let capacity = daemon.get("/v1/info")["capacity"]["tenantsPerProcess"].as_u64().unwrap_or(1);
    std::thread::scope(|scope| {
        let busy = json!({ "code": "() => new Promise((r) => setTimeout(r, 2000))" });
        let runs: Vec<_> = (0..capacity)
            .map(|n| {
                let (daemon, busy) = (&daemon, busy.clone());
                scope.spawn(move || daemon.load(&format!("t{n}"), &busy).ok())
            })
            .collect();
        daemon.wait_for("/v1/info", |info| {
            info["counts"]["inFlight"] == capacity && info["counts"]["residents"] == capacity
        });
        let problem = daemon.load("one-too-many", &json!({ "code": "() => 1" })).problem(503);
        assert!(problem.contains("workers.max"), "{problem}");
        for run in runs {
            assert_eq!(run.join().expect("the run is answered")["outcome"], "ok");
        }
    });
}

#[test]
fn an_old_worker_is_left_even_by_a_tenant_that_is_never_idle() {
    let daemon = Daemon::start("[workers]\nmax_age_secs = 1\n");
    daemon.run("t", "() => 1");
    let first = daemon.worker_of("t");
    // There are two clients, so that the tenant has a run at every moment.
    let waits = "() => new Promise((r) => setTimeout(() => r('done'), 50))";
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while daemon.home_of("t").is_none_or(|worker| worker == first) {
                    let run = daemon.run("t", waits);
                    assert_eq!(run["result"], "done", "{run}");
                }
            });
        }
    });
    wait_until("the end of the old worker", || !is_alive(first));
    daemon.await_event("its move", |event| event["reason"] == "its process is old");
}
