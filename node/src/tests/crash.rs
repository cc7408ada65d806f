//! The process ends after each effect of each call: a restart and a retry lead where one undisturbed call does, and
//! giving everything back leaves nothing.

use super::*;

type Call = fn(&Lab, &Volume) -> Result<()>;

const STEPS: [(&str, Call); 4] = [
    ("stage", |lab, volume| lab.stage(volume, STAGING)),
    ("publish", |lab, volume| lab.publish(volume, STAGING, TARGET)),
    ("unpublish", |lab, volume| lab.unpublish(&volume.id, TARGET)),
    ("unstage", |lab, volume| lab.unstage(&volume.id, STAGING)),
];
/// More than any call has.
const MOST_EFFECTS: u64 = 40;

#[test]
fn crash_after_each_effect() {
    for profile in [Profile::Kubernetes, Profile::Swarm] {
        for kind in [EXT4, VolumeKind::FileSystem(FsType::Xfs), VolumeKind::Block, VolumeKind::Directory] {
            for index in 0..STEPS.len() {
                for attacher in [Attacher::Controller, Attacher::Node] {
                    sweep(profile, attacher, kind, index);
                }
            }
        }
    }
}

fn sweep(profile: Profile, attacher: Attacher, kind: VolumeKind, index: usize) {
    if profile == Profile::Swarm && STEPS[index].0.ends_with("stage") {
        return;
    }
    let (name, call) = STEPS[index];
    let expected = {
        let (lab, volume) = prepared(profile, attacher, kind, index);
        call(&lab, &volume).unwrap();
        (state_of(&lab), lab.holder(&volume.id))
    };
    for effect in 1..MOST_EFFECTS {
        for retries in [true, false] {
            let what = format!("{profile} {attacher:?} {kind} {name}, crash after effect {effect}, retries: {retries}");
            let (mut lab, volume) = prepared(profile, attacher, kind, index);
            lab.host.crash_after(effect);
            let result = call(&lab, &volume);
            if result.is_ok() {
                // It has no more effects.
                return;
            }
            lab.restart().unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
            if retries {
                call(&lab, &volume).unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
                assert_eq!((state_of(&lab), lab.holder(&volume.id)), expected, "{what}");
            }
            lab.unpublish(&volume.id, TARGET).unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
            if profile != Profile::Swarm {
                lab.unstage(&volume.id, STAGING).unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
            }
            // As the orchestrator does.
            lab.host.remove_target(Path::new(STAGING)).unwrap();
            let left = lab.state();
            if attacher == Attacher::Node {
                assert_eq!(lab.holder(&volume.id), None, "{what}");
            }
            let clean = |line: &String| line.starts_with("/targets Dir") || line.starts_with("/staging Dir");
            assert!(
                left.iter().all(clean) && left.iter().all(|line| line.contains("is_empty: true")),
                "{what}: {left:?}"
            );
        }
    }
    panic!("{kind} {name} has more than {MOST_EFFECTS} effects");
}

/// Where the node grants to itself, a grant of before the crash is given back, and the retry takes the next one.
fn state_of(lab: &Lab) -> Vec<String> {
    let mut lines = lab.state();
    if lab.attacher == Attacher::Node {
        for line in lines.iter_mut().filter(|line| line.starts_with("loop ")) {
            line.truncate(line.find('@').unwrap());
        }
    }
    lines
}

fn prepared(profile: Profile, attacher: Attacher, kind: VolumeKind, index: usize) -> (Lab, Volume) {
    let lab = Lab::with(profile, attacher);
    let volume = lab.attached("v", kind);
    for (name, call) in &STEPS[..index] {
        if profile != Profile::Swarm || *name != "stage" {
            call(&lab, &volume).unwrap();
        }
    }
    (lab, volume)
}

#[test]
fn a_failure_at_each_effect_is_undone() {
    let attachers = [Attacher::Controller, Attacher::Node].into_iter();
    let kinds = [EXT4, VolumeKind::Block, VolumeKind::Directory];
    for (attacher, kind) in attachers.flat_map(|attacher| kinds.map(|kind| (attacher, kind))) {
        for (name, call) in &STEPS[..2] {
            for effect in 0..MOST_EFFECTS {
                let index = usize::from(*name == "publish");
                let (lab, volume) = prepared(Profile::Kubernetes, attacher, kind, index);
                let holder = lab.holder(&volume.id);
                let before = lab.state();
                lab.host.fail_after(effect, ErrorKind::Exhausted);
                let Err(error) = call(&lab, &volume) else { break };
                assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", error.chain());
                assert_eq!(lab.holder(&volume.id), holder, "{attacher:?} {kind} {name} {effect}");
                // The staging path is the caller's and may stay, empty.
                let _ = lab.host.remove_target(Path::new(STAGING));
                let mut after = lab.state();
                if before.iter().any(|line| line.starts_with(STAGING)) {
                    assert_eq!(after, before, "{kind} {name} {effect}");
                } else {
                    after.retain(|line| !line.starts_with("/staging Dir"));
                    assert!(after.iter().all(|line| before.contains(line)), "{kind} {name} {effect}: {after:?}");
                }
            }
        }
    }
}

#[test]
fn a_reboot_takes_all_mounts_and_begins_a_new_life() {
    let mut lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.publish(&volume, STAGING, TARGET).unwrap();
    lab.write("/targets/a/file", "kept").unwrap();
    let earlier = lab.service.identity().unwrap();
    lab.restart().unwrap();
    assert_eq!(lab.service.identity().unwrap(), earlier, "a restart of the plugin is the same life");
    lab.host.reboot();
    lab.restart().unwrap();
    assert_ne!(lab.service.identity().unwrap().incarnation, earlier.incarnation);
    refused(lab.stage(&volume, STAGING), ErrorKind::Held, "holds it");
    let context = Some(lab.attach(&volume.id, "n1", false).unwrap());
    lab.stage(&Volume { context, ..volume }, STAGING).unwrap();
    assert_eq!(lab.read("/staging/a/file"), "kept");
}

#[test]
fn a_lost_state_directory_is_no_new_life_while_volumes_are_in_use() {
    let mut lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    lab.state = tempfile::tempdir().unwrap();
    refused(lab.restart(), ErrorKind::FailedPrecondition, volume.id.as_str());
    refused(lab.service.ready(), ErrorKind::Unavailable, "Restore the state directory");
    assert!(lab.state().iter().any(|line| line.starts_with(STAGING)), "nothing was taken away");
    lab.host.reboot();
    lab.restart().unwrap();
    lab.service.ready().unwrap();
}

#[test]
fn what_cannot_be_read_in_the_journal_is_reported() {
    let mut lab = Lab::new();
    let note = lab.state.path().join("journal").join("pool.v00000000000000000000000000000000.json");
    std::fs::write(&note, "{\"format\":2}").unwrap();
    let report = lab.restart().unwrap();
    assert!(report.done.is_empty() && report.leftovers.len() == 1, "{report:?}");
    assert!(note.exists());
}

#[test]
fn a_volume_that_hangs_is_reported_and_keeps_its_lock() {
    let lab = Lab::new();
    let volume = lab.attached("v", EXT4);
    lab.stage(&volume, STAGING).unwrap();
    let note = journal::Intent {
        staging_target_path: Some(STAGING.into()),
        ..journal::Intent::new(&volume.id, journal::Operation::Unstage, volume::Epoch(1))
    };
    lab.node().journal.begin(&lock(&volume.id), &note).unwrap();
    let config = config(&lab.host, &lab.backend, lab.state.path(), lab.profile, "n1");
    let impatient = NodeService::new(NodeConfig { step_deadline: Duration::from_millis(100), ..config }).unwrap();
    impatient.register().unwrap();
    lab.host.hang_after(0);
    let report = impatient.reconcile().unwrap();
    assert!(report.leftovers.iter().any(|line| line.contains("did not end within")), "{report:?}");
    assert!(impatient.node.locks.try_lock([volume.id.as_str()]).is_err());
    lab.host.release();
    while impatient.node.locks.try_lock([volume.id.as_str()]).is_err() {
        std::thread::yield_now();
    }
    assert!(lab.host.loops().unwrap().is_empty(), "it was finished then");
}

/// A full disk ends pods, and their volumes must come off the node although no note of that can be written.
#[test]
fn without_a_journal_volumes_are_still_taken_away() {
    for profile in [Profile::Kubernetes, Profile::Swarm] {
        let lab = Lab::of(profile);
        let volume = lab.attached("v", EXT4);
        if profile == Profile::Kubernetes {
            lab.stage(&volume, STAGING).unwrap();
        }
        lab.publish(&volume, STAGING, TARGET).unwrap();
        let journal = lab.state.path().join("journal");
        std::fs::remove_dir(&journal).unwrap();
        assert!(lab.publish(&volume, STAGING, "/targets/b").is_err(), "nothing new is begun");
        assert_eq!(lab.host.observe_path(Path::new("/targets/b")).unwrap(), host::PathState::Absent);
        lab.unpublish(&volume.id, TARGET).unwrap();
        if profile == Profile::Kubernetes {
            lab.unstage(&volume.id, STAGING).unwrap();
        }
        assert!(lab.host.loops().unwrap().is_empty());
    }
}
