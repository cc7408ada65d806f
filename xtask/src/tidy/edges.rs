//! Which crate may use which, as the table in docs/architecture.md says.

use crate::workspace::Workspace;
use std::collections::{BTreeMap, BTreeSet};

type Table = BTreeMap<String, BTreeSet<String>>;

pub(super) fn edges(workspace: &Workspace) -> Result<Vec<String>, String> {
    let table = table(workspace)?;
    let mut broken = Vec::new();
    for package in &workspace.packages {
        let name = workspace.name_of(package.directory());
        let Some(allowed) = table.get(name) else { continue };
        // Tests may use more (the conformance suites, the memory backend).
        let shipped = package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
        for used in shipped.filter_map(|dependency| dependency.path.as_deref()) {
            let used = workspace.name_of(used);
            if !allowed.contains(used) {
                broken.push(format!("{name} uses {used}, which the table does not allow"));
            }
        }
    }
    Ok(broken)
}

pub(super) fn every_crate_is_named(workspace: &Workspace) -> Result<Vec<String>, String> {
    let table = table(workspace)?;
    let crates: BTreeSet<&str> = workspace.packages.iter().map(|p| workspace.name_of(p.directory())).collect();
    let absent = crates.iter().filter(|name| !table.contains_key(**name));
    let unknown = table.keys().filter(|name| !crates.contains(name.as_str()));
    Ok(absent
        .map(|name| format!("crate {name} has no row in the table"))
        .chain(unknown.map(|name| format!("the table has {name}, which is no crate")))
        .collect())
}

fn table(workspace: &Workspace) -> Result<Table, String> {
    let path = workspace.root.join("docs/architecture.md");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let table = parse(&text);
    if table.is_empty() { Err(format!("{} has no table of crates", path.display())) } else { Ok(table) }
}

/// Rows like ``| `crate` | what is in it | `may`, `use` |``; "all of the above" is every row so far.
fn parse(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, _, uses, ""] = cells.as_slice() else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else { continue };
        let uses = if uses.contains("all of the above") {
            table.keys().cloned().collect()
        } else {
            uses.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        table.insert(name.to_owned(), uses);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = parse(
            "| crate | in it | may use |\n|---|---|---|\n| `a` | x | - |\n| `b/c` | y `z` | `a` |\n| `d` | | all of the above |\n",
        );
        assert_eq!(table.keys().collect::<Vec<_>>(), ["a", "b/c", "d"]);
        assert!(table["a"].is_empty());
        assert_eq!(table["b/c"].iter().collect::<Vec<_>>(), ["a"]);
        assert_eq!(table["d"].len(), 2);
    }
}
