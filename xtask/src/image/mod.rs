//! `cargo xtask image`: the container images, as one archive in OCI's image layout, made without any container runtime.
//!
//! `hawser-controller` is the static binary alone. `hawser-node` has the same layer and one more with the programs that the
//! driver starts for file systems. The same inputs give the same bytes: entries are sorted, owned by root and of no time.

mod layer;
mod layout;
mod programs;

use crate::binaries;
use crate::install;
use crate::process::Log;
use crate::workspace::Workspace;
use layer::{Layer, LayerBuilder};
use layout::{Image, Layout};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct ImageArguments {
    /// Where the archive is written [default: target/xtask/hawser-images.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What the images are called, in front of their names.
    #[arg(long, default_value = "ghcr.io/hawser-dev")]
    registry: String,
    /// Their tag [default: the version]
    #[arg(long)]
    tag: Option<String>,
    /// Takes this static binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// In an image of nothing else, this is nobody.
const CONTROLLER_USER: &str = "65532:65532";
/// What the controller's image should stay below, packed: it is pulled while a cluster waits for storage.
const GOAL_BYTES: u64 = 15_000_000;

/// Always true; what goes wrong is an error.
pub(crate) fn image(arguments: &ImageArguments) -> Result<bool, String> {
    let workspace = Workspace::load()?;
    let mut log = Log::create(&workspace.log_directory(), "image")?;
    install::packages(&mut log)?;
    let binary = match &arguments.binary {
        Some(path) => path.clone(),
        None => binaries::build_hawser(&workspace, &mut log)?,
    };
    let version = workspace.packages.iter().find(|package| package.manifest_path.ends_with("driver/Cargo.toml"));
    let version = version.map_or("latest", |package| &package.version);
    let tag = arguments.tag.as_deref().unwrap_or(version);
    let images = images(&binary, &arguments.registry, tag, version)?;
    let output = arguments.output.clone().unwrap_or_else(|| workspace.log_directory().join("hawser-images.tar"));
    let mut layout = Layout::default();
    for image in &images {
        let digest = layout.add(image)?;
        println!("{} ({digest})", image.name);
        for layer in &image.layers {
            println!(
                "  {:<10} {:>6.2} MB, packed {:>6.2} MB",
                layer.what,
                mega(layer.unpacked_bytes),
                mega(layer.packed_bytes())
            );
        }
    }
    layout.write(&output)?;
    let controller: u64 = images[0].layers.iter().map(Layer::packed_bytes).sum();
    let verdict = if controller < GOAL_BYTES { "within" } else { "beyond" };
    println!("the controller's image is {verdict} its goal of {} MB", GOAL_BYTES / 1_000_000);
    println!("written: {}", output.display());
    Ok(true)
}

/// The controller's and the node's.
fn images(binary: &Path, registry: &str, tag: &str, version: &str) -> Result<[Image; 2], String> {
    programs::ensure_static(binary)?;
    let mut hawser = LayerBuilder::new("hawser");
    hawser.copy(binary, "hawser")?;
    let hawser = hawser.finish()?;
    let mut tools = LayerBuilder::new("programs");
    programs::add(&mut tools)?;
    let tools = tools.finish()?;
    let image = |name: &str, layers: Vec<Layer>, user: &'static str| Image {
        name: format!("{registry}/{name}:{tag}"),
        version: version.to_owned(),
        layers,
        user,
    };
    // A node mounts and makes devices: nobody but root can.
    Ok([
        image("hawser-controller", vec![hawser.clone()], CONTROLLER_USER),
        image("hawser-node", vec![tools, hawser], "0:0"),
    ])
}

#[allow(clippy::cast_precision_loss, reason = "for reading")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests;
