//! A full disk: decisions stay in force, and are written as soon as there is room.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use enisle_tests::{Daemon, PATIENCE, SHARING, programs};
use serde_json::json;
use tempfile::TempDir;

use crate::ground::{Ground, folder, leashed, wait};
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S20 full", title: "a disk that is full for a moment readmits no expelled tenant", run: full },
    Case { id: "S20 small", title: "an audit log that fills its disk", run: small },
];

/// A disk for one state folder, in a mount namespace that ends with the process that holds it.
struct Disk {
    holder: Child,
    state: PathBuf,
}

impl Disk {
    fn mount(place: &TempDir, mib: u32) -> Result<Self, String> {
        let state = place.path().join("state");
        fs::DirBuilder::new().mode(0o700).create(&state).map_err(|error| error.to_string())?;
        let here = fs::metadata(&state).map_err(|error| error.to_string())?.dev();
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "sh", "-c"]);
        holder.arg(format!("mount -t tmpfs -o size={mib}m,mode=0700 none \"$0\" && echo && exec cat >/dev/null"));
        holder.arg(&state).stdin(Stdio::piped());
        let holder = holder.stdout(Stdio::null()).spawn().map_err(|error| error.to_string())?;
        let disk = Self { holder, state };
        let mounted = || fs::metadata(disk.path("")).is_ok_and(|found| found.dev() != here);
        if wait(PATIENCE, mounted) { Ok(disk) } else { Err("no tmpfs could be mounted".to_owned()) }
    }

    /// The path of a file of the state folder, seen from outside the namespace.
    fn path(&self, name: &str) -> PathBuf {
        let state = self.state.strip_prefix("/").unwrap_or(&self.state);
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(state).join(name)
    }

    /// The same command, executed in the namespace in which the disk is mounted.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.args(["--mount", "--target", &self.holder.id().to_string(), "--"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// Starts a daemon that keeps its state on this disk.
    fn start(&self, place: TempDir, config: &str) -> Ground {
        fs::write(place.path().join("enisled.toml"), format!("{SHARING}{config}")).expect("it is ours");
        let mut command = self.inside(&leashed(place.path(), &place.path().join("s"), 0o022));
        command.env_remove("ENISLE_SOCKET").env("ENISLE_LOG", "info").stdin(Stdio::null());
        let log = fs::File::options().append(true).open(place.path().join("log")).expect("the command made it");
        Ground::around(command.stderr(log).spawn().expect("the leash runs"), place)
    }

    /// Uses up all free space.
    fn fill(&self) {
        let mut filler = fs::File::create(self.path("filler")).expect("it is ours");
        while filler.write_all(&[b'x'; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path("filler")).expect("it is ours");
    }

    /// Verifies the chain of the audit log.
    fn verified(&self, daemon: &Daemon) -> Result<String, String> {
        let mut verify = Command::new(programs().join("enisle"));
        verify.args([OsStr::new("--socket"), daemon.socket().as_os_str()]).args(["audit", "verify"]);
        let verified = self.inside(&verify).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&[verified.stdout, verified.stderr].concat()).trim().to_owned();
        if verified.status.success() { Ok(said) } else { Err(said) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn full(_: Options) -> Result<String, String> {
    let place = folder();
    let disk = Disk::mount(&place, 4)?;
    let ground = disk.start(place, "");
    let order = |tenant: &str| {
        let order = json!({ "level": "expelled", "reason": "by hand" }).to_string();
        let path = format!("/v1/tenants/{tenant}/cordon");
        ground.root.ask("PUT", &path, order.as_bytes()).map_or(0, |answer| answer.status)
    };
    let run = |ground: &Ground, tenant: &str| {
        let run = json!({ "code": "() => 1" }).to_string();
        let path = format!("/v1/tenants/{tenant}/load");
        ground.root.ask("POST", &path, run.as_bytes()).map_or(0, |answer| answer.status)
    };
    let before = order("bad-before");
    disk.fill();
    let during = order("bad-full");
    let refused = || ground.daemon.log().contains("the standings could not be written");
    if !wait(PATIENCE, refused) {
        return Err(format!("the disk was never full: {before}, {during}"));
    }
    disk.free();
    // If the line of the audit log found no room either, the daemon tries again.
    let in_log =
        |tenant: &str| fs::read_to_string(disk.path("audit/audit.jsonl")).is_ok_and(|log| log.contains(tenant));
    if !wait(PATIENCE, || in_log("bad-full")) {
        return Err("the order is not in the audit log though there is room".to_owned());
    }
    let after = order("bad-after");
    let verified = disk.verified(&ground.daemon)?;
    ground.daemon.terminate();
    let Ground { mut daemon, .. } = ground;
    let code = daemon.exit_code();
    let ground = disk.start(daemon.kill_hard(), "");
    let runs = ["bad-before", "bad-full", "bad-after"].map(|tenant| run(&ground, tenant));
    let said = format!("orders {before}, {during}, {after}; ended with {code:?}; after a restart {runs:?}; {verified}");
    if (before, after, code, runs) == (200, 200, Some(0), [403; 3]) { Ok(said) } else { Err(said) }
}

fn small(_: Options) -> Result<String, String> {
    const POLICIES: usize = 700;
    let place = folder();
    // A log file of the ordinary size does not fit on this disk beside the database.
    let disk = Disk::mount(&place, 11)?;
    let ground = disk.start(place, "[audit]\nkeep_mb = 16\n");
    if !ground.daemon.log().contains("audit.keep_mb is more than half of the filesystem") {
        return Err("the daemon does not say that its disk is small".to_owned());
    }
    let secrets: Vec<_> = (0..100).map(|n| "\u{1}".repeat(75) + &format!("{n:0>53}")).collect();
    let policy = json!({ "secrets": secrets }).to_string();
    let set = |_: &usize| ground.root.answered("PUT", "/v1/tenants/a", policy.as_bytes()).is_ok();
    let set = (0..POLICIES).filter(set).count();
    let deleted = ground.daemon.log().matches("the oldest file of the audit log was deleted").count();
    let verified = disk.verified(&ground.daemon)?;
    let said = format!("{set} of {POLICIES} policies were set, and {deleted} files deleted; {verified}");
    if set == POLICIES && deleted >= 2 { Ok(said) } else { Err(said) }
}
