//! csi-sanity against the real binary: every profile, on a pool of real devices and in memory, with file system and
//! block access. Nothing may fail, and nothing may be skipped but what is named here.

use crate::failure::{Context, Result, ensure};
use crate::junit::{self, Outcome};
use crate::lab::{Lab, Options, PoolFs};
use crate::missing_privilege;
use crate::report::Report;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const PROFILES: [&str; 4] = ["kubernetes", "nomad", "swarm", "docker"];
/// Thin volumes: what a specification creates need not fit the pool.
const VOLUME_BYTES: u64 = 64 << 20;
/// More than any specification attaches at once, few enough to be reached by the one that tries.
const MAX_VOLUMES: &str = "8";
/// Owner of nothing.
const NOBODY: u32 = 65_534;
const EXPANDED_BYTES: u64 = 128 << 20;

/// Capabilities that the driver does not have yet, by what csi-sanity says when it skips for their lack.
const LATER: [(&str, &str); 7] = [
    ("GroupControllerService not supported", "group snapshots come later"),
    ("VolumeGroupSnapshots not supported", "group snapshots come later"),
    ("GetSnapshot not supported", "GetSnapshot comes later"),
    ("ControllerGetVolumeHealth not supported", "volume health comes later"),
    ("ControllerListVolumeHealth not supported", "volume health comes later"),
    ("NodeGetVolumeHealth not supported", "volume health comes later"),
    ("NodeGetStorageHealth not supported", "volume health comes later"),
];
/// What snapshots do not need, as they are where their pool is.
const NOT_NEEDED: [(&str, &str); 2] = [
    ("SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported", "snapshots are where their pool is"),
    ("node does not report accessible topology", "this profile has no topology"),
];
/// Nomad vendors CSI 1.12 and has no use for it; Swarm and Docker know nothing of it.
const MODIFY: [&str; 3] =
    ["ControllerModifyVolume not supported", "Modify volume not supported", "Modify Volume not supported"];
/// As csi-sanity takes them: a file of YAML.
const MUTABLE_PARAMETERS: &str = "readAheadKiB: \"256\"\nwriteOpsPerSecond: \"1000\"\n";
/// Swarm and the Docker plugin protocol never call these, so the driver does not offer them there.
const NEVER_CALLED: [&str; 17] = [
    "GetCapacity not supported",
    "ListVolumes not supported",
    "Snapshot not supported",
    "DeleteSnapshot not supported",
    "CreateSnapshot not supported",
    "ListSnapshots not supported",
    "Volume Cloning not supported",
    "ControllerPublishVolume.readonly field not supported",
    "ControllerExpandVolume not supported",
    "NodeStageVolume not supported",
    "NodeUnstageVolume not supported",
    "NodeGetVolume not supported",
    "NodeExpandVolume not supported",
    "Service does not have single node multi writer capability",
    "capacity of the volume is unknown",
    "GetVolume not supported",
    "Required bytes not supported",
];

pub(crate) fn suite(report: &Report, hawser: &Path, csi_sanity: &Path) -> Result<()> {
    let without_devices = missing_privilege();
    for profile in PROFILES {
        for access in ["mount", "block"] {
            let name = format!("sanity-{profile}-pool-{access}");
            match &without_devices {
                Some(reason) => report.skipped(&name, reason),
                None => run(report, &name, hawser, csi_sanity, &Options { profile, ..Options::node("n1") }, access),
            }
        }
    }
    // Without root: nothing of a simulated host needs it.
    let uid = nix::unistd::geteuid().is_root().then_some(NOBODY);
    for access in ["mount", "block"] {
        let memory = Options { backend: "memory", uid, ..Options::node("n1") };
        run(report, &format!("sanity-kubernetes-memory-{access}"), hawser, csi_sanity, &memory, access);
    }
    Ok(())
}

fn run(report: &Report, name: &str, hawser: &Path, csi_sanity: &Path, options: &Options, access: &str) {
    if !report.wants_some(name) {
        return;
    }
    if let Err(failure) = run_in_lab(report, name, hawser, csi_sanity, options, access) {
        report.failed(name, &failure.to_string());
    }
}

fn run_in_lab(
    report: &Report,
    name: &str,
    hawser: &Path,
    csi_sanity: &Path,
    options: &Options,
    access: &str,
) -> Result<()> {
    let lab = if options.backend == "pool" { Lab::new(hawser, PoolFs::Xfs, 8192)? } else { Lab::without_pool(hawser)? };
    let csi_sanity = match options.uid {
        Some(uid) => lab.give_to(uid, csi_sanity)?,
        None => csi_sanity.to_owned(),
    };
    let server = lab.start(&options.clone().set("HAWSER_BACKEND_MAX_VOLUMES_PER_NODE", MAX_VOLUMES))?;
    let junit = lab.path("run").join("junit.xml");
    let output = program(&lab, &csi_sanity, options, access, &junit)?;
    let cases = std::fs::read_to_string(&junit)
        .map_err(Into::into)
        .and_then(|text| junit::parse(&text))
        .context(|| format!("csi-sanity left no report; it said: {output}"))?;
    for case in &cases {
        let test = format!("{name}: {}", case.name);
        match &case.outcome {
            Outcome::Passed => report.ok(&test),
            Outcome::Pending => report.skipped(&test, "csi-sanity itself never runs it"),
            Outcome::Failed(why) => report.failed(&test, why),
            Outcome::Skipped(why) => match allowed(options, why) {
                Some(reason) => report.skipped(&test, reason),
                None => report.failed(&test, &format!("unexpected skip: {why}")),
            },
        }
    }
    report.test(&format!("{name}-leaves-nothing"), || {
        lab.ensure_clean()?;
        server.stop()?;
        lab.ensure_clean()
    });
    Ok(())
}

fn program(lab: &Lab, csi_sanity: &Path, options: &Options, access: &str, junit: &Path) -> Result<String> {
    let socket = lab.socket(options);
    let mutable = lab.path("run").join("mutable.yaml");
    std::fs::write(&mutable, MUTABLE_PARAMETERS)?;
    let mut command = Command::new(csi_sanity);
    command
        .arg("-csi.endpoint")
        .arg(format!("unix://{}", socket.display()))
        .arg("-csi.stagingdir")
        .arg(lab.path("staging").join("csi"))
        .arg("-csi.mountdir")
        .arg(lab.path("published").join("csi"))
        .arg("-csi.junitfile")
        .arg(junit)
        .arg("-csi.testvolumemutableparameters")
        .arg(&mutable)
        .args(["-csi.testvolumeaccesstype", access])
        .args(["-csi.testvolumesize", &VOLUME_BYTES.to_string()])
        .args(["-csi.testvolumeexpandsize", &EXPANDED_BYTES.to_string()])
        .arg("-csi.testnodevolumeattachlimit")
        .args(["-ginkgo.no-color", "-ginkgo.timeout", "5m"]);
    if let Some(uid) = options.uid {
        command.uid(uid).gid(uid);
    }
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last: Vec<&str> = text.lines().rev().take(5).collect();
    ensure(output.status.code().is_some(), || format!("csi-sanity was killed: {last:?}"))?;
    Ok(last.into_iter().rev().collect::<Vec<_>>().join(" / "))
}

/// The reason for which a specification may be skipped.
fn allowed(options: &Options, why: &str) -> Option<&'static str> {
    let known = LATER.iter().chain(&NOT_NEEDED).find(|(text, _)| why.contains(text));
    let is_never_called =
        matches!(options.profile, "swarm" | "docker") && NEVER_CALLED.iter().any(|text| why.contains(text));
    if options.profile != "kubernetes" && MODIFY.iter().any(|text| why.contains(text)) {
        return Some("not offered to an orchestrator that never modifies volumes");
    }
    known.map(|(_, reason)| *reason).or(is_never_called.then_some("not offered to an orchestrator that never calls it"))
}
