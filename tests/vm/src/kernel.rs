//! The kernels that the machine can boot.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{VmError, file_error};

/// A kernel image, and the initial file system that its package came with, if any.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its release, such as `6.1.0-56-amd64`.
    pub release: String,
    pub image: PathBuf,
    /// The initial file system, with the drivers for disks. Only a machine that boots from an image
    /// needs it.
    pub initrd: Option<PathBuf>,
}

const IMAGE: &str = "vmlinuz-";

impl Kernel {
    /// The newest kernel that is installed on this machine.
    ///
    /// # Errors
    /// No kernel is installed.
    pub fn installed() -> Result<Self, VmError> {
        Self::newest_in(Path::new("/boot"))
    }

    /// The newest kernel in a folder laid out as `/boot` is.
    ///
    /// # Errors
    /// The folder holds no kernel.
    pub fn newest_in(boot: &Path) -> Result<Self, VmError> {
        let missing = || VmError::Missing { what: format!("a kernel, and {} holds none", boot.display()) };
        let names = fs::read_dir(boot).map_err(file_error(boot))?.flatten();
        let release = names
            .filter_map(|entry| entry.file_name().to_string_lossy().strip_prefix(IMAGE).map(str::to_owned))
            .max_by(|one, other| compare_versions(one, other))
            .ok_or_else(missing)?;
        let initrd = Some(boot.join(format!("initrd.img-{release}"))).filter(|path| path.exists());
        Ok(Self { image: boot.join(format!("{IMAGE}{release}")), initrd, release })
    }
}

/// Compares release names by the numbers in them: `6.12` is newer than `6.1`.
fn compare_versions(one: &str, other: &str) -> Ordering {
    let numbers = |release: &str| -> Vec<u64> {
        release.split(|symbol: char| !symbol.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other)).then_with(|| one.cmp(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_found_by_its_numbers() {
        let boot = tempfile::tempdir().unwrap();
        for name in ["vmlinuz-6.1.0-56-amd64", "vmlinuz-6.12.1-amd64", "vmlinuz-6.9.7-amd64", "initrd.img-6.12.1-amd64"]
        {
            fs::write(boot.path().join(name), "").unwrap();
        }
        let kernel = Kernel::newest_in(boot.path()).unwrap();
        assert_eq!(kernel.release, "6.12.1-amd64");
        assert_eq!(kernel.initrd, Some(boot.path().join("initrd.img-6.12.1-amd64")));
    }

    #[test]
    fn an_error_without_a_kernel_says_what_to_install() {
        let boot = tempfile::tempdir().unwrap();
        let error = Kernel::newest_in(boot.path()).unwrap_err().to_string();
        assert!(error.contains("apt-get install") && error.contains("linux-image-amd64"), "{error}");
    }
}
