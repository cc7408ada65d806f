//! What users do. Each scenario has a namespace of its own and ends when its volumes are gone from the pool.

mod basic;
mod copies;
mod faults;
mod moves;
mod policies;

use super::Lab;
use super::process::wait_until;
use super::space::{LIMIT, Space};
use crate::failure::{Result, ensure};
use crate::lab::entries;
use crate::report::Report;

type Scenario = fn(&Space) -> Result<()>;

const SCENARIOS: [(&str, Scenario); 22] = [
    ("ext4", basic::ext4),
    ("xfs", basic::xfs),
    ("btrfs", basic::btrfs),
    ("block", basic::block),
    ("wait-for-first-consumer", basic::wait_for_first_consumer),
    ("rwx-directory", basic::shared_directory),
    ("rwop", basic::one_pod),
    ("fs-group-and-sub-path", basic::fs_group_and_sub_path),
    ("ephemeral", basic::ephemeral),
    ("reschedule", moves::reschedule),
    ("stateful-set", moves::stateful_set),
    ("snapshot-restore", copies::snapshot_and_restore),
    ("clone", copies::clone),
    ("expand", copies::expand),
    ("group-snapshot", copies::group_snapshot),
    ("retain-and-static", policies::retain_and_static),
    ("read-only", policies::read_only),
    ("node-plugin-killed", faults::node_plugin_killed),
    ("kubelet-killed", faults::kubelet_killed),
    ("containerd-killed", faults::containerd_killed),
    ("controller-killed", faults::controller_killed),
    ("node-killed", faults::node_killed),
];

pub(super) fn all(report: &Report, lab: &Lab) {
    for (name, scenario) in SCENARIOS {
        report.test(name, || {
            let space = Space::open(lab, name)?;
            scenario(&space)?;
            space.close()
        });
    }
    // What a failed scenario left is its own failure; here it would only be said twice.
    if !report.has_failed() {
        report.test("nothing-left", || nothing_left(lab));
    }
}

/// No attachment, no volume, no snapshot, no loop device.
fn nothing_left(lab: &Lab) -> Result<()> {
    wait_until("all attachments gone", LIMIT, || {
        let left = lab.cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} are left", left.len())) })
    })?;
    for part in ["volumes", "snapshots", "groups", "trash"] {
        let mut left = entries(&lab.place.pool().join(part));
        left.retain(|path| path.file_name().is_some_and(|name| name != ".ballast"));
        ensure(left.is_empty(), || format!("the pool still has {left:?}"))?;
    }
    let loops = lab.place.volume_loops()?;
    ensure(loops.is_empty(), || format!("loop devices are left: {loops:?}"))
}
