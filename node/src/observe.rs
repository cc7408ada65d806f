//! What is there now: one volume's mounts and connection, from the kernel's tables alone.

use crate::node::Node;
use crate::target::is_same_place;
use host::{MountEntry, PathState};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use volume::{Connected, Connector, DeviceNumber, FsType, Result, VolumeId};

/// One observation of one volume.
pub(crate) struct View {
    pub(crate) connected: Option<Connected>,
    /// The whole mount table; shared, because reconciliation looks at every volume in one reading of it.
    entries: Arc<[MountEntry]>,
    /// Which of them show the volume, by index.
    ours: BTreeMap<usize, Ours>,
}

/// How a mount shows the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    FileSystem,
    /// The device's node, bound onto a file.
    Node,
    Directory,
}

/// What is at a volume's staging path.
#[derive(Debug)]
pub(crate) enum Staging {
    Absent,
    Staged(Staged),
    /// Something that is not this volume is mounted there; what.
    Foreign(String),
    /// This volume, but not as it has to be; what is wrong.
    Corrupt(String),
}

/// Proof that a volume can be published: where from, verified to be that volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Staged {
    FileSystem { mounted_at: PathBuf, read_only: bool },
    Block { device: PathBuf, number: DeviceNumber, read_only: bool },
    Directory { path: PathBuf },
}

impl View {
    pub(crate) fn read(node: &Node, connector: &dyn Connector, id: &VolumeId) -> Result<Self> {
        let connections = connector.connections(id)?;
        let entries = node.host.mounts()?.into();
        Self::of(node, connector, id, connections, &entries)
    }

    /// From tables that were read already: the volume's connections, the present one first, and after them the mounts.
    pub(crate) fn of(
        node: &Node,
        connector: &dyn Connector,
        id: &VolumeId,
        connections: Vec<Connected>,
        entries: &Arc<[MountEntry]>,
    ) -> Result<Self> {
        let mut connections = connections.into_iter();
        let mut view = Self::of_connection(node, id, connections.next(), entries)?;
        // After a failover on one machine the image of an earlier epoch can still be connected beside the present.
        for earlier in connections {
            view.add(Self::of_connection(node, id, Some(earlier), entries)?);
        }
        if view.connected.is_none() && !view.ours.is_empty() && !may_be_directory(connector, id) {
            view.ours.clear();
        }
        Ok(view)
    }

    /// For one connection that is known already, as after connecting.
    pub(crate) fn with(node: &Node, id: &VolumeId, connected: Option<Connected>) -> Result<Self> {
        Self::of_connection(node, id, connected, &node.host.mounts()?.into())
    }

    fn of_connection(
        node: &Node,
        id: &VolumeId,
        connected: Option<Connected>,
        entries: &Arc<[MountEntry]>,
    ) -> Result<Self> {
        let directory = match &connected {
            Some(Connected::Directory { path }) => inside_file_system(entries, &node.host.resolve_parents(path)?),
            Some(Connected::Device { .. }) | None => None,
        };
        let mut ours = BTreeMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let shown = match &connected {
                Some(Connected::Device { path, number, .. }) => how_shown(node, entry, path, *number)?,
                Some(Connected::Directory { .. }) | None => {
                    let is_it =
                        directory.as_ref().is_some_and(|(device, root)| entry.device == *device && entry.root == *root);
                    // An id is a hash, so a directory of that name is the volume's.
                    (is_it || directory_volume(entry).as_ref() == Some(id)).then_some(Ours::Directory)
                }
            };
            ours.extend(shown.map(|shown| (index, shown)));
        }
        Ok(Self { connected, entries: entries.clone(), ours })
    }

    /// Takes in another connection of the same volume. What is mounted here counts as the one that is connected.
    fn add(&mut self, other: Self) {
        if self.ours.is_empty() && !other.ours.is_empty() {
            *self = other;
            return;
        }
        for (index, shown) in other.ours {
            self.ours.entry(index).or_insert(shown);
        }
    }

    /// The mount that a look at `path` shows.
    pub(crate) fn top(&self, path: &Path) -> Option<&MountEntry> {
        self.seen(path).map(|(_, entry)| entry)
    }

    pub(crate) fn is_ours_at(&self, path: &Path) -> bool {
        self.seen(path).is_some_and(|(index, _)| self.ours.contains_key(&index))
    }

    /// Where this volume is mounted, in the order of mounting, each place once.
    pub(crate) fn places(&self) -> Vec<&Path> {
        let mut places: Vec<&Path> = Vec::new();
        for (entry, _) in self.own() {
            if !places.contains(&entry.mounted_at.as_path()) {
                places.push(&entry.mounted_at);
            }
        }
        places
    }

    /// Where its file system or its directory can be asked how it is.
    pub(crate) fn file_system_places(&self) -> Vec<&Path> {
        let shows = |place: &Path| self.seen(place).and_then(|(index, _)| self.ours.get(&index));
        let places = self.places().into_iter();
        places.filter(|place| matches!(shows(place), Some(Ours::FileSystem | Ours::Directory))).collect()
    }

    /// Where this volume is mounted apart from `path`.
    pub(crate) fn places_other_than(&self, path: &Path) -> Vec<&Path> {
        let is_it = |place: &Path| place == path || (is_same_place(place, path) && self.is_seen_through(place, path));
        self.places().into_iter().filter(|place| !is_it(place)).collect()
    }

    /// Whether a mount above the longer of two paths that end alike can be what shows the shorter one there.
    fn is_seen_through(&self, one: &Path, other: &Path) -> bool {
        let depth = |path: &Path| path.components().count();
        let (long, short) = if depth(one) > depth(other) { (one, other) } else { (other, one) };
        let prefix_depth = depth(long) - depth(short) + 1;
        self.entries.iter().map(|entry| entry.mounted_at.as_path()).any(|mounted_at| {
            long != mounted_at && long.starts_with(mounted_at) && depth(mounted_at) >= prefix_depth.max(2)
        })
    }

    /// Where the volume's file system is mounted so that it can be changed.
    pub(crate) fn writable_place(&self) -> Option<&Path> {
        let writable = |(entry, shown): &(&MountEntry, Ours)| *shown == Ours::FileSystem && !entry.read_only;
        self.own().find(writable).map(|(entry, _)| entry.mounted_at.as_path())
    }

    /// Where the volume's file system is mounted.
    pub(crate) fn file_system_at(&self) -> Option<&Path> {
        self.own().find(|(_, shown)| *shown == Ours::FileSystem).map(|(entry, _)| entry.mounted_at.as_path())
    }

    /// Whether the device itself is bound somewhere, as published raw block volumes are.
    pub(crate) fn has_raw_targets(&self) -> bool {
        self.ours.values().any(|shown| *shown == Ours::Node)
    }

    pub(crate) fn staging(&self, fs: FsType, path: &Path) -> Staging {
        let Some((index, entry)) = self.seen(path) else { return Staging::Absent };
        if self.ours.get(&index) != Some(&Ours::FileSystem) {
            return Staging::Foreign(describe(entry));
        }
        if entry.fs_type != fs.as_str() {
            return Staging::Corrupt(format!("it is mounted as {}, its record says {fs}", entry.fs_type));
        }
        Staging::Staged(Staged::FileSystem { mounted_at: path.to_owned(), read_only: entry.read_only })
    }

    fn seen(&self, path: &Path) -> Option<(usize, &MountEntry)> {
        self.entries.iter().enumerate().rfind(|(_, entry)| entry.mounted_at == path)
    }

    /// The mounts that show the volume, in the order of mounting.
    fn own(&self) -> impl Iterator<Item = (&MountEntry, Ours)> {
        self.ours.iter().filter_map(|(index, shown)| Some((self.entries.get(*index)?, *shown)))
    }
}

/// For messages.
pub(crate) fn describe(entry: &MountEntry) -> String {
    format!("{} from {} (device {})", entry.fs_type, entry.source, number(entry.device))
}

pub(crate) fn list(places: &[&Path]) -> String {
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The volume whose directory, in a pool, this mount shows. The first name counts: those below are the volume's content,
/// which tenants name, and kubelet binds (subPath).
pub(crate) fn directory_volume(entry: &MountEntry) -> Option<VolumeId> {
    entry.root.components().find_map(|c| VolumeId::parse(c.as_os_str().to_str()?).ok())
}

/// Whether a mount of a directory of this name can be the volume's: not when its record says that it is a device.
pub(crate) fn may_be_directory(connector: &dyn Connector, id: &VolumeId) -> bool {
    connector.volume(id).map_or(true, |volume| !volume.kind.is_single_node())
}

fn how_shown(node: &Node, entry: &MountEntry, device: &Path, number: DeviceNumber) -> Result<Option<Ours>> {
    if is_file_system_of(entry, device, number) {
        Ok(Some(Ours::FileSystem))
    } else if is_named_like(entry, device)
        && node.host.observe_path(&entry.mounted_at)? == PathState::BlockDevice(number)
    {
        Ok(Some(Ours::Node))
    } else {
        Ok(None)
    }
}

/// btrfs gives its mounts an anonymous device number, so there the name that was mounted has to do.
pub(crate) fn is_file_system_of(entry: &MountEntry, device: &Path, number: DeviceNumber) -> bool {
    entry.device == number || (entry.fs_type == FsType::Btrfs.as_str() && Path::new(&entry.source) == device)
}

/// Whether this can be a bind mount of the device's node: cheap, so that not every mount has to be looked at.
fn is_named_like(entry: &MountEntry, device: &Path) -> bool {
    entry.root.file_name().is_some() && entry.root.file_name() == device.file_name()
}

/// The device and the path inside its file system of what is at `path`.
fn inside_file_system(entries: &[MountEntry], path: &Path) -> Option<(DeviceNumber, PathBuf)> {
    let covering = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| path.starts_with(&entry.mounted_at))
        .max_by_key(|(index, entry)| (entry.mounted_at.components().count(), *index))?
        .1;
    let below = path.strip_prefix(&covering.mounted_at).ok()?;
    // join("") would add a trailing slash.
    let root = if below.as_os_str().is_empty() { covering.root.clone() } else { covering.root.join(below) };
    Some((covering.device, root))
}

fn number(device: DeviceNumber) -> String {
    format!("{}:{}", device.major, device.minor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn entry(mounted_at: &str, root: &str, minor: u32) -> MountEntry {
        MountEntry {
            mounted_at: mounted_at.into(),
            root: root.into(),
            device: DeviceNumber { major: 8, minor },
            fs_type: "xfs".to_owned(),
            source: "/dev/sda".to_owned(),
            read_only: false,
            own_read_only: false,
            options: BTreeSet::new(),
            id: 0,
        }
    }

    #[test]
    fn a_directory_is_found_below_the_deepest_and_last_mount() {
        let mounts = [entry("/", "/", 1), entry("/pool", "/", 2), entry("/pool", "/sub", 3)];
        let found = |path: &str| inside_file_system(&mounts, Path::new(path)).unwrap();
        assert_eq!(found("/pool/volumes/x"), (DeviceNumber { major: 8, minor: 3 }, "/sub/volumes/x".into()));
        assert_eq!(found("/pool"), (DeviceNumber { major: 8, minor: 3 }, "/sub".into()));
        assert_eq!(found("/poolside"), (DeviceNumber { major: 8, minor: 1 }, "/poolside".into()));
    }
}
