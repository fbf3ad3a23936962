//! Starts worker processes, a few at a time, and ends those that nobody waits for any more.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use enisle_cordon::Level;
use tokio::sync::oneshot;

use crate::cordons::warden::Warden;
use crate::events::EventKind;
use crate::homes::blame::{Roster, apply};
use crate::homes::entries::Part;
use crate::share::{Turn, Turns};
use crate::workers::birth::{Blueprint, StartError};
use crate::workers::exit::Exit;
use crate::workers::owner::start;
use crate::workers::process::Worker;

/// How many processes are started at one time, in all and for one uid.
const STARTS: usize = 16;
const STARTS_EACH: usize = 2;

/// Starts worker processes.
#[derive(Debug)]
pub(crate) struct Starter {
    blueprint: Arc<Blueprint>,
    snapshot: Arc<OwnedFd>,
    turns: Turns,
    warden: Arc<Warden>,
}

impl Starter {
    pub(crate) fn new(blueprint: Arc<Blueprint>, snapshot: OwnedFd, warden: Arc<Warden>) -> Self {
        Self { blueprint, snapshot: Arc::new(snapshot), turns: Turns::new(STARTS, STARTS_EACH), warden }
    }

    /// How many tenants a process of this level may ever hold.
    pub(super) fn slots(&self, level: Level) -> u32 {
        self.blueprint.slots(level)
    }

    /// Whether a process is being started for a tenant, or one that was started for a tenant that
    /// has gone is still being ended.
    pub(super) fn is_busy(&self) -> bool {
        self.turns.are_taken()
    }

    /// Starts a process in its uid's turn. A start that has begun continues when the client
    /// disconnects, and the uid's share is held until the start is over: abandoned starts are not
    /// free. A process on standby is started for no uid, and waits for no turn.
    pub(super) async fn start(
        &self,
        level: Level,
        uid: Option<u32>,
        roster: Arc<Roster>,
        held: Option<Arc<Part>>,
    ) -> Result<Arc<Worker>, StartError> {
        let turn = match uid {
            Some(uid) => Some(self.turns.turn(uid).await),
            None => None,
        };
        let Self { blueprint, snapshot, warden, .. } = self;
        let (blueprint, snapshot, warden) = (Arc::clone(blueprint), Arc::clone(snapshot), Arc::clone(warden));
        let (send, receive) = oneshot::channel();
        tokio::spawn(async move {
            let (judge, rules) = (Arc::clone(&warden), &warden.cordon.rules.memory);
            let on_exit = Box::new(move |worker: &Worker, exit: &Exit| apply(worker, exit, &roster, &judge));
            let started = start(&blueprint, level, uid, &snapshot, rules, &warden.events, on_exit).await;
            if let Ok(worker) = &started {
                warden.note_engine(&worker.v8);
            }
            let until_dead = Some((turn, held));
            let _ = send.send(started.map(|worker| Fresh { worker: Some(worker), warden, until_dead }));
        });
        let interrupted = || StartError::NotReady("its start was interrupted".to_owned());
        receive.await.map_err(|_| interrupted())??.worker.take().ok_or_else(interrupted)
    }
}

pub(super) fn retired(worker: &Worker) -> EventKind {
    EventKind::WorkerRetired { worker: worker.id, pid: worker.pid.as_raw(), uid: worker.uid() }
}

/// A process that has started. If it is not taken, it is killed; until it is dead, its uid has one
/// start and one process fewer.
struct Fresh {
    worker: Option<Arc<Worker>>,
    warden: Arc<Warden>,
    until_dead: Option<(Option<Turn>, Option<Arc<Part>>)>,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        let until_dead = self.until_dead.take();
        self.warden.events.emit(retired(&worker));
        worker.kill("no tenant waits for it any more");
        tokio::spawn(async move {
            worker.death().await;
            drop(until_dead);
        });
    }
}
