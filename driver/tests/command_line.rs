//! The binary from outside: exit codes, where errors go, and what a person sees.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test, and it runs the binary")]

use std::process::{Command, Output};

fn hawser(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    command.args(arguments);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HAWSER_") || name == "CSI_ENDPOINT") {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A configuration with a pool in a temporary directory; commands on it need no loop devices.
fn pool() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("hawser.toml");
    let text = format!("[[backend]]\ndirectory = {:?}\n", dir.path().join("pool").display().to_string());
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    (dir, config)
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [&["nonsense"][..], &["volume", "create", "x", "--size", "ten"], &["fence"], &[]] {
        assert_eq!(hawser(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let output = hawser(&["volume", "create", "x", "--size", "ten"]);
    assert!(stderr(&output).contains("10GiB"), "{}", stderr(&output));
}

#[test]
fn wrong_configuration_is_exit_code_2_and_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hawser.toml");
    std::fs::write(&file, "mode = \"all\"\nprofil = \"nomad\"\n").unwrap();
    let file = file.display().to_string();
    let output = hawser(&["--config", &file, "volume", "ls"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), format!("hawser: {file}:2: unknown key \"profil\"; did you mean \"profile\"?\n"));
    let output = hawser(&["--json", "--set", "mode=some", "volume", "ls"]);
    assert_eq!(output.status.code(), Some(2));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "configuration");
    let output = hawser(&["--set", "backend.type=memory", "volume", "ls"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("memory"), "{}", stderr(&output));
}

#[test]
fn a_volume_from_creation_to_removal() {
    let (_dir, config) = pool();
    let run = |arguments: &[&str]| {
        let output = hawser(&[&["--config", &config, "--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    assert_eq!(run(&["volume", "ls"]), serde_json::json!([]));
    let made = run(&["volume", "create", "db [0]", "--size", "64MiB", "--directory"]);
    assert_eq!((&made["kind"], &made["name"]), (&"directory".into(), &"db [0]".into()));
    assert_eq!(run(&["volume", "create", "db [0]", "--size", "64MiB", "--directory"])["id"], made["id"]);
    assert_eq!(run(&["volume", "inspect", "db [0]"])["id"], made["id"]);
    assert_eq!(run(&["volume", "inspect", made["id"].as_str().unwrap()])["orphans"], serde_json::json!([]));
    assert_eq!(run(&["volume", "ls"]).as_array().unwrap().len(), 1);
    assert_eq!(run(&["volume", "rm", "db [0]"])["deleted"], made["id"]);
    assert_eq!(run(&["volume", "rm", "db [0]"])["deleted"], serde_json::Value::Null);
    assert_eq!(run(&["node", "ls"]), serde_json::json!([]));
    assert_eq!(run(&["orphan", "ls"]), serde_json::json!([]));
    assert_eq!(run(&["snapshot", "ls"]), serde_json::json!([]));
}

/// What changes storage: all of it as JSON on stdout, and who fenced is said on stderr and recorded.
#[test]
fn every_command_has_json_and_a_fence_is_audited() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED: every_command_has_json_and_a_fence_is_audited: needs root, as a node does");
    }
    let (dir, config) = pool();
    let run = |arguments: &[&str]| {
        let output = hawser(&[&["--config", &config, "--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        let value: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{arguments:?} printed {:?}: {e}", stdout(&output)));
        (value, stderr(&output))
    };
    for arguments in [
        &["volume", "create", "db", "--size", "64MiB"][..],
        &["volume", "expand", "db", "96MiB"],
        &["volume", "modify", "db", "readAheadKiB=256", "writeBytesPerSecond=1048576"],
        &["volume", "modify", "db", "writeBytesPerSecond=default"],
        &["volume", "snapshot", "db", "monday"],
        &["volume", "clone", "db", "copy"],
        &["volume", "restore", "monday", "older", "--size", "128MiB"],
        &["snapshot", "ls", "--volume", "db"],
        &["snapshot", "rm", "monday"],
        &["orphan", "rm"],
    ] {
        run(arguments);
    }
    assert_eq!(run(&["volume", "inspect", "older"]).0["size_bytes"], 128 << 20);
    let group = run(&["snapshot", "group", "create", "both", "db", "copy"]).0;
    assert_eq!(run(&["snapshot", "group", "create", "both", "copy", "db"]).0, group);
    assert_eq!(run(&["snapshot", "group", "ls"]).0, serde_json::json!([group]));
    let members = group["snapshots"].as_array().unwrap();
    assert_eq!((members.len(), &members[0]["group"]), (2, &group["id"]));
    run(&["volume", "restore", members[0]["id"].as_str().unwrap(), "of a member"]);
    assert_eq!(run(&["snapshot", "group", "rm", "both"]).0["deleted"], group["id"]);
    for name in ["both", group["id"].as_str().unwrap()] {
        assert_eq!(run(&["snapshot", "group", "rm", name]).0["deleted"], serde_json::Value::Null);
    }
    assert_eq!(run(&["snapshot", "ls"]).0, serde_json::json!([]));
    let mutable = &run(&["volume", "inspect", "db"]).0["mutable_parameters"];
    assert_eq!(*mutable, serde_json::json!({"readAheadKiB": "256"}));

    let at = |name: &str| dir.path().join(name).display().to_string();
    let (socket, state) = (format!("unix://{}", at("csi.sock")), at("state"));
    let mut serve = Command::new(env!("CARGO_BIN_EXE_hawser"));
    serve.args(["--config", &config, "serve", "--node-id", "n1", "--endpoint", &socket, "--state-dir", &state]);
    let mut server = serve.stderr(std::fs::File::create(at("log")).unwrap()).spawn().unwrap();
    // It opens its socket once the node is known.
    for _ in 0..400 {
        if dir.path().join("csi.sock").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(run(&["node", "ls"]).0.as_array().unwrap().len(), 1, "{}", std::fs::read_to_string(at("log")).unwrap());
    let (fenced, log) = run(&["fence", "n1", "--powered-off"]);
    assert_eq!((&fenced["node"], &fenced["volumes"]), (&"n1".into(), &serde_json::json!([])));
    for part in ["audit", "node fenced", "powered_off=true", "cli:"] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    let recorded = run(&["node", "ls"]).0.to_string();
    assert!(recorded.contains("cli:") && recorded.contains("powered"), "{recorded}");
    assert!(run(&["unfence", "n1"]).1.contains("node unfenced"));
}

#[test]
fn blocks_of_snapshots() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED: blocks_of_snapshots: needs root, as a node does");
    }
    let (_dir, config) = pool();
    let run = |arguments: &[&str]| hawser(&[&["--config", &config], arguments].concat());
    for arguments in [
        &["volume", "create", "db", "--size", "64MiB"][..],
        &["volume", "snapshot", "db", "monday"],
        &["volume", "snapshot", "db", "tuesday"],
    ] {
        assert!(run(arguments).status.success());
    }
    let held = run(&["--json", "snapshot", "blocks", "monday"]);
    if !held.status.success() {
        assert!(stderr(&held).contains("tell which blocks"), "{}", stderr(&held));
        return println!("SKIPPED: blocks_of_snapshots: the temporary directory's file system does not tell extents");
    }
    let held: serde_json::Value = serde_json::from_slice(&held.stdout).unwrap();
    let ranges = held["ranges"].as_array().unwrap();
    let total: u64 = ranges.iter().map(|range| range["length_bytes"].as_u64().unwrap()).sum();
    assert!(held["size_bytes"] == 64 << 20 && held["total_bytes"] == total && total > 0 && total < 64 << 20, "{held}");
    let table = stdout(&run(&["snapshot", "blocks", "monday"]));
    assert!(table.starts_with("OFFSET") && table.trim_end().ends_with("of 67108864 bytes"), "{table}");
    assert!(run(&["snapshot", "diff", "monday", "tuesday"]).status.success());
    let wrong = run(&["snapshot", "diff", "tuesday", "monday"]);
    assert!(wrong.status.code() == Some(1) && stderr(&wrong).contains("younger"), "{}", stderr(&wrong));
    let gone = run(&["snapshot", "diff", "sunday", "monday"]);
    assert!(gone.status.code() == Some(1) && stderr(&gone).contains("hawser snapshot ls"), "{}", stderr(&gone));
}

#[test]
fn what_does_not_work_is_exit_code_1_and_says_what_to_do() {
    let (_dir, config) = pool();
    for (arguments, says) in [
        (&["volume", "inspect", "nothing"][..], "hawser volume ls"),
        (&["volume", "expand", "nothing", "1G"], "hawser volume ls"),
        (&["volume", "restore", "nothing", "x"], "hawser snapshot ls"),
        (&["volume", "create", "x", "--size", "64MiB", "-p", "fstype=xfs"], "fsType"),
        (&["fence", "nobody"], "hawser node ls"),
        (&["unfence", "nobody"], "hawser node ls"),
        (&["fence", "no/body"], "node id"),
    ] {
        let output = hawser(&[&["--config", &config], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn nothing_that_is_printed_moves_the_cursor() {
    let (_dir, config) = pool();
    let run = |arguments: &[&str]| hawser(&[&["--config", &config], arguments].concat());
    let flags = "mountFlags=a\n\u{1b}[2J";
    let refused = run(&["volume", "create", "x", "--size", "64MiB", "--directory", "-p", flags]);
    assert_eq!((refused.status.code(), stderr(&refused).lines().count()), (Some(1), 1), "{}", stderr(&refused));
    assert!(!stderr(&refused).contains('\u{1b}'), "{}", stderr(&refused));
    // CSI allows tabs and newlines in names.
    let name = "a\t\nholder       nobody";
    assert!(run(&["volume", "create", name, "--size", "64MiB", "--directory"]).status.success());
    for listed in [run(&["volume", "ls"]), run(&["volume", "inspect", name])] {
        let listed = stdout(&listed);
        assert!(!listed.contains('\t') && !listed.lines().any(|line| line == "holder       nobody"), "{listed}");
    }
}

#[test]
fn a_damaged_record_is_rebuilt_by_the_command_that_its_problem_names() {
    let (dir, config) = pool();
    let run = |arguments: &[&str]| {
        let output = hawser(&[&["--config", &config, "--json"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let made = run(&["volume", "create", "db", "--size", "64MiB", "--directory"]);
    let volume = dir.path().join("pool/volumes").join(made["id"].as_str().unwrap());
    let records = std::fs::read_dir(&volume).unwrap().map(|entry| entry.unwrap().path());
    let record = records.filter(|path| path.to_str().unwrap().contains("/record.")).max().unwrap();
    std::fs::write(record, "{}").unwrap();
    let problem = run(&["volume", "inspect", "db"])["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("hawser volume rebuild VOLUME"), "{problem}");
    for _ in 0..2 {
        let rebuilt = run(&["volume", "rebuild", "db"]);
        assert_eq!((&rebuilt["id"], &rebuilt["name"]), (&made["id"], &made["name"]));
        assert_eq!(rebuilt["problem"], serde_json::Value::Null);
    }
}

#[test]
fn an_environment_that_is_no_text_is_no_failure() {
    use std::os::unix::ffi::OsStrExt;
    let (_dir, config) = pool();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
    command.env("LS_COLORS", std::ffi::OsStr::from_bytes(b"\xff\xfe")).args(["--config", &config, "volume", "ls"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn version_and_completions() {
    assert!(stdout(&hawser(&["version"])).contains("CSI 1.13.0"));
    let version: serde_json::Value = serde_json::from_slice(&hawser(&["version", "--json"]).stdout).unwrap();
    assert_eq!(version["name"], "csi.hawser.dev");
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&hawser(&["completions", shell])).contains("hawser"), "{shell}");
    }
}
