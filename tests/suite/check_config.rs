//! `enisled --check-config` refuses what a start would refuse, and changes nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use enisle_tests::{Daemon, SHARING, programs};
use tempfile::TempDir;

use crate::files::{STRANGER, check, folder, give, refusal, root, set_mode, text};

#[test]
fn checking_the_configuration_finds_what_a_start_would_refuse_and_changes_nothing() {
    let folder = folder();
    let written = |config: &str| {
        fs::write(folder.path().join("enisled.toml"), config).expect("a configuration");
        let checked = check(&folder);
        (checked.status.code(), text(&checked.stderr))
    };
    assert_eq!(written(SHARING), (Some(0), String::new()));
    for (config, word) in [
        ("required = [\"moat\"]", "moat"),
        ("[workers]\nprogram = \"/no/such/program\"", "/no/such/program"),
        ("[workers]\nprogram = \"/etc/passwd\"", "/etc/passwd"),
        (
            "[api]\nconnections = 9000000000000000000",
            "api.connections is 9000000000000000000; it must be between 1 and",
        ),
        ("[api]\nbody_mb = 9000000000000000000", "api.body_mb"),
        ("[cordon.rules]\nsolo = nan", "cordon.rules.solo"),
        ("[workers]\nmax_memory_mb = 64\n[defaults.limits]\nmemory_mb = 65", "memoryMb"),
        ("[cordon]\nv8_at_least = \"fifteen\"", "v8_at_least"),
        ("[[peers]]\nuid = 5\ntenants = [\"ac*me\"]", "ac*me"),
    ] {
        let (code, said) = written(config);
        assert!(code == Some(1) && said.contains(word), "{config}: {code:?} {said}");
        assert!(refusal(&folder).contains(word), "a start refuses it too: {config}");
    }
    assert!(!folder.path().join("state").exists() && !folder.path().join("run").exists());
    let daemon = Daemon::start_in(folder, SHARING);
    let mut beside = Daemon::command(daemon.folder.path(), &daemon.socket());
    assert!(
        beside.arg("--check-config").status().expect("enisled runs").success(),
        "a check succeeds while a daemon runs"
    );
}

#[test]
fn checking_the_configuration_finds_a_program_that_is_not_a_worker() {
    let folder = folder();
    fs::write(folder.path().join("enisled.toml"), "[workers]\nprogram = \"/bin/true\"").expect("a configuration");
    let said = text(&check(&folder).stderr);
    assert!(said.contains("the startup snapshot could not be made: the worker"), "{said}");
    assert!(!folder.path().join("run").exists());
    assert!(refusal(&folder).contains("the startup snapshot could not be made: the worker"));
}

/// Starts a daemon, or checks its configuration, with this socket and this state folder.
fn elsewhere(folder: &TempDir, socket: &Path, state: &Path, check: bool) -> (Option<i32>, String) {
    // `timeout` ends the daemon if it starts after all.
    let mut command = Command::new("timeout");
    command.arg("30").arg(programs().join("enisled")).arg("--config").arg(folder.path().join("enisled.toml"));
    command.arg("--socket").arg(socket).arg("--state-dir").arg(state).args(check.then_some("--check-config"));
    let ended = command.env_remove("ENISLE_SOCKET").stdin(Stdio::null()).output().expect("enisled runs");
    (ended.status.code(), text(&ended.stderr))
}

#[test]
fn a_check_and_a_start_refuse_the_same_places() {
    let folder = folder();
    let (own, file) = (folder.path().to_owned(), folder.path().join("file"));
    fs::write(&file, "").expect("a file");
    fs::create_dir(own.join("other")).expect("a folder");
    symlink("other", own.join("way")).expect("a link");
    for (socket, state, word) in [
        (own.join("run/s"), file.join("state"), "Not a directory"),
        (own.join("run/s"), PathBuf::from("/proc/enisle"), "/proc"),
        (own.join("run/s"), PathBuf::from("/sys/enisle/state"), "/sys"),
        (PathBuf::from("/proc/enisle/s"), own.join("state"), "/proc"),
        (own.join("state/lock"), own.join("state"), "would collide"),
        (own.join("state/standings.redb"), own.join("state"), "would collide"),
        (own.join("state/audit"), own.join("state"), "would collide"),
        (own.join("state/tenants/a.json"), own.join("state"), "would collide"),
        (own.join("way/state/audit"), own.join("other/state"), "would collide"),
    ] {
        for check in [true, false] {
            let (code, said) = elsewhere(&folder, &socket, &state, check);
            let place = (socket.display(), state.display());
            assert!(code == Some(1) && said.contains(word), "{place:?}, check {check}: {code:?} {said}");
        }
        assert!(!own.join("state").exists() && !own.join("other/state").exists(), "nothing was created");
    }
    let (code, said) = elsewhere(&folder, &own.join("state/s"), &own.join("state"), true);
    assert_eq!((code, said.as_str()), (Some(0), ""), "a socket beside the daemon's own files is accepted");
}

/// The test puts a link, a pipe, another user's file or a folder where the daemon needs a file or a
/// socket of its own.
#[test]
fn checking_the_configuration_finds_what_blocks_a_file_or_a_socket() {
    let link = |path: &Path| symlink("/dev/null", path).expect("a link");
    let pipe = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let theirs = |path: &Path| {
        fs::write(path, "").expect("a file");
        give(path, STRANGER);
    };
    let directory = |path: &Path| fs::create_dir(path).expect("a folder");
    type Plant<'a> = &'a dyn Fn(&Path);
    let ways: [(Plant, &str); 4] = [
        (&link, "it is a link"),
        (&pipe, "it is not a file"),
        (&theirs, "it belongs to uid"),
        (&directory, "it is not a file"),
    ];
    let ways = &ways[..if nix::unistd::geteuid().is_root() { 4 } else { 2 }];
    let old = ["state/audit/audit-000000000001.jsonl", "state/audit/audit.jsonl.broken-1-0"];
    for place in ["state/lock", "state/standings.redb", "state/audit/audit.jsonl", "run/s.lock"].into_iter().chain(old)
    {
        for (plant, word) in ways {
            let folder = folder();
            let path = folder.path().join(place);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            plant(&path);
            let checked = check(&folder);
            let said = text(&checked.stderr);
            assert!(checked.status.code() == Some(1) && said.contains(place) && said.contains(word), "{place}: {said}");
            let said = refusal(&folder);
            assert!(said.contains(word), "a start refuses it too, {place}: {said}");
        }
    }
    let folder = folder();
    fs::create_dir_all(folder.path().join("run/s")).expect("a folder");
    assert!(text(&check(&folder).stderr).contains("it is not a socket"));
    assert!(refusal(&folder).contains("it is not a socket"));
}

#[test]
fn a_configuration_that_others_could_have_written_or_that_is_not_a_short_file_is_refused() {
    let path = |folder: &TempDir| folder.path().join("enisled.toml");
    let moved = |folder: &TempDir, to: &str| {
        let to = folder.path().join(to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::rename(path(folder), &to).expect("it is ours");
        symlink(&to, path(folder)).expect("a link");
    };
    type Change<'a> = &'a dyn Fn(&TempDir);
    let changes: [(Change, &str); 8] = [
        (&|folder| set_mode(&path(folder), 0o666), "others may write to it (mode 666)"),
        (&|folder| set_mode(&path(folder), 0o620), "others may write to it (mode 620)"),
        (&|folder| set_mode(folder.path(), 0o777), "on the way to it (mode 777)"),
        (
            &|folder| {
                moved(folder, "there/c");
                set_mode(&folder.path().join("there"), 0o777);
            },
            "on the way to it (mode 777)",
        ),
        (
            &|folder| {
                fs::remove_file(path(folder)).expect("it is ours");
                nix::unistd::mkfifo(&path(folder), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
            },
            "it is not a file",
        ),
        (&|folder| fs::write(path(folder), "#".repeat((1 << 20) + 1)).expect("it is ours"), "more than 1048576 bytes"),
        (&|folder| give(&path(folder), STRANGER), "it belongs to uid 4000011"),
        (
            &|folder| {
                moved(folder, "c");
                nix::unistd::fchownat(
                    nix::fcntl::AT_FDCWD,
                    &path(folder),
                    Some(nix::unistd::Uid::from_raw(STRANGER)),
                    None,
                    nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
                )
                .expect("root may");
            },
            "it belongs to uid 4000011",
        ),
    ];
    for (change, word) in &changes[..if root() { 8 } else { 6 }] {
        let folder = folder();
        change(&folder);
        let checked = check(&folder);
        let said = text(&checked.stderr);
        assert!(checked.status.code() == Some(1) && said.contains("enisled.toml cannot be read"), "{word}: {said}");
        assert!(said.contains(word), "{word}: {said}");
        assert!(refusal(&folder).contains(word), "a start refuses it too: {word}");
    }
    // A file that only the daemon's own user can have written is accepted, also through a link.
    let folder = folder();
    moved(&folder, "there/c");
    set_mode(&folder.path().join("there/c"), 0o644);
    set_mode(folder.path(), 0o1777);
    let checked = check(&folder);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}
