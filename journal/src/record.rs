//! One JSON file, replaced atomically and durably, with the format it is written in.

use host::file::Dir;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use volume::{Error, ErrorKind, Result};

/// The format this driver writes. A file of a newer one is refused, never guessed at.
pub const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 64 << 10;

#[derive(Serialize)]
struct Written<'a, T> {
    format: u32,
    #[serde(flatten)]
    value: &'a T,
}

#[derive(Deserialize)]
struct Header {
    format: u32,
}

/// `None` when there is no such file; `Corrupt` when it cannot be read as `T`, `Unsupported` when a newer driver wrote it.
pub fn read<T: DeserializeOwned>(dir: &Dir, name: &str) -> Result<Option<T>> {
    bytes(dir, name)?.map(|bytes| decode(dir, name, &bytes)).transpose()
}

pub(crate) fn bytes(dir: &Dir, name: &str) -> Result<Option<Vec<u8>>> {
    match dir.read(name, MAX_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn decode<T: DeserializeOwned>(dir: &Dir, name: &str, bytes: &[u8]) -> Result<T> {
    let path = || dir.path().join(name);
    let corrupt = |source: serde_json::Error| {
        Error::with_source(ErrorKind::Corrupt, format!("{} is damaged", path().display()), source)
    };
    let header: Header = serde_json::from_slice(bytes).map_err(corrupt)?;
    if header.format > FORMAT {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} has format {}, this driver knows up to {FORMAT}: it was written by a newer hawser; run that one",
                path().display(),
                header.format
            ),
        ));
    }
    serde_json::from_slice(bytes).map_err(corrupt)
}

/// Makes the file, or fails with `AlreadyExists` when the name is taken.
pub fn create<T: Serialize>(dir: &Dir, name: &str, value: &T) -> Result<()> {
    if dir.publish(name, &encode(value)?)? {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::AlreadyExists, format!("{} is there already", dir.path().join(name).display())))
    }
}

/// Makes the file or replaces it; a reader sees the old content or the new one, also after a power loss.
pub fn replace<T: Serialize>(dir: &Dir, name: &str, value: &T) -> Result<()> {
    let staged = format!("{name}.new");
    // Left by a crash between the two steps below.
    dir.remove_file(&staged)?;
    create(dir, &staged, value)?;
    if !dir.rename_noreplace(&staged, dir, name)? {
        dir.exchange(&staged, dir, name)?;
        dir.remove_file(&staged)?;
    }
    Ok(())
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(&Written { format: FORMAT, value })
        .map_err(|source| Error::with_source(ErrorKind::Internal, "encoding a record as JSON", source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::Effects;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Life {
        node: String,
    }

    fn life(node: &str) -> Life {
        Life { node: node.to_owned() }
    }

    #[test]
    fn replaces_and_reads_back() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path(), Effects::default()).unwrap();
        assert_eq!(read::<Life>(&dir, "node.json").unwrap(), None);
        for node in ["a", "b", "c"] {
            replace(&dir, "node.json", &life(node)).unwrap();
            assert_eq!(read(&dir, "node.json").unwrap(), Some(life(node)));
        }
        std::fs::write(temporary.path().join("node.json.new"), "half").unwrap();
        replace(&dir, "node.json", &life("d")).unwrap();
        assert_eq!(dir.names().unwrap(), ["node.json"]);
        assert_eq!(create(&dir, "node.json", &life("e")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn damaged_and_newer_files_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path(), Effects::default()).unwrap();
        for (content, kind) in [
            ("", ErrorKind::Corrupt),
            ("{\"format\":1}", ErrorKind::Corrupt),
            ("{\"format\":2,\"name\":\"x\"}", ErrorKind::Unsupported),
            ("{\"node\":\"x\"}", ErrorKind::Corrupt),
        ] {
            std::fs::write(temporary.path().join("node.json"), content).unwrap();
            assert_eq!(read::<Life>(&dir, "node.json").unwrap_err().kind(), kind, "{content}");
        }
    }
}
