//! Default paths. Those that the command line needs too are in `enisle_hardening::paths`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use enisle_hardening::paths::{socket, state_dir};

/// The configuration file, if there is one.
pub(crate) fn config() -> Option<PathBuf> {
    Some(enisle_hardening::paths::config()).filter(|path| is_there(path))
}

/// Whether something exists at the path. A file that cannot be read counts, and so does a dangling
/// link, at the path or on the way to it: opening the path then reports what is wrong.
fn is_there(path: &Path) -> bool {
    let nothing = |path: &Path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    !nothing(path) || path.ancestors().any(|above| above.is_symlink() && !above.exists())
}

/// The worker program, installed beside the daemon.
pub(crate) fn worker_program() -> io::Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name("enisle-worker"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::Config;

    #[test]
    fn only_a_path_without_anything_counts_as_no_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("enisle/enisled.toml");
        assert!(!is_there(&path));
        symlink("nowhere", dir.path().join("enisle")).unwrap();
        assert!(is_there(&path) && Config::load(Some(&path)).is_err());
        fs::remove_file(dir.path().join("enisle")).unwrap();
        fs::write(dir.path().join("enisle"), "a file").unwrap();
        assert!(is_there(&path) && Config::load(Some(&path)).is_err());
        fs::remove_file(dir.path().join("enisle")).unwrap();
        fs::create_dir(dir.path().join("enisle")).unwrap();
        assert!(!is_there(&path));
        symlink("nowhere", &path).unwrap();
        assert!(is_there(&path) && Config::load(Some(&path)).is_err());
    }
}
