//! Images, made from programs of this machine, since no registry is asked for anything.
//!
//! They are imported once, into a containerd that runs for this alone; each node then starts with a clone of its state.

use super::Tools;
use super::node::containerd_settings;
use super::place::Place;
use super::process::{Daemon, wait_until};
use crate::failure::{Context, Result, ensure};
use crate::lab::kernel::program;
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What scenarios run; on other clusters the public image of this name. It has no entry point that pods rely on.
pub(super) const BUSYBOX_IMAGE: &str = "busybox:1.36";
pub(super) const PAUSE: &str = "hawser.test/pause:lab";
/// The sidecars that run in hawser's controller pod.
const SIDECARS: [&str; 5] =
    ["csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter", "csi-snapshot-metadata"];
/// What hawser starts for file systems.
const FILE_SYSTEM_PROGRAMS: [&str; 9] =
    ["mkfs.ext4", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_repair", "xfs_admin", "xfs_db", "mkfs.btrfs", "btrfs"];
const BUSYBOX: &str = "/bin/busybox";
const START_LIMIT: Duration = Duration::from_secs(60);

/// A file system below a directory, and what runs in it.
struct Image<'a> {
    name: String,
    root: PathBuf,
    entry_point: &'a [&'a str],
}

/// Makes and imports all.
pub(super) fn prepare(place: &Place, tools: &Tools, hawser: &Path) -> Result<()> {
    let directory = place.root().join("nodes/images");
    std::fs::create_dir_all(&directory)?;
    let mut images = vec![
        Image { name: PAUSE.to_owned(), root: directory.join("pause"), entry_point: &["/bin/sleep", "2147483647"] },
        Image { name: BUSYBOX_IMAGE.to_owned(), root: directory.join("busybox"), entry_point: &["/bin/sh"] },
        Image { name: "hawser.test/hawser:lab".to_owned(), root: directory.join("hawser"), entry_point: &["/hawser"] },
    ];
    let entry_points: Vec<(&str, String)> = SIDECARS.iter().map(|name| (*name, format!("/{name}"))).collect();
    for image in &images {
        add_busybox(&image.root)?;
    }
    let root = &images[2].root;
    copy(hawser, &root.join("hawser"))?;
    FILE_SYSTEM_PROGRAMS.iter().try_for_each(|name| add_with_libraries(name, root))?;
    copy(Path::new("/etc/mke2fs.conf"), &root.join("etc/mke2fs.conf"))?;
    let entry_points: Vec<(&str, [&str; 1])> =
        entry_points.iter().map(|(name, path)| (*name, [path.as_str()])).collect();
    for (name, entry_point) in &entry_points {
        let root = directory.join(name);
        copy(&tools.find(name)?, &root.join(name))?;
        images.push(Image { name: format!("hawser.test/{name}:lab"), root, entry_point });
    }
    let importer = Importer::start(place, &directory)?;
    for image in &images {
        importer.import(image).context(|| format!("the image {}", image.name))?;
    }
    Ok(())
}

/// The state of a containerd that has all images.
pub(super) fn clone_into(place: &Path, directory: &Path) -> Result<()> {
    let made = place.join("nodes/images/containerd");
    program("cp", &["--archive", "--reflink=always", &made.to_string_lossy(), &directory.to_string_lossy()]).map(drop)
}

fn add_busybox(root: &Path) -> Result<()> {
    let bin = root.join("bin");
    copy(Path::new(BUSYBOX), &bin.join("busybox"))?;
    for name in program(BUSYBOX, &["--list"])?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", bin.join(name))?;
    }
    for part in ["tmp", "etc", "dev", "proc", "sys", "data"] {
        std::fs::create_dir_all(root.join(part))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    Ok(())
}

/// Copies a program, and the libraries that ldd(1) names to where it names them.
fn add_with_libraries(name: &str, root: &Path) -> Result<()> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|directory| Path::new(directory).join(name));
    let path = places.into_iter().find(|path| path.is_file()).ok_or_else(|| format!("{name} is not installed"))?;
    copy(&path, &root.join("usr/sbin").join(name))?;
    if std::fs::read(&path)?.starts_with(b"#!") {
        return Ok(());
    }
    for line in program("ldd", &[&path.to_string_lossy()])?.lines() {
        let library = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(library) = library {
            copy(Path::new(library), &root.join(library.trim_start_matches('/')))?;
        }
    }
    Ok(())
}

/// With its permissions; what a link leads to, under the link's name.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().unwrap_or(to))?;
    std::fs::copy(from, to).map(drop).context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// Ends when dropped.
struct Importer {
    _containerd: Daemon,
    socket: String,
    directory: PathBuf,
}

impl Importer {
    fn start(place: &Place, directory: &Path) -> Result<Self> {
        let socket = place.directory("importer")?.join("c.sock").display().to_string();
        let settings = directory.join("containerd.toml");
        // CRI needs what only nodes have.
        let text = format!(
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{}",
            containerd_settings(&directory.join("containerd"), &socket)
        );
        std::fs::write(&settings, text)?;
        let mut containerd = Command::new("containerd");
        containerd.arg("--config").arg(&settings);
        let mut containerd = Daemon::start("containerd-images", containerd, place.logs())?;
        wait_until("the containerd that imports images", START_LIMIT, || {
            containerd.ensure_running()?;
            let version = program("ctr", &["--address", &socket, "--timeout", "5s", "version"]);
            Ok(version.map(drop).map_err(|failure| failure.to_string()))
        })?;
        Ok(Self { _containerd: containerd, socket, directory: directory.to_owned() })
    }

    /// As an archive in the form of `docker save`, with one layer.
    fn import(&self, image: &Image) -> Result<()> {
        let archive = self.directory.join("archive");
        std::fs::create_dir_all(&archive)?;
        let layer = archive.join("layer.tar").display().to_string();
        let root = image.root.display().to_string();
        program("tar", &["--owner=0", "--group=0", "--numeric-owner", "-C", &root, "-cf", &layer, "."])?;
        let sum = program("sha256sum", &[&layer])?;
        let sum = sum.split_whitespace().next().unwrap_or_default();
        ensure(sum.len() == 64, || format!("sha256sum said {sum:?}"))?;
        let write = |name: &str, value: Value| std::fs::write(archive.join(name), value.to_string());
        write("config.json", self.config(image, sum))?;
        write("manifest.json", json!([{"Config": "config.json", "RepoTags": [image.name], "Layers": ["layer.tar"]}]))?;
        let file = self.directory.join("image.tar").display().to_string();
        program(
            "tar",
            &["-C", &archive.display().to_string(), "-cf", &file, "manifest.json", "config.json", "layer.tar"],
        )?;
        program("ctr", &["--address", &self.socket, "--namespace", "k8s.io", "images", "import", &file])?;
        std::fs::remove_file(file)?;
        Ok(std::fs::remove_dir_all(&image.root)?)
    }

    fn config(&self, image: &Image, layer: &str) -> Value {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": image.entry_point, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        })
    }
}
