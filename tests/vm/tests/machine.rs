//! Tests of the emulated machine: its properties, how it ends, and that it boots both from files
//! and from an image.
#![forbid(unsafe_code)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use enisle_vm::{Files, Guest, Kernel, Machine, VmError};

/// The kernel that the machine boots; `None` if the packages of [`enisle_vm::PACKAGES`] are not
/// installed.
fn kernel() -> Option<Kernel> {
    let emulator = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    let kernel = Kernel::installed().ok().filter(|_| emulator && Files::new().is_ok());
    enisle_tests::has("emulator", kernel.is_some()).then_some(kernel).flatten()
}

fn machine(guest: Guest, command: &str) -> Option<Machine> {
    let kernel = kernel()?;
    let files = Files::new().expect("there is a busybox where there is a kernel");
    Some(Machine::with_files(&kernel, &files, guest, command).memory_mib(512))
}

#[test]
fn a_command_runs_on_a_machine_with_protection_keys_and_its_output_and_status_come_back() {
    let command = "id -u; grep -o -m1 ospke /proc/cpuinfo; echo 'to both' >&2; exit 3";
    let Some(machine) = machine(Guest::default(), command) else { return };
    let mut lines = Vec::new();
    let report = machine.run(|line| lines.push(line.to_owned())).expect("it powers off");
    assert_eq!(lines, ["0", "ospke", "to both"]);
    assert_eq!((report.output.as_str(), report.status), ("0\nospke\nto both\n", 3));
}

#[test]
fn the_kernel_and_the_guest_follow_their_settings() {
    let guest = Guest { sysctls: vec![("vm.overcommit_memory", "2")], hidepid: true, uid: 1234, ..Guest::default() };
    let command = "grep -c ospke /proc/cpuinfo; id -u; cat /proc/sys/vm/overcommit_memory; ls -d /proc/1; nproc; :";
    let Some(machine) = machine(guest, command) else { return };
    let report = machine.kernel_argument("nopku").processors(1).run(|_| {}).expect("it powers off");
    assert_eq!(report.output, "0\n1234\n2\nls: /proc/1: No such file or directory\n1\n");
}

#[test]
fn a_machine_that_does_not_end_is_killed_and_the_error_says_after_how_long() {
    let Some(machine) = machine(Guest::default(), "while :; do :; done") else { return };
    let error = machine.time_limit(Duration::from_secs(3)).run(|_| {}).expect_err("it never powers off");
    assert!(matches!(error, VmError::TimeLimit { .. }), "{error}");
    assert!(error.to_string().contains("after 3 s"), "{error}");
}

#[test]
fn a_machine_that_panics_is_distinguished_from_a_command_that_failed() {
    let Some(machine) = machine(Guest::default(), "echo c > /proc/sysrq-trigger") else { return };
    let error = machine.run(|_| {}).expect_err("the status is missing");
    assert!(matches!(error, VmError::NoStatus { .. }), "{error}");
    assert!(error.to_string().contains("sysrq"), "the error shows the kernel's last lines: {error}");
}

#[test]
fn an_image_boots_with_its_own_init_and_stays_unchanged() {
    let Some(kernel) = kernel() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let image = image(folder.path());
    let before = std::fs::read(&image).expect("the image is there");
    let machine = Machine::with_image(&kernel, &image).kernel_argument("init=/init").memory_mib(512);
    let report = machine.run(|_| {}).expect("it powers off");
    assert_eq!((report.output.trim(), report.status), ("ext4", 7));
    assert!(std::fs::read(&image).expect("the image is there") == before, "the image was written to");
}

/// An ext4 image with busybox and an init that reports its root's file system.
fn image(folder: &Path) -> std::path::PathBuf {
    let root = folder.join("root");
    for name in ["bin", "dev", "proc", "sys"] {
        std::fs::create_dir_all(root.join(name)).expect("a folder");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    std::fs::copy(busybox.expect("busybox is there"), root.join("bin/busybox")).expect("it is copied");
    symlink("busybox", root.join("bin/sh")).expect("a link");
    let init = "#!/bin/sh\nbusybox mount -t proc proc /proc\nbusybox touch /written\n\
                busybox awk '$2 == \"/\" { kind = $3 } END { print kind }' /proc/mounts > /dev/ttyS1\n\
                echo 7 > /dev/ttyS2\nbusybox poweroff -f\n";
    std::fs::write(root.join("init"), init).expect("it is written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.join("init"), executable).expect("it is ours");
    let image = folder.join("image");
    // Debian installs mke2fs outside an ordinary user's PATH.
    let made = Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&image).arg("32M").status();
    assert!(made.expect("mke2fs runs").success());
    image
}
