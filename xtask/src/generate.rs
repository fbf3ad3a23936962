//! `cargo xtask generate`: files that come from the code. Tests fail if one of them is out of date.

use std::fs;

use anyhow::{Context, Result};
use enisle_wire::limits::Limit;

use crate::root;

pub(crate) fn run() -> Result<()> {
    write("daemon/api/openapi.json", &enisle_api::openapi::text())?;
    let path = root().join("SPECIFICATION.md");
    let specification = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    write("SPECIFICATION.md", &with_limits(&specification)?)
}

fn write(name: &str, text: &str) -> Result<()> {
    let path = root().join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("{name} is up to date");
    Ok(())
}

/// The head of the table of limits.
const HEAD: &str = "| limit | default | range | sealed, at most | over it |\n|---|---|---|---|---|\n";

/// The document with the rows of its table of limits replaced by those of the code.
fn with_limits(document: &str) -> Result<String> {
    let (before, table) = document.split_once(HEAD).context("SPECIFICATION.md has no table of limits")?;
    let rows = table.lines().take_while(|line| line.starts_with('|')).map(|line| line.len() + 1).sum();
    let after = table.get(rows..).unwrap_or_default();
    let rows: String = Limit::ALL.iter().map(|limit| limit.row() + "\n").collect();
    Ok(format!("{before}{HEAD}{rows}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rows_of_the_table_are_replaced() {
        let document = format!("before\n\n{HEAD}| old | 1 |\n| rows | 2 |\n\nafter\n");
        let written = with_limits(&document).unwrap();
        assert!(written.starts_with(&format!("before\n\n{HEAD}| `cpuMs` | 1,000 |")), "{written}");
        assert!(written.ends_with(" |\n\nafter\n") && !written.contains("old"), "{written}");
        assert_eq!(with_limits(&written).unwrap(), written);
    }
}
