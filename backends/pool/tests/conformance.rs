//! The pool passes the suite that every backend passes, on each file system that it can stand on.
#![allow(clippy::unwrap_used)] // The helper below is no test function.

use conformance::backend::Subject;
use conformance::scratch::{ScratchPool, set_image_bytes};
use host::{Effects, LinuxHost};
use pool::{Pool, PoolConfig};
use std::sync::Arc;
use volume::{Backend, BackendName, FsType};

fn subject(fs: FsType) -> Result<Subject, String> {
    let scratch = ScratchPool::new(fs, 2 << 30)?;
    let directory = scratch.path().join("pool");
    let volumes = directory.join("volumes");
    let open = move || -> Arc<Pool> {
        let config = PoolConfig::new(BackendName::parse("pool").unwrap(), &directory);
        Arc::new(Pool::open(config, Arc::new(LinuxHost::new(Effects::default())), Effects::default()).unwrap())
    };
    let pool = open();
    Ok(Subject {
        backend: pool.clone(),
        connector: pool,
        another: Box::new(move || open() as Arc<dyn Backend>),
        write: conformance::backend::write_device(),
        set_image_bytes: Box::new(move |id, bytes| set_image_bytes(&volumes.join(id.as_str()), bytes)),
        keep: Box::new(scratch),
    })
}

conformance::backend_suite!(ext4, || super::super::subject(volume::FsType::Ext4));
conformance::backend_suite!(xfs, || super::super::subject(volume::FsType::Xfs));
conformance::backend_suite!(btrfs, || super::super::subject(volume::FsType::Btrfs));
