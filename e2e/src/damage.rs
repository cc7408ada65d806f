//! Storage that breaks under the driver: a full pool, a pool that disappears, images and records that are damaged or
//! of another version. Each has an error that says so, nothing is made worse, and other volumes go on.

use crate::calls::{Access, MIB, Subject};
use crate::failure::{Context, Failure, Result, ensure};
use crate::lab::{Hawser, Lab, Options, PoolFs, entries, kernel};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::{NODE, give_back, make_directories};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tonic::Code;

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("damage", &reason);
        return Ok(());
    }
    for access in [Access::Ext4, Access::Xfs] {
        report.test(&format!("damage-superblock-{access:?}"), || superblock(hawser, access));
    }
    report.test("damage-file-system-marked-but-whole", || marked(hawser));
    report.test("damage-file-system-that-needs-repair", || needs_repair(hawser));
    report.test("damage-image-truncated", || truncated(hawser));
    report.test("damage-image-truncated-while-mounted", || truncated_while_mounted(hawser));
    report.test("damage-image-replaced", || replaced(hawser));
    report.test("damage-record-corrupt", || record(hawser, &corrupt, &[Code::DataLoss], ""));
    report.test("damage-record-newer", || record(hawser, &newer, &[Code::FailedPrecondition], "newer"));
    report.test("damage-pool-full-thick", || full_of_thick(hawser));
    report.test("damage-pool-full-copy-on-write", || full_of_copies(hawser));
    report.test("damage-pool-disappears", || disappears(hawser));
    crate::health::tests(report, hawser);
    Ok(())
}

/// A server with a volume that is to be damaged (attached, not staged) and one that must not notice.
struct Patient {
    lab: Lab,
    server: Hawser,
    subject: Subject,
    bystander: Subject,
}

impl Patient {
    fn new(hawser: &Path, access: Access, pool_mib: u32) -> Result<Self> {
        let lab = Lab::new(hawser, PoolFs::Xfs, pool_mib)?;
        let server = lab.start(&Options::node(NODE))?;
        let subject = Subject::new("damaged", access);
        let bystander = Subject::new("bystander", Access::Ext4);
        for volume in [&subject, &bystander] {
            make_directories(&lab, volume, NODE)?;
            for call in [volume.create(), volume.attach(NODE)] {
                server.client.call(&call).context(|| format!("{call:?}"))?;
            }
        }
        Ok(Self { lab, server, subject, bystander })
    }

    fn image(&self) -> Result<PathBuf> {
        self.file_of(&self.subject, "image.")
    }

    /// The newest file of the volume's that begins so.
    fn file_of(&self, subject: &Subject, prefix: &str) -> Result<PathBuf> {
        let directory = self.lab.pool().join("volumes").join(subject.id());
        let is_wanted =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        let found = entries(&directory).into_iter().rfind(is_wanted);
        found.ok_or_else(|| Failure::from(format!("no {prefix}* in {}", directory.display())))
    }

    /// Staging the damaged volume fails with one of `codes`; the message says `word`.
    fn ensure_refused(&self, codes: &[Code], word: &str) -> Result<()> {
        match self.server.client.call(&self.subject.stage(&self.lab, NODE)) {
            Ok(_) => Err("the damaged volume was staged".into()),
            Err(status) => {
                ensure(codes.contains(&status.code()), || format!("expected {codes:?}, got {status:?}"))?;
                ensure(status.message().contains(word), || format!("does not say {word:?}: {}", status.message()))
            }
        }
    }

    /// The other volume lives its whole life, and the server still answers for all.
    fn ensure_others_go_on(&self) -> Result<()> {
        let (lab, client) = (&self.lab, &self.server.client);
        for call in [self.bystander.stage(lab, NODE), self.bystander.publish(lab, NODE)] {
            client.call(&call).context(|| "the other volume".to_owned())?;
        }
        std::fs::write(Path::new(&self.bystander.target(lab, NODE)).join("file"), "unharmed")?;
        give_back(lab, client, &self.bystander, NODE).context(|| "the other volume".to_owned())?;
        let volumes = client.volumes().context(|| "listing volumes".to_owned())?;
        ensure(volumes.iter().any(|(id, ..)| *id == self.bystander.id()), || {
            "the other volume is not listed".to_owned()
        })?;
        client.call(&self.bystander.delete()).context(|| "the other volume".to_owned())?;
        ensure(client.probe()?, || "the driver is not ready any more".to_owned())
    }

    /// A damaged volume can be given back; deleting it may be refused, but not hang.
    fn give_back(&self) -> Result<()> {
        give_back(&self.lab, &self.server.client, &self.subject, NODE).context(|| "the damaged volume".to_owned())?;
        let loops = self.lab.loops()?;
        ensure(loops.is_empty(), || format!("loop devices are left: {loops:?}"))?;
        let mounts = self.lab.mounts()?;
        ensure(mounts.is_empty(), || format!("mounts are left: {mounts:?}"))
    }
}

/// Never formatted anew, never mounted, never changed.
fn superblock(hawser: &Path, access: Access) -> Result<()> {
    let patient = Patient::new(hawser, access, 4096)?;
    let image = patient.image()?;
    let file = OpenOptions::new().write(true).open(&image)?;
    // Both begin their superblock before this, and have their magic number and checksum in it.
    file.write_all_at(&[0xa5; 64], if access == Access::Xfs { 8 } else { 1024 + 8 })?;
    file.sync_all()?;
    let before = std::fs::read(&image)?;
    patient.ensure_refused(&[Code::DataLoss], "")?;
    ensure(std::fs::read(&image)? == before, || "the damaged image was changed".to_owned())?;
    patient.ensure_others_go_on()?;
    patient.give_back()
}

/// The superblock's error flag asks for a check; when that finds nothing the volume is used.
fn marked(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 4096)?;
    debugfs(&patient.image()?, "set_super_value state 2")?;
    patient.server.client.call(&patient.subject.stage(&patient.lab, NODE))?;
    patient.ensure_others_go_on()?;
    patient.give_back()
}

/// A repair can lose data, so nobody but an administrator starts one: the message says with what.
fn needs_repair(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 4096)?;
    let image = patient.image()?;
    debugfs(&image, "set_super_value state 2")?;
    debugfs(&image, "clri lost+found")?;
    let before = std::fs::read(&image)?;
    patient.ensure_refused(&[Code::DataLoss], "e2fsck")?;
    ensure(std::fs::read(&image)? == before, || "the damaged image was changed".to_owned())?;
    patient.ensure_others_go_on()?;
    patient.give_back()
}

fn debugfs(image: &Path, request: &str) -> Result<()> {
    kernel::program("debugfs", &["-w", "-R", request, &image.to_string_lossy()]).map(drop)
}

/// Its workload gets errors; it can be given back, and others notice nothing.
fn truncated_while_mounted(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 4096)?;
    let (lab, client) = (&patient.lab, &patient.server.client);
    for call in [patient.subject.stage(lab, NODE), patient.subject.publish(lab, NODE)] {
        client.call(&call)?;
    }
    OpenOptions::new().write(true).open(patient.image()?)?.set_len(1 << 20)?;
    // May fail or not, as long as nothing hangs.
    let _ = std::fs::write(Path::new(&patient.subject.target(lab, NODE)).join("file"), vec![7; 4 << 20]);
    patient.ensure_others_go_on()?;
    patient.give_back()?;
    let again = client
        .call_until_done(&patient.subject.attach(NODE))
        .and_then(|_| client.call(&patient.subject.stage(lab, NODE)));
    ensure(again.as_ref().is_err_and(|status| status.code() == Code::DataLoss), || format!("staged again: {again:?}"))?;
    patient.give_back()
}

fn truncated(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 4096)?;
    OpenOptions::new().write(true).open(patient.image()?)?.set_len(8 << 20)?;
    patient.ensure_refused(&[Code::DataLoss], "")?;
    patient.ensure_others_go_on()?;
    patient.give_back()
}

/// Another file under the image's name is not the image (invariant 4).
fn replaced(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 4096)?;
    let image = patient.image()?;
    let copy = image.with_file_name("copy");
    std::fs::copy(&image, &copy)?;
    std::fs::rename(&copy, &image)?;
    patient.ensure_refused(&[Code::DataLoss, Code::FailedPrecondition], "")?;
    patient.ensure_others_go_on()?;
    patient.give_back()
}

/// Damages the newest record. `NotFound` would make an orchestrator believe that the data is gone.
fn record(hawser: &Path, damage: &dyn Fn(&str) -> String, codes: &[Code], word: &str) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 4096)?;
    let record = patient.file_of(&patient.subject, "record.")?;
    let image = patient.image()?;
    let before = std::fs::read(&image)?;
    let text = std::fs::read_to_string(&record)?;
    std::fs::write(&record, damage(&text))?;
    patient.ensure_refused(codes, word)?;
    patient.ensure_others_go_on()?;
    ensure(std::fs::read(&image)? == before, || "the image was changed".to_owned())
}

fn corrupt(text: &str) -> String {
    text.chars().take(text.len() / 2).collect()
}

/// Whole, but of a format that no driver has yet.
fn newer(text: &str) -> String {
    let body = text.lines().next().unwrap_or_default().replacen("\"format\":1", "\"format\":99", 1);
    format!("{body}\n{{\"crc32c\":{}}}\n", crc32c::crc32c(body.as_bytes()))
}

fn full_of_thick(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 1024)?;
    let mut large = Subject { size_bytes: 700 * MIB, ..Subject::new("large", Access::Block) };
    let thick = |subject: &Subject| match subject.create() {
        crate::client::Call::CreateVolume(mut request) => {
            request.parameters.insert("thick".to_owned(), "true".to_owned());
            crate::client::Call::CreateVolume(request)
        }
        other => other,
    };
    patient.server.client.call(&thick(&large)).context(|| "the first thick volume".to_owned())?;
    let second = Subject { name: "second".to_owned(), ..large.clone() };
    let refused = patient.server.client.call(&thick(&second));
    ensure(refused.as_ref().is_err_and(|status| status.code() == Code::ResourceExhausted), || format!("{refused:?}"))?;
    patient.ensure_others_go_on()?;
    patient.server.client.call(&large.delete())?;
    // What did not fit left nothing behind, so the space is there again.
    large.name = "third".to_owned();
    created_in_the_end(&patient, &thick(&large)).context(|| "after space was freed".to_owned())?;
    patient.server.client.call(&large.delete())?;
    patient.give_back()?;
    patient.server.client.call(&patient.subject.delete())?;
    patient.lab.ensure_clean()
}

/// xfs gives the blocks of deleted files back in the background.
fn created_in_the_end(patient: &Patient, call: &crate::client::Call) -> Result<()> {
    for _ in 0..100 {
        match patient.server.client.call(call) {
            Err(status) if status.code() == Code::ResourceExhausted => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            answer => return answer.map(drop).map_err(Into::into),
        }
    }
    Err("the space did not come back within 5 s".into())
}

/// Thin volumes and snapshots share blocks, so overwriting can run out of space: the writer gets an error, and when
/// there is space again the volume works and what was acknowledged before is there.
fn full_of_copies(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 512)?;
    let (lab, client) = (&patient.lab, &patient.server.client);
    let big = Subject { size_bytes: 256 * MIB, ..Subject::new("overwritten", Access::Block) };
    make_directories(lab, &big, NODE)?;
    for call in [big.create(), big.attach(NODE), big.stage(lab, NODE), big.publish(lab, NODE)] {
        client.call(&call).context(|| format!("{call:?}"))?;
    }
    let target = PathBuf::from(big.target(lab, NODE));
    fill(&target, 1, 200)?;
    client.call(&big.snapshot("before")).context(|| "the snapshot".to_owned())?;
    let overwritten = fill(&target, 2, 256);
    ensure(overwritten.is_err(), || "a full pool gave no error to the writer".to_owned())?;
    ensure(client.probe()?, || "the driver is not ready because its pool is full".to_owned())?;
    ensure(patient.server.log().contains("the pool is full"), || "the log does not say that it is full".to_owned())?;
    let refused = client.call(&Subject { size_bytes: 64 * MIB, ..Subject::new("more", Access::Ext4) }.create());
    if let Err(status) = refused {
        ensure(status.code() == Code::ResourceExhausted, || format!("creating on a full pool: {status:?}"))?;
    } else {
        client.call(&Subject::new("more", Access::Ext4).delete())?;
    }
    client.call(&crate::calls::delete_snapshot("before")).context(|| "deleting on a full pool".to_owned())?;
    fill(&target, 3, 200).context(|| "after space was freed".to_owned())?;
    give_back(lab, client, &big, NODE)?;
    client.call(&big.delete())?;
    patient.give_back()?;
    patient.ensure_others_go_on()?;
    client.call(&patient.subject.delete())?;
    lab.ensure_clean()
}

fn fill(device: &Path, byte: u8, mib: usize) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(device)?;
    let block = vec![byte; 1 << 20];
    for _ in 0..mib {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(())
}

/// The pool's file system is unmounted under a running driver: nothing may be made in the empty directory below it.
fn disappears(hawser: &Path) -> Result<()> {
    let patient = Patient::new(hawser, Access::Ext4, 1024)?;
    kernel::program("umount", &["--lazy", &patient.lab.pool().to_string_lossy()])?;
    let created = patient.server.client.call(&Subject::new("misplaced", Access::Ext4).create());
    let misplaced = entries(&patient.lab.pool());
    ensure(misplaced.is_empty(), || format!("made where the pool was: {misplaced:?}"))?;
    if let Err(status) = created {
        let codes = [Code::Unavailable, Code::FailedPrecondition];
        ensure(codes.contains(&status.code()), || format!("expected {codes:?}, got {status:?}"))?;
    }
    Ok(())
}
