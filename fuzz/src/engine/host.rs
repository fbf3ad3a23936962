//! A daemon in which a fuzzed tenant lives beside a neighbour. After each run of the fuzzed tenant,
//! the daemon and the neighbour are examined.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use enisle_cordon::signal::Signal;
use enisle_tests::{Daemon, wait};
use serde_json::{Value, json};

/// A daemon with a fuzzed tenant and its neighbour.
#[derive(Debug)]
pub struct Host {
    pub(super) daemon: Daemon,
    /// The number in the name of the fuzzed tenant. After a death, a finding or an exceeded limit a
    /// new tenant replaces the old one, which may have been moved away from its neighbour.
    number: u32,
    /// The number of the tenant whose policy was set, and the value of `allowEval`.
    allows_eval: Option<(u32, bool)>,
    props: Value,
    /// How many bytes of the daemon's log were examined.
    log_read: u64,
}

/// Tenants share processes even without keys. A budget of 0 turns the budget of deaths off, so that
/// no tenant is put on probation, and the neighbour stays beside the fuzzed tenant.
pub(super) const CONFIG: &str = "[defaults.limits]\ncpu_ms = 300\nwall_ms = 3000\nmemory_mb = 64\n\
                                 [cordon.rules.deaths]\nbudget = 0\n[workers]\nshare_without_keys = true\n";

/// How long it may take until an event reports the end of a process.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);

const NEIGHBOUR: &str = "neighbour";

/// The documented outcomes of a script that a limit may end.
const DOCUMENTED: [&str; 6] = ["ok", "exception", "exceededCpu", "exceededWall", "exceededMemory", "exceededOutput"];

/// The answer to a run, and what was wrong.
#[derive(Debug)]
pub struct Tried {
    pub answer: Value,
    pub wrong: Vec<String>,
}

impl Tried {
    /// The outcome of the run, or the status if the request was refused.
    pub fn outcome(&self) -> String {
        self.answer["outcome"].as_str().map_or_else(|| self.answer["status"].to_string(), str::to_owned)
    }
}

impl Host {
    /// Starts the daemon.
    pub fn start() -> Self {
        Self::start_with(CONFIG, json!({}))
    }

    /// Starts a daemon with another configuration. All runs get these `props`.
    pub(super) fn start_with(config: &str, props: Value) -> Self {
        Self { daemon: Daemon::start(config), number: 0, allows_eval: None, props, log_read: 0 }
    }

    /// Kills the daemon, as if a fault of its own had ended it.
    #[cfg(test)]
    pub(super) fn kill(&self) {
        let pid = nix::unistd::Pid::from_raw(self.daemon.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it is our child");
    }

    pub(super) fn tenant(&self) -> String {
        format!("fuzzed-{}", self.number)
    }

    /// Sets whether the fuzzed tenant's policy allows code from strings.
    pub fn allow_eval(&mut self, allow_eval: bool) {
        if self.allows_eval != Some((self.number, allow_eval)) {
            let policy = json!({ "allowEval": allow_eval }).to_string();
            self.daemon.request("PUT", &format!("/v1/tenants/{}", self.tenant()), policy.as_bytes()).ok();
            self.allows_eval = Some((self.number, allow_eval));
        }
    }

    /// Sends a request for a run, and examines the answer, the next runs, the events and the log.
    pub fn run(&mut self, request: &Value) -> Tried {
        let tenant = self.tenant();
        let mut request = request.clone();
        request["props"] = self.props.clone();
        let before = self.daemon.home_of(&tenant).or_else(|| {
            self.next_run(&tenant);
            self.daemon.home_of(&tenant)
        });
        let answer = self.daemon.load(&tenant, &request);
        if answer.status != 200 {
            // The supervisor may refuse the request itself, with a problem that says why.
            let problem = answer.head.to_ascii_lowercase().contains("application/problem+json");
            let is_documented = problem && [400, 413, 429, 503].contains(&answer.status);
            let wrong = if is_documented { Vec::new() } else { vec![format!("status {}", answer.status)] };
            let answer = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
            return Tried { answer, wrong };
        }
        let (answer, mut wrong) = (answer.json(), Vec::new());
        let outcome = answer["outcome"].as_str().unwrap_or_default().to_owned();
        if !DOCUMENTED.contains(&outcome.as_str()) {
            wrong.push(format!("outcome {outcome}: {}", answer["error"]));
        }
        // A process also ends when its last tenant has moved away, but that is not a death.
        let deaths = match before {
            Some(before) if !enisle_tests::is_alive(before) => self.deaths_of(before),
            _ => Vec::new(),
        };
        let died = !deaths.is_empty();
        // The answer of a run does not show that the run was restarted.
        if died && matches!(outcome.as_str(), "ok" | "exception") {
            wrong.push(format!("its process died, and the outcome is {outcome}: {deaths:?}"));
        }
        for (who, name) in [("the tenant's", tenant.as_str()), ("the neighbour's", NEIGHBOUR)] {
            wrong.extend(self.next_run(name).map(|run| format!("{who} next run: {run}")));
        }
        if died {
            wrong.extend(self.blamed(NEIGHBOUR).map(|signal| format!("the neighbour is blamed: {signal}")));
        }
        if self.new_log().contains("panicked") {
            wrong.push("the daemon's log has a panic".to_owned());
        }
        if died || !wrong.is_empty() || outcome.starts_with("exceeded") {
            self.number += 1;
        }
        Tried { answer, wrong }
    }

    /// Runs a script whose result is known. Returns the answer if it is wrong.
    fn next_run(&self, tenant: &str) -> Option<String> {
        let request = json!({ "code": "(n) => [...new Set([n, n])].map((k) => k * 6)", "args": [7] });
        let next = self.daemon.load(tenant, &request);
        let is_right = next.status == 200 && next.json()["result"] == json!([42]);
        (!is_right).then(|| String::from_utf8_lossy(&next.body).into_owned())
    }

    /// The lines that the daemon and its workers have logged since the last call.
    fn new_log(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(self.daemon.folder.path().join("log")).and_then(|mut log| {
            log.seek(SeekFrom::Start(self.log_read))?;
            log.read_to_end(&mut bytes)
        });
        self.log_read += read.expect("the daemon has a log") as u64;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The signals against a tenant that blame it for the end of a process.
    fn blamed(&self, tenant: &str) -> impl Iterator<Item = &'static str> + use<> {
        let signals = self.daemon.get(&format!("/v1/tenants/{tenant}"))["cordon"]["signals"].clone();
        let ends = Signal::ALL.into_iter().filter(|signal| signal.takes_worker());
        ends.map(Signal::name).filter(move |name| {
            signals.as_array().is_some_and(|signals| signals.iter().any(|signal| signal["signal"] == *name))
        })
    }

    /// The event that reports the death of a process; nothing if the process was retired.
    fn deaths_of(&self, pid: i32) -> Vec<String> {
        let ended = wait::found(EVENT_PATIENCE, || {
            let of_it = |event: &Value| event["pid"] == pid && event["event"] != "workerStarted";
            self.daemon.events().into_iter().find(of_it)
        });
        match ended {
            Some(event) if event["event"] == "workerRetired" => Vec::new(),
            Some(event) => vec![event.to_string()],
            None => vec![format!("no event says how process {pid} ended")],
        }
    }
}
