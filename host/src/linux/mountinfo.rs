//! `/proc/PID/mountinfo`; proc_pid_mountinfo(5).

use crate::MountEntry;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use volume::{DeviceNumber, Error, Result};

/// Mounts of the calling thread's namespace, oldest first.
pub(super) fn own() -> Result<Vec<MountEntry>> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let table = std::fs::read(path).map_err(|e| Error::io("reading the mount table", e))?;
    parse(&table)
        .ok_or_else(|| Error::internal(format!("the mount table {} has a line that is not understood", path.display())))
}

/// `None` when a line is not what the kernel documents; more optional fields than today's are fine.
pub(super) fn parse(table: &[u8]) -> Option<Vec<MountEntry>> {
    table.split(|&b| b == b'\n').filter(|line| !line.is_empty()).map(parse_line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let mut device = fields.next()?.split(|&b| b == b':');
    let device = DeviceNumber { major: number(device.next()?)?, minor: number(device.next()?)? };
    let root = path(fields.next()?);
    let mounted_at = path(fields.next()?);
    let own_options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    // The source may be empty (two spaces), and very old kernels left the options out.
    let source = text(fields.next()?);
    let super_options = fields.next().unwrap_or_default();
    let has_ro = |options: &[u8]| options.split(|&b| b == b',').any(|o| o == b"ro");
    Some(MountEntry {
        mounted_at,
        root,
        device,
        fs_type,
        source,
        read_only: has_ro(own_options) || has_ro(super_options),
        own_read_only: has_ro(own_options),
        options: super_options.split(|&b| b == b',').filter(|o| !o.is_empty()).map(text).collect(),
        id,
    })
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// The kernel writes space, tab, newline, backslash and `#` as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if byte == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        out.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn the_manual_page_s_line() {
        let line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n";
        let entry = parse(line).unwrap().remove(0);
        assert_eq!((entry.id, entry.device), (36, DeviceNumber { major: 98, minor: 0 }));
        assert_eq!((entry.root, entry.mounted_at), ("/mnt1".into(), "/mnt2".into()));
        assert_eq!((entry.fs_type.as_str(), entry.source.as_str(), entry.read_only), ("ext3", "/dev/root", false));
        assert!(entry.options.contains("errors=continue"));
    }

    #[test]
    fn odd_lines() {
        assert!(parse(b"36 35 98:0 / /a ro - tmpfs  rw\n").unwrap()[0].read_only);
        assert!(parse(b"36 35 98:0 / /a rw - tmpfs none ro\n").unwrap()[0].read_only);
        assert_eq!(parse(b"36 35 98:0 / /a rw - tmpfs  rw\n").unwrap()[0].source, "");
        for damaged in [&b"36 35 98 / /a rw - tmpfs none rw"[..], b"x 35 98:0 / /a rw - a b c", b"36 35 98:0 / /a rw"] {
            assert!(parse(damaged).is_none());
        }
        assert!(own().unwrap().iter().any(|m| m.mounted_at == Path::new("/proc")));
    }

    #[test]
    fn a_huge_table() {
        let line = b"36 35 7:0 / /var/lib/kubelet/pods/x rw shared:1 - ext4 /dev/loop0 rw\n";
        assert_eq!(parse(&line.repeat(100_000)).unwrap().len(), 100_000);
    }

    proptest! {
        #[test]
        fn any_path_survives(bytes in proptest::collection::vec(1u8.., 0..80), id in any::<u64>()) {
            let escaped: Vec<u8> = bytes.iter().flat_map(|&b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                other => vec![other],
            }).collect();
            let mut line = format!("{id} 1 7:256 / /").into_bytes();
            line.extend_from_slice(&escaped);
            line.extend_from_slice(b" rw - ext4 /dev/x rw\n");
            let entry = parse(&line).unwrap().remove(0);
            prop_assert_eq!(&entry.mounted_at.as_os_str().as_bytes()[1..], &bytes[..]);
            prop_assert_eq!(entry.id, id);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in any::<Vec<u8>>()) {
            let _ = parse(&bytes);
        }
    }
}
