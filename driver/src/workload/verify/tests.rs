use super::*;
use crate::output::Output;
use crate::workload::{Recorder, RecorderAddress, WriteArgs, now_ns};
use std::time::Duration;

struct Run {
    dir: tempfile::TempDir,
    args: VerifyArgs,
    recorder: Recorder,
}

/// Writes `records` of each of `writers` to a directory, acknowledged to a recorder.
fn run(writers: u32, records: u64, slots: u64) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let (socket, ledger, target) = (dir.path().join("socket"), dir.path().join("ledger"), dir.path().join("target"));
    std::fs::create_dir(&target).unwrap();
    let recorder = Recorder::start(&socket, &ledger).unwrap();
    let nonce = Uuid::new_v4();
    let write = WriteArgs {
        target: target.clone(),
        recorder: RecorderAddress::Unix(socket),
        nonce,
        epoch: Some(1),
        name: String::new(),
        pause_ms: 0,
        writers,
        slots,
        records: Some(records),
        mount_namespace_of: None,
        die_with_parent: None,
    };
    crate::workload::write::run(&write, Output { json: false }).unwrap();
    assert!(recorder.wait_for(1, u64::from(writers) * records, Duration::from_secs(10)).is_some());
    let args =
        VerifyArgs { target, ledger, nonce, fenced_epoch: None, fence_ns: None, at_least: 1, mount_namespace_of: None };
    Run { dir, args, recorder }
}

impl Run {
    fn edit_ledger(&self, edit: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(&self.args.ledger).unwrap();
        std::fs::write(&self.args.ledger, edit(text)).unwrap();
    }
}

#[test]
fn all_is_there_also_when_the_ring_went_round() {
    let run = run(4, 30, 40);
    let found = verify(&run.args).unwrap();
    assert!(found.is_pass(), "{found:?}");
    assert_eq!((found.acked, run.recorder.count(Some(1))), (120, 120));
    assert!(run.dir.path().exists());
}

#[test]
fn a_lost_record_is_found() {
    let run = run(2, 10, 64);
    let file = std::fs::OpenOptions::new().write(true).open(run.args.target.join("records-1")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 3 * 4096 + 77).unwrap();
    assert_eq!(verify(&run.args).unwrap().lost, 1);
    std::fs::remove_file(run.args.target.join("records-1")).unwrap();
    assert_eq!(verify(&run.args).unwrap().lost, 20);
}

#[test]
fn a_ledger_of_another_run_or_tampered_with_is_caught() {
    let run = run(1, 10, 64);
    let other = VerifyArgs { nonce: Uuid::new_v4(), ..run.args.clone() };
    assert_eq!(verify(&other).unwrap().foreign, 10);
    assert!(!verify(&other).unwrap().is_pass());
    run.edit_ledger(|text| text.replacen("\"seq\":4", "\"seq\":5", 1));
    assert_eq!(verify(&run.args).unwrap().tampered, 1);
    run.edit_ledger(|text| text.lines().filter(|line| !line.contains("\"seq\":5")).map(|l| format!("{l}\n")).collect());
    let found = verify(&run.args).unwrap();
    assert_eq!((found.tampered, found.gaps), (0, 1), "{found:?}");
    run.edit_ledger(|text| text + "{\"half\n");
    assert_eq!(verify(&run.args).unwrap().tampered, 1);
    run.edit_ledger(|_| String::new());
    assert!(!verify(&run.args).unwrap().is_pass());
}

#[test]
fn writes_after_the_fence_are_late_and_those_across_it_are_not() {
    let before = now_ns();
    let run = run(1, 5, 64);
    let fenced = |at: u64| VerifyArgs { fenced_epoch: Some(1), fence_ns: Some(at), ..run.args.clone() };
    let found = verify(&fenced(before)).unwrap();
    assert_eq!((found.late, found.in_flight), (5, 0));
    assert!(!found.is_pass());
    assert!(verify(&fenced(now_ns())).unwrap().is_pass());
    // The fence fell into the third write.
    let text = std::fs::read_to_string(&run.args.ledger).unwrap();
    let third: crate::workload::ledger::Ack = serde_json::from_str(text.lines().nth(2).unwrap()).unwrap();
    let found = verify(&fenced(third.begin_ns + 1)).unwrap();
    assert_eq!((found.late, found.in_flight), (2, 1));
    let newer = VerifyArgs { fenced_epoch: Some(0), ..fenced(before) };
    assert!(verify(&newer).unwrap().is_pass(), "epoch 1 was not fenced");
}
