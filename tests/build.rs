//! Lists the cases that the escape fuzzer wrote (`escape/found`), for `tests/escape`.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("escape/found");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("the folder of cases")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| name.ends_with(".js"))
        .collect();
    names.sort();
    let mut list = "&[\n".to_owned();
    for name in names {
        let _ = writeln!(list, "({name:?}, include_str!({:?})),", folder.join(&name));
    }
    list.push_str("]\n");
    let out = env::var_os("OUT_DIR").expect("Cargo sets it");
    fs::write(Path::new(&out).join("found.rs"), list).expect("the list is written");
}
