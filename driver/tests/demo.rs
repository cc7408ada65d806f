//! The demo's own promises: its verdict can fail, and nothing is left behind when it is interrupted.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test, and it runs the binary")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn demo(scratch: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args(["demo", "--json", "--scratch", &scratch.display().to_string()])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Whether this machine can run the demo; says so when it cannot.
fn can_run(test: &str) -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if std::fs::File::options().write(true).open("/dev/loop-control").is_err() {
        "no loop devices"
    } else {
        return true;
    };
    println!("SKIPPED: {test}: {missing}");
    false
}

fn nothing_is_left(scratch: &Path) {
    let entries: Vec<_> = std::fs::read_dir(scratch).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(entries.is_empty(), "{entries:?}");
    let at = scratch.display().to_string();
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(&at));
    for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        assert!(!backing.contains(&at), "{} has {backing}", entry.path().display());
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&command).contains(&at), "{}", entry.path().display());
    }
}

#[test]
fn without_a_fence_the_verdict_is_fail() {
    if !can_run("without_a_fence_the_verdict_is_fail") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let output = demo(scratch.path(), &["--fault", "freeze", "--without-fence"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["verdict"], "FAIL");
    assert_eq!(told["error"], Value::Null, "it fails by what was found");
    let claims: Vec<&str> = told["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["holds"] == false)
        .map(|check| check["claim"].as_str().unwrap())
        .collect();
    assert!(claims.contains(&"no write of node-1 that began after the fence was acknowledged"), "{claims:?}");
    nothing_is_left(scratch.path());
}

#[test]
fn nothing_is_left_behind_when_it_is_interrupted() {
    if !can_run("nothing_is_left_behind_when_it_is_interrupted") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    for (signal, writes_first) in [(Signal::SIGINT, true), (Signal::SIGTERM, false)] {
        let child = demo(scratch.path(), &["--fault", "freeze"]);
        let deadline = Instant::now() + Duration::from_secs(30);
        let has_begun = || {
            let directory = std::fs::read_dir(scratch.path()).unwrap().flatten().next();
            let ledger = directory.map(|entry| std::fs::metadata(entry.path().join("ledger")));
            matches!(ledger, Some(Ok(ledger)) if !writes_first || ledger.len() > 0)
        };
        while !has_begun() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&told["verdict"], &told["error"]), (&"FAIL".into(), &"interrupted".into()));
        nothing_is_left(scratch.path());
    }
}

#[test]
fn without_privileges_it_says_what_is_missing() {
    if !can_run("without_privileges_it_says_what_is_missing") {
        return;
    }
    use std::os::unix::process::CommandExt;
    let output = Command::new(env!("CARGO_BIN_EXE_hawser")).arg("demo").uid(65534).gid(65534).output();
    // The test's own directory may be closed to others; then there is nothing to see.
    let Ok(output) = output else {
        println!("SKIPPED: without_privileges_it_says_what_is_missing: the binary is out of reach for others");
        return;
    };
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("must run as root"));
}
