//! How large volumes are, may be, and become.

use super::{MIB, SIZE, Subject, at_least, at_most, lock, refused};
use volume::{
    CapacityQuery, Error, ErrorKind, MAX_SIZE_BYTES, Parameters, SizeRange, VolumeId, VolumeKind, VolumeSpec,
};

pub fn chosen_sizes(s: &Subject) {
    let sized = |name: &str, size| s.ensure(&VolumeSpec { size, ..s.spec(name) });
    let smallest = sized("smallest", at_least(1)).unwrap().size_bytes;
    assert!(smallest >= MIB && smallest.is_multiple_of(MIB), "{smallest}");
    let odd = sized("odd", at_least(SIZE + 1)).unwrap().size_bytes;
    assert!(odd > SIZE && odd <= SIZE + MIB, "{odd}");
    assert_eq!(
        sized("exact", SizeRange { required_bytes: Some(SIZE), limit_bytes: Some(SIZE) }).unwrap().size_bytes,
        SIZE
    );
    let limited = sized("limited", at_most(SIZE + 5)).unwrap().size_bytes;
    assert!(limited <= SIZE + 5, "{limited}");
    assert!(sized("default", SizeRange::default()).unwrap().size_bytes >= smallest);
    refused(sized("no room", at_most(1)), ErrorKind::OutOfRange);
    let between = SizeRange { required_bytes: Some(SIZE + 1), limit_bytes: Some(SIZE + 2) };
    refused(sized("between granules", between), ErrorKind::OutOfRange);
    assert_eq!(s.backend.find_volume(&s.volume_id("no room")).unwrap(), None);
}

pub fn thick(s: &Subject) {
    let parameters = Parameters { thick: true, ..Parameters::default() };
    let before = available(s, true);
    let spec = VolumeSpec { parameters, ..s.spec("thick") };
    let made = s.ensure(&spec).unwrap();
    assert!(made.thick && made.parameters.thick);
    assert_eq!(s.ensure(&spec).unwrap(), made);
    assert_eq!((s.another)().find_volume(&made.id).unwrap(), Some(made.clone()));
    let after = available(s, true);
    assert!(after + SIZE <= before, "{after} after a thick volume of {SIZE}, {before} before");
    refused(s.ensure(&VolumeSpec { parameters: Parameters::default(), ..spec.clone() }), ErrorKind::AlreadyExists);
    // One that does not fit is refused and takes nothing.
    let name = "thick and too large";
    let large = VolumeSpec { size: at_least(after + 64 * MIB), id: s.volume_id(name), ..spec };
    let large = VolumeSpec { name: volume::VolumeName::parse(name).unwrap(), ..large };
    let refusal = s.ensure(&large).unwrap_err();
    assert!(matches!(refusal.kind(), ErrorKind::Exhausted | ErrorKind::OutOfRange), "{}", refusal.chain());
    assert_eq!(s.backend.find_volume(&large.id).unwrap(), None);
    s.delete(&made.id).unwrap();
    // Some storage frees in the background (xfs, btrfs), and what follows moves it along.
    let freed = (0..100).any(|_| {
        let mover = s.create("mover");
        s.delete(&mover.id).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        available(s, true) >= after + SIZE
    });
    assert!(freed, "deleting gives the space back: {} of {before}, {after} before", available(s, true));
}

pub fn too_large(s: &Subject) {
    let spec = VolumeSpec { size: at_least(MAX_SIZE_BYTES), ..s.spec("too large") };
    refused(s.ensure(&spec), ErrorKind::OutOfRange);
    refused(s.ensure(&VolumeSpec { kind: VolumeKind::Directory, ..spec.clone() }), ErrorKind::OutOfRange);
    assert_eq!(s.backend.find_volume(&spec.id).unwrap(), None);
}

pub fn expand(s: &Subject) {
    let Some(expand) = s.backend.expand() else { return };
    let grow = |id: &VolumeId, size| expand.expand(&lock(id.as_str()), id, size);
    let made = s.create("pvc-1");
    assert_eq!(grow(&made.id, at_least(SIZE * 2)).unwrap(), (SIZE * 2, true), "its file system is the node's to grow");
    assert_eq!(s.find(&made.id).size_bytes, SIZE * 2);
    assert_eq!((s.another)().find_volume(&made.id).unwrap().unwrap().size_bytes, SIZE * 2);
    // A retry, and a smaller wish, find it large enough.
    assert_eq!(grow(&made.id, at_least(SIZE * 2)).unwrap().0, SIZE * 2);
    assert_eq!(grow(&made.id, at_least(MIB)).unwrap().0, SIZE * 2);
    refused(grow(&made.id, at_most(SIZE)), ErrorKind::OutOfRange);
    refused(grow(&made.id, at_least(MAX_SIZE_BYTES)), ErrorKind::OutOfRange);
    refused(grow(&s.volume_id("never made"), at_least(SIZE)), ErrorKind::NotFound);
    assert_eq!(s.find(&made.id).size_bytes, SIZE * 2);
    let directory = s.ensure(&VolumeSpec { kind: VolumeKind::Directory, ..s.spec("directory") }).unwrap();
    assert_eq!(grow(&directory.id, at_least(SIZE * 2)).unwrap(), (SIZE * 2, false));
    // The attachment stays what it was.
    let node = s.register("n1");
    let context = s.attach(&made.id, &node).unwrap();
    assert_eq!(grow(&made.id, at_least(SIZE * 3)).unwrap(), (SIZE * 3, true));
    let grown = s.find(&made.id);
    assert_eq!((grown.size_bytes, grown.epoch), (SIZE * 3, context.epoch));
    assert_eq!(grown.attachment.unwrap().holder.node, node.id);
}

pub fn capacity(s: &Subject) {
    let thin = s.backend.capacity(&CapacityQuery::default()).unwrap();
    assert!(thin.available_bytes > 0 && thin.minimum_volume_bytes > 0);
    assert!(thin.maximum_volume_bytes >= thin.minimum_volume_bytes);
    // Both ends of what is promised can be made, and the next step up cannot.
    let ends = [thin.minimum_volume_bytes, thin.maximum_volume_bytes];
    for (n, bytes) in ends.into_iter().enumerate() {
        let spec = VolumeSpec { size: at_least(bytes), ..s.spec(&format!("end {n}")) };
        let made = s.ensure(&spec).unwrap();
        assert_eq!(made.size_bytes, bytes);
        s.delete(&made.id).unwrap();
    }
    let above = VolumeSpec { size: at_least(thin.maximum_volume_bytes + 1), ..s.spec("above") };
    refused(s.ensure(&above), ErrorKind::OutOfRange);
    let query = CapacityQuery { thick: true, ..CapacityQuery::default() };
    let thick = s.backend.capacity(&query).unwrap();
    assert!(thick.maximum_volume_bytes <= thick.available_bytes);
    // A place from where the backend cannot be reached has none of it.
    if let Some(own) = s.backend.topology().unwrap().first() {
        let there = |segments| CapacityQuery { topology: Some(segments), ..CapacityQuery::default() };
        assert!(s.backend.capacity(&there(own.clone())).unwrap().available_bytes > 0);
        let elsewhere = own.0.keys().map(|key| (key.clone(), "nowhere".to_owned())).collect();
        assert_eq!(s.backend.capacity(&there(volume::Segments(elsewhere))).unwrap().available_bytes, 0);
    }
    if s.backend.restrictions().no_block.is_some() {
        let query = CapacityQuery { kind: Some(VolumeKind::Block), ..CapacityQuery::default() };
        assert_eq!(s.backend.capacity(&query).map(|c| c.available_bytes).map_err(|e: Error| e.kind()), Ok(0));
    }
}

fn available(s: &Subject, thick: bool) -> u64 {
    s.backend.capacity(&CapacityQuery { thick, ..CapacityQuery::default() }).unwrap().available_bytes
}
