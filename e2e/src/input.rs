//! Bad input over the wire: each has the code that CSI gives for it and a message that helps, and changes nothing.

use crate::calls::{Access, MIB, Subject, snapshot_id};
use crate::client::{Call, Client};
use crate::failure::{Context, Result, ensure};
use crate::lab::{Lab, Options, PoolFs, kernel};
use crate::missing_privilege;
use crate::report::Report;
use crate::scenario::{NODE, give_back, make_directories};
use csi_proto::csi;
use csi_proto::csi::volume_capability::access_mode::Mode;
use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use std::path::Path;
use tonic::Code;

/// A request, the codes that CSI allows for it, and a word that its message must have.
struct Case {
    name: String,
    call: Call,
    codes: &'static [Code],
    says: &'static str,
}

const INVALID: &[Code] = &[Code::InvalidArgument];
const RANGE: &[Code] = &[Code::OutOfRange];
const ABSENT: &[Code] = &[Code::NotFound];
const STATE: &[Code] = &[Code::FailedPrecondition];

pub(crate) fn suite(report: &Report, hawser: &Path) -> Result<()> {
    if let Some(reason) = missing_privilege() {
        report.skipped("input", &reason);
        return Ok(());
    }
    let lab = Lab::new(hawser, PoolFs::Xfs, 4096)?;
    let server = lab.start(&Options::node(NODE))?;
    let client = &server.client;
    for name in good_names() {
        report.test(&format!("input-name-{:?}-is-fine", name.chars().take(20).collect::<String>()), || {
            let subject = Subject::new(&name, Access::Ext4);
            client.call(&subject.create())?;
            client.call(&subject.delete()).map(drop).map_err(Into::into)
        });
    }
    report.test("input-mode-unknown-is-one-node", || mode_unknown(client));
    let staged = Subject::new("staged", Access::Ext4);
    make_directories(&lab, &staged, NODE)?;
    let snapshot = "of-staged";
    for call in [staged.create(), staged.attach(NODE), staged.stage(&lab, NODE), staged.snapshot(snapshot)] {
        client.call(&call).context(|| format!("{call:?}"))?;
    }
    let cases =
        creation().into_iter().chain(sources(&staged, snapshot)).chain(ids(&lab, &staged)).chain(paths(&lab, &staged)?);
    for case in cases.chain(contexts(&lab, &staged)) {
        report.test(&format!("input-{}", case.name), || case.check(client));
    }
    report.test("input-publish-below-missing-directories", || below_missing(&lab, client, &staged));
    report.test("input-leaves-nothing", || {
        // All of that has changed nothing for the volume that was there.
        client.call(&staged.publish(&lab, NODE))?;
        std::fs::write(Path::new(&staged.target(&lab, NODE)).join("file"), "still writable")?;
        client.call(&crate::calls::delete_snapshot(snapshot))?;
        give_back(&lab, client, &staged, NODE)?;
        client.call(&staged.delete())?;
        kernel::program("umount", &[&lab.path("published").join("foreign").to_string_lossy()])?;
        lab.ensure_clean()
    });
    server.stop()
}

impl Case {
    fn check(&self, client: &Client) -> Result<()> {
        match client.call(&self.call) {
            Ok(answer) => {
                ensure(self.codes.contains(&Code::Ok), || format!("answered OK, {answer:?}; expected {:?}", self.codes))
            }
            Err(status) => {
                ensure(self.codes.contains(&status.code()), || format!("expected {:?}, got {status:?}", self.codes))?;
                ensure(status.message().contains(self.says), || {
                    format!("the message does not say {:?}: {}", self.says, status.message())
                })
            }
        }
    }
}

/// CSI allows any Unicode but some control characters.
fn good_names() -> Vec<String> {
    let mut names: Vec<String> =
        ["a/b", "..", "../../etc/passwd", "db[0]", "my volume", "line\nbreak", "Größe-音量", "-rf", "."]
            .map(str::to_owned)
            .to_vec();
    names.push("n".repeat(128));
    names
}

/// Swarm sends it; it is taken for the strictest mode.
fn mode_unknown(client: &Client) -> Result<()> {
    let subject = Subject::new("unknown", Access::Ext4);
    if let Call::CreateVolume(mut request) = subject.create() {
        for capability in &mut request.volume_capabilities {
            capability.access_mode = Some(AccessMode { mode: Mode::Unknown.into() });
        }
        client.call(&Call::CreateVolume(request))?;
    }
    // The same volume, then.
    client.call(&subject.create())?;
    client.call(&subject.delete()).map(drop).map_err(Into::into)
}

fn creation() -> Vec<Case> {
    let base = || match Subject::new("refused", Access::Ext4).create() {
        Call::CreateVolume(request) => request,
        _ => csi::CreateVolumeRequest::default(),
    };
    let case = |name: &str, codes, says, change: &dyn Fn(&mut csi::CreateVolumeRequest)| {
        let mut request = base();
        change(&mut request);
        Case { name: format!("create-{name}"), call: Call::CreateVolume(request), codes, says }
    };
    let sized = |required_bytes, limit_bytes| Some(csi::CapacityRange { required_bytes, limit_bytes });
    let mounted = |fs_type: &str| csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() })),
    };
    let parameter = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    vec![
        case("no-name", INVALID, "name", &|r| r.name.clear()),
        case("name-of-129-bytes", INVALID, "128", &|r| r.name = "n".repeat(129)),
        case("name-with-nul", INVALID, "U+0000", &|r| r.name = "a\0b".to_owned()),
        case("no-capability", INVALID, "capabilit", &|r| r.volume_capabilities.clear()),
        case("size-negative", RANGE, "-1", &|r| r.capacity_range = sized(-1, 0)),
        case("size-limit-negative", RANGE, "-5", &|r| r.capacity_range = sized(0, -5)),
        case("size-huge", RANGE, "", &|r| r.capacity_range = sized(i64::MAX, 0)),
        case("size-limit-below-required", RANGE, "limit", &|r| r.capacity_range = sized(2 * MIB, MIB)),
        case("size-limit-tiny", RANGE, "", &|r| r.capacity_range = sized(0, 1)),
        case("parameter-unknown", INVALID, "fsType", &|r| r.parameters = parameter("fstype", "ext4")),
        case("parameter-thick-perhaps", INVALID, "thick", &|r| r.parameters = parameter("thick", "perhaps")),
        case("parameter-backend-unknown", INVALID, "", &|r| r.parameters = parameter("backend", "nowhere")),
        case("file-system-unknown", INVALID, "ext4", &|r| r.parameters = parameter("fsType", "ntfs")),
        case("file-system-of-capability-unknown", INVALID, "vfat", &|r| {
            r.volume_capabilities = vec![mounted("vfat")];
        }),
        case("file-systems-differ", INVALID, "xfs", &|r| r.parameters = parameter("fsType", "xfs")),
        case("block-and-mount", INVALID, "block", &|r| r.volume_capabilities.push(Access::Block.capability())),
        case("block-on-many-nodes", INVALID, "multi-node", &|r| {
            let mut block = Access::Block.capability();
            block.access_mode = Some(AccessMode { mode: Mode::MultiNodeMultiWriter.into() });
            r.volume_capabilities = vec![block];
        }),
    ]
}

fn sources(staged: &Subject, snapshot: &str) -> Vec<Case> {
    let case = |name: &str, codes, subject: Subject| Case {
        name: format!("create-from-{name}"),
        call: subject.create(),
        codes,
        says: "",
    };
    let fresh = |access| Subject::new("refused", access);
    vec![
        case("snapshot-absent", ABSENT, fresh(Access::Ext4).restored_from("nobody")),
        case("volume-absent", ABSENT, fresh(Access::Ext4).cloned_from(&fresh(Access::Ext4))),
        case("snapshot-of-another-mode", INVALID, fresh(Access::Block).restored_from(snapshot)),
        case("volume-of-another-mode", INVALID, fresh(Access::Block).cloned_from(staged)),
        case("snapshot-of-another-file-system", INVALID, fresh(Access::Xfs).restored_from(snapshot)),
        case(
            "snapshot-larger-than-the-volume",
            RANGE,
            Subject { size_bytes: staged.size_bytes / 2, ..fresh(Access::Ext4).restored_from(snapshot) },
        ),
        case("nothing-but-another-size", &[Code::AlreadyExists], Subject { size_bytes: 96 * MIB, ..staged.clone() }),
    ]
}

/// Ids of others, empty ones, and ones that try to be paths.
fn ids(lab: &Lab, staged: &Subject) -> Vec<Case> {
    let mut cases = Vec::new();
    for (id, is_empty) in [("", true), ("vol-0123456789", false), ("../../etc", false), ("pool.v../../../etc", false)] {
        let absent = if is_empty { INVALID } else { ABSENT };
        let gone = if is_empty { INVALID } else { &[Code::Ok] as &[Code] };
        let mut add = |name: &str, codes, call| {
            cases.push(Case { name: format!("{name}-of-{id:?}"), call, codes, says: "" });
        };
        add(
            "delete",
            gone,
            Call::DeleteVolume(csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() }),
        );
        add(
            "delete-snapshot",
            gone,
            Call::DeleteSnapshot(csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() }),
        );
        if let Call::ControllerPublish(request) = staged.attach(NODE) {
            add(
                "attach",
                absent,
                Call::ControllerPublish(csi::ControllerPublishVolumeRequest { volume_id: id.to_owned(), ..request }),
            );
        }
        if let Call::ControllerExpand(request) = staged.expand(96 * MIB) {
            add(
                "expand",
                absent,
                Call::ControllerExpand(csi::ControllerExpandVolumeRequest { volume_id: id.to_owned(), ..request }),
            );
        }
        if let Call::NodeStage(request) = staged.stage(lab, NODE) {
            add("stage", absent, Call::NodeStage(csi::NodeStageVolumeRequest { volume_id: id.to_owned(), ..request }));
        }
        add(
            "snapshot",
            absent,
            Call::CreateSnapshot(csi::CreateSnapshotRequest {
                source_volume_id: id.to_owned(),
                name: "refused".to_owned(),
                ..Default::default()
            }),
        );
    }
    let attach = |name: &str, codes, call| Case { name: format!("attach-{name}"), call, codes, says: "" };
    cases.push(attach("to-no-node", INVALID, staged.attach("")));
    cases.push(attach("to-a-node-unknown", ABSENT, staged.attach("nobody")));
    cases.push(attach("to-a-node-that-is-a-path", &[Code::NotFound, Code::InvalidArgument], staged.attach("../n1")));
    cases.push(Case {
        name: "snapshot-name-of-another-volume".to_owned(),
        call: Call::CreateSnapshot(csi::CreateSnapshotRequest {
            source_volume_id: snapshot_id("not-a-volume"),
            name: "of-staged".to_owned(),
            ..Default::default()
        }),
        codes: &[Code::NotFound, Code::AlreadyExists],
        says: "",
    });
    cases.push(Case { name: "delete-while-staged".to_owned(), call: staged.delete(), codes: STATE, says: "" });
    cases.push(Case { name: "expand-negative".to_owned(), call: staged.expand(-1), codes: RANGE, says: "-1" });
    cases
}

/// Some orchestrators make only a part of the path.
fn below_missing(lab: &Lab, client: &Client, staged: &Subject) -> Result<()> {
    let target = lab.path("published").join("a/b/c/d/target").to_string_lossy().into_owned();
    if let Call::NodePublish(mut request) = staged.publish(lab, NODE) {
        request.target_path.clone_from(&target);
        client.call(&Call::NodePublish(request))?;
    }
    let is_mounted = lab.mounts()?.iter().any(|mount| mount.path == Path::new(&target));
    ensure(is_mounted, || "nothing is mounted there".to_owned())?;
    let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: staged.id(), target_path: target.clone() };
    client.call(&Call::NodeUnpublish(unpublish))?;
    ensure(!Path::new(&target).exists(), || "the target is still there".to_owned())
}

/// Staging and target paths that no orchestrator should send.
fn paths(lab: &Lab, staged: &Subject) -> Result<Vec<Case>> {
    let directory = lab.path("published").join("paths");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("file"), "not empty")?;
    std::fs::create_dir_all(directory.join("elsewhere"))?;
    std::os::unix::fs::symlink("/etc", directory.join("link"))?;
    let foreign = lab.path("published").join("foreign");
    std::fs::create_dir_all(&foreign)?;
    kernel::program("mount", &["-t", "tmpfs", "none", &foreign.to_string_lossy()])?;
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let publish = |name: &str, codes, target: String| {
        let call = match staged.publish(lab, NODE) {
            Call::NodePublish(request) => {
                Call::NodePublish(csi::NodePublishVolumeRequest { target_path: target, ..request })
            }
            other => other,
        };
        Case { name: format!("publish-at-{name}"), call, codes, says: "" }
    };
    let stage = |name: &str, codes, staging: String| {
        let call = match staged.stage(lab, NODE) {
            Call::NodeStage(request) => {
                Call::NodeStage(csi::NodeStageVolumeRequest { staging_target_path: staging, ..request })
            }
            other => other,
        };
        Case { name: format!("stage-at-{name}"), call, codes, says: "" }
    };
    const NOT_THERE: &[Code] = &[Code::InvalidArgument, Code::FailedPrecondition, Code::AlreadyExists];
    let mut cases = vec![
        publish("nothing", INVALID, String::new()),
        publish("a-relative-path", INVALID, "relative/path".to_owned()),
        publish("a-path-with-dots", INVALID, path("../paths/../escape")),
        publish("a-symlink", NOT_THERE, path("link")),
        publish("a-file", NOT_THERE, path("file")),
        publish("a-foreign-mount", NOT_THERE, foreign.to_string_lossy().into_owned()),
        stage("nothing", INVALID, String::new()),
        stage("a-relative-path", INVALID, "relative/path".to_owned()),
        stage("a-symlink", NOT_THERE, path("link")),
        stage("another-place", NOT_THERE, path("elsewhere")),
    ];
    if let Call::NodePublish(request) = staged.publish(lab, NODE) {
        cases.push(Case {
            name: "publish-staged-elsewhere".to_owned(),
            call: Call::NodePublish(csi::NodePublishVolumeRequest {
                staging_target_path: path("elsewhere"),
                ..request
            }),
            codes: STATE,
            says: "",
        });
    }
    Ok(cases)
}

/// Contexts that were forged or are of another grant, capabilities that the volume does not have, and injected options.
fn contexts(lab: &Lab, staged: &Subject) -> Vec<Case> {
    let Call::NodeStage(base) = staged.stage(lab, NODE) else { return Vec::new() };
    let with = |name: &str, codes, says, change: &dyn Fn(&mut csi::NodeStageVolumeRequest)| {
        let mut request = base.clone();
        change(&mut request);
        Case { name: format!("stage-{name}"), call: Call::NodeStage(request), codes, says }
    };
    let context = |version: &str, epoch: &str| {
        [("hawser.version".to_owned(), version.to_owned()), ("hawser.epoch".to_owned(), epoch.to_owned())].into()
    };
    let flags = |flags: &[&str]| {
        let mut capability = Access::Ext4.capability();
        if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
            mount.mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        }
        Some(capability)
    };
    vec![
        with("context-stale", STATE, "", &|r| r.publish_context = context("1", "0")),
        with("context-of-the-future", STATE, "", &|r| r.publish_context = context("1", "99999")),
        with("context-forged", INVALID, "publish_context", &|r| r.publish_context = context("1", "many")),
        with("context-of-another-version", INVALID, "version", &|r| r.publish_context = context("77", "1")),
        with("no-capability", INVALID, "", &|r| r.volume_capability = None),
        // CSI, NodeStageVolume errors: "Exceeds capabilities" is FAILED_PRECONDITION.
        with("as-block", STATE, "", &|r| r.volume_capability = Some(Access::Block.capability())),
        with("as-xfs", STATE, "", &|r| r.volume_capability = Some(Access::Xfs.capability())),
        with("flag-with-comma", INVALID, "", &|r| r.volume_capability = flags(&["noatime,suid"])),
        with("flag-unknown", INVALID, "", &|r| r.volume_capability = flags(&["lowerdir=/etc"])),
        with("flag-with-newline", INVALID, "", &|r| r.volume_capability = flags(&["noatime\n"])),
    ]
}
