//! `nodes/<node id>/alive` of a shared pool: the mark by which others see that a node still reaches the pool.
//!
//! Eight bytes that grow, written in place without fsync(2): the mark of a machine that is gone says nothing, however
//! durable. It exists since the node was registered, so a full pool does not matter where files are overwritten in place
//! (xfs, ext4).

use crate::record::is_entry;
use crate::{Pool, Scope, now_ms};
use host::file::{Access, Dir};
use std::os::unix::fs::FileExt;
use volume::{Error, ErrorKind, NodeId, Result};

const ALIVE: &str = "alive";
const BYTES: usize = size_of::<u64>();

impl Pool {
    /// The next mark: above the last one, and above those that a power loss took.
    pub(crate) fn mark_alive(&self, id: &NodeId) -> Result<()> {
        if self.config.scope != Scope::Shared {
            return Ok(());
        }
        let Some(dir) = self.nodes.find_child(id.as_str())? else {
            return self.known_node(id).map(drop);
        };
        // Opened each time: a network file system hands a file's content on when it is closed.
        let file = dir.open_file(ALIVE, Access::ReadWrite)?;
        let next = mark(&file).unwrap_or(0).saturating_add(1).max(now_ms());
        let failed = |error| Error::io(format!("writing {}", dir.path().join(ALIVE).display()), error);
        file.write_all_at(&next.to_le_bytes(), 0).map_err(failed)
    }

    /// Makes room for the mark of a node that registers.
    pub(crate) fn prepare_mark(&self, dir: &Dir) -> Result<()> {
        if self.config.scope != Scope::Shared || dir.contains(ALIVE)? {
            return Ok(());
        }
        // Whoever was faster made the same.
        dir.publish(ALIVE, &0u64.to_le_bytes()).map(drop)
    }

    pub(crate) fn marks_alive(&self) -> Result<Option<Vec<(NodeId, u64)>>> {
        if self.config.scope != Scope::Shared {
            return Ok(None);
        }
        self.check_reachable()?;
        let mut marks = Vec::new();
        for name in self.nodes.names()?.iter().filter(|name| is_entry(name)) {
            let (Ok(id), Some(dir)) = (NodeId::parse(name), self.nodes.find_child(name)?) else { continue };
            match dir.open_file(ALIVE, Access::Read) {
                Ok(file) => marks.extend(mark(&file).map(|mark| (id, mark))),
                // Registered by a driver that kept no marks.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(marks))
    }
}

/// `None` when it was never written, or a power loss cut it off.
fn mark(file: &std::fs::File) -> Option<u64> {
    let mut bytes = [0; BYTES];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(u64::from_le_bytes(bytes)).filter(|mark| *mark > 0)
}
