//! An empty, read-only root: no path leads to a file.

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::JailError;

/// A folder that every Linux has. The empty root is mounted on it, in this process's mount
/// namespace only.
const MOUNT_POINT: &str = "/proc";

pub(super) fn enter_empty() -> Result<(), JailError> {
    let nothing: Option<&str> = None;
    // The worker's mounts must not propagate to the host, nor the host's later mounts to the
    // worker.
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).map_err(JailError::MakePrivate)?;
    let locked = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // One page and one inode: not even the root has room for a file.
    mount(Some("enisle"), MOUNT_POINT, Some("tmpfs"), locked, Some("size=4096,nr_inodes=1,mode=0555"))
        .map_err(JailError::MountEmpty)?;
    nix::unistd::chdir(MOUNT_POINT).map_err(JailError::PivotRoot)?;
    // pivot_root(".", ".") stacks the old root on the new one, so it needs no folder for the old
    // root; see pivot_root(2), NOTES.
    nix::unistd::pivot_root(".", ".").map_err(JailError::PivotRoot)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(JailError::Detach)?;
    nix::unistd::chdir("/").map_err(JailError::PivotRoot)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | locked;
    mount(nothing, "/", nothing, read_only, nothing).map_err(JailError::ReadOnly)
}
