//! What users do. Each scenario has a namespace of its own and ends when its volumes are gone from the pool.

mod basic;
mod copies;
mod examples;
mod faults;
mod groups;
mod local;
mod many;
mod moves;
mod places;
mod plugin;
mod policies;
mod release;
mod writer;

use super::Lab;
use super::ground::{Ground, Needs};
use super::process::wait_until;
use super::space::{LIMIT, Space, wait_namespaces_gone};
use crate::failure::{Result, ensure};
use crate::lab::entries;
use crate::report::Report;

type Scenario = fn(&Space) -> Result<()>;

const SCENARIOS: [(&str, Needs, Scenario); 35] = [
    ("ext4", Needs::Cluster, basic::ext4),
    ("xfs", Needs::Cluster, basic::xfs),
    ("btrfs", Needs::Cluster, basic::btrfs),
    ("block", Needs::Cluster, basic::block),
    ("wait-for-first-consumer", Needs::Cluster, basic::wait_for_first_consumer),
    ("topology", Needs::SharedPool, places::topology),
    ("capacity", Needs::Cluster, places::capacity),
    ("local-pools", Needs::LabOfLocalPools, local::local_pools),
    ("local-pool-full", Needs::LabOfLocalPools, local::full_pool),
    ("local-node-lost", Needs::LabOfLocalPools, local::node_lost),
    ("rwx-directory", Needs::SharedPool, basic::shared_directory),
    ("rwop", Needs::Cluster, basic::one_pod),
    ("fs-group-and-sub-path", Needs::Cluster, basic::fs_group_and_sub_path),
    ("ephemeral", Needs::Cluster, basic::ephemeral),
    ("reschedule", Needs::SharedPool, moves::reschedule),
    ("stateful-set", Needs::Cluster, moves::stateful_set),
    ("snapshot-restore", Needs::Cluster, copies::snapshot_and_restore),
    ("clone", Needs::Cluster, copies::clone),
    ("expand", Needs::Cluster, copies::expand),
    ("group-snapshot", Needs::SharedPool, groups::unmounted),
    ("group-snapshot-mounted", Needs::SharedPool, groups::mounted),
    ("attributes-class", Needs::Cluster, copies::attributes_class),
    ("changed-blocks", Needs::Lab, copies::changed_blocks),
    ("retain-and-static", Needs::Cluster, policies::retain_and_static),
    ("examples", Needs::Cluster, examples::are_valid),
    ("read-only", Needs::Cluster, policies::read_only),
    ("hundred-pods", Needs::SharedPool, many::hundred_pods),
    ("node-plugin-upgraded", Needs::SharedPool, plugin::upgraded),
    ("node-plugin-absent", Needs::SharedPool, plugin::absent),
    ("node-plugin-killed", Needs::Lab, faults::node_plugin_killed),
    ("kubelet-killed", Needs::Lab, faults::kubelet_killed),
    ("containerd-killed", Needs::Lab, faults::containerd_killed),
    ("controller-manager-killed", Needs::Lab, faults::controller_manager_killed),
    ("controller-killed", Needs::Lab, faults::controller_killed),
    ("helm-upgrade-and-uninstall", Needs::Lab, release::upgraded_and_removed),
];

pub(super) fn all(report: &Report, ground: &Ground) {
    for (name, needs, scenario) in SCENARIOS {
        if let Some(lacking) = ground.lacks(needs) {
            if report.wants(name) {
                report.skipped(name, lacking);
            }
            continue;
        }
        report.test(name, || run(ground, name, scenario));
    }
    // What a failed scenario left is its own failure; here it would only be said twice.
    if !report.has_failed() {
        report.test("nothing-left", || {
            wait_namespaces_gone(ground.cluster)?;
            ground.lab.map_or(Ok(()), nothing_left)
        });
    }
}

fn run(ground: &Ground, name: &str, scenario: Scenario) -> Result<()> {
    let space = Space::open(ground, name)?;
    match scenario(&space) {
        Ok(()) => space.close(),
        Err(failure) => {
            space.abandon();
            Err(failure)
        }
    }
}

/// No attachment, no volume, no snapshot, no loop device.
fn nothing_left(lab: &Lab) -> Result<()> {
    wait_until("all attachments gone", LIMIT, || {
        let left = lab.cluster.list("/apis/storage.k8s.io/v1/volumeattachments")?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{} are left", left.len())) })
    })?;
    for pool in lab.place.pool_directories() {
        for part in ["volumes", "snapshots", "groups", "trash"] {
            let mut left = entries(&pool.join(part));
            left.retain(|path| path.file_name().is_some_and(|name| name != ".ballast"));
            ensure(left.is_empty(), || format!("the pool still has {left:?}"))?;
        }
    }
    let loops = lab.place.volume_loops()?;
    ensure(loops.is_empty(), || format!("loop devices are left: {loops:?}"))
}
