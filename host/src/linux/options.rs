//! Mount flags from requests, per file system: parsed into keys of their own or refused, never passed on as text.

use crate::sys::mount::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
};
use std::collections::BTreeMap;
use volume::{Error, FsType, Result};

/// How to mount, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) read_only: bool,
    /// MOUNT_ATTR_* of the mount.
    pub(crate) attributes: u64,
    /// Keys of the file system, each with its value or a mere flag.
    pub(crate) keys: BTreeMap<&'static str, Option<String>>,
}

/// What one flag does.
enum Meaning {
    Attribute(u64),
    Key(&'static str),
    KeyValue(&'static str),
    ReadOnly,
    /// Always so, asked for or not.
    Forced,
}

/// Whether [`crate::Host::mount`] takes all of `flags`: for checking a request before anything is done.
pub fn check_mount_flags(fs: FsType, flags: &[String]) -> Result<()> {
    plan(fs, false, flags).map(drop)
}

/// `InvalidArgument`, listing the known flags, for one that is not on the list of `fs`, that has a comma, an
/// unexpected value, or contradicts another.
pub(crate) fn plan(fs: FsType, read_only: bool, flags: &[String]) -> Result<Options> {
    // An image may hold setuid programs and device nodes of whoever made it.
    let mut options = Options { read_only, attributes: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, keys: BTreeMap::new() };
    match fs {
        // An image that asks for errors=panic must not stop the machine.
        FsType::Ext4 => options.keys.insert("errors", Some("remount-ro".to_owned())),
        // A clone has its original's UUID until it was mounted or changed.
        FsType::Xfs => options.keys.insert("nouuid", None),
        FsType::Btrfs => None,
    };
    for flag in flags {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag.as_str(), None),
        };
        match meaning(fs, name, value).ok_or_else(|| refused(fs, flag))? {
            Meaning::Attribute(bits) => options.attributes |= bits,
            Meaning::Key(key) => drop(options.keys.insert(key, None)),
            Meaning::KeyValue(key) => drop(options.keys.insert(key, value.map(str::to_owned))),
            Meaning::ReadOnly => options.read_only = true,
            Meaning::Forced => {}
        }
    }
    for (one, other) in [("discard", "nodiscard"), ("noatime", "relatime")] {
        if flags.iter().any(|f| f == one) && flags.iter().any(|f| f == other) {
            return Err(Error::invalid(format!("mount flags {one} and {other} contradict each other")));
        }
    }
    if options.read_only {
        options.attributes |= MOUNT_ATTR_RDONLY;
    }
    Ok(options)
}

fn meaning(fs: FsType, name: &str, value: Option<&str>) -> Option<Meaning> {
    use FsType::{Btrfs, Ext4, Xfs};
    Some(match (fs, name, value) {
        (_, "noatime", None) => Meaning::Attribute(MOUNT_ATTR_NOATIME),
        (_, "nodiratime", None) => Meaning::Attribute(MOUNT_ATTR_NODIRATIME),
        (_, "noexec", None) => Meaning::Attribute(MOUNT_ATTR_NOEXEC),
        (_, "ro", None) => Meaning::ReadOnly,
        // relatime is the kernel's default.
        (_, "relatime" | "nosuid" | "nodev", None) | (Xfs, "nouuid", None) => Meaning::Forced,
        (Ext4, "errors", Some("remount-ro")) => Meaning::Forced,
        (_, "lazytime", None) => Meaning::Key("lazytime"),
        (_, "sync", None) => Meaning::Key("sync"),
        (_, "dirsync", None) => Meaning::Key("dirsync"),
        (_, "discard", None) => Meaning::Key("discard"),
        (_, "nodiscard", None) => Meaning::Key("nodiscard"),
        (Ext4 | Btrfs, "barrier", None) => Meaning::Key("barrier"),
        (Ext4, "data", Some("ordered" | "journal")) => Meaning::KeyValue("data"),
        (Ext4 | Btrfs, "commit", Some(seconds)) if is_number(seconds, 1, 300) => Meaning::KeyValue("commit"),
        (Btrfs, "compress", Some(how)) if is_compression(how) => Meaning::KeyValue("compress"),
        _ => return None,
    })
}

fn is_number(text: &str, least: u32, most: u32) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u32>().is_ok_and(|n| (least..=most).contains(&n))
}

fn is_compression(text: &str) -> bool {
    match text.split_once(':') {
        None => matches!(text, "zlib" | "lzo" | "zstd"),
        Some(("zlib", level)) => is_number(level, 1, 9),
        Some(("zstd", level)) => is_number(level, 1, 15),
        Some(_) => false,
    }
}

fn refused(fs: FsType, flag: &str) -> Error {
    let own = match fs {
        FsType::Ext4 => "barrier, commit=1..300, data=ordered|journal",
        FsType::Xfs => "nouuid",
        FsType::Btrfs => "barrier, commit=1..300, compress=zlib[:1-9]|lzo|zstd[:1-15]",
    };
    let why = match flag.split('=').next() {
        Some("nobarrier") => "loses data that was acknowledged when the power fails",
        _ if flag.contains(',') => "holds a comma; give each flag by itself",
        _ => "is not one this driver passes on",
    };
    Error::invalid(format!(
        "mount flag {flag:?} {why}; for {} the known ones are dirsync, discard, lazytime, noatime, nodiratime, \
         nodiscard, noexec, relatime, ro, sync, {own}",
        fs.as_str()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flags(flags: &[&str]) -> Vec<String> {
        flags.iter().map(|&f| f.to_owned()).collect()
    }

    #[test]
    fn what_is_known_becomes_keys() {
        let ext4 =
            plan(FsType::Ext4, false, &flags(&["noatime", "commit=5", "data=journal", "discard", "ro"])).unwrap();
        assert!(ext4.read_only);
        assert_eq!(ext4.attributes, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME | MOUNT_ATTR_RDONLY);
        let keys: Vec<_> = ext4.keys.iter().map(|(k, v)| (*k, v.as_deref())).collect();
        assert_eq!(
            keys,
            [("commit", Some("5")), ("data", Some("journal")), ("discard", None), ("errors", Some("remount-ro"))]
        );
        assert!(plan(FsType::Xfs, false, &[]).unwrap().keys.contains_key("nouuid"));
        assert!(plan(FsType::Btrfs, true, &flags(&["compress=zstd:3"])).unwrap().read_only);
    }

    #[test]
    fn what_is_not_is_refused_with_the_list() {
        for (fs, flag) in [
            (FsType::Ext4, "noatime,errors=panic"),
            (FsType::Ext4, "errors=panic"),
            (FsType::Ext4, "errors=remount-ro,usrjquota=x"),
            (FsType::Ext4, "data=writeback"),
            (FsType::Ext4, "commit=0"),
            (FsType::Ext4, "commit=+5"),
            (FsType::Ext4, "commit="),
            (FsType::Ext4, "nobarrier"),
            (FsType::Ext4, "barrier=0"),
            (FsType::Ext4, "suid"),
            (FsType::Ext4, ""),
            (FsType::Ext4, "=x"),
            (FsType::Ext4, "noatime "),
            (FsType::Xfs, "norecovery"),
            (FsType::Xfs, "logdev=/dev/sda"),
            (FsType::Btrfs, "subvol=/"),
            (FsType::Btrfs, "device=/dev/sda"),
            (FsType::Btrfs, "compress=zstd:99"),
            (FsType::Btrfs, "compress=lzo:1"),
        ] {
            let error = plan(fs, false, &flags(&[flag])).unwrap_err();
            assert_eq!(error.kind(), volume::ErrorKind::InvalidArgument, "{flag}");
            assert!(error.to_string().contains("noatime"), "{error}");
        }
        assert!(plan(FsType::Ext4, false, &flags(&["discard", "nodiscard"])).is_err());
    }

    proptest! {
        #[test]
        fn no_text_gets_through(flag in ".{0,40}") {
            for fs in FsType::ALL {
                if let Ok(options) = plan(fs, false, std::slice::from_ref(&flag)) {
                    let plain = |v: &String| v.bytes().all(|b| b.is_ascii_alphanumeric() || b"-:".contains(&b));
                    prop_assert!(options.keys.values().flatten().all(plain));
                    prop_assert_eq!(options.attributes & MOUNT_ATTR_NODEV, MOUNT_ATTR_NODEV);
                }
            }
        }
    }
}
