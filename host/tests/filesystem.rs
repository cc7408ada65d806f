//! File systems as the real programs make, check and mount them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests fail the test")]

use host::command::{Command, Output, run};
use host::filesystem::{check, grow, make, minimum_size, probe, set_uuid};
use host::{FileSystemCheck, Probe};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use volume::{ErrorKind, FsType, Result};

const MIB: u64 = 1 << 20;

fn command(program: &'static str, arguments: &[&str]) -> Result<Output> {
    run(&Command::new(program, Duration::from_secs(60)).args(arguments))
}

/// Never twice the same: neither mkfs.btrfs nor the kernel likes two btrfs of one UUID, and tests run beside each other.
fn new_uuid() -> [u8; 16] {
    uuid::Uuid::new_v4().into_bytes()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn image(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = self.0.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        path
    }

    fn made(&self, name: &str, fs: FsType, size_bytes: u64) -> PathBuf {
        let path = self.image(name, 0);
        make(&path, fs, size_bytes, new_uuid()).unwrap();
        path
    }
}

/// A loop device with a mount, undone when dropped, also by a failing assertion.
struct Mounted {
    device: PathBuf,
    at: TempDir,
}

impl Mounted {
    /// `None` where the machine does not let us, with a line that says so.
    fn new(test: &str, image: &Path) -> Option<Self> {
        let device = match command("losetup", &["--find", "--show", "--direct-io=on", text(image)]) {
            Ok(output) => PathBuf::from(output.stdout.trim()),
            Err(error) => {
                println!("SKIPPED: {test}: {}", error.chain());
                return None;
            }
        };
        let mounted = Self { device, at: tempfile::tempdir().unwrap() };
        command("mount", &["--make-private", text(&mounted.device), text(mounted.at.path())]).unwrap();
        Some(mounted)
    }

    fn refresh(&self) {
        command("losetup", &["--set-capacity", text(&self.device)]).unwrap();
    }

    fn size_bytes(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(self.at.path()).unwrap();
        stat.blocks() * stat.fragment_size()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Other tests start programs, which have our descriptors between fork(2) and execve(2).
        let mut unmounted = command("umount", &[text(self.at.path())]);
        for _ in 0..50 {
            if unmounted.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            unmounted = command("umount", &[text(self.at.path())]);
        }
        let detached = command("losetup", &["--detach", text(&self.device)]);
        if !std::thread::panicking() {
            unmounted.unwrap();
            detached.unwrap();
        }
    }
}

fn assert_sound(image: &Path, fs: FsType) {
    let image = text(image);
    match fs {
        FsType::Ext4 => command("e2fsck", &["-f", "-n", image]),
        FsType::Xfs => command("xfs_repair", &["-n", image]),
        FsType::Btrfs => command("btrfs", &["check", "--readonly", image]),
    }
    .unwrap();
}

fn uuid_of(image: &Path) -> [u8; 16] {
    match probe(image).unwrap() {
        Probe::FileSystem { uuid, .. } => uuid,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_programs_make_is_recognised() {
    let scratch = Scratch::new();
    let cases: [(&'static str, &[&str], &str); 9] = [
        ("mke2fs", &["-q", "-t", "ext2"], "ext2"),
        ("mke2fs", &["-q", "-t", "ext3"], "ext3"),
        ("mke2fs", &["-q", "-t", "ext4"], "Ext4"),
        ("mke2fs", &["-q", "-t", "ext4", "-b", "1024"], "Ext4"),
        ("mke2fs", &["-q", "-t", "ext4", "-O", "^metadata_csum,^has_journal"], "Ext4"),
        ("mke2fs", &["-q", "-O", "journal_dev", "-b", "4096"], "external ext4 journal"),
        ("mkfs.xfs", &["-q"], "Xfs"),
        ("mkfs.btrfs", &["-q"], "Btrfs"),
        ("mkswap", &[], "swap"),
    ];
    for (number, (program, arguments, expected)) in cases.into_iter().enumerate() {
        let image = scratch.image(&number.to_string(), 512 * MIB);
        command(program, &[arguments, &[text(&image)]].concat()).unwrap();
        match probe(&image).unwrap() {
            Probe::FileSystem { fs, errors: false, size_bytes, .. } => {
                assert_eq!((format!("{fs:?}").as_str(), size_bytes), (expected, 512 * MIB));
            }
            Probe::Other(name) => assert_eq!(name, expected),
            other => panic!("{program} {arguments:?}: {other:?}"),
        }
    }
    let image = scratch.image("sha256", 512 * MIB);
    command("mkfs.btrfs", &["-q", "--csum", "sha256", text(&image)]).unwrap();
    assert_eq!(probe(&image).unwrap(), Probe::Other("btrfs with a checksum other than crc32c".into()));
}

#[test]
fn made_at_the_least_size_it_is_sound_and_mounts() {
    let scratch = Scratch::new();
    for fs in FsType::ALL {
        let size_bytes = minimum_size(fs);
        let (image, uuid) = (scratch.image(fs.as_str(), 0), new_uuid());
        make(&image, fs, size_bytes, uuid).unwrap();
        assert_eq!(probe(&image).unwrap(), Probe::FileSystem { fs, uuid, size_bytes, errors: false });
        assert_sound(&image, fs);
        assert_eq!(check(&image, fs).unwrap(), FileSystemCheck::Clean);
        let Some(mounted) = Mounted::new("made_at_the_least_size_it_is_sound_and_mounts", &image) else { return };
        std::fs::write(mounted.at.path().join("file"), "data").unwrap();
    }
    let features = command("dumpe2fs", &["-h", text(&scratch.0.path().join("ext4"))]).unwrap().stdout;
    assert!(features.contains("has_journal") && features.contains("metadata_csum_seed"), "{features}");
}

#[test]
fn nothing_is_made_over_anything() {
    let scratch = Scratch::new();
    let image = scratch.made("ext4", FsType::Ext4, 64 * MIB);
    let before = std::fs::read(&image).unwrap();
    for fs in FsType::ALL {
        assert_eq!(make(&image, fs, 512 * MIB, new_uuid()).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    }
    assert!(std::fs::read(&image).unwrap() == before);
    let data = scratch.image("data", 64 * MIB);
    std::fs::OpenOptions::new().write(true).open(&data).unwrap().write_all_at(b"x", 64 * MIB - 1).unwrap();
    assert_eq!(make(&data, FsType::Ext4, 64 * MIB, new_uuid()).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    let long = scratch.image("long", 64 * MIB);
    assert_eq!(make(&long, FsType::Ext4, 32 * MIB, new_uuid()).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(make(&long, FsType::Ext4, MIB, new_uuid()).unwrap_err().kind(), ErrorKind::OutOfRange);
}

#[test]
fn a_new_uuid_everywhere_and_still_sound() {
    let scratch = Scratch::new();
    for (name, fs, size_bytes) in [
        ("small", FsType::Ext4, 32 * MIB),
        // Twenty-five block groups: backups in 1, 3, 5, 7, 9.
        ("large", FsType::Ext4, 25 * 128 * MIB),
        ("xfs", FsType::Xfs, 512 * MIB),
        ("btrfs", FsType::Btrfs, 512 * MIB),
    ] {
        let image = scratch.made(name, fs, size_bytes);
        let uuid = new_uuid();
        set_uuid(&image, fs, uuid).unwrap();
        set_uuid(&image, fs, uuid).unwrap();
        assert_eq!(probe(&image).unwrap(), Probe::FileSystem { fs, uuid, size_bytes, errors: false });
        assert_sound(&image, fs);
        let Some(_mounted) = Mounted::new("a_new_uuid_everywhere_and_still_sound", &image) else { continue };
    }
    let large = scratch.0.path().join("large");
    let expected = uuid::Uuid::from_bytes(uuid_of(&large)).to_string();
    let seed = |output: &str| output.lines().find(|l| l.starts_with("Directory Hash Seed")).map(str::to_owned).unwrap();
    let primary = command("dumpe2fs", &["-h", text(&large)]).unwrap().stdout;
    for group in [1, 3, 5, 7, 9] {
        let superblock = format!("superblock={}", group * 32768);
        let backup = command("dumpe2fs", &["-h", "-o", &superblock, "-o", "blocksize=4096", text(&large)]).unwrap();
        assert!(backup.stdout.contains(&expected), "{group}: {}", backup.stdout);
        assert_eq!(seed(&backup.stdout), seed(&primary));
        assert!(!backup.stderr.contains("checksum"), "{}", backup.stderr);
    }
}

#[test]
fn other_layouts_of_backups() {
    let scratch = Scratch::new();
    for (name, features, block_size) in [
        ("sparse2", "metadata_csum_seed,sparse_super2,^resize_inode", "4096"),
        ("every group", "metadata_csum_seed,^sparse_super,^resize_inode", "4096"),
        ("small blocks", "metadata_csum_seed", "1024"),
        ("bigalloc", "metadata_csum_seed,bigalloc", "4096"),
    ] {
        let image = scratch.image(name, 2304 * MIB);
        let features = format!("metadata_csum,{features}");
        command("mke2fs", &["-q", "-t", "ext4", "-b", block_size, "-O", &features, text(&image)]).unwrap();
        let uuid = new_uuid();
        set_uuid(&image, FsType::Ext4, uuid).unwrap();
        assert_sound(&image, FsType::Ext4);
        let expected = uuid::Uuid::from_bytes(uuid).to_string();
        let all = command("dumpe2fs", &[text(&image)]).unwrap().stdout;
        let backups = all
            .lines()
            .filter_map(|l| l.trim().strip_prefix("Backup superblock at "))
            .map(|l| l.split(',').next().unwrap().to_owned());
        let mut count = 0;
        for backup in backups {
            let at = format!("superblock={backup}");
            let size = format!("blocksize={block_size}");
            let output = command("dumpe2fs", &["-h", "-o", &at, "-o", &size, text(&image)]).unwrap();
            assert!(output.stdout.contains(&expected), "{name}: backup at {backup}");
            count += 1;
        }
        assert!(count > 0, "{name}: {all}");
    }
    let old = scratch.image("no seed", 64 * MIB);
    command("mke2fs", &["-q", "-t", "ext4", "-O", "^metadata_csum_seed", text(&old)]).unwrap();
    assert_eq!(set_uuid(&old, FsType::Ext4, new_uuid()).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_copy_with_a_dirty_journal_gets_a_uuid() {
    let scratch = Scratch::new();
    let image = scratch.made("ext4", FsType::Ext4, 64 * MIB);
    let copy = scratch.0.path().join("copy");
    {
        let Some(mounted) = Mounted::new("a_copy_with_a_dirty_journal_gets_a_uuid", &image) else { return };
        let file = mounted.at.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        std::fs::copy(&image, &copy).unwrap();
    }
    let header = command("dumpe2fs", &["-h", text(&copy)]).unwrap().stdout;
    assert!(header.contains("needs_recovery"), "{header}");
    let uuid = new_uuid();
    set_uuid(&copy, FsType::Ext4, uuid).unwrap();
    assert_sound(&copy, FsType::Ext4);
    let Some(mounted) = Mounted::new("a_copy_with_a_dirty_journal_gets_a_uuid", &copy) else { return };
    assert_eq!(std::fs::read_to_string(mounted.at.path().join("file")).unwrap(), "kept");
    drop(mounted);
    assert!(uuid_of(&image) != uuid && uuid_of(&copy) == uuid);
}

#[test]
fn copies_of_one_template_mount_beside_each_other() {
    let scratch = Scratch::new();
    for fs in FsType::ALL {
        let template = scratch.made(fs.as_str(), fs, 512 * MIB);
        let mut mounts = Vec::new();
        for number in 0..3u8 {
            let image = scratch.0.path().join(format!("{fs}-{number}"));
            command("cp", &["--sparse=always", text(&template), text(&image)]).unwrap();
            set_uuid(&image, fs, new_uuid()).unwrap();
            let Some(mounted) = Mounted::new("copies_of_one_template_mount_beside_each_other", &image) else { return };
            std::fs::write(mounted.at.path().join("number"), [number]).unwrap();
            mounts.push(mounted);
        }
        for (number, mounted) in mounts.iter().enumerate() {
            assert_eq!(std::fs::read(mounted.at.path().join("number")).unwrap(), [number as u8]);
        }
    }
}

#[test]
fn damage_is_named() {
    let scratch = Scratch::new();
    for (fs, size_bytes, at) in [
        (FsType::Ext4, 64 * MIB, 1024 + 0x4c),
        (FsType::Xfs, 300 * MIB, 0x20),
        (FsType::Btrfs, 128 * MIB, 65536 + 0x22),
    ] {
        let image = scratch.made(fs.as_str(), fs, size_bytes);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&image).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        assert!(
            matches!(probe(&image).unwrap(), Probe::Damaged { fs: found, reason } if found == fs && reason.contains("checksum"))
        );
        assert_eq!(check(&image, fs).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(set_uuid(&image, fs, new_uuid()).unwrap_err().kind(), ErrorKind::Corrupt);
        file.write_all_at(&byte, at).unwrap();
        file.set_len(size_bytes / 2).unwrap();
        assert!(matches!(probe(&image).unwrap(), Probe::Damaged { reason, .. } if reason.contains("truncated")));
    }
}

#[test]
fn checks_run_where_the_error_flag_asks_and_change_nothing() {
    let scratch = Scratch::new();
    let image = scratch.made("ext4", FsType::Ext4, 64 * MIB);
    command("debugfs", &["-w", "-R", "ssv state 3", text(&image)]).unwrap();
    assert!(matches!(probe(&image).unwrap(), Probe::FileSystem { errors: true, .. }));
    assert_eq!(check(&image, FsType::Ext4).unwrap(), FileSystemCheck::Clean);
    command("debugfs", &["-w", "-R", "clri <2>", text(&image)]).unwrap();
    let before = std::fs::read(&image).unwrap();
    match check(&image, FsType::Ext4).unwrap() {
        FileSystemCheck::NeedsRepair(said) => assert!(said.contains("oot inode"), "{said}"),
        FileSystemCheck::Clean => panic!("a file system without a root is clean"),
    }
    assert_eq!(grow(&image, FsType::Ext4, None).map_err(|e| e.kind()), Ok(()), "it has its size already");
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(128 * MIB).unwrap();
    assert_eq!(grow(&image, FsType::Ext4, None).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert!(std::fs::read(&image).unwrap()[..before.len()] == before);
}

#[test]
fn unmounted_ext4_grows() {
    let scratch = Scratch::new();
    let grown = |image: &Path, size_bytes: u64| {
        std::fs::OpenOptions::new().write(true).open(image).unwrap().set_len(size_bytes).unwrap();
        grow(image, FsType::Ext4, None).unwrap();
        grow(image, FsType::Ext4, None).unwrap();
        assert_sound(image, FsType::Ext4);
        match probe(image).unwrap() {
            Probe::FileSystem { size_bytes: found, errors: false, .. } => assert_eq!(found, size_bytes),
            other => panic!("{other:?}"),
        }
    };
    let image = scratch.made("ext4", FsType::Ext4, 64 * MIB);
    grown(&image, 1024 * MIB);
    let dirty = scratch.0.path().join("dirty");
    {
        let Some(mounted) = Mounted::new("unmounted_ext4_grows", &image) else { return };
        std::fs::write(mounted.at.path().join("file"), "kept").unwrap();
        // Deleted while it is open: an orphan in the copy.
        let orphan = std::fs::File::create(mounted.at.path().join("orphan")).unwrap();
        orphan.set_len(MIB).unwrap();
        std::fs::remove_file(mounted.at.path().join("orphan")).unwrap();
        orphan.sync_all().unwrap();
        command("sync", &[]).unwrap();
        command("cp", &["--sparse=always", text(&image), text(&dirty)]).unwrap();
    }
    grown(&image, 2048 * MIB);
    grown(&dirty, 2048 * MIB);
    for fs in [FsType::Xfs, FsType::Btrfs] {
        let image = scratch.made(fs.as_str(), fs, 512 * MIB);
        assert_eq!(grow(&image, fs, None).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn mounted_file_systems_grow() {
    let scratch = Scratch::new();
    for fs in FsType::ALL {
        let image = scratch.made(fs.as_str(), fs, 512 * MIB);
        let Some(mounted) = Mounted::new("mounted_file_systems_grow", &image) else { return };
        std::fs::write(mounted.at.path().join("file"), "kept").unwrap();
        let before = mounted.size_bytes();
        grow(&mounted.device, fs, Some(mounted.at.path())).unwrap();
        assert_eq!(mounted.size_bytes(), before);
        std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(1024 * MIB).unwrap();
        mounted.refresh();
        match grow(&mounted.device, fs, Some(mounted.at.path())) {
            Err(error) if fs == FsType::Ext4 && error.kind() == ErrorKind::PermissionDenied => {
                println!("SKIPPED: mounted_file_systems_grow (ext4): {}", error.chain());
                continue;
            }
            result => result.unwrap(),
        }
        assert!(mounted.size_bytes() > before + 400 * MIB, "{fs}: {before} -> {}", mounted.size_bytes());
        grow(&mounted.device, fs, Some(mounted.at.path())).unwrap();
        drop(mounted);
        assert_sound(&image, fs);
        assert!(matches!(probe(&image).unwrap(), Probe::FileSystem { size_bytes, .. } if size_bytes == 1024 * MIB));
    }
}
