//! Snapshots of several volumes at one instant.

use super::copies::{GROUP, copy, snapshot, snapshots, wait_ready_to_use};
use crate::failure::{Failure, Result, ensure};
use crate::kubernetes::space::{LIMIT, Space, Volume, claim, name_of, on_node, pod};
use serde_json::{Value, json};
use std::time::Instant;

/// Of groups of snapshots, with its version.
const GROUPS: &str = "groupsnapshot.storage.k8s.io/v1";
/// Names of claims, and their classes: file systems of two kinds.
const MEMBERS: [(&str, &str); 2] = [("one", "hawser"), ("two", "hawser-xfs")];
/// Appends each number to a file of the first volume, durably, and only then to one of the second.
const WRITE_IN_TURN: &str = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n >> /one/log-one && \
    sync /one/log-one && echo $n >> /two/log-two && sync /two/log-two; done";
/// Lines of the log before something is taken of it.
const LEAST: u64 = 50;

/// Of two volumes that no pod uses.
pub(super) fn unmounted(space: &Space) -> Result<()> {
    create_claims(space)?;
    space.create_pod(&pod("app", &[Volume::at("one", "/one"), Volume::at("two", "/two")]))?;
    space.wait_running("app")?;
    space.write("app", "/one/file", "early")?;
    space.write("app", "/two/file", "early")?;
    space.delete_pod("app")?;
    if let Some(lab) = space.ground.lab {
        space.look("both disconnected", || {
            let loops = lab.place.volume_loops()?;
            Ok(if loops.is_empty() { Ok(()) } else { Err(format!("{loops:?}")) })
        })?;
    }
    let path = take(space, "both")?;
    let members = members(space)?;
    // Both said the same at that instant, so either will do.
    let (_, member) = members.iter().find(|(of, _)| of == "one").ok_or_else(|| format!("the group is {members:?}"))?;
    copy(space, json!({"apiGroup": GROUP, "kind": "VolumeSnapshot", "name": member}), "1Gi")?;
    space.ensure_content("of-copy", "/data/file", "early")?;
    space.cluster.delete(&path)?;
    space.cluster.wait_gone(&path, LIMIT)
}

/// Of two that a pod writes to: on one node they are stopped together, so no write is there without the one before it. On two
/// nodes nobody can stop both, and it is refused.
pub(super) fn mounted(space: &Space) -> Result<()> {
    create_claims(space)?;
    let mut app = on_node(pod("app", &[Volume::at("one", "/one"), Volume::at("two", "/two")]), space.node(0));
    app["spec"]["containers"][0]["command"] = json!(["sh", "-c", WRITE_IN_TURN]);
    space.create_pod(&app)?;
    space.wait_running("app")?;
    wait_written(space, 0)?;
    let path = take(space, "both")?;
    let members = members(space)?;
    ensure(members.len() == MEMBERS.len(), || format!("the group is {members:?}"))?;
    let (one, two) = restored(space, "group", &members)?;
    println!("{}: the group has the writes up to {one} and {two}", space.name);
    ensure(is_one_instant(one, two), || format!("the group is not of one instant: {one} and {two}"))?;
    ensure(one >= LEAST, || format!("the group has {one} of at least {LEAST} writes"))?;
    // The control: two snapshots one after the other, which the same look has to tell from a group.
    let first = snapshot(space, "alone-one", "one")?;
    let (of_one, _) = last_written(space, "app")?;
    wait_written(space, of_one)?;
    let second = snapshot(space, "alone-two", "two")?;
    let alone = [("one".to_owned(), "alone-one".to_owned()), ("two".to_owned(), "alone-two".to_owned())];
    let (one, two) = restored(space, "alone", &alone)?;
    println!("{}: two snapshots one after the other have the writes up to {one} and {two}", space.name);
    ensure(!is_one_instant(one, two), || format!("two snapshots pass for one instant: {one} and {two}"))?;
    for path in [path, first, second] {
        space.cluster.delete(&path)?;
        space.cluster.wait_gone(&path, LIMIT)?;
    }
    space.delete_pod("app")?;
    refused_on_two_nodes(space)
}

fn refused_on_two_nodes(space: &Space) -> Result<()> {
    for (index, (name, _)) in MEMBERS.into_iter().enumerate() {
        space.create_pod(&on_node(pod(name, &[Volume::at(name, "/data")]), space.node(index)))?;
    }
    MEMBERS.iter().try_for_each(|(name, _)| space.wait_running(name).map(drop))?;
    space.look("the snapshots of the first group gone", || {
        let left = members(space)?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
    })?;
    let began = Instant::now();
    let path = create(space, "apart")?;
    let why = space.look("the group of two nodes refused", || {
        let status = space.cluster.get(&path)?["status"].clone();
        ensure(status["readyToUse"] != true, || format!("it was taken: {status}"))?;
        Ok(status["error"]["message"].as_str().map(str::to_owned).ok_or_else(|| status.to_string()))
    })?;
    space.time("from the group of two nodes to its refusal", began.elapsed());
    println!("{}: {why}", space.name);
    ensure(why.contains("cannot be stopped together"), || format!("it is refused for another reason: {why}"))?;
    ensure(members(space)?.is_empty(), || "snapshots are left of a group that was refused".to_owned())?;
    // Nothing was left standing still.
    MEMBERS.iter().try_for_each(|(name, _)| space.write(name, "/data/file", "after"))?;
    space.cluster.delete(&path)?;
    space.cluster.wait_gone(&path, LIMIT)
}

fn create_claims(space: &Space) -> Result<()> {
    MEMBERS.iter().try_for_each(|(name, class)| {
        let mut claim = claim(name, class, "ReadWriteOnce", "1Gi");
        claim["metadata"]["labels"] = json!({"group": "both"});
        space.create_claim(&claim)
    })
}

/// Of both claims, ready; its path.
fn take(space: &Space, name: &str) -> Result<String> {
    let began = Instant::now();
    let path = create(space, name)?;
    wait_ready_to_use(space, "the group snapshot", &path)?;
    space.time("group snapshot ready", began.elapsed());
    Ok(path)
}

fn create(space: &Space, name: &str) -> Result<String> {
    let group = json!({
        "apiVersion": GROUPS,
        "kind": "VolumeGroupSnapshot",
        "metadata": {"name": name},
        "spec": {
            "volumeGroupSnapshotClassName": "hawser",
            "source": {"selector": {"matchLabels": {"group": "both"}}},
        },
    });
    let groups = format!("/apis/{GROUPS}/namespaces/{}/volumegroupsnapshots", space.name);
    space.cluster.create(&groups, &group)?;
    Ok(format!("{groups}/{name}"))
}

/// Claims, and the names of their snapshots.
fn members(space: &Space) -> Result<Vec<(String, String)>> {
    let all = space.cluster.list(&snapshots(space))?;
    let source =
        |one: &Value| one["spec"]["source"]["persistentVolumeClaimName"].as_str().unwrap_or_default().to_owned();
    Ok(all.iter().map(|one| (source(one), name_of(one).to_owned())).collect())
}

/// The last numbers in copies of both.
fn restored(space: &Space, prefix: &str, members: &[(String, String)]) -> Result<(u64, u64)> {
    let name = |of: &str| format!("{prefix}-{of}");
    for (of, class) in MEMBERS {
        let (_, source) =
            members.iter().find(|(claim, _)| claim == of).ok_or_else(|| format!("no snapshot of {of}"))?;
        let mut copy = claim(&name(of), class, "ReadWriteOnce", "1Gi");
        copy["spec"]["dataSource"] = json!({"apiGroup": GROUP, "kind": "VolumeSnapshot", "name": source});
        space.create_claim(&copy)?;
    }
    let (one, two) = (name(MEMBERS[0].0), name(MEMBERS[1].0));
    let reader = format!("of-{prefix}");
    space.create_pod(&on_node(pod(&reader, &[Volume::at(&one, "/one"), Volume::at(&two, "/two")]), space.node(1)))?;
    space.wait_running(&reader)?;
    let found = last_written(space, &reader)?;
    space.delete_pod(&reader)?;
    Ok(found)
}

/// The second is written after the first, and the first again only after that.
fn is_one_instant(one: u64, two: u64) -> bool {
    one == two || one == two + 1
}

/// Some more than `before`.
fn wait_written(space: &Space, before: u64) -> Result<()> {
    space.look("the pod writes", || {
        // The logs are not there at once.
        let two = last_written(space, "app").map(|(_, two)| two).unwrap_or_default();
        Ok(if two > before + LEAST { Ok(()) } else { Err(format!("{two} writes, {before} before")) })
    })
}

fn last_written(space: &Space, pod: &str) -> Result<(u64, u64)> {
    let last = |file: &str| {
        let line = space.sh(pod, &format!("tail -n 1 {file}"))?;
        line.parse::<u64>().map_err(|_| Failure::from(format!("{file} in {pod} ends with {line:?}")))
    };
    Ok((last("/one/log-one")?, last("/two/log-two")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants() {
        assert!(is_one_instant(7, 7) && is_one_instant(8, 7));
        assert!(!is_one_instant(7, 8), "the later write is there without the one before it");
        assert!(!is_one_instant(9, 7), "the second was copied earlier");
    }
}
