//! `cargo xtask v8 build`: makes an archive from the `v8` crate's source, on Debian 12. Everything
//! that it downloads comes from package registries.
//!
//! The build is a straight list of steps. Each leaves a mark in the cache folder when it is done,
//! so an interrupted build resumes there; the compile step resumes inside itself (ninja). The
//! folder's name holds a hash of everything that decides the result, so a changed patch starts a
//! new folder.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::place::{ARCHIVE, BINDINGS, HOOKS, Kind, UNITY, build_dir, hex, patches};
use crate::{check, debian, output, root};

/// The Debian packages that compile V8; the last one has ICU's notices.
const PACKAGES: &[&str] = &[
    "clang-22",
    "lld-22",
    "libclang-22-dev",
    "libclang-rt-22-dev",
    "ninja-build",
    "python3",
    "patch",
    "gzip",
    "libicu-dev",
];
const NOTICES: &str = include_str!("../../../v8/notices.py");
const LLVM: &str = "/usr/lib/llvm-22";
/// The crate with the data file of ICU 78. The `v8` crate has this ICU, but leaves the file out.
const ICU_CRATE: (&str, &str) = ("deno_core_icudata", "0.78");
const BINDGEN: &str = "~0.73";
/// Groups of sources that collide when they are compiled as one unit.
const UNITY_SPLIT: &str =
    "v8_base_without_compiler:0,v8_base_without_compiler:37,v8_base_without_compiler:60,v8_initializers:7";
/// The same for a build with DCHECKs, which add a few sources and so make other groups.
const UNITY_SPLIT_DCHECKS: &str = "v8_base_without_compiler:0,v8_base_without_compiler:37,v8_base_without_compiler:42,\
    v8_base_without_compiler:54,v8_base_without_compiler:60,v8_initializers:7";

type Step = (&'static str, fn(&Recipe) -> Result<()>);

const STEPS: &[Step] = &[
    ("compiler packages", packages),
    ("gn", gn),
    ("source", source),
    ("ICU data", icu_data),
    ("clang folder", clang_folder),
    ("flags that only Chromium's clang knows", chromium_flags),
    ("patches", apply_patches),
    ("gn gen", gn_gen),
    ("grouping of sources", unity),
    ("compile", compile),
    ("bindgen", bindgen),
    ("bindings", bindings),
    ("notices", notices),
    ("archive and checksums", archive),
];

struct Recipe {
    kind: Kind,
    dir: PathBuf,
    jobs: usize,
    started: Instant,
}

impl Recipe {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    fn src(&self) -> PathBuf {
        self.path("src")
    }
    fn gn_out(&self) -> PathBuf {
        self.path("gn_out")
    }
}

/// Builds what is not built yet and returns the folder with the archive.
pub(crate) fn build(kind: Kind, jobs: usize) -> Result<PathBuf> {
    let recipe = Recipe { kind, dir: build_dir(kind)?, jobs, started: Instant::now() };
    fs::create_dir_all(recipe.path("done"))?;
    println!("building V8 in {} (about an hour on two cores; safe to interrupt)", recipe.dir.display());
    for (index, (name, step)) in STEPS.iter().enumerate() {
        let mark = recipe.path("done").join(name.replace(' ', "-"));
        let label = format!("step {} of {}: {name}", index + 1, STEPS.len());
        if mark.exists() {
            println!("{label}: done before");
            continue;
        }
        println!("{label} (elapsed {})", minutes(recipe.started.elapsed().as_secs()));
        step(&recipe).with_context(|| format!("{label} failed; run the same command again to resume there"))?;
        fs::write(&mark, "")?;
    }
    println!("done in {}", minutes(recipe.started.elapsed().as_secs()));
    if kind == Kind::Release {
        compare(&recipe.path("out"))?;
    }
    Ok(recipe.path("out"))
}

/// Reports how the build differs from what is in the tree.
fn compare(out: &Path) -> Result<()> {
    let Ok(committed) = fs::read_to_string(root().join("v8/SHA256SUMS")) else { return Ok(()) };
    let built = fs::read_to_string(out.join("SHA256SUMS"))?;
    let missing = |sums: &str, from: &str| -> Vec<String> {
        sums.lines()
            .filter(|line| !from.contains(line))
            .filter_map(|line| Some(line.split_once("  ")?.1.to_owned()))
            .collect()
    };
    let (new, old) = (missing(&built, &committed), missing(&committed, &built));
    match (new.is_empty(), old.is_empty()) {
        (true, true) => println!("the same, byte for byte, as what v8/SHA256SUMS names"),
        _ => println!("differs from v8/SHA256SUMS in: {}; only there: {}", new.join(" "), old.join(" ")),
    }
    Ok(())
}

fn packages(_: &Recipe) -> Result<()> {
    let missing = debian::missing(PACKAGES);
    if missing.is_empty() {
        return Ok(());
    }
    if fs::metadata("/proc/self")?.uid() != 0 {
        bail!("these packages are missing; install them first:\n  sudo apt-get install {}", missing.join(" "));
    }
    check(Command::new("apt-get").args(["-q", "update"]))?;
    check(Command::new("apt-get").args(["-qy", "install"]).args(&missing).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Debian 12's gn (2022) is too old for this source. The gn of Debian unstable is new enough, but
/// needs a newer libc. So gn and libc are unpacked into the cache folder. The apt that downloads
/// them has a state of its own there.
fn gn(recipe: &Recipe) -> Result<()> {
    let suite = debian::Suite::open("sid", &recipe.path("apt"))?;
    for deb in suite.download(&["generate-ninja", "libc6", "libgcc-s1", "libstdc++6"])? {
        check(Command::new("dpkg-deb").arg("-x").arg(deb).arg(recipe.path("sid")))?;
    }
    output(&mut gn_command(recipe, &["--version"])?).map(drop)
}

fn gn_command(recipe: &Recipe, args: &[&str]) -> Result<Command> {
    let usr = recipe.path("sid/usr");
    let libraries = usr.join("lib/x86_64-linux-gnu");
    let loader = libraries.join("ld-linux-x86-64.so.2");
    let gn = ["bin/gn", "lib/generate-ninja/gn"]
        .iter()
        .map(|name| usr.join(name))
        .find(|path| path.exists())
        .context("Debian's generate-ninja has no gn at the expected path")?;
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(libraries).arg(gn).args(args);
    Ok(command)
}

/// The folder into which Cargo unpacked `package`, found through a manifest that depends on it.
fn crate_folder(manifest: &Path, package: &str) -> Result<PathBuf> {
    let metadata = output(
        Command::new(env!("CARGO")).args(["metadata", "--format-version", "1", "--manifest-path"]).arg(manifest),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|found| found["name"] == package)
        .and_then(|found| Path::new(found["manifest_path"].as_str()?).parent().map(Path::to_path_buf))
        .with_context(|| format!("Cargo does not know the crate {package}"))
}

fn source(recipe: &Recipe) -> Result<()> {
    let crate_dir = crate_folder(&root().join("Cargo.toml"), "v8")?;
    let src = recipe.src();
    if src.exists() {
        fs::remove_dir_all(&src)?;
    }
    check(Command::new("cp").arg("-a").arg(crate_dir).arg(src))
}

fn icu_data(recipe: &Recipe) -> Result<()> {
    let (name, version) = ICU_CRATE;
    let fetch = recipe.path("icu");
    fs::create_dir_all(fetch.join("src"))?;
    fs::write(fetch.join("src/lib.rs"), "")?;
    let manifest = fetch.join("Cargo.toml");
    fs::write(
        &manifest,
        format!(
            "[package]\nname = \"fetch\"\nedition = \"2024\"\n[dependencies]\n{name} = \"{version}\"\n[workspace]\n"
        ),
    )?;
    let found = crate_folder(&manifest, name)?;
    let data = output(Command::new("find").arg(&found).args(["-name", "icudtl*.dat"]))?;
    let data = data.lines().next().with_context(|| format!("{} has no ICU data", found.display()))?;
    let target = recipe.src().join("third_party/icu/common");
    fs::create_dir_all(&target)?;
    fs::copy(data, target.join("icudtl.dat"))?;
    Ok(())
}

/// Lays out Debian's clang like Chromium's own, because GN expects that layout.
fn clang_folder(recipe: &Recipe) -> Result<()> {
    let clang = recipe.path("clang");
    if clang.exists() {
        fs::remove_dir_all(&clang)?;
    }
    let runtime = clang.join("lib/clang/22/lib/x86_64-unknown-linux-gnu");
    fs::create_dir_all(&runtime)?;
    symlink(format!("{LLVM}/bin"), clang.join("bin"))?;
    symlink(format!("{LLVM}/lib/clang/22/include"), clang.join("lib/clang/22/include"))?;
    symlink(
        format!("{LLVM}/lib/clang/22/lib/linux/libclang_rt.builtins-x86_64.a"),
        runtime.join("libclang_rt.builtins.a"),
    )?;
    Ok(())
}

fn chromium_flags(recipe: &Recipe) -> Result<()> {
    let src = recipe.src();
    drop_lines(
        &src.join("build/config/compiler/BUILD.gn"),
        &["-fdiagnostics-show-inlining-chain", "-fno-lifetime-dse"],
    )?;
    drop_lines(&src.join("build/config/sanitizers/sanitizers.gni"), &["-fsanitize-ignore-for-ubsan-feature="])?;
    // Without the flag that was dropped, V8 mistakes the array-bounds and return traps for a UBSan
    // build, and mksnapshot does not link.
    let macros = src.join("v8/src/base/macros.h");
    let text = fs::read_to_string(&macros)?;
    let wanted = "#define V8_USE_UNDEFINED_BEHAVIOR_SANITIZER";
    if !text.contains(wanted) {
        bail!("{} does not define V8_USE_UNDEFINED_BEHAVIOR_SANITIZER any more", macros.display());
    }
    let kept: String = text.lines().filter(|line| !line.starts_with(wanted)).map(|line| format!("{line}\n")).collect();
    fs::write(macros, kept)?;
    Ok(())
}

/// Removes the flags that contain one of `needles` from a file. Each needle must be found.
fn drop_lines(path: &Path, needles: &[&str]) -> Result<()> {
    let text = fs::read_to_string(path)?;
    for needle in needles {
        if !text.contains(needle) {
            bail!("{} does not mention {needle}", path.display());
        }
    }
    let edited: String = text
        .lines()
        .map(|line| {
            let drop = !line.trim_start().starts_with('#') && needles.iter().any(|needle| line.contains(needle));
            let replacement = if drop { replacement_for(line) } else { line.to_owned() };
            format!("{replacement}\n")
        })
        .collect();
    fs::write(path, edited)?;
    Ok(())
}

/// The line without the flag. The list around the flag may be on the same line, so only the string
/// is removed.
fn replacement_for(line: &str) -> String {
    let (Some(first), Some(last)) = (line.find('"'), line.rfind('"')) else { return String::new() };
    let (before, after) = (&line[..first], &line[last + 1..]);
    format!("{before}{}", after.strip_prefix(',').unwrap_or(after))
}

/// Applies the series. Each part leaves a mark of its own, because a part cannot be applied twice.
fn apply_patches(recipe: &Recipe) -> Result<()> {
    let folder = recipe.path("patches");
    fs::create_dir_all(&folder)?;
    for part in patches()? {
        let mark = recipe.path("done").join(&part.name);
        if mark.exists() {
            continue;
        }
        let file = folder.join(&part.name);
        fs::write(&file, part.text)?;
        check(Command::new("patch").args(["--forward", "-p1", "-d"]).arg(recipe.src()).arg("-i").arg(file))
            .with_context(|| format!("{} does not apply; its head says what it needs and what it is for", part.name))?;
        fs::write(mark, "")?;
    }
    Ok(())
}

fn gn_gen(recipe: &Recipe) -> Result<()> {
    let out = recipe.gn_out();
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    let clang = recipe.path("clang");
    fs::write(out.join("args.gn"), recipe.kind.args().replace("@CLANG_BASE@", &clang.to_string_lossy()))?;
    let root = format!("--root={}", recipe.src().display());
    check(
        gn_command(recipe, &["gen", &root, "--script-executable=python3", "--ide=json"])?
            .arg(&out)
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )
}

fn unity(recipe: &Recipe) -> Result<()> {
    let script = recipe.path("unity.py");
    fs::write(&script, UNITY)?;
    let split = match recipe.kind {
        Kind::Release => UNITY_SPLIT,
        Kind::Dchecks => UNITY_SPLIT_DCHECKS,
    };
    check(Command::new("python3").arg(script).arg(recipe.gn_out()).arg(split))
}

/// Runs ninja and turns its `finished/total` into one progress line.
fn compile(recipe: &Recipe) -> Result<()> {
    let started = Instant::now();
    let mut ninja = Command::new("ninja")
        .arg("-C")
        .arg(recipe.gn_out())
        .args(["-j", &recipe.jobs.to_string(), "rusty_v8"])
        .env("NINJA_STATUS", "@%f/%t ")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdout(Stdio::piped())
        .spawn()
        .context("running ninja")?;
    let lines = BufReader::new(ninja.stdout.take().context("ninja has no output")?).lines();
    let mut first = None;
    let mut log = fs::File::create(recipe.path("compile.log"))?;
    for line in lines {
        let line = line?;
        writeln!(log, "{line}")?;
        let Some((finished, total)) = progress(&line) else { continue };
        // A resumed build starts in the middle; the estimate counts from there.
        let from = *first.get_or_insert(finished);
        let secs = started.elapsed().as_secs();
        let left = (total - finished) * secs / (finished - from).max(1);
        print!("\r  {finished} of {total} files, elapsed {}, about {} left   ", minutes(secs), minutes(left));
        std::io::stdout().flush()?;
    }
    println!();
    if !ninja.wait()?.success() {
        bail!("the compiler failed; its output is in {}", recipe.path("compile.log").display());
    }
    Ok(())
}

fn progress(line: &str) -> Option<(u64, u64)> {
    let (finished, total) = line.strip_prefix('@')?.split_once(' ')?.0.split_once('/')?;
    Some((finished.parse().ok()?, total.parse().ok()?))
}

fn bindgen(recipe: &Recipe) -> Result<()> {
    check(
        Command::new(env!("CARGO"))
            .args(["install", "--quiet", "--locked", "bindgen-cli", "--version", BINDGEN, "--root"])
            .arg(recipe.path("tools")),
    )
}

/// Makes the bindings, with the options of the crate's own `build_binding()`.
fn bindings(recipe: &Recipe) -> Result<()> {
    let src = recipe.src();
    let defines = output(
        Command::new("python3").current_dir(&src).arg("tools/get_bindgen_args.py").arg("--gn-out").arg(recipe.gn_out()),
    )?;
    fs::create_dir_all(recipe.path("out"))?;
    let mut command = Command::new(recipe.path("tools/bin/bindgen"));
    command.current_dir(&src).env("LIBCLANG_PATH", format!("{LLVM}/lib")).arg("src/binding.hpp");
    let out = recipe.path("out").join(BINDINGS);
    command.arg("-o").arg(&out).args(["--formatter", "none", "--generate-cstr"]);
    for pattern in [".*UseCounterFeature", ".*ModuleImportPhase", ".*Intercepted"] {
        command.args(["--rustified-enum", pattern]);
    }
    for pattern in [".*GCType", ".*GCCallbackFlags"] {
        command.args(["--bitfield-enum", pattern]);
    }
    for item in
        ["v8__.*", "cppgc__.*", "RustObj", "memory_span_t", "const_memory_span_t", "ExternalConstOneByteStringResource"]
    {
        command.args(["--allowlist-item", item]);
    }
    for item in ["cppgc.*Visitor", "RustObj.*Trace"] {
        command.args(["--blocklist-item", item]);
    }
    command.args(["--", "-x", "c++", "-std=c++20", "-nostdinc++", "-Iv8/include", "-I."]);
    command.args(["-isystembuildtools/third_party/libc++", "-isystemthird_party/libc++/src/include"]);
    command.arg("-isystemthird_party/libc++abi/src/include").arg(format!("-isystem{LLVM}/lib/clang/22/include"));
    let unwanted =
        ["-fmodule", "-fno-implicit-module", "-Xclang", "DUSE_LIBCXX_MODULES", "-nostdinc++", "-isystem", "libc++"];
    command.args(
        defines.split('\0').filter(|define| !define.is_empty() && !unwanted.iter().any(|word| define.contains(word))),
    );
    check(&mut command)?;
    // This runs in the checkout, because in the folder of the crate's sources rustup would ask for
    // the crate's own toolchain.
    check(
        Command::new("rustfmt").current_dir(root()).args(["--edition", "2021", "--config-path", "/dev/null"]).arg(&out),
    )
}

/// Collects the notices of everything that the archive contains.
fn notices(recipe: &Recipe) -> Result<()> {
    let script = recipe.path("notices.py");
    fs::write(&script, NOTICES)?;
    let text = output(Command::new("python3").arg(script).arg(recipe.src()).arg(recipe.gn_out()))?;
    fs::create_dir_all(recipe.path("out"))?;
    fs::write(recipe.path("out/LICENSES"), text)?;
    Ok(())
}

fn archive(recipe: &Recipe) -> Result<()> {
    let out = recipe.path("out");
    fs::create_dir_all(out.join("patches"))?;
    fs::write(out.join("args.gn"), recipe.kind.args())?;
    fs::write(out.join("unity.py"), UNITY)?;
    fs::write(out.join("hooks.syms"), HOOKS)?;
    let mut names: Vec<_> =
        ["LICENSES", "args.gn", "hooks.syms", ARCHIVE, BINDINGS, "unity.py"].map(str::to_owned).into();
    for part in patches()? {
        fs::write(out.join("patches").join(&part.name), part.text)?;
        names.push(format!("patches/{}", part.name));
    }
    // From here on the archive asks the embedder first for the memory that it would take from libc.
    let library = recipe.path("librusty_v8.a");
    check(
        Command::new(format!("{LLVM}/bin/llvm-objcopy"))
            .arg("--redefine-syms")
            .arg(out.join("hooks.syms"))
            .arg(recipe.gn_out().join("obj/librusty_v8.a"))
            .arg(&library),
    )?;
    let packed = fs::File::create(out.join(ARCHIVE))?;
    check(Command::new("gzip").args(["-9", "-n", "-c"]).arg(library).stdout(packed))?;
    let mut sums = String::new();
    for name in names {
        sums += &format!("{}  {name}\n", hex(&Sha256::digest(fs::read(out.join(&name))?)));
    }
    fs::write(out.join("SHA256SUMS"), sums)?;
    Ok(())
}

fn minutes(seconds: u64) -> String {
    format!("{}m{:02}s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ninja_is_read_as_progress() {
        assert_eq!(progress("@12/3400 CXX obj/a.o"), Some((12, 3400)));
        assert_eq!(progress("ninja: Entering directory"), None);
    }

    #[test]
    fn a_dropped_flag_leaves_the_list_around_it_whole() {
        assert_eq!(replacement_for("      cflags += [ \"-fno-lifetime-dse\" ]"), "      cflags += [  ]");
        assert_eq!(replacement_for("    \"-fsanitize-ignore=x\","), "    ");
    }
}
