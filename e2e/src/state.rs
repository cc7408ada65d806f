//! The state of a lab as a list of lines, without what differs between two equal runs: ids, times, numbers of
//! generations, and which loop device it is.

use crate::calls::{group_id, member_id, snapshot_id, volume_id};
use crate::client::Client;
use crate::failure::Result;
use crate::lab::{Lab, entries};
use crate::scenario::Scenario;
use std::path::Path;

/// What is there now, sorted; what may be there is the scenario's, `tag` is what makes its names unique.
pub(crate) fn observe(lab: &Lab, client: &Client, scenario: &Scenario, tag: &str) -> Result<Vec<String>> {
    let Scenario { subjects, snapshots, groups, .. } = scenario;
    let mut lines = Vec::new();
    for (id, bytes, nodes) in client.volumes()? {
        lines.push(format!("volume {id} of {bytes} bytes, published on {nodes:?}"));
    }
    for (id, source, bytes, group) in client.snapshots()? {
        let member = if group.is_empty() { String::new() } else { format!(", in {group}") };
        lines.push(format!("snapshot {id} of {source}, {bytes} bytes{member}"));
    }
    for mount in lab.mounts()? {
        let path = mount.path.strip_prefix(lab.directory()).unwrap_or(&mount.path);
        let access = if mount.read_only { "read-only" } else { "read-write" };
        lines.push(format!("mount {} {} {access}", path.display(), mount.fs_type));
    }
    for device in lab.loops()? {
        let file = device.file.strip_prefix(lab.directory()).unwrap_or(&device.file);
        lines.push(format!("loop of {}", without_numbers(file)));
    }
    for part in ["pool/volumes", "pool/snapshots", "pool/groups", "pool/trash"] {
        tree(lab.directory(), &lab.path(part), &mut lines);
    }
    for part in ["staging", "published"] {
        tree_of_directories(lab.directory(), &lab.path(part), &mut lines);
    }
    let plain = |line: &String| {
        let mut line = line.clone();
        for subject in subjects {
            line = line.replace(&volume_id(&subject.name), &subject.name);
        }
        for snapshot in snapshots {
            line = line.replace(&snapshot_id(snapshot), snapshot);
        }
        for group in groups {
            line = line.replace(&group_id(group), group);
            for subject in subjects {
                let member = format!("member {} of {group}", subject.name);
                line = line.replace(&member_id(group, &subject.name), &member);
            }
        }
        line.replace(tag, "")
    };
    let mut lines: Vec<String> = lines.iter().map(plain).collect();
    lines.sort();
    // Generations of a record are counted, not compared.
    lines.dedup();
    Ok(lines)
}

/// What only one of the two has, for the report.
pub(crate) fn difference(expected: &[String], found: &[String]) -> String {
    let missing = expected.iter().filter(|line| !found.contains(line)).map(|line| format!("missing: {line}"));
    let more = found.iter().filter(|line| !expected.contains(line)).map(|line| format!("too many: {line}"));
    missing.chain(more).collect::<Vec<_>>().join("; ")
}

fn tree(root: &Path, directory: &Path, lines: &mut Vec<String>) {
    for path in entries(directory) {
        let own = path.strip_prefix(root).unwrap_or(&path);
        lines.push(format!("file {}", without_numbers(own)));
        if path.is_dir() && !path.is_symlink() {
            tree(root, &path, lines);
        }
    }
}

/// Not into mounted volumes.
fn tree_of_directories(root: &Path, directory: &Path, lines: &mut Vec<String>) {
    for node in entries(directory) {
        for path in entries(&node) {
            let own = path.strip_prefix(root).unwrap_or(&path);
            lines.push(format!("path {}", own.display()));
            if path.join("target").symlink_metadata().is_ok() {
                lines.push(format!("path {}/target", own.display()));
            }
        }
    }
}

/// `record.<hex>`, `image.<hex>` and the like without their numbers.
fn without_numbers(path: &Path) -> String {
    let parts = path.iter().map(|part| {
        let part = part.to_string_lossy();
        match part.split_once('.') {
            Some((name @ ("record" | "image" | "orphan"), _)) => format!("{name}.N"),
            _ => part.into_owned(),
        }
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let lines = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(difference(&lines("a,b"), &lines("b,c")), "missing: a; too many: c");
        assert_eq!(difference(&lines("a"), &lines("a")), "");
    }

    #[test]
    fn numbers_of_generations_do_not_count() {
        assert_eq!(
            without_numbers(Path::new("pool/volumes/pool.v12/record.0000000000000001")),
            "pool/volumes/pool.v12/record.N"
        );
    }
}
