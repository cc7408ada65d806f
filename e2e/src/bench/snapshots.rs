//! Snapshots, clones and changed blocks of a large thin image: what they cost by extents and by bytes.

use super::{lab, series, timed, unmeasured};
use crate::calls::{Access, Subject, delete_snapshot, snapshot_id};
use crate::client::{Client, block};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Lab, Options, entries, kernel};
use crate::scenario::NODE;
use csi_proto::csi;
use csi_proto::csi::snapshot_metadata_client::SnapshotMetadataClient;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tonic::{Code, Status};

const BLOCK: u64 = 4096;
/// Extents that differ between two snapshots.
const CHANGED: u64 = 1000;

/// An image of a size with so many extents of one block each.
struct Shape {
    name: &'static str,
    size_bytes: u64,
    extents: u64,
}

pub(super) fn measure(hawser: &Path, quick: bool) -> Result<()> {
    let (many, few, rounds) = if quick { (10_000, 1_000, 1) } else { (100_000, 1_000, 5) };
    let shapes = [
        Shape { name: "1 TiB many", size_bytes: 1 << 40, extents: many },
        Shape { name: "1 TiB few", size_bytes: 1 << 40, extents: few },
        Shape { name: "1 GiB many", size_bytes: 1 << 30, extents: many },
    ];
    let lab = lab(hawser, 2048)?;
    let server = lab.start(&Options::node(NODE))?;
    let mut prepared = Vec::new();
    for (number, shape) in shapes.iter().enumerate() {
        let size_bytes = i64::try_from(shape.size_bytes).unwrap_or(i64::MAX);
        let volume = Subject { size_bytes, ..Subject::new(format!("v{number}"), Access::Block) };
        server.client.call(&volume.create())?;
        let image = image_of(&lab, &volume)?;
        write_extents(&image, shape, shape.extents)?;
        ensure_extents(&image, shape.extents)?;
        prepared.push((volume, image));
    }
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut metadata: BTreeMap<String, std::result::Result<Vec<f64>, Status>> = BTreeMap::new();
    for round in 0..rounds {
        for (shape, (volume, image)) in shapes.iter().zip(&prepared) {
            let (before, after) = (format!("{}-before-{round}", volume.name), format!("{}-after-{round}", volume.name));
            let clone = Subject { size_bytes: volume.size_bytes, ..Subject::new(format!("c-{before}"), Access::Block) };
            let clone = clone.restored_from(&before);
            let mut time = |what: &str, call| -> Result<()> {
                let took = timed(|| server.client.call(&call).map(drop).context(|| what.to_owned()))?;
                times.entry(format!("{what} {}", shape.name)).or_default().push(took);
                Ok(())
            };
            time("snapshot", volume.snapshot(&before))?;
            time("clone", clone.create())?;
            write_extents(image, shape, CHANGED.min(shape.extents))?;
            server.client.call(&volume.snapshot(&after))?;
            note(
                &mut metadata,
                format!("allocated {}", shape.name),
                allocated(&server.client, &before, shape.extents)?,
            );
            note(&mut metadata, format!("delta {}", shape.name), delta(&server.client, &before, &after)?);
            server.client.call(&clone.delete())?;
            for snapshot in [&before, &after] {
                server.client.call(&delete_snapshot(snapshot))?;
            }
        }
    }
    for (name, samples) in &times {
        series("snapshots", name, "ms", samples);
    }
    for (name, result) in &metadata {
        match result {
            Ok(samples) => series("snapshots", name, "ms", samples),
            Err(status) => unmeasured("snapshots", name, &format!("it answers {:?}", status.code())),
        }
    }
    for (volume, _) in &prepared {
        server.client.call(&volume.delete())?;
    }
    server.stop()
}

fn image_of(lab: &Lab, volume: &Subject) -> Result<PathBuf> {
    let directory = lab.pool().join("volumes").join(volume.id());
    let is_image = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("image."));
    let image = entries(&directory).into_iter().find(is_image);
    Ok(image.ok_or_else(|| format!("there is no image in {}", directory.display()))?)
}

/// One block in each of the first `count` equal parts of the image, with a hole after it. Nobody has it attached.
fn write_extents(image: &Path, shape: &Shape, count: u64) -> Result<()> {
    let file = File::options().write(true).open(image)?;
    let stride = shape.size_bytes / shape.extents / BLOCK * BLOCK;
    ensure(stride >= 2 * BLOCK, || format!("{} has no room for holes between {} blocks", shape.name, shape.extents))?;
    for number in 0..count {
        file.write_all_at(&[0xa5; BLOCK as usize], number * stride)?;
    }
    Ok(file.sync_all()?)
}

/// filefrag(8) lists what FIEMAP tells, one line each; its own count is of fragments on the disk.
fn ensure_extents(image: &Path, expected: u64) -> Result<()> {
    let listed = kernel::program("filefrag", &["-v", &image.to_string_lossy()])?;
    let is_extent = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n.trim().parse::<u64>().is_ok());
    let count = listed.lines().filter(is_extent).count();
    ensure(u64::try_from(count).is_ok_and(|count| count >= expected), || {
        format!("{} was to have {expected} extents and has {count}", image.display())
    })
}

type Measured = std::result::Result<f64, Status>;

fn note(all: &mut BTreeMap<String, std::result::Result<Vec<f64>, Status>>, name: String, measured: Measured) {
    let samples = all.entry(name).or_insert_with(|| Ok(Vec::new()));
    match (samples, measured) {
        (Ok(samples), Ok(took)) => samples.push(took),
        (samples, Err(status)) => *samples = Err(status),
        (Err(_), Ok(_)) => {}
    }
}

/// GetMetadataAllocated to its end. Only UNIMPLEMENTED is no failure.
fn allocated(client: &Client, snapshot: &str, extents: u64) -> Result<Measured> {
    let request = csi::GetMetadataAllocatedRequest { snapshot_id: snapshot_id(snapshot), ..Default::default() };
    let mut service = SnapshotMetadataClient::new(client.channel());
    let began = Instant::now();
    let read = block(async move {
        let mut stream = service.get_metadata_allocated(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(message) = stream.message().await? {
            bytes += message.block_metadata.iter().map(|block| block.size_bytes).sum::<i64>();
        }
        Ok(bytes)
    });
    judge(read, began, extents, "GetMetadataAllocated")
}

fn delta(client: &Client, base: &str, target: &str) -> Result<Measured> {
    let request = csi::GetMetadataDeltaRequest {
        base_snapshot_id: snapshot_id(base),
        target_snapshot_id: snapshot_id(target),
        ..Default::default()
    };
    let mut service = SnapshotMetadataClient::new(client.channel());
    let began = Instant::now();
    let read = block(async move {
        let mut stream = service.get_metadata_delta(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(message) = stream.message().await? {
            bytes += message.block_metadata.iter().map(|block| block.size_bytes).sum::<i64>();
        }
        Ok(bytes)
    });
    judge(read, began, CHANGED, "GetMetadataDelta")
}

/// What was told must be at least what is there, or its speed says nothing.
fn judge(read: std::result::Result<i64, Status>, began: Instant, blocks: u64, call: &str) -> Result<Measured> {
    match read {
        Err(status) if status.code() == Code::Unimplemented => Ok(Err(status)),
        Err(status) => Err(status).context(|| call.to_owned()),
        Ok(bytes) => {
            let took = super::ms(began.elapsed());
            ensure(u64::try_from(bytes).is_ok_and(|bytes| bytes >= blocks * BLOCK), || {
                format!("{call} tells of {bytes} bytes, of at least {} that there are", blocks * BLOCK)
            })?;
            Ok(Ok(took))
        }
    }
}
