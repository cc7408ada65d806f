//! The command line: what can be asked for, and nothing of how it is done.

mod nodes;

pub use nodes::{DrainArgs, FailoverCommand, FailoverLsArgs, NodeCommand};

use crate::config::Setting;
use crate::units::parse_size;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A CSI driver that never gives a volume to a second writer until the first provably cannot write.
#[derive(Debug, Parser)]
#[command(name = "hawser", version, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file [default: /etc/hawser/config.toml if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "HAWSER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Override one key of the configuration, such as backend.directory=/srv/pool (repeatable)
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub set: Vec<Setting>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// How log lines look on stderr: text or json
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,pool=debug
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve CSI on a unix socket
    Serve(ServeArgs),
    /// Volumes: list, inspect, create, remove, expand, snapshot, clone, restore, trim, rebuild
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Snapshots: list, remove, compare; of several volumes at one instant: group
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Images left behind by forks of a fence: list, remove
    #[command(subcommand)]
    Orphan(OrphanCommand),
    /// Nodes: list, and in Kubernetes take into maintenance and back: cordon, drain, uncordon
    #[command(subcommand)]
    Node(NodeCommand),
    /// Failovers of nodes in Kubernetes: list
    #[command(subcommand)]
    Failover(FailoverCommand),
    /// Cut a node off from all its volumes, so that others may take them over
    Fence(FenceArgs),
    /// Let a fenced node back in, once nothing of its earlier life can write
    Unfence {
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Show a failover on this machine: two nodes, real loop devices, every acknowledged write verified
    Demo(DemoArgs),
    /// Make an authority and certificates for a controller and for the agents of nodes; run again, it renews them
    Certificates(CertificatesArgs),
    /// Load any CSI driver with volumes and measure each call
    Bench(BenchArgs),
    /// Ask the process that serves with this configuration how it is, on metrics_listen; exit code 0 means well
    Probe {
        /// live: it answers; ready: it can serve
        #[arg(value_enum)]
        page: Page,
    },
    /// Print the version and what this binary speaks
    Version,
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Writers and checkers of the demo and of the tests
    #[command(subcommand, hide = true)]
    Workload(crate::workload::WorkloadCommand),
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct ServeArgs {
    /// Which services: controller, node or all
    #[arg(long)]
    pub mode: Option<String>,
    /// The orchestrator served: kubernetes, nomad, swarm or docker
    #[arg(long)]
    pub profile: Option<String>,
    /// The socket: unix:///x, unix://x or a path
    #[arg(long)]
    pub endpoint: Option<String>,
    /// This node's id [default: the host's name]
    #[arg(long)]
    pub node_id: Option<String>,
    /// Where the node keeps its journal and incarnation
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Where /healthz, /readyz and /metrics are: a loopback address, unix:///x, off, or insecure:ADDRESS
    #[arg(long, value_name = "WHERE")]
    pub metrics_listen: Option<String>,
    /// How long one call may take before its client gets an answer; the work goes on
    #[arg(long, value_name = "SECONDS")]
    pub rpc_deadline_s: Option<String>,
    /// Kubelet's plugins_registry directory, to register without a sidecar
    #[arg(long, value_name = "DIR")]
    pub kubelet_registration_dir: Option<String>,
    /// Serve in a mount namespace of its own, as if this process were another machine
    #[arg(long)]
    pub private_mounts: bool,
    /// Be killed when this process, which starts it, ends
    #[arg(long, hide = true, value_name = "PID")]
    pub die_with_parent: Option<u32>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Page {
    Live,
    Ready,
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List volumes and who holds them
    Ls,
    /// Show everything recorded of one volume
    Inspect {
        /// Name or id
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Create a volume
    Create(CreateArgs),
    /// Delete a volume; fine when it is gone already
    Rm {
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Grow a volume
    Expand {
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// New size, such as 20GiB
        #[arg(value_name = "SIZE", value_parser = parse_size)]
        size_bytes: u64,
    },
    /// Change what can change of a volume while it is used; its node applies it within seconds
    Modify {
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// Mutable parameter, such as readAheadKiB=1024 or writeBytesPerSecond=default
        #[arg(value_name = "KEY=VALUE", value_parser = parse_pair, required = true)]
        parameters: Vec<(String, String)>,
    },
    /// Take a snapshot of a volume
    Snapshot {
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// Name of the snapshot
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Make a volume from another one as it is now
    Clone {
        #[arg(value_name = "VOLUME")]
        source: String,
        /// Name of the new volume
        #[arg(value_name = "NAME")]
        name: String,
        /// Size of the new volume [default: the source's]
        #[arg(long = "size", value_name = "SIZE", value_parser = parse_size)]
        size_bytes: Option<u64>,
    },
    /// Make a volume from a snapshot
    Restore {
        /// Name or id of the snapshot
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// Name of the new volume
        #[arg(value_name = "NAME")]
        name: String,
        /// Size of the new volume [default: the snapshot's]
        #[arg(long = "size", value_name = "SIZE", value_parser = parse_size)]
        size_bytes: Option<u64>,
    },
    /// Give the free space of a mounted volume's file system back to the storage
    Trim {
        /// Name or id
        #[arg(value_name = "VOLUME", required_unless_present = "all", conflicts_with = "all")]
        volume: Option<String>,
        /// Every thin volume that is mounted on this machine
        #[arg(long)]
        all: bool,
    },
    /// Make the damaged record of a volume again from its data. You have made sure that no node uses it
    Rebuild {
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name, as an orchestrator would give it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Size, such as 10GiB
    #[arg(long = "size", value_name = "SIZE", value_parser = parse_size)]
    pub size_bytes: u64,
    /// A raw block device instead of a file system
    #[arg(long, conflicts_with = "directory")]
    pub block: bool,
    /// A directory of the pool, for many nodes at once
    #[arg(long)]
    pub directory: bool,
    /// Volume parameter, such as fsType=xfs or thick=true (repeatable)
    #[arg(short, long = "parameter", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub parameters: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// List snapshots
    Ls {
        /// Only those of this volume (name or id)
        #[arg(long, value_name = "VOLUME")]
        volume: Option<String>,
    },
    /// Delete a snapshot; fine when it is gone already
    Rm {
        /// Name or id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
    /// Print where a snapshot holds data; everything else reads as zeros
    Blocks {
        /// Name or id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
    /// Print where two snapshots of one volume may differ; outside of it they are the same
    Diff {
        /// Name or id of the older one
        #[arg(value_name = "BASE")]
        base: String,
        /// Name or id of the younger one
        #[arg(value_name = "TARGET")]
        target: String,
    },
    /// Snapshots of several volumes at one instant: create, list, remove
    #[command(subcommand)]
    Group(GroupCommand),
}

#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Take snapshots of several volumes at one instant; they can be restored one by one
    Create {
        /// Name of the group
        #[arg(value_name = "NAME")]
        name: String,
        /// Names or ids of volumes on one backend
        #[arg(value_name = "VOLUME", required = true)]
        volumes: Vec<String>,
    },
    /// List group snapshots
    Ls,
    /// Delete a group with all its snapshots; fine when it is gone already
    Rm {
        /// Name or id
        #[arg(value_name = "GROUP")]
        group: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum OrphanCommand {
    /// List what fenced nodes wrote last, kept beside the volumes
    Ls,
    /// Remove the orphans past their keeping time, or all of one volume
    Rm {
        #[arg(value_name = "VOLUME")]
        volume: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct FenceArgs {
    #[arg(value_name = "NODE")]
    pub node: String,
    /// You have made sure that the machine is off. Recorded with your name; as strong as your word
    #[arg(long)]
    pub powered_off: bool,
}

#[derive(Debug, Args)]
pub struct CertificatesArgs {
    /// Where they are written: ca.crt and ca.key, controller.crt and .key, node-<NODE>.crt and .key
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// A node whose agent needs one (repeatable)
    #[arg(long = "node", value_name = "NODE")]
    pub nodes: Vec<String>,
    /// How long they are valid; the authority's own is for ten years
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
    pub days: u64,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// What befalls the first node: its processes are killed, or frozen and let go on later
    #[arg(long, value_enum, default_value_t = Fault::Kill)]
    pub fault: Fault,
    /// Leave the scratch directory (ledger, logs) behind
    #[arg(long)]
    pub keep: bool,
    /// Where to make the scratch directory [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Concurrent writers
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub writers: u32,
    /// Raw block instead of ext4
    #[arg(long)]
    pub block: bool,
    /// Do not fence the frozen node: the verdict must then be FAIL
    #[arg(long, hide = true)]
    pub without_fence: bool,
}

#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The driver's socket: unix:///x, unix://x or a path
    #[arg(long)]
    pub endpoint: String,
    /// The socket of its node service, where that is another
    #[arg(long, value_name = "ENDPOINT")]
    pub node_endpoint: Option<String>,
    /// Volumes there at once
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub volumes: u32,
    /// Volumes worked on at the same time
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub concurrency: u32,
    /// How often all volumes are made and removed
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Raw block devices instead of file systems
    #[arg(long, conflicts_with = "fs")]
    pub block: bool,
    /// File system asked for
    #[arg(long, value_name = "FS", default_value = "ext4")]
    pub fs: String,
    /// Size of each volume
    #[arg(long = "size", value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub size_bytes: u64,
    /// Parameter of CreateVolume, as a StorageClass has it (repeatable)
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub parameters: Vec<(String, String)>,
    /// How long all volumes stay published, in seconds
    #[arg(long = "hold", value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub hold_s: u64,
    /// Where staging directories are made; the driver must see it [default: below the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub staging_dir: Option<PathBuf>,
    /// Where volumes are published; the driver must see it [default: below the temporary directory]
    #[arg(long, value_name = "DIR")]
    pub target_dir: Option<PathBuf>,
    /// How long one call may take, and how long a busy driver is asked again, in seconds
    #[arg(long = "timeout", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub timeout_s: u64,
    /// Go on with the other volumes when one fails
    #[arg(long)]
    pub keep_going: bool,
    /// Write the figures to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    Kill,
    Freeze,
}

impl Global {
    /// The flags that every command takes, as settings; `more` are the command's own.
    pub fn settings(&self, more: Vec<Setting>) -> Vec<Setting> {
        let mut settings = more;
        settings.extend(flag("log_format", &self.log_format));
        settings.extend(flag("log_level", &self.log_level));
        settings.extend(self.set.iter().cloned());
        settings
    }
}

impl ServeArgs {
    pub fn settings(&self) -> Vec<Setting> {
        [
            flag("mode", &self.mode),
            flag("profile", &self.profile),
            flag("endpoint", &self.endpoint),
            flag("node_id", &self.node_id),
            flag("state_dir", &self.state_dir),
            flag("metrics_listen", &self.metrics_listen),
            flag("rpc_deadline_s", &self.rpc_deadline_s),
            flag("kubelet_registration_dir", &self.kubelet_registration_dir),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn flag(key: &str, value: &Option<String>) -> Option<Setting> {
    let value = value.clone()?;
    Some(Setting { key: key.to_owned(), value, origin: format!("flag --{}", key.replace('_', "-")) })
}

fn parse_setting(text: &str) -> Result<Setting, String> {
    let (key, value) = parse_pair(text)?;
    Ok(Setting { key, value, origin: format!("flag --set {text}") })
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_settings_that_name_themselves() {
        let cli =
            Cli::parse_from(["hawser", "serve", "--mode", "node", "--log-level", "debug", "--set", "profile=nomad"]);
        let Command::Serve(serve) = &cli.command else { panic!("serve") };
        let origins: Vec<String> = cli.global.settings(serve.settings()).into_iter().map(|s| s.origin).collect();
        assert_eq!(origins, ["flag --mode", "flag --log-level", "flag --set profile=nomad"]);
    }

    #[test]
    fn usage_errors() {
        for wrong in [
            &["hawser"][..],
            &["hawser", "volume", "create", "x"],
            &["hawser", "volume", "create", "x", "--size", "ten"],
            &["hawser", "volume", "create", "x", "--size", "1G", "--block", "--directory"],
            &["hawser", "fence"],
            &["hawser", "snapshot", "group", "create", "x"],
            &["hawser", "volume", "trim"],
            &["hawser", "volume", "trim", "x", "--all"],
            &["hawser", "volume", "modify", "x"],
            &["hawser", "volume", "modify", "x", "readAheadKiB"],
            &["hawser", "demo", "--fault", "none"],
            &["hawser", "bench"],
            &["hawser", "bench", "--endpoint", "/x", "--block", "--fs", "xfs"],
            &["hawser", "bench", "--endpoint", "/x", "--volumes", "0"],
        ] {
            let error = Cli::try_parse_from(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
        }
    }
}
