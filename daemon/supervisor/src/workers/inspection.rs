//! Inspects a worker from outside before it has a tenant: whether its jail and keys are as planned,
//! and how much memory it holds to begin with.
//!
//! Reading a process's mappings takes some milliseconds, so [`Inspection::run`] inspects on a
//! thread that may block. For that thread, an inspection owns everything that it needs.

use std::sync::Arc;

use enisle_hardening::Layer;
use enisle_hardening::islands::Zone;
use enisle_hardening::islands::tags::{self, Held, Tags};
use enisle_hardening::jail::Plan;
use enisle_hardening::verify::{self, Expected};
use nix::unistd::Pid;

use crate::workers::birth::{Blueprint, Newborn, StartError};

/// What must be known of a worker to inspect it.
pub(crate) struct Inspection {
    blueprint: Arc<Blueprint>,
    id: u64,
    pid: Pid,
    plan: Plan,
    zone: Zone,
    control_inode: u64,
    stderr_inode: u64,
    /// Which key each page of its islands should carry, as the worker reports.
    tags: Option<Tags>,
}

/// The result of an inspection.
pub(crate) struct Inspected {
    /// What is wrong with the worker, in words.
    pub(crate) findings: Vec<String>,
    /// What the worker holds; empty if there are findings, or if the worker has ended, which its
    /// owner reports.
    pub(crate) held: Held,
}

impl Inspection {
    pub(crate) fn of(blueprint: &Arc<Blueprint>, newborn: &Newborn, tags: Option<Tags>) -> Self {
        Self {
            blueprint: Arc::clone(blueprint),
            id: newborn.id,
            pid: newborn.started.pid,
            plan: newborn.plan,
            zone: newborn.zone.clone(),
            control_inode: newborn.control_inode,
            stderr_inode: newborn.stderr_inode,
            tags,
        }
    }

    pub(crate) async fn run(self) -> Result<Inspected, StartError> {
        let inspected = tokio::task::spawn_blocking(move || {
            let mut findings = self.jail();
            if self.plan.layers.has(Layer::Keys) {
                findings.extend(self.keys().into_iter().map(|what| format!("keys: {what}")));
            }
            let held = findings.is_empty().then(|| tags::held(self.pid, &self.zone).ok()).flatten();
            Inspected { findings, held: held.unwrap_or_default() }
        });
        inspected.await.map_err(|_| StartError::NotReady("its inspection was interrupted".to_owned()))
    }

    /// What is wrong with its jail.
    fn jail(&self) -> Vec<String> {
        let (uid, gid) = self.blueprint.ids(self.id);
        let expected = Expected {
            plan: &self.plan,
            program: &self.blueprint.program,
            uid,
            gid,
            control_inode: self.control_inode,
            stderr_inode: self.stderr_inode,
        };
        match verify::verify(self.pid, &expected) {
            Ok(findings) => findings.iter().map(ToString::to_string).collect(),
            Err(error) => vec![format!("it cannot be inspected: {error}")],
        }
    }

    /// What is wrong with its keys: every island must exist, tagged with a key of its own.
    fn keys(&self) -> Vec<String> {
        let Some(tags) = &self.tags else { return vec!["it reports none".to_owned()] };
        let (slots, mut distinct) = (tags.zone.islands().count(), tags.keys.clone());
        distinct.extend([0, tags.jit]);
        distinct.sort_unstable();
        distinct.dedup();
        if tags.keys.len() != slots || distinct.len() != slots + 2 {
            return vec![format!("its keys {:?} are not one for each of {slots} slots", tags.keys)];
        }
        match tags::inspect(self.pid, tags) {
            // At least every sandbox is mapped.
            Ok(seen) if seen.mappings < slots => vec![format!("only {} mappings are on its islands", seen.mappings)],
            Ok(seen) => seen.findings(),
            Err(error) => vec![format!("its mappings cannot be read: {error}")],
        }
    }
}
