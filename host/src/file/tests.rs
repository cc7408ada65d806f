use super::*;
use std::os::unix::fs::{FileExt, symlink};

fn scratch() -> (tempfile::TempDir, Dir) {
    let place = tempfile::tempdir().unwrap();
    let dir = Dir::open(place.path(), Effects::default()).unwrap();
    (place, dir)
}

#[test]
fn a_published_file_is_never_replaced() {
    let (_place, dir) = scratch();
    assert!(dir.publish("record.1", b"one").unwrap());
    assert!(!dir.publish("record.1", b"two").unwrap());
    assert_eq!(dir.read("record.1", 100).unwrap(), b"one");
    assert_eq!(dir.read("record.1", 2).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(dir.read("record.2", 2).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(dir.names_at_once().unwrap(), ["record.1"]);
}

#[test]
fn a_temporary_name_is_gone_once_linked_or_dropped() {
    let (_place, dir) = scratch();
    drop(dir.temporary_file().unwrap());
    let file = dir.temporary_file().unwrap();
    assert!(dir.names().unwrap().iter().all(|name| is_temporary(name)));
    file.file().write_all_at(b"x", 0).unwrap();
    assert!(dir.link_unnamed(file, "named").unwrap());
    assert_eq!(dir.names().unwrap(), ["named"]);
}

#[test]
fn names_that_escape_are_refused_and_symlinks_not_followed() {
    let (place, dir) = scratch();
    for bad in ["", ".", "..", "a/b", "/etc/passwd", "a\0b", &"n".repeat(256)] {
        assert_eq!(dir.publish(bad, b"").unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad:?}");
        assert!(dir.child(bad).is_err() && dir.read(bad, 1).is_err() && dir.remove_tree(bad).is_err());
    }
    symlink("/etc", place.path().join("etc")).unwrap();
    symlink("/etc/passwd", place.path().join("passwd")).unwrap();
    assert_eq!(dir.child("etc").err().unwrap().kind(), ErrorKind::Corrupt);
    assert_eq!(dir.read("passwd", 1 << 20).unwrap_err().kind(), ErrorKind::Corrupt);
    dir.remove_tree("etc").unwrap();
    dir.remove_tree("passwd").unwrap();
    assert!(std::path::Path::new("/etc/passwd").exists() && dir.names().unwrap().is_empty());
}

#[test]
fn renames_replace_nothing() {
    let (_place, dir) = scratch();
    let (a, b) = (dir.ensure_child("a").unwrap(), dir.ensure_child("b").unwrap());
    a.publish("x", b"1").unwrap();
    b.publish("x", b"2").unwrap();
    assert!(!a.rename_noreplace("x", &b, "x").unwrap());
    a.exchange("x", &b, "x").unwrap();
    assert_eq!(a.read("x", 9).unwrap(), b"2");
    assert!(a.rename_noreplace("x", &b, "y").unwrap());
    assert_eq!(b.names().unwrap(), ["x", "y"]);
    assert_eq!(dir.remove_empty_dir("b").unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert!(dir.remove_empty_dir("a").unwrap() && !dir.remove_empty_dir("a").unwrap());
    assert!(dir.rename_noreplace("b", &dir, "c").unwrap() && b.publish("z", b"").unwrap());
    assert_eq!(dir.child("c").unwrap().names().unwrap(), ["x", "y", "z"]);
}

#[test]
fn a_tree_deeper_than_any_path_is_removed() {
    let (_place, dir) = scratch();
    let mut at = dir.ensure_child("tree").unwrap();
    let keep = dir.ensure_child("keep").unwrap();
    keep.publish("file", b"").unwrap();
    for depth in 0..3000 {
        std::fs::write(format!("/proc/self/fd/{}/f", at.fd.as_raw_fd()), b"x").unwrap();
        nix::unistd::symlinkat("../../keep", &at, "l").unwrap();
        nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
        let fd = at.open_at(c"d".to_owned(), OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty()).unwrap();
        at = Dir { fd: fd.into(), path: PathBuf::from(depth.to_string()), effects: Effects::default() };
    }
    drop(at);
    dir.remove_tree("tree").unwrap();
    dir.remove_tree("tree").unwrap();
    assert_eq!(dir.names().unwrap(), ["keep"]);
    assert_eq!(keep.names().unwrap(), ["file"]);
}

#[test]
fn a_large_listing_is_not_called_atomic() {
    let (_place, dir) = scratch();
    for n in 0..2000 {
        std::fs::write(dir.path().join(format!("{n:040}")), b"").unwrap();
    }
    assert_eq!(dir.names().unwrap().len(), 2000);
    assert_eq!(dir.names_at_once().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_sparse_copy_keeps_data_holes_and_size() {
    let (_place, dir) = scratch();
    let source = dir.unnamed_file().unwrap();
    source.file().set_len(64 << 20).unwrap();
    source.file().write_all_at(b"start", 0).unwrap();
    source.file().write_all_at(b"middle", 40 << 20).unwrap();
    let target = dir.unnamed_file().unwrap();
    copy_sparse(source.file(), target.file(), dir.effects()).unwrap();
    let mut middle = [0u8; 6];
    target.file().read_exact_at(&mut middle, 40 << 20).unwrap();
    assert_eq!(&middle, b"middle");
    assert_eq!(target.file().metadata().unwrap().len(), 64 << 20);
    assert!(allocated_bytes(target.file()).unwrap() < 1 << 20);
    allocate(target.file(), 0..2 << 20, dir.effects()).unwrap();
    assert!(allocated_bytes(target.file()).unwrap() >= 2 << 20);
}

#[test]
fn identity_and_attributes() {
    let (_place, dir) = scratch();
    dir.publish("a", b"").unwrap();
    dir.publish("b", b"").unwrap();
    let (a, b) = (dir.open_file("a", Access::ReadWrite).unwrap(), dir.open_file("b", Access::Read).unwrap());
    assert_ne!(identity(&a).unwrap(), identity(&b).unwrap());
    assert_eq!(identity(&a).unwrap(), identity(&dir.open_file("a", Access::Read).unwrap()).unwrap());
    if matches!(filesystem_of(&dir).unwrap(), FileSystemKind::Ext4 | FileSystemKind::Xfs | FileSystemKind::Btrfs) {
        assert_eq!(get_xattr(&a, "user.hawser").unwrap(), None);
        set_xattr(&a, "user.hawser", b"{}", dir.effects()).unwrap();
        assert_eq!(get_xattr(&a, "user.hawser").unwrap().as_deref(), Some(&b"{}"[..]));
    }
    let space = space(&dir).unwrap();
    assert!(space.available_bytes > 0 && space.available_bytes <= space.total_bytes);
}

/// A loop device counts as well: `a_loop_has_its_image_open` of the pool.
#[test]
fn a_file_is_known_to_be_open_here_alone() {
    let (_scratch, dir) = scratch();
    dir.publish("image", b"data").unwrap();
    let file = dir.open_file("image", Access::ReadWrite).unwrap();
    assert!(is_open_here_alone(&file));
    for access in [Access::Read, Access::ReadWrite] {
        let other = dir.open_file("image", access).unwrap();
        assert!(!is_open_here_alone(&file), "{access:?}");
        drop(other);
        // A program that another test starts holds a copy from its fork to its exec.
        let is_alone = |_| {
            is_open_here_alone(&file) || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        };
        assert!((0..500).any(is_alone), "{access:?}");
    }
    // The look leaves nothing behind that an opener would have to wait for.
    let started = std::time::Instant::now();
    drop(dir.open_file("image", Access::ReadWrite).unwrap());
    assert!(started.elapsed() < Duration::from_secs(1));
}
