//! Downloads packages of a Debian suite that is not the machine's own, from the machine's mirror.
//! The state of the machine's apt does not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{check, output};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// `apt` with a folder of its own for lists and packages.
#[derive(Debug)]
pub(crate) struct Suite {
    folder: PathBuf,
    options: Vec<String>,
}

impl Suite {
    /// Reads the package list of `suite` into `folder`.
    pub(crate) fn open(suite: &str, folder: &Path) -> Result<Self> {
        for name in ["lists/partial", "archives/partial", "debs"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let list = folder.join("sources.list");
        fs::write(&list, format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.display()),
            // Hides the installed packages, which apt would otherwise treat as candidates.
            "Dir::State::status=/dev/null".to_owned(),
            // A list that cannot be fetched is an error, not a warning.
            "APT::Update::Error-Mode=any".to_owned(),
            // apt's own user may not be able to enter the caller's folder.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let opened = Self { folder: folder.to_owned(), options: options.into() };
        check(opened.apt("apt-get").args(["-q", "update"]).stdout(std::process::Stdio::null())).with_context(|| {
            format!("the package list of Debian's {suite} could not be fetched; is there a network?")
        })?;
        Ok(opened)
    }

    /// The names of a package's dependencies.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let listed = output(self.apt("apt-cache").args(["depends", package]))?;
        Ok(listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned)).collect())
    }

    /// Downloads packages, and returns the files of all packages that were ever downloaded into the
    /// folder.
    pub(crate) fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let debs = self.folder.join("debs");
        check(self.apt("apt-get").current_dir(&debs).args(["-q", "download"]).args(packages))?;
        let files = fs::read_dir(debs)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        Ok(files)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }
}

/// The Debian mirror that this machine uses.
fn mirror() -> Result<String> {
    let format = "$(REPO_URI) $(ORIGIN) $(CODENAME)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let is_release =
        |line: &&str| line.contains(" Debian ") && !line.ends_with("-security") && !line.ends_with("-updates");
    let line = targets
        .lines()
        .find(is_release)
        .context("apt has no Debian mirror; is this Debian 12, and was apt-get update run?")?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

/// The packages that are not installed here.
pub(crate) fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let is_installed = |package: &&str| {
        let mut query = Command::new("dpkg-query");
        query.args(["-W", "-f", "${db:Status-Status}", package]).stderr(std::process::Stdio::null());
        query.output().is_ok_and(|out| out.stdout == b"installed")
    };
    packages.iter().filter(|package| !is_installed(package)).copied().collect()
}
