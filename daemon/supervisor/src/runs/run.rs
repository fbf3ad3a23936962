//! A run from its admission to its report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use enisle_cordon::{Level, Seen, Signal};
use enisle_wire::Outcome;
use enisle_wire::tenant::{RunId, ScriptError, Usage};

use crate::daemon::Daemon;
use crate::events::EventKind;
use crate::homes::exchange::Finished;
use crate::homes::job::{Job, Unsealable};
use crate::homes::pool::AdmitError;
use crate::runs::attempt::{Attempts, GaveUp, Next};
use crate::share::Exhausted;
use crate::tenants::in_flight::InFlight;
use crate::tenants::quota::OverQuota;
use crate::tenants::tenant::{Expelled, Tenant};

/// Why a run did not begin, or has no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Quota(#[from] OverQuota),
    #[error(transparent)]
    Admit(#[from] AdmitError),
    #[error("the daemon is ending and takes no new runs")]
    Draining,
    #[error("there is no room to record the evidence that the run may leave: {0}")]
    Unrecorded(Exhausted),
    #[error("the run could not be made ready for a sealed worker: {0}")]
    Unsealable(#[from] Unsealable),
    #[error("making the run ready was interrupted")]
    Interrupted,
    #[error("the run has ended, and its answer of {bytes} bytes was discarded: {why}")]
    Answer { bytes: usize, why: Exhausted },
    #[error(transparent)]
    Expelled(#[from] Expelled),
}

/// How a run ended, and where it ran.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) id: RunId,
    pub(crate) finished: Finished,
    pub(crate) level: Level,
}

impl Daemon {
    /// Takes a place in a tenant's quota for one run, until the run ends. The place is taken before
    /// the body is read, so that runs whose bodies are still arriving count too.
    pub(crate) fn begin(&self, tenant: &Arc<Tenant>, uid: u32) -> Result<InFlight, RunError> {
        if self.is_draining() {
            return Err(RunError::Draining);
        }
        tenant.may_run()?;
        self.warden.recorder.may_run(uid).map_err(RunError::Unrecorded)?;
        Ok(InFlight::begin(&self.flights, tenant, &self.supplies.bodies, uid)?)
    }

    /// Carries out one run, to its report. Dropping the future cancels it.
    ///
    /// A run whose worker dies is restarted ([`Attempts`]). That is safe because, so far, no run
    /// has effects outside its worker.
    pub(crate) async fn run(self: &Arc<Self>, job: Job) -> Result<Report, RunError> {
        let tenant = &Arc::clone(&job.in_flight.tenant);
        let (id, uid) = (job.run.id, job.in_flight.uid);
        let room_until = || Instant::now() + Duration::from_secs(self.config.cordon.queue_secs);
        let (mut attempts, mut until) = (Attempts::default(), room_until());
        loop {
            let home = self.homes.find(tenant, &job, until).await?;
            let level = home.worker.level;
            let fitted = if level == Level::Sealed { self.sealed(&job, tenant).await? } else { job.clone() };
            let ended = home.run(fitted).await;
            let finished = match attempts.after(ended, home.is_fenced()) {
                Next::Answer(finished) => {
                    tenant.note_end();
                    *finished
                }
                Next::Refuse { bytes, why, usage } => {
                    tenant.note_end();
                    self.note(tenant, uid, id, &Finished::of_ours(Outcome::ExceededOutput, None, usage));
                    return Err(RunError::Answer { bytes, why });
                }
                Next::Discard { cpu_us, gives_up } => {
                    self.discard(tenant, uid, id, home.token, cpu_us);
                    let Some(why) = gives_up else { continue };
                    given_up(tenant, &why, Usage::default())
                }
                Next::GiveUp(why, usage) => given_up(tenant, &why, usage),
                Next::Wait => {
                    // Until now the run waited for its turn; its time to wait for room begins now.
                    until = room_until();
                    self.homes.pool.bury_dead();
                    continue;
                }
                Next::Retry { alone, why: reason, usage } => {
                    if alone {
                        tenant.retry_alone();
                    }
                    // The answer reports what the last attempt used.
                    tenant.usage().add_cpu(usage.cpu_us);
                    let (tenant, run) = (tenant.name.to_string(), id.to_string());
                    self.events.emit(EventKind::Retried { tenant, uid, run, reason });
                    self.homes.pool.bury_dead();
                    continue;
                }
            };
            self.note(tenant, uid, id, &finished);
            return Ok(Report { id, finished, level });
        }
    }

    /// Discards what a fenced home says about a run, but charges the tenant for the CPU time.
    fn discard(&self, tenant: &Tenant, uid: u32, run: RunId, token: u64, cpu_us: u64) {
        let mut usage = tenant.usage();
        usage.fenced += 1;
        usage.add_cpu(cpu_us);
        drop(usage);
        self.events.emit(EventKind::Fenced { tenant: tenant.name.to_string(), uid, run: run.to_string(), token });
    }

    /// A run as a sealed home gets it: lower limits, no secrets, no code from strings.
    async fn sealed(&self, job: &Job, tenant: &Tenant) -> Result<Job, RunError> {
        let (limits, policy) = (self.homes.limits_at(tenant, Level::Sealed), tenant.policy());
        let job = job.clone();
        if policy.secrets.is_empty() {
            return Ok(job.sealed(&limits, &[])?);
        }
        // Encoded off this thread, because an env may be large.
        let uid = job.in_flight.uid;
        let turn = self.work.turn(uid, job.env.len()).await;
        let sealed = tokio::task::spawn_blocking(move || {
            let sealed = job.sealed(&limits, &policy.secrets);
            drop(turn);
            sealed
        });
        Ok(sealed.await.map_err(|_| RunError::Interrupted)??)
    }

    /// Adds a run to its tenant's usage, counts what the worker alleges about it, and emits an
    /// event unless the run ended with a result or an exception.
    fn note(&self, tenant: &Arc<Tenant>, uid: u32, run: RunId, finished: &Finished) {
        let mut usage = tenant.usage();
        usage.add_cpu(finished.usage.cpu_us);
        usage.note(finished.outcome);
        drop(usage);
        let advice = &finished.advice;
        let said = [
            (advice.imports > 0, Signal::DeniedImport),
            (advice.code > 0, Signal::DeniedCode),
            (advice.timers > 0, Signal::TimerFlood),
            (finished.outcome == Outcome::ExceededMemory, Signal::NearMemory),
        ];
        let said: Vec<_> = said.iter().filter(|(said, _)| *said).map(|(_, signal)| Seen::certain(*signal)).collect();
        if !said.is_empty() {
            self.warden.saw(tenant, uid, &said);
        }
        if !matches!(finished.outcome, Outcome::Ok | Outcome::Exception) {
            let outcome = finished.outcome.as_str();
            self.events.emit(EventKind::RunEnded {
                tenant: tenant.name.to_string(),
                uid,
                run: run.to_string(),
                outcome,
            });
        }
    }
}

/// The answer for a run that is not tried again.
fn given_up(tenant: &Tenant, why: &GaveUp, usage: Usage) -> Finished {
    if why.is_an_end() {
        tenant.note_end();
    }
    let error = ScriptError { name: "WorkerLost".to_owned(), message: why.to_string(), stack: None };
    Finished::of_ours(Outcome::WorkerLost, Some(error), usage)
}
