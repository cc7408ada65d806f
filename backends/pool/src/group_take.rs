//! The instant of a group snapshot: all file systems of its volumes that are mounted are frozen, all images cloned, all
//! let go.
//!
//! While everything is frozen nothing is written to these volumes, so the clones show one instant however long they take.
//! A raw device in use has nothing to freeze. One of them does no harm: whatever was written elsewhere before a write
//! that its clone holds is in the others, which stand still since before. Two would be cut at two instants: refused.
//! A volume that is not in use is not written to; that it stayed so is looked at once all are cloned.

use crate::delete::holder;
use crate::image::{FREEZE_DEADLINE_MS, image_identity};
use crate::loops::is_cut_off;
use crate::model::{GroupRecord, SnapshotRecord, VolumeRecord};
use crate::record::RecordDir;
use crate::snapshot::IMAGE;
use crate::{Pool, now_ms};
use host::LoopDevice;
use host::file::{Access, Dir, allocated_bytes};
use std::fs::File;
use std::time::{Duration, Instant};
use volume::{DeviceNumber, Error, ErrorKind, GroupSnapshotId, Result, SnapshotId, VolumeId, VolumeKind, VolumeName};

/// No further image is cloned once the volumes have stood still for so long: the group fails, they go on.
const FROZEN_LIMIT: Duration = Duration::from_secs(10);

/// A volume about to be copied.
pub(crate) struct Source {
    member: SnapshotId,
    volume: RecordDir<VolumeRecord>,
    image: File,
    loops: Vec<LoopDevice>,
}

/// Where its copy goes.
struct Target {
    dir: Dir,
    image: File,
}

impl Pool {
    /// The sources, in the order of the members' ids. All that can be refused is refused here, before anything is made or
    /// frozen.
    pub(crate) fn sources_at_rest(&self, group: &GroupSnapshotId, volumes: &[&VolumeId]) -> Result<Vec<Source>> {
        let mut sources = Vec::with_capacity(volumes.len());
        let mut taken_now = 0;
        for volume in volumes {
            let state = RecordDir::<VolumeRecord>::find(&self.volumes, volume.as_str())?
                .filter(|state| !state.record().deleting)
                .ok_or_else(|| Error::not_found(format!("there is no volume {volume} to take a snapshot of")))?;
            let image = self.open_whole(state.dir(), self.copyable(&state)?, state.record().size_bytes)?;
            if !self.reflink {
                taken_now += allocated_bytes(&image)?;
            }
            let member = SnapshotId::of_member(group, volume);
            let loops = self.writing_loops(&image)?;
            sources.push(Source { member, volume: state, image, loops });
        }
        self.refuse_unstoppable(&sources)?;
        self.check_room(taken_now, &format!("group snapshot {group}"))?;
        sources.sort_by(|a, b| a.member.cmp(&b.member));
        Ok(sources)
    }

    /// Everything of the group below `dir`, which nobody else sees yet.
    pub(crate) fn take_group(
        &self,
        dir: &Dir,
        id: &GroupSnapshotId,
        name: &VolumeName,
        sources: &[Source],
    ) -> Result<GroupRecord> {
        let mut targets = Vec::with_capacity(sources.len());
        for source in sources {
            let dir = dir.ensure_child(source.member.as_str())?;
            dir.publish(IMAGE, b"")?;
            let image = dir.open_file(IMAGE, Access::ReadWrite)?;
            targets.push(Target { dir, image });
        }
        let created_at_ms = self.copy_at_one_instant(sources, &targets)?;
        for (source, target) in sources.iter().zip(&targets) {
            let of = source.volume.record();
            let record = SnapshotRecord {
                id: source.member.clone(),
                name: name.clone(),
                source: of.id.clone(),
                size_bytes: of.size_bytes,
                kind: of.kind,
                created_at_ms,
                image: Some(image_identity(IMAGE, &target.image)?),
                deleting: false,
            };
            self.describe_snapshot(&target.image, &record)?;
            target.image.sync_all().map_err(|e| Error::io(format!("making snapshot {} durable", record.id), e))?;
            RecordDir::write_first(&target.dir, &record)?;
        }
        let members = sources.iter().map(|source| source.member.clone()).collect();
        Ok(GroupRecord { id: id.clone(), name: name.clone(), members, created_at_ms, deleting: false })
    }

    /// When it was.
    fn copy_at_one_instant(&self, sources: &[Source], targets: &[Target]) -> Result<u64> {
        for source in sources {
            // Also of what a page cache holds: the copy has everything that was written before it began.
            source.image.sync_all().map_err(|e| Error::io("making the source of a copy durable", e))?;
        }
        let devices = to_freeze(sources);
        let mut at_ms = None;
        let frozen = self.host.with_all_frozen(&devices, FREEZE_DEADLINE_MS, &mut |frozen| {
            at_ms = Some(now_ms());
            let begun = Instant::now();
            for (source, target) in sources.iter().zip(targets) {
                if begun.elapsed() > FROZEN_LIMIT {
                    return Err(stood_still_too_long(sources.len()));
                }
                self.copy_image(&source.image, &target.image)?;
            }
            self.check_still(sources, frozen)
        });
        match (frozen, at_ms) {
            (Ok(()), Some(at_ms)) => Ok(at_ms),
            (Ok(()), None) => Err(Error::internal("a group was not copied")),
            // What cannot be frozen would be torn from the others.
            (Err(error), None) if error.kind() == ErrorKind::Unavailable => Err(Error::with_source(
                ErrorKind::FailedPrecondition,
                "a volume of the group is mounted where it cannot be stopped together with the others",
                error,
            )),
            (Err(error), _) => Err(error),
        }
    }

    /// The loops through which something can be written to the image: not those of a fence.
    fn writing_loops(&self, image: &File) -> Result<Vec<LoopDevice>> {
        Ok(self.loops_of(image)?.into_iter().filter(|device| !is_cut_off(device)).collect())
    }

    /// `FailedPrecondition` for volumes that nothing here can stop together.
    fn refuse_unstoppable(&self, sources: &[Source]) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::FailedPrecondition, what));
        if !self.sees_all_loops()
            && let Some((volume, held)) =
                sources.iter().find_map(|s| Some((&s.volume.record().id, holder(s.volume.record())?)))
        {
            return refuse(format!(
                "volume {volume} is held by node {}, which may be writing to it out of this machine's reach; detach the \
                 volumes of a group on this pool first",
                held.node
            ));
        }
        let in_use = |source: &&Source| !source.loops.is_empty();
        if !self.reflink
            && let Some(source) = sources.iter().find(in_use)
        {
            return refuse(format!(
                "volume {} is in use and this pool's file system cannot clone files: all volumes of the group would stand \
                 still while they are copied whole; detach them first, or keep the pool on xfs or btrfs",
                source.volume.record().id
            ));
        }
        let raw = sources.iter().filter(|source| source.volume.record().kind == VolumeKind::Block).filter(in_use);
        if let [first, second, ..] = raw.map(|source| &source.volume.record().id).collect::<Vec<_>>()[..] {
            return refuse(format!(
                "{first} and {second} are raw block volumes in use: nothing can stop the writes to both, so their \
                 snapshots would not be of one instant; detach all but one of them, or use volumes with file systems"
            ));
        }
        Ok(())
    }

    /// `Busy` when a volume that was not stopped may have been written to since the first one was cloned, or one became
    /// another image.
    fn check_still(&self, sources: &[Source], frozen: &[DeviceNumber]) -> Result<()> {
        for source in sources {
            let changed = |what: &str| {
                let id = &source.volume.record().id;
                Err(Error::new(
                    ErrorKind::Busy,
                    format!("volume {id} {what} while the group snapshot was taken; retry"),
                ))
            };
            // A grant, a fence, a deletion, another size.
            if !source.volume.is_latest()? {
                return changed("changed");
            }
            if numbers(&self.writing_loops(&source.image)?) != numbers(&source.loops) {
                return changed("was connected or disconnected");
            }
        }
        let mut unmounted = to_freeze(sources);
        unmounted.retain(|device| !frozen.contains(device));
        self.host.with_all_frozen(&unmounted, FREEZE_DEADLINE_MS, &mut |mounted| match mounted {
            [] => Ok(()),
            _ => Err(Error::new(ErrorKind::Busy, "a volume was mounted while the group snapshot was taken; retry")),
        })
    }
}

/// In the order of their numbers, which is the same for every group: of two that share volumes one goes on.
fn to_freeze(sources: &[Source]) -> Vec<DeviceNumber> {
    let stops = |source: &&Source| matches!(source.volume.record().kind, VolumeKind::FileSystem(_));
    let mut devices: Vec<_> =
        sources.iter().filter(stops).flat_map(|source| &source.loops).map(|device| device.number).collect();
    devices.sort();
    devices
}

fn numbers(loops: &[LoopDevice]) -> Vec<DeviceNumber> {
    let mut numbers: Vec<_> = loops.iter().map(|device| device.number).collect();
    numbers.sort();
    numbers
}

fn stood_still_too_long(volumes: usize) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!(
            "the {volumes} volumes of the group could not be cloned within {} s, for which they stood still; they go on, \
             nothing was kept. Their images may have very many extents, or the pool is slow: use smaller groups",
            FROZEN_LIMIT.as_secs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use crate::Pool;
    use crate::testing::lab;
    use conformance::backend::{refused, take_group};
    use host::file::FileSystemKind;
    use volume::{ErrorKind, FsType};

    /// Its holder's file system is on another kernel, which nothing here can stop.
    #[test]
    fn a_volume_held_out_of_sight_is_in_no_group() {
        let Some((s, pool)) = lab("a_volume_held_out_of_sight_is_in_no_group", FsType::Xfs) else { return };
        let (one, two, n1) = (s.create("one").id, s.create("two").id, s.register("n1"));
        let shared = Pool { file_system: FileSystemKind::Network("a test"), ..Pool::clone(&pool) };
        s.attach(&one, &n1).unwrap();
        let message = refused(take_group(&shared, "g", &[&one, &two]), ErrorKind::FailedPrecondition);
        assert!(message.contains("node n1"), "{message}");
        assert_eq!(pool.group_ids().unwrap(), []);
        s.detach(&one, Some(&n1)).unwrap();
        take_group(&shared, "g", &[&one, &two]).unwrap();
    }
}
