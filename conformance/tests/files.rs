//! File helpers of pools on each file system that a pool can stand on.

use conformance::scratch::ScratchPool;
use host::Effects;
use host::file::{
    Access, Dir, FileSystemKind, clone_file, copy_sparse, filesystem_of, get_xattr, identity, probe_reflink, set_xattr,
};
use std::os::unix::fs::FileExt;
use volume::{ErrorKind, FsType};

#[test]
fn files_of_a_pool() {
    for fs in FsType::ALL {
        let scratch = match ScratchPool::new(fs, 1 << 30) {
            Ok(scratch) => scratch,
            Err(reason) => {
                println!("SKIPPED: files_of_a_pool on {fs}: {reason}");
                continue;
            }
        };
        let dir = Dir::open(scratch.path(), Effects::default()).unwrap();
        let kind = match fs {
            FsType::Ext4 => FileSystemKind::Ext4,
            FsType::Xfs => FileSystemKind::Xfs,
            FsType::Btrfs => FileSystemKind::Btrfs,
        };
        assert_eq!(filesystem_of(&dir).unwrap(), kind);
        let reflink = fs != FsType::Ext4;
        assert_eq!(probe_reflink(&dir).unwrap(), reflink, "{fs}");

        let source = dir.unnamed_file().unwrap();
        source.file().set_len(8 << 20).unwrap();
        source.file().write_all_at(&[7; 4096], 4 << 20).unwrap();
        set_xattr(source.file(), "user.hawser", b"about", dir.effects()).unwrap();
        assert!(dir.link_unnamed(source, "source").unwrap());
        let source = dir.open_file("source", Access::Read).unwrap();
        assert_eq!(get_xattr(&source, "user.hawser").unwrap().as_deref(), Some(&b"about"[..]));
        for copy in ["clone", "copy"] {
            let target = dir.unnamed_file().unwrap();
            match copy {
                "clone" => match clone_file(&source, target.file(), dir.effects()) {
                    Ok(()) => assert!(reflink, "{fs}"),
                    Err(error) => {
                        assert_eq!((error.kind(), reflink), (ErrorKind::Unsupported, false), "{fs}");
                        continue;
                    }
                },
                _ => copy_sparse(&source, target.file(), dir.effects()).unwrap(),
            }
            assert!(dir.link_unnamed(target, copy).unwrap());
            let file = dir.open_file(copy, Access::ReadWriteDirect).unwrap();
            assert_ne!(identity(&file).unwrap().inode, identity(&source).unwrap().inode);
            assert!(dir.read(copy, 8 << 20).unwrap() == dir.read("source", 8 << 20).unwrap(), "{copy} on {fs}");
        }

        // An inode number that is used again has another generation, where the file system reuses them.
        let mut seen = std::collections::HashSet::new();
        for _ in 0..50 {
            dir.publish("again", b"x").unwrap();
            let found = identity(&dir.open_file("again", Access::Read).unwrap()).unwrap();
            assert_eq!(found.device, dir.device().unwrap());
            assert!(seen.insert((found.inode, found.generation)), "{fs}: {found:?} was there before");
            dir.remove_file("again").unwrap();
        }
    }
}
