//! What the tests need from outside the tree: Debian packages, Go, and what is built with it: csi-sanity, and CSI clients
//! of older versions.
//!
//! Tools are built once into `$HAWSER_CACHE` (else `~/.cache/hawser`), under their version, never into the tree.

use crate::process::{self, Log};
use crate::workspace::Workspace;
use serde::Deserialize;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A program that shows whether the package is there, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 8] = [
    ("git", "git"),
    ("gcc", "gcc"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("losetup", "mount"),
    ("nsenter", "util-linux"),
    ("kill", "procps"),
];
/// The static C library that a static binary links.
const LIBC_PACKAGE: &str = "libc6-dev";
const CA_PACKAGE: &str = "ca-certificates";

const SANITY_MODULE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";
const SANITY_VERSION: &str = "v5.6.0";
/// Go 1.21 and later fetch the toolchain that a module asks for by themselves.
const FIRST_GO_WITH_TOOLCHAINS: (u32, u32) = (1, 21);
/// The toolchain to take, as a Go module, where Go is older than that.
const GO_TOOLCHAIN: &str = "v0.0.1-go1.26.0.linux-";

const PACKAGES_DEADLINE: Duration = Duration::from_secs(900);
const TOOL_DEADLINE: Duration = Duration::from_secs(1200);

/// The versions of CSI that older clients are built for.
const CLIENT_VERSIONS: [&str; 2] = ["1.2", "1.12"];

pub(crate) struct Tools {
    pub(crate) csi_sanity: PathBuf,
    /// Where the CSI clients of older versions are, each named by its version.
    pub(crate) csi_clients: PathBuf,
}

/// Installs what is missing. Fine without root when nothing is.
pub(crate) fn packages(log: &mut Log) -> Result<(), String> {
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !process::is_installed(program)).map(|(_, package)| *package).collect();
    if !has_static_libc() {
        missing.push(LIBC_PACKAGE);
    }
    if !Path::new("/etc/ssl/certs").is_dir() {
        missing.push(CA_PACKAGE);
    }
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing, log)
}

/// What only measuring needs.
pub(crate) fn bench_packages(log: &mut Log) -> Result<(), String> {
    packages(log)?;
    if process::is_installed("fio") { Ok(()) } else { apt_install(&["fio"], log) }
}

/// csi-sanity and the older clients, from the cache or built now.
pub(crate) fn tools(workspace: &Workspace, log: &mut Log) -> Result<Tools, String> {
    Ok(Tools { csi_sanity: csi_sanity(log)?, csi_clients: csi_clients(workspace, log)? })
}

/// `cargo xtask tools`.
pub(crate) fn print_tools() -> Result<bool, String> {
    let workspace = Workspace::load()?;
    let mut log = Log::create(&workspace.log_directory(), "tools")?;
    packages(&mut log)?;
    let tools = tools(&workspace, &mut log)?;
    println!("csi-sanity {SANITY_VERSION}: {}", tools.csi_sanity.display());
    println!("CSI clients {}: {}", CLIENT_VERSIONS.join(", "), tools.csi_clients.display());
    Ok(true)
}

fn csi_sanity(log: &mut Log) -> Result<PathBuf, String> {
    let directory = cached(&format!("csi-sanity-{SANITY_VERSION}"), "csi-sanity", log, |building, go, log| {
        let mut install = Command::new(go);
        install.args(["install", &format!("{SANITY_MODULE}@{SANITY_VERSION}")]).env("GOBIN", building);
        run_go(&mut install, TOOL_DEADLINE, log)
    })?;
    Ok(directory.join("csi-sanity"))
}

/// The directory of the clients.
fn csi_clients(workspace: &Workspace, log: &mut Log) -> Result<PathBuf, String> {
    let sources = Sources::of(workspace, "csi-client")?;
    cached(&sources.name, CLIENT_VERSIONS[0], log, |building, go, log| {
        for version in CLIENT_VERSIONS {
            let mut build = Command::new(go);
            build.args(["build", &format!("-modfile=csi-{version}.mod"), "-o"]).arg(building.join(version));
            build.args(["-ldflags", &format!("-s -w -X main.version={version}"), "."]).current_dir(&sources.directory);
            run_go(&mut build, TOOL_DEADLINE, log).map_err(|error| format!("for CSI {version}: {error}"))?;
        }
        Ok(())
    })
}

/// The source of a tool in e2e/tools, and the name of its directory in the cache, with a hash of the source.
pub(crate) struct Sources {
    pub(crate) directory: PathBuf,
    pub(crate) name: String,
}

impl Sources {
    pub(crate) fn of(workspace: &Workspace, tool: &str) -> Result<Self, String> {
        let directory = workspace.root.join("e2e/tools").join(tool);
        let name = format!("{tool}-{:016x}", hash(&directory)?);
        Ok(Self { directory, name })
    }
}

/// A tool's directory in the cache; built now when `program` is not in it.
pub(crate) fn cached(
    name: &str,
    program: &str,
    log: &mut Log,
    build: impl FnOnce(&Path, &Path, &mut Log) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let directory = cache()?.join("tools").join(format!("{name}-{}", std::env::consts::ARCH));
    if !directory.join(program).is_file() {
        let go = go(log)?;
        build_beside(&directory, program, |building| build(building, &go, log))?;
    }
    Ok(directory)
}

pub(crate) fn run_go(command: &mut Command, deadline: Duration, log: &mut Log) -> Result<(), String> {
    command.env("GOTOOLCHAIN", "auto").env("CGO_ENABLED", "0").env("GOFLAGS", "-trimpath");
    process::run(command, deadline, log, &mut |_| {})
}

/// Has a tool built beside its directory and renames it, so that an interrupted build is never taken for a tool.
fn build_beside(
    directory: &Path,
    program: &str,
    build: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<(), String> {
    let building = directory.with_extension(format!("{}.new", std::process::id()));
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    build(&building).map_err(|error| format!("cannot build {name}: {error}; see target/xtask/"))?;
    std::fs::rename(&building, directory)
        .or_else(|error| {
            // Another run was faster.
            let _ = std::fs::remove_dir_all(&building);
            if directory.join(program).is_file() { Ok(()) } else { Err(error) }
        })
        .map_err(|error| format!("cannot move {name} to {}: {error}", directory.display()))
}

/// Of the names and contents of the files in a directory.
fn hash(directory: &Path) -> Result<u64, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", directory.display());
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(failed)?;
    paths.sort();
    let mut hasher = DefaultHasher::new();
    for path in paths {
        (path.file_name(), std::fs::read(&path).map_err(failed)?).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// A Go that can build today's modules: the one in PATH, Debian's, or a toolchain that Debian's old one fetches as a module.
fn go(log: &mut Log) -> Result<PathBuf, String> {
    let usual = Path::new("/usr/local/go/bin/go");
    let mut go =
        PathBuf::from(if !process::is_installed("go") && usual.is_file() { "/usr/local/go/bin/go" } else { "go" });
    if go_version(&go).is_none() {
        apt_install(&["golang-go", CA_PACKAGE], log)?;
        go = PathBuf::from("go");
    }
    let version = go_version(&go).ok_or("Go is not installed and Debian's golang-go did not bring it")?;
    if version >= FIRST_GO_WITH_TOOLCHAINS { Ok(go) } else { newer_go(&go, log) }
}

fn go_version(go: &Path) -> Option<(u32, u32)> {
    let text = process::output(Command::new(go).args(["env", "GOVERSION"])).ok()?;
    let mut numbers = text.trim().strip_prefix("go")?.split('.').map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A toolchain is an ordinary module (https://go.dev/doc/toolchain), so an older Go can download it too; it only does
/// not know that its programs must be executable.
fn newer_go(old: &Path, log: &mut Log) -> Result<PathBuf, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Downloaded {
        dir: PathBuf,
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => {
            return Err(format!(
                "Go is too old to build csi-sanity, and no newer one is known for {other}: install Go 1.25"
            ));
        }
    };
    log.line("this Go is older than 1.21; fetching a newer one as a module");
    let mut download = Command::new(old);
    download.args(["mod", "download", "-json", &format!("golang.org/toolchain@{GO_TOOLCHAIN}{architecture}")]);
    // Outside of any module, as the tree has none.
    let json = process::output(download.current_dir(std::env::temp_dir())).map_err(|error| {
        format!("Go is too old to build csi-sanity and fetching a newer one failed ({error}): install Go 1.25")
    })?;
    let found: Downloaded =
        serde_json::from_str(&json).map_err(|error| format!("cannot read what Go downloaded: {error}"))?;
    // The module cache is read-only by design; a copy of our own is not.
    let copy = cache()?.join("tools").join(format!("go-{GO_TOOLCHAIN}{architecture}"));
    if !copy.join("bin/go").is_file() {
        let building = copy.with_extension(format!("{}.new", std::process::id()));
        let script = "mkdir -p \"$(dirname \"$2\")\" && cp -r --no-preserve=mode \"$1\" \"$2\" && chmod -R +x \"$2/bin\" \"$2/pkg/tool\"";
        let mut sh = Command::new("sh");
        sh.args(["-c", script, "sh"]).arg(&found.dir).arg(&building);
        process::run(&mut sh, PACKAGES_DEADLINE, log, &mut |_| {})?;
        std::fs::rename(&building, &copy).map_err(|error| format!("cannot move Go to {}: {error}", copy.display()))?;
    }
    Ok(copy.join("bin/go"))
}

pub(crate) fn apt_install(packages: &[&str], log: &mut Log) -> Result<(), String> {
    let names = packages.join(" ");
    if !process::is_installed("apt-get") {
        return Err(format!("missing, and this is not Debian: install what Debian calls {names}"));
    }
    if !is_root() {
        return Err(format!("missing, and only root can install it: apt-get install {names}"));
    }
    let install = |log: &mut Log| {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y", "--no-install-recommends"]).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut apt, PACKAGES_DEADLINE, log, &mut |_| {})
    };
    // A machine just installed has no package lists; one that has them need not fetch them again.
    if install(log).is_ok() {
        return Ok(());
    }
    let mut update = Command::new("apt-get");
    process::run(update.arg("update"), PACKAGES_DEADLINE, log, &mut |_| {})?;
    install(log).map_err(|error| format!("cannot install {names}: {error}; see {}", log.path.display()))
}

fn has_static_libc() -> bool {
    let libraries = ["/usr/lib", "/usr/lib64"].into_iter().flat_map(std::fs::read_dir).flatten().flatten();
    let directories = libraries.map(|entry| entry.path()).chain(["/usr/lib", "/usr/lib64"].map(PathBuf::from));
    directories.into_iter().any(|directory| directory.join("libc.a").is_file())
}

pub(crate) fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn cache() -> Result<PathBuf, String> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HAWSER_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("hawser")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/hawser")))
        .ok_or_else(|| "neither HAWSER_CACHE nor HOME says where to keep tools".to_owned())
}
