//! The default paths by which the command line finds the daemon: FHS paths for root, XDG paths for
//! an ordinary user. Both programs use this definition.
//!
//! No default is in a folder where other users may create files, such as `/tmp`: a user who created
//! the socket there first could pose as the daemon.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// The user whose paths are wanted, and the environment that decides them.
struct Asker<'a> {
    root: bool,
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Asker<'_> {
    /// The folder that an environment variable names. A relative path is ignored, as the XDG Base
    /// Directory Specification demands.
    fn named(&self, variable: &str) -> Option<PathBuf> {
        (self.variable)(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    fn xdg(&self, variable: &str, below_home: &str) -> PathBuf {
        let home = || self.named("HOME").unwrap_or_else(|| PathBuf::from("/")).join(below_home);
        self.named(variable).unwrap_or_else(home)
    }

    fn state_dir(&self) -> PathBuf {
        if self.root { "/var/lib/enisle".into() } else { self.xdg("XDG_STATE_HOME", ".local/state").join("enisle") }
    }

    fn socket(&self) -> PathBuf {
        let folder = match self.root {
            true => PathBuf::from("/run/enisle"),
            // Without a login session (cron, su, containers) this folder does not exist.
            false => match self.named("XDG_RUNTIME_DIR") {
                Some(session) => session.join("enisle"),
                None => self.state_dir().join("run"),
            },
        };
        folder.join("enisled.sock")
    }

    fn config(&self) -> PathBuf {
        let folder = if self.root { "/etc".into() } else { self.xdg("XDG_CONFIG_HOME", ".config") };
        folder.join("enisle/enisled.toml")
    }
}

const ENVIRONMENT: &dyn Fn(&str) -> Option<OsString> = &|name| env::var_os(name);

fn asker() -> Asker<'static> {
    Asker { root: nix::unistd::geteuid().is_root(), variable: ENVIRONMENT }
}

/// The socket of the API.
#[must_use]
pub fn socket() -> PathBuf {
    asker().socket()
}

/// The folder of the daemon's state.
#[must_use]
pub fn state_dir() -> PathBuf {
    asker().state_dir()
}

/// The configuration file, whether it exists or not.
#[must_use]
pub fn config() -> PathBuf {
    asker().config()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket_of(root: bool, variables: &[(&str, &str)]) -> PathBuf {
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Asker { root, variable: &variable }.socket()
    }

    #[test]
    fn no_default_is_in_a_folder_that_others_may_write_to() {
        let home = ("HOME", "/home/a");
        assert_eq!(socket_of(true, &[home]).to_str(), Some("/run/enisle/enisled.sock"));
        assert_eq!(
            socket_of(false, &[home, ("XDG_RUNTIME_DIR", "/run/user/7")]).to_str(),
            Some("/run/user/7/enisle/enisled.sock")
        );
        assert_eq!(socket_of(false, &[home]).to_str(), Some("/home/a/.local/state/enisle/run/enisled.sock"));
        assert_eq!(
            socket_of(false, &[home, ("XDG_STATE_HOME", "/s"), ("XDG_RUNTIME_DIR", "")]).to_str(),
            Some("/s/enisle/run/enisled.sock")
        );
        assert_eq!(socket_of(false, &[home, ("XDG_STATE_HOME", "tmp")]), socket_of(false, &[home]));
    }
}
