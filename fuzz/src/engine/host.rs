//! A daemon in which a fuzzed tenant lives beside a neighbour, and what must hold after each of its
//! runs.

use enisle_tests::Daemon;
use serde_json::{Value, json};

/// A daemon with a fuzzed tenant and its neighbour.
#[derive(Debug)]
pub struct Host {
    daemon: Daemon,
    /// The fuzzed tenant is another one after each death, so that none is moved away from its
    /// neighbour for long.
    number: u32,
    /// Which tenant's policy was set, and to what.
    allows_eval: Option<(u32, bool)>,
    props: Value,
}

/// Tenants share processes, and no uid uses its budget of deaths up: the neighbour stays one.
pub(super) const CONFIG: &str = "[defaults.limits]\ncpu_ms = 300\nwall_ms = 3000\nmemory_mb = 64\n\
                                 [cordon.rules.deaths]\nbudget = 0\n[workers]\nshare_without_keys = true\n";

/// Ends of a run that the documents promise, for a script that a limit may end.
const DOCUMENTED: [&str; 6] = ["ok", "exception", "exceededCpu", "exceededWall", "exceededMemory", "exceededOutput"];

/// The answer to a run, and what was not right about it.
#[derive(Debug)]
pub struct Tried {
    pub answer: Value,
    pub wrong: Vec<String>,
}

impl Tried {
    /// How the run ended, in the API's word; a request that was refused has a status.
    pub fn outcome(&self) -> String {
        self.answer["outcome"].as_str().map_or_else(|| self.answer["status"].to_string(), str::to_owned)
    }
}

impl Host {
    /// Starts the daemon.
    pub fn start() -> Self {
        Self::start_with(CONFIG, json!({}))
    }

    /// Starts a daemon with another configuration, whose runs get these `props`.
    pub(super) fn start_with(config: &str, props: Value) -> Self {
        Self { daemon: Daemon::start(config), number: 0, allows_eval: None, props }
    }

    fn tenant(&self) -> String {
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

    /// Runs what a request asks for, and examines everything around it.
    pub fn run(&mut self, request: &Value) -> Tried {
        let tenant = self.tenant();
        let mut request = request.clone();
        request["props"] = self.props.clone();
        let before = self.daemon.home_of(&tenant);
        let answer = self.daemon.load(&tenant, &request);
        if answer.status != 200 {
            // A request that is refused as such is a matter of the supervisor's, and says why.
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
        // A process that died and a run that was restarted do not show in the answer.
        let after = self.daemon.home_of(&tenant);
        let died = before.is_some_and(|before| after != Some(before) && !enisle_tests::is_alive(before));
        if died && matches!(outcome.as_str(), "ok" | "exception") {
            wrong.push(format!("its process died, and the outcome is {outcome}: {}", self.last_deaths()));
        }
        for (who, name) in [("the tenant's", &tenant), ("the neighbour's", &"neighbour".to_owned())] {
            let next = self
                .daemon
                .load(name, &json!({ "code": "(n) => [...new Set([n, n])].map((k) => k * 6)", "args": [7] }));
            let next = if next.status == 200 { next.json() } else { Value::Null };
            if next["result"] != json!([42]) {
                wrong.push(format!("{who} next run: {next}"));
            }
        }
        if self.daemon.log().contains("panicked") {
            wrong.push("the daemon's log has a panic".to_owned());
        }
        if died || !wrong.is_empty() || outcome.starts_with("exceeded") {
            self.number += 1;
        }
        Tried { answer, wrong }
    }

    /// The last events about processes that ended.
    fn last_deaths(&self) -> String {
        let is_death =
            |event: &Value| event["event"].as_str().is_some_and(|kind| kind.contains("ied") || kind == "crashed");
        let deaths: Vec<_> = self.daemon.events().into_iter().filter(is_death).map(|event| event.to_string()).collect();
        deaths.iter().rev().take(2).cloned().collect::<Vec<_>>().join(", ")
    }
}
