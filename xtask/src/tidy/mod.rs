//! Rules of this tree that neither the compiler nor clippy checks.

mod edges;
mod sources;

use crate::counts::Counts;
use crate::workspace::Workspace;

/// A rule gives one line for each thing that breaks it.
type Rule = fn(&Workspace) -> Result<Vec<String>, String>;

const RULES: [(&str, Rule); 11] = [
    ("crate edges follow docs/architecture.md", edges::edges),
    ("docs/architecture.md names every crate", edges::every_crate_is_named),
    ("no source file is longer than 500 lines", sources::lengths),
    ("only host may use unsafe", sources::unsafe_code),
    ("programs are started where it is allowed", sources::programs),
    ("mkfs is never forced", sources::forced_mkfs),
    ("unchecked system calls are for the bench alone", sources::bare_calls),
    ("nothing is left unfinished", sources::unfinished),
    ("no file names one machine or one registry's mirror", sources::places),
    ("the changelog speaks of this version", sources::changelog),
    ("scripts can be executed", sources::scripts),
];

pub(crate) fn check(workspace: &Workspace, mut on_line: impl FnMut(&str)) -> Counts {
    let mut counts = Counts::default();
    for (name, rule) in RULES {
        match rule(workspace) {
            Ok(broken) if broken.is_empty() => {
                on_line(&format!("ok {name}"));
                counts.passed += 1;
            }
            Ok(broken) => {
                broken.iter().for_each(|line| on_line(&format!("  {line}")));
                on_line(&format!("FAILED {name}"));
                let first = broken.first().map_or("", String::as_str);
                counts.failures.push(format!("{name}: {first} ({} in all)", broken.len()));
            }
            Err(error) => {
                on_line(&format!("FAILED {name}: {error}"));
                counts.failures.push(format!("{name}: {error}"));
            }
        }
    }
    counts
}

/// `cargo xtask tidy`: whether all rules hold.
pub(crate) fn print() -> Result<bool, String> {
    let counts = check(&Workspace::load()?, |line| println!("{line}"));
    println!("{}", counts.summary());
    Ok(counts.failures.is_empty())
}
