//! The tenants that are attacked. Their scripts plant secrets, and examine them in every run.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use enisle_api::client::blocking::Connection;
use enisle_hardening::islands::GAP_BYTES;
use fastrand::Rng;
use serde_json::{Value, json};

use super::ledger::Broken;

const SCRIPT: &str = include_str!("victim.js");

/// Longer than any answer takes. The longest wall limit is that of a victim's run, 110 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// The beginning of every secret, as in `prelude.js`.
pub const MARK: &str = "canary-";

/// A client with a persistent connection.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    connection: Option<Connection>,
}

/// An answer as bytes, not parsed, so that it can be searched for secrets.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub took: Duration,
}

impl Client {
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), connection: None }
    }

    /// Sends a request. If that fails, connects again and sends it once more, because the daemon
    /// may have closed the connection meanwhile.
    ///
    /// # Errors
    /// `answers`: the daemon does not answer in time.
    pub fn request(&mut self, method: &str, path: &str, body: &Value) -> Result<Answer, Broken> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let begun = Instant::now();
        let answer = self.once(method, path, &body).or_else(|_| self.once(method, path, &body));
        let took = begun.elapsed();
        match answer {
            Ok(answer) if took < ANSWER_LIMIT => Ok(Answer { took, ..answer }),
            Ok(_) => Err(Broken::new("answers", format!("{method} {path} took {} s", took.as_secs()))),
            Err(error) => Err(Broken::new("answers", format!("{method} {path}: {error}"))),
        }
    }

    fn once(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.socket, ANSWER_LIMIT)?,
        };
        let response = connection.request(method, path, body)?;
        self.connection = Some(connection);
        Ok(Answer { status: response.status, body: response.body, took: Duration::ZERO })
    }
}

impl Answer {
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A victim, as the fuzzer knows it.
#[derive(Debug, Clone)]
pub struct Victim {
    pub name: String,
    /// The secret in its `env`.
    secret: String,
    /// The secret that its script has planted.
    canary: String,
    /// Its last report of where its secrets are.
    pub facts: Value,
}

impl Victim {
    /// The start of its island, computed from the stack. The stack comes directly after the gap,
    /// and the gap is at the start of the island.
    #[must_use]
    pub fn island(&self) -> Option<usize> {
        const ALIGNMENT: usize = 4 << 30;
        (self.stack()? / ALIGNMENT * ALIGNMENT).checked_sub(GAP_BYTES)
    }

    /// An address on its stack.
    #[must_use]
    pub fn stack(&self) -> Option<usize> {
        self.facts["stack"].as_str()?.parse().ok()
    }
}

/// All victims of a daemon.
#[derive(Debug)]
pub struct Victims {
    list: Mutex<Vec<Victim>>,
    /// Every island that was ever a victim's. A process that a victim has left may still have the
    /// victim's secrets there.
    islands: Mutex<BTreeSet<usize>>,
}

impl Victims {
    #[must_use]
    pub fn new(count: usize, rng: &mut Rng) -> Self {
        let victim = |index| Victim {
            name: format!("victim-{index}"),
            secret: canary(rng),
            canary: String::new(),
            facts: Value::Null,
        };
        Self { list: Mutex::new((0..count).map(victim).collect()), islands: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Victim>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn all(&self) -> Vec<Victim> {
        self.lock().clone()
    }

    #[must_use]
    pub fn islands(&self) -> BTreeSet<usize> {
        self.islands.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The facts about victims that attackers get.
    #[must_use]
    pub fn scene(&self, keys: bool) -> Value {
        let facts: Vec<_> =
            self.lock().iter().map(|victim| victim.facts.clone()).filter(|facts| !facts.is_null()).collect();
        json!({ "victims": facts, "keys": keys })
    }

    /// Runs a victim's script once. The script examines its secrets, and sometimes replaces them.
    /// `may_be_lost` says whether the run may be lost with its worker.
    ///
    /// # Errors
    /// `answers` or `victims`: the answer is missing or wrong. `canaries`: a secret was changed.
    pub fn visit(
        &self,
        client: &mut Client,
        index: usize,
        rng: &mut Rng,
        may_be_lost: impl Fn() -> bool,
    ) -> Result<(), Broken> {
        let victim = self.all().swap_remove(index);
        let (nonce, new) = (rng.u64(..).to_string(), canary(rng));
        let (name, script) = (&victim.name, format!("/v1/tenants/{}/scripts/v", victim.name));
        let scene = json!({ "nonce": nonce, "canary": new, "secret": victim.secret, "plant": rng.u8(..4) == 0, "storm": rng.u8(..3) == 0 });
        let run = json!({ "args": [scene], "props": { "attack": true } });
        let mut answer = client.request("POST", &format!("{script}/run"), &run)?;
        if answer.status == 404 {
            let limits = json!({ "cpuMs": 60_000, "wallMs": 110_000, "memoryMb": 64 });
            let register = json!({ "code": SCRIPT, "env": { "secret": victim.secret }, "limits": limits });
            client.request("PUT", &format!("{script}?replace=1"), &register)?;
            answer = client.request("POST", &format!("{script}/run"), &run)?;
        }
        let found = answer.json();
        if answer.status != 200 || found["outcome"] != "ok" || found["result"]["nonce"] != json!(nonce) {
            if found["outcome"] == "workerLost" && may_be_lost() {
                return Ok(());
            }
            return Err(Broken::new("victims", format!("{name} was answered {} {}", answer.status, answer.text())));
        }
        let result = &found["result"];
        if result["bad"] != json!([]) {
            let said = format!("{name} found its secrets changed: {}, at {}", result["bad"], victim.facts);
            return Err(Broken::new("canaries", said));
        }
        let holds = result["holds"].as_str().unwrap_or_default();
        if holds != new && holds != victim.canary {
            return Err(Broken::new("canaries", format!("{name} holds {holds:?}, not {:?}", victim.canary)));
        }
        if let Some(known) = self.lock().get_mut(index) {
            (known.canary, known.facts) = (holds.to_owned(), result["where"].clone());
            self.islands.lock().unwrap_or_else(PoisonError::into_inner).extend(known.island());
        }
        Ok(())
    }
}

fn canary(rng: &mut Rng) -> String {
    format!("{MARK}{:032x}", rng.u128(..))
}

/// Searches an attacker's answer for a victim's secret, as text or in hexadecimal digits, and for
/// the report of memory that was not cleared.
#[must_use]
pub fn leaked(answer: &[u8]) -> Option<Broken> {
    let hex: String = MARK.bytes().map(|byte| format!("{byte:02x}")).collect();
    let text = String::from_utf8_lossy(answer);
    for (mark, what) in
        [(MARK, "a secret"), (hex.as_str(), "a secret"), (" dirty:", "memory of another's, or not cleared")]
    {
        if let Some(at) = text.find(mark) {
            let around: String = text.get(at..).unwrap_or_default().chars().take(80).collect();
            return Some(Broken::new("canaries", format!("an attacker's answer has {what}: {around:?}")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_an_answer_is_found_as_text_and_as_digits() {
        let secret = canary(&mut Rng::with_seed(1));
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        for body in [format!("{{\"result\":\"{secret}\"}}"), format!("x{hex}"), "{\"said\":\" dirty:x\"}".to_owned()] {
            assert_eq!(leaked(body.as_bytes()).map(|broken| broken.invariant), Some("canaries"), "{body}");
        }
        assert_eq!(leaked(b"{\"outcome\":\"ok\"}"), None);
    }
}
