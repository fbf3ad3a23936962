//! The machine after its kernel has started: mounts, settings, and the user that runs the command.

use std::fmt::Write;

/// How control groups are mounted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cgroups {
    #[default]
    V2,
    V1,
    /// Version 1 with version 2 below it, as older versions of systemd mount them.
    Hybrid,
}

/// The settings of the first process.
#[derive(Debug, Clone)]
pub struct Guest {
    pub cgroups: Cgroups,
    /// Settings below `/proc/sys`, by their dotted names.
    pub sysctls: Vec<(&'static str, &'static str)>,
    /// Whether `/proc` shows a process only to its own user (`hidepid=2`).
    pub hidepid: bool,
    /// Whether `pivot_root` can exchange the root. It cannot while the root is the kernel's first
    /// file system.
    pub pivotable_root: bool,
    /// The user that runs the command: root, or an ordinary user with this id.
    pub uid: u32,
}

impl Default for Guest {
    fn default() -> Self {
        Self { cgroups: Cgroups::V2, sysctls: Vec::new(), hidepid: false, pivotable_root: true, uid: 0 }
    }
}

/// The first process, a script for busybox.
pub(crate) const INIT: &str = include_str!("init.sh");

impl Guest {
    /// The settings as the first process reads them.
    pub(crate) fn settings(&self) -> String {
        let cgroups = match self.cgroups {
            Cgroups::V1 => "v1",
            Cgroups::V2 => "v2",
            Cgroups::Hybrid => "hybrid",
        };
        let mut text = format!(
            "CGROUPS={cgroups}\nHIDEPID={}\nPIVOTABLE_ROOT={}\nCOMMAND_UID={}\nSYSCTLS='",
            if self.hidepid { 2 } else { 0 },
            self.pivotable_root,
            self.uid
        );
        for (name, value) in &self.sysctls {
            let _ = writeln!(text, "{name}={value}");
        }
        text + "'\n"
    }
}
