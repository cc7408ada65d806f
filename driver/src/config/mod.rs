//! The configuration: one TOML file, overridden by `HAWSER_*` variables, overridden by flags. Each value keeps where
//! it came from, so that an error can name the file and line, the variable or the flag.

mod agent;
mod failover;
mod keys;
mod kubernetes;
mod sources;

pub use agent::AgentSettings;
pub use failover::FailoverSettings;
pub use keys::{BackendConfig, BackendKind, Listen, LogFormat, Mode};

use ::agent::AgentAddress;
use rpc::Profile;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use volume::{Attacher, BackendName, NodeId};

/// Read when it is there and `--config` is not given.
pub const DEFAULT_FILE: &str = "/etc/hawser/config.toml";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub node_id: NodeId,
    pub mode: Mode,
    pub profile: Profile,
    /// Who takes the grants of volumes; the same for controllers and nodes.
    pub attach: Attacher,
    /// As given: `unix:///x`, `unix://x` or a path; `rpc` parses it.
    pub endpoint: String,
    pub state_dir: PathBuf,
    pub metrics_listen: Listen,
    pub log_format: LogFormat,
    /// A `tracing-subscriber` filter: `info`, or `info,pool=debug`.
    pub log_level: String,
    pub rpc_deadline: Duration,
    /// Kubelet's `plugins_registry` directory; the node service registers itself there when it is given.
    pub kubelet_registration_dir: Option<PathBuf>,
    /// Below which workloads run, relative to the root of the cgroup hierarchy; their I/O can be limited.
    pub io_limit_cgroups: Vec<PathBuf>,
    /// The first is the default for new volumes. None only where a controller has agents instead.
    pub backends: Vec<BackendConfig>,
    pub agent: Option<AgentSettings>,
    /// Where a controller finds the backends of other nodes.
    pub agents: Vec<AgentAddress>,
    /// When it is enabled: agents are found, and know each other, by the cluster's own means.
    pub kubernetes: Option<::kubernetes::Names>,
    /// When nodes are supervised by this process.
    pub failover: Option<FailoverSettings>,
}

/// What is wrong with the configuration, where, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(pub String);

/// One value on its way into the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `mode`, or `backend.directory` for the first backend.
    pub key: String,
    pub value: String,
    pub origin: String,
}

impl Config {
    /// Loads `file` (or the default file if it is there), then the environment, then `flags`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: Vec<Setting>,
    ) -> Result<Self, ConfigError> {
        let mut raw = keys::Raw::default();
        if let Some((path, text)) = sources::read_file(file)? {
            sources::apply_file(&mut raw, &path, &text)?;
        }
        for setting in sources::environment(environment)?.into_iter().chain(flags) {
            raw.apply(&setting)?;
        }
        raw.finish()
    }

    /// Where the kernel gets the host's name from; the default node id.
    fn host_name() -> Option<String> {
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned())
    }
}

impl keys::Raw {
    /// Fills in the defaults and checks what concerns more than one key.
    fn finish(mut self) -> Result<Config, ConfigError> {
        let mode = self.mode.unwrap_or_default();
        let kubernetes = self.kubernetes(mode)?;
        let agents = self.agents()?;
        // Whose backends a controller uses.
        let has_agents = !agents.is_empty() || (kubernetes.is_some() && mode == Mode::Controller);
        let node_id = match &self.node_id {
            Some(id) => id.clone(),
            None => {
                let name = Config::host_name().unwrap_or_default();
                NodeId::parse(&name).map_err(|error| {
                    ConfigError(format!("the host's name cannot serve as node id ({error}); set node_id"))
                })?
            }
        };
        let mut backends = std::mem::take(&mut self.backends);
        if backends.is_empty() && (mode != Mode::Controller || !has_agents) {
            backends.push(BackendConfig::new()?);
        }
        for backend in &mut backends {
            // What one node alone has needs a name that no other node's has: the ids of its volumes begin with it.
            let is_of_node = backend.scope == Some(pool::Scope::Local) || backend.kind == BackendKind::Memory;
            if self.agent.listens() && !backend.is_named && is_of_node {
                backend.name = BackendName::of_node(&node_id);
            }
        }
        let memory = backends.iter().filter(|b| b.kind == BackendKind::Memory).count();
        if memory > 0 && memory < backends.len() {
            return Err(ConfigError(
                "a backend of type \"memory\" stands beside others: it brings a simulated host with it, so it must be the \
                 only sort"
                    .to_owned(),
            ));
        }
        let mut names: Vec<&BackendName> = backends.iter().map(|b| &b.name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError(format!("two backends have the name {:?}; give each its own", twice[0].as_str())));
        }
        let mut directories: Vec<&PathBuf> =
            backends.iter().filter(|b| b.kind == BackendKind::Pool).map(|b| &b.directory).collect();
        directories.sort_unstable();
        if let Some(twice) = directories.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError(format!(
                "two backends have the directory {}; a pool is of one backend",
                twice[0].display()
            )));
        }
        let profile = self.profile.unwrap_or_default();
        let agent = std::mem::take(&mut self.agent).finish(mode, has_agents, kubernetes.is_some())?;
        let heartbeat = agent.as_ref().map(|agent| agent.heartbeat);
        let failover = self.failover(mode, kubernetes.is_some(), heartbeat)?;
        Ok(Config {
            node_id,
            mode,
            profile,
            attach: self.attach.unwrap_or_default(),
            endpoint: self.endpoint.unwrap_or_else(|| "unix:///run/hawser/csi.sock".to_owned()),
            state_dir: self.state_dir.unwrap_or_else(|| PathBuf::from("/var/lib/hawser/node")),
            metrics_listen: self.metrics_listen.unwrap_or_default(),
            log_format: self.log_format.unwrap_or_default(),
            log_level: self.log_level.unwrap_or_else(|| "info".to_owned()),
            rpc_deadline: Duration::from_secs(self.rpc_deadline_s.unwrap_or(60)),
            kubelet_registration_dir: self.kubelet_registration_dir,
            io_limit_cgroups: self.io_limit_cgroups.unwrap_or_else(|| keys::default_cgroups(profile)),
            backends,
            agent,
            agents,
            kubernetes,
            failover,
        })
    }
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;
