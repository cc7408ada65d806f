//! One call of each sort with what must stand before it, for the sweeps.

use crate::calls::{Access, MIB, Subject, create_group, delete_group, delete_snapshot};
use crate::client::{Call, Client};
use crate::failure::{Context, Result};
use crate::lab::{Lab, Options};
use std::path::Path;

/// The node of all single-node scenarios.
pub(crate) const NODE: &str = "n1";

/// No kernel's default.
const MODIFIED_KIB: u32 = 64;

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) before: Vec<Call>,
    pub(crate) call: Call,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) snapshots: Vec<String>,
    /// Each of all the subjects.
    pub(crate) groups: Vec<String>,
    /// Whether the pool's templates are removed first, so that making one is part of the call.
    pub(crate) without_templates: bool,
    pub(crate) profile: &'static str,
    /// What the volume's device has in the end, KiB: the node applies it after the call was answered.
    pub(crate) read_ahead_kib: Option<u32>,
}

/// All scenarios; `tag` makes their volumes' names unlike those of other runs.
pub(crate) fn all(lab: &Lab, tag: &str) -> Vec<Scenario> {
    let volume = |access| Subject::new(format!("a-{tag}"), access);
    let (ext4, xfs, block, directory) =
        (volume(Access::Ext4), volume(Access::Xfs), volume(Access::Block), volume(Access::Directory));
    let snapshot = format!("s-{tag}");
    let second = Subject::new(format!("c-{tag}"), Access::Xfs);
    let (pair, group) = (vec![second.clone(), ext4.clone()], format!("g-{tag}"));
    let restored = Subject::new(format!("b-{tag}"), Access::Ext4).restored_from(&snapshot);
    let clone = Subject::new(format!("b-{tag}"), Access::Ext4).cloned_from(&ext4);
    let up_to = |subject: &Subject, steps: usize| {
        let ladder = [subject.create(), subject.attach(NODE), subject.stage(lab, NODE), subject.publish(lab, NODE)];
        ladder.into_iter().take(steps).collect::<Vec<_>>()
    };
    let with = |mut calls: Vec<Call>, call: Call| {
        calls.push(call);
        calls
    };
    let one = |name, subject: &Subject, before: Vec<Call>, call: Call| Scenario {
        name,
        before,
        call,
        subjects: vec![subject.clone()],
        snapshots: Vec::new(),
        groups: Vec::new(),
        without_templates: false,
        profile: "kubernetes",
        read_ahead_kib: None,
    };
    let grown = xfs.size_bytes + 32 * MIB;
    vec![
        one("create-ext4", &ext4, vec![], ext4.create()),
        Scenario { without_templates: true, ..one("create-ext4-first", &ext4, vec![], ext4.create()) },
        one("create-block", &block, vec![], block.create()),
        one("create-directory", &directory, vec![], directory.create()),
        Scenario {
            subjects: vec![restored.clone(), ext4.clone()],
            snapshots: vec![snapshot.clone()],
            ..one("create-from-snapshot", &ext4, vec![ext4.create(), ext4.snapshot(&snapshot)], restored.create())
        },
        Scenario {
            subjects: vec![clone.clone(), ext4.clone()],
            ..one("create-from-volume", &ext4, vec![ext4.create()], clone.create())
        },
        one("delete-volume", &ext4, up_to(&ext4, 1), ext4.delete()),
        one("delete-directory", &directory, up_to(&directory, 1), directory.delete()),
        one("controller-publish", &ext4, up_to(&ext4, 1), ext4.attach(NODE)),
        one("controller-unpublish", &ext4, up_to(&ext4, 2), ext4.detach(NODE)),
        one("node-stage-ext4", &ext4, up_to(&ext4, 2), ext4.stage(lab, NODE)),
        one("node-stage-block", &block, up_to(&block, 2), block.stage(lab, NODE)),
        one("node-stage-directory", &directory, up_to(&directory, 2), directory.stage(lab, NODE)),
        one("node-publish-ext4", &ext4, up_to(&ext4, 3), ext4.publish(lab, NODE)),
        one("node-publish-block", &block, up_to(&block, 3), block.publish(lab, NODE)),
        one("node-publish-directory", &directory, up_to(&directory, 3), directory.publish(lab, NODE)),
        one("node-unpublish-ext4", &ext4, up_to(&ext4, 4), ext4.unpublish(lab, NODE)),
        one("node-unpublish-block", &block, up_to(&block, 4), block.unpublish(lab, NODE)),
        one("node-unstage-ext4", &ext4, up_to(&ext4, 3), ext4.unstage(lab, NODE)),
        one("node-unstage-block", &block, up_to(&block, 3), block.unstage(lab, NODE)),
        Scenario {
            snapshots: vec![snapshot.clone()],
            ..one("create-snapshot-mounted", &ext4, up_to(&ext4, 4), ext4.snapshot(&snapshot))
        },
        Scenario {
            snapshots: vec![snapshot.clone()],
            ..one("delete-snapshot", &ext4, with(up_to(&ext4, 1), ext4.snapshot(&snapshot)), delete_snapshot(&snapshot))
        },
        // Killed while several file systems are frozen, too: all of them are let go.
        Scenario {
            subjects: pair.clone(),
            groups: vec![group.clone()],
            ..one(
                "create-group-mounted",
                &ext4,
                [up_to(&ext4, 4), up_to(&second, 4)].concat(),
                create_group(&group, &pair),
            )
        },
        Scenario {
            subjects: pair.clone(),
            groups: vec![group.clone()],
            ..one(
                "delete-group",
                &ext4,
                vec![ext4.create(), second.create(), create_group(&group, &pair)],
                delete_group(&group, &pair),
            )
        },
        one("controller-expand", &ext4, up_to(&ext4, 1), ext4.expand(ext4.size_bytes + 32 * MIB)),
        Scenario {
            read_ahead_kib: Some(MODIFIED_KIB),
            ..one("controller-modify", &ext4, up_to(&ext4, 4), ext4.modify(&[("readAheadKiB", "64")]))
        },
        // Where staging is not offered, publishing does everything.
        Scenario {
            profile: "swarm",
            ..one("node-publish-unstaged", &ext4, up_to(&ext4, 2), ext4.publish_unstaged(lab, NODE))
        },
        Scenario {
            profile: "swarm",
            ..one(
                "node-unpublish-unstaged",
                &ext4,
                with(up_to(&ext4, 2), ext4.publish_unstaged(lab, NODE)),
                ext4.unpublish(lab, NODE),
            )
        },
        one("node-expand-xfs", &xfs, with(up_to(&xfs, 4), xfs.expand(grown)), xfs.node_expand(lab, NODE)),
    ]
}

impl Scenario {
    /// The node that all of it is for.
    pub(crate) fn options(&self) -> Options {
        Options { profile: self.profile, ..Options::node(NODE) }
    }

    /// Brings about what the call needs.
    pub(crate) fn prepare(&self, lab: &Lab, client: &Client) -> Result<()> {
        for subject in &self.subjects {
            make_directories(lab, subject, NODE)?;
        }
        for call in &self.before {
            client.call_until_done(call).context(|| format!("before {}: {call:?}", self.name))?;
        }
        if self.without_templates {
            for template in crate::lab::entries(&lab.pool().join("templates")) {
                std::fs::remove_file(&template).context(|| format!("cannot remove {}", template.display()))?;
            }
        }
        Ok(())
    }

    /// Waits for what happens after the answer.
    pub(crate) fn settle(&self, lab: &Lab) -> Result<()> {
        let Some(kib) = self.read_ahead_kib else { return Ok(()) };
        crate::modify::wait_for_read_ahead(lab, kib).map(drop)
    }

    /// Gives everything back, from whatever state: each of these calls is fine when there is nothing to do.
    pub(crate) fn tear_down(&self, lab: &Lab, client: &Client) -> Result<()> {
        for subject in &self.subjects {
            let mut calls = vec![subject.unpublish(lab, NODE), subject.unstage(lab, NODE), subject.detach(NODE)];
            if self.profile == "swarm" {
                calls.remove(1);
            }
            give_back_by(client, &calls)?;
        }
        for snapshot in &self.snapshots {
            client.call_until_done(&delete_snapshot(snapshot)).context(|| "deleting the snapshot".to_owned())?;
        }
        for group in &self.groups {
            let delete = delete_group(group, &self.subjects);
            client.call_until_done(&delete).context(|| "deleting the group".to_owned())?;
        }
        for subject in &self.subjects {
            client.call_until_done(&subject.delete()).context(|| "deleting the volume".to_owned())?;
            remove_directories(lab, subject, NODE);
        }
        Ok(())
    }
}

/// What an orchestrator makes: the staging directory, and the parent of the target.
pub(crate) fn make_directories(lab: &Lab, subject: &Subject, node: &str) -> Result<()> {
    std::fs::create_dir_all(subject.staging(lab, node))?;
    let target = subject.target(lab, node);
    if let Some(parent) = Path::new(&target).parent() {
        std::fs::create_dir_all(parent)?;
    }
    Ok(())
}

pub(crate) fn give_back(lab: &Lab, client: &Client, subject: &Subject, node: &str) -> Result<()> {
    give_back_by(client, &[subject.unpublish(lab, node), subject.unstage(lab, node), subject.detach(node)])
}

fn give_back_by(client: &Client, calls: &[Call]) -> Result<()> {
    for call in calls {
        client.call_until_done(call).context(|| format!("giving back: {call:?}"))?;
    }
    Ok(())
}

/// What the orchestrator made; whatever else is there is a leak and stays for the check.
pub(crate) fn remove_directories(lab: &Lab, subject: &Subject, node: &str) {
    let _ = std::fs::remove_dir(subject.staging(lab, node));
    if let Some(parent) = Path::new(&subject.target(lab, node)).parent() {
        let _ = std::fs::remove_dir(parent);
    }
}
