//! Every key, its type and what it takes. The lists of known keys are what errors suggest from.

use super::agent::{RawAddress, RawAgent};
use super::failover::RawFailover;
use super::kubernetes::RawKubernetes;
use super::{ConfigError, Setting};
use pool::Scope;
use rpc::Profile;
use std::net::SocketAddr;
use std::path::PathBuf;
use volume::{Attacher, BackendName, NodeId};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    Controller,
    Node,
    #[default]
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where `/healthz`, `/readyz` and `/metrics` are served. Plain HTTP, so it leaves the machine only where `insecure:` was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Listen {
    #[default]
    Off,
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    Pool,
    Memory,
}

/// One `[[backend]]`. What is `None` is left to the backend's own default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    pub name: BackendName,
    /// Whether the name was given; else it may be the node's.
    pub is_named: bool,
    pub kind: BackendKind,
    pub directory: PathBuf,
    pub scope: Option<Scope>,
    pub max_volumes_per_node: Option<u64>,
    pub orphan_keep_s: Option<u64>,
    pub allow_fork_only_fence: bool,
    /// Without a sign of life for so long the node stops its own writing; 0: never.
    pub shut_down_after_s: Option<u64>,
    /// Size of an xfs image to keep the pool in, where the directory's file system has no reflink.
    pub image_bytes: Option<u64>,
    /// Kept free for records, forks and copy-on-write.
    pub reserve_bytes: Option<u64>,
}

/// What has been set so far.
#[derive(Debug, Default)]
pub struct Raw {
    pub node_id: Option<NodeId>,
    pub mode: Option<Mode>,
    pub profile: Option<Profile>,
    pub attach: Option<Attacher>,
    pub endpoint: Option<String>,
    pub state_dir: Option<PathBuf>,
    pub metrics_listen: Option<Listen>,
    pub log_format: Option<LogFormat>,
    pub log_level: Option<String>,
    pub rpc_deadline_s: Option<u64>,
    pub kubelet_registration_dir: Option<PathBuf>,
    pub io_limit_cgroups: Option<Vec<PathBuf>>,
    pub backends: Vec<BackendConfig>,
    pub agent: RawAgent,
    pub agents: Vec<RawAddress>,
    pub kubernetes: RawKubernetes,
    pub failover: RawFailover,
}

pub const TOP_KEYS: [&str; 17] = [
    "agent",
    "agents",
    "attach",
    "backend",
    "endpoint",
    "failover",
    "io_limit_cgroups",
    "kubelet_registration_dir",
    "kubernetes",
    "log_format",
    "log_level",
    "metrics_listen",
    "mode",
    "node_id",
    "profile",
    "rpc_deadline_s",
    "state_dir",
];
pub const BACKEND_KEYS: [&str; 10] = [
    "allow_fork_only_fence",
    "directory",
    "image_bytes",
    "max_volumes_per_node",
    "name",
    "orphan_keep_s",
    "reserve_bytes",
    "scope",
    "shut_down_after_s",
    "type",
];

impl Raw {
    /// Takes one setting. A key `backend.X` goes to the first backend, which is made if there is none.
    pub fn apply(&mut self, setting: &Setting) -> Result<(), ConfigError> {
        if let Some(key) = setting.key.strip_prefix("backend.") {
            if self.backends.is_empty() {
                self.backends.push(BackendConfig::new()?);
            }
            return self.apply_backend(0, key, setting);
        }
        if let Some(key) = setting.key.strip_prefix("agent.") {
            return self.agent.apply(key, setting);
        }
        if let Some(key) = setting.key.strip_prefix("kubernetes.") {
            return self.kubernetes.apply(key, setting);
        }
        if let Some(key) = setting.key.strip_prefix("failover.") {
            return self.failover.apply(key, setting);
        }
        let value = setting.value.as_str();
        let at = |expected: String| wrong_value(setting, &expected);
        match setting.key.as_str() {
            "node_id" => self.node_id = Some(NodeId::parse(value).map_err(|error| at(error.to_string()))?),
            "mode" => {
                self.mode = Some(
                    one_of(value, &[("controller", Mode::Controller), ("node", Mode::Node), ("all", Mode::All)])
                        .map_err(at)?,
                );
            }
            "profile" => {
                let known = Profile::ALL.map(|profile| (profile.as_str(), profile));
                self.profile = Some(one_of(value, &known).map_err(at)?);
            }
            "attach" => {
                let known = [("controller", Attacher::Controller), ("node", Attacher::Node)];
                self.attach = Some(one_of(value, &known).map_err(at)?);
            }
            "endpoint" => self.endpoint = Some(not_empty(value).map_err(at)?),
            "state_dir" => self.state_dir = Some(absolute(value).map_err(at)?),
            "metrics_listen" => self.metrics_listen = Some(listen(value).map_err(at)?),
            "log_format" => {
                self.log_format =
                    Some(one_of(value, &[("text", LogFormat::Text), ("json", LogFormat::Json)]).map_err(at)?);
            }
            "log_level" => self.log_level = Some(log_level(value).map_err(at)?),
            "rpc_deadline_s" => self.rpc_deadline_s = Some(number(value, 1, 3600).map_err(at)?),
            "kubelet_registration_dir" => self.kubelet_registration_dir = Some(absolute(value).map_err(at)?),
            "io_limit_cgroups" => self.io_limit_cgroups = Some(cgroups(value).map_err(at)?),
            unknown => return Err(unknown_key(setting, unknown, &TOP_KEYS)),
        }
        Ok(())
    }

    pub fn apply_backend(&mut self, index: usize, key: &str, setting: &Setting) -> Result<(), ConfigError> {
        let Some(backend) = self.backends.get_mut(index) else {
            return Err(ConfigError(format!("{}: there is no backend number {index}", setting.origin)));
        };
        let value = setting.value.as_str();
        let at = |expected: String| wrong_value(setting, &expected);
        match key {
            "name" => {
                backend.name = BackendName::parse(value).map_err(|error| at(error.to_string()))?;
                backend.is_named = true;
            }
            "type" => {
                let known = [("pool", BackendKind::Pool), ("memory", BackendKind::Memory)];
                backend.kind = one_of(value, &known).map_err(at)?;
            }
            "directory" => backend.directory = absolute(value).map_err(at)?,
            "scope" => {
                let known = [("local", Scope::Local), ("shared", Scope::Shared)];
                backend.scope = Some(one_of(value, &known).map_err(at)?);
            }
            "max_volumes_per_node" => backend.max_volumes_per_node = Some(number(value, 1, 1 << 20).map_err(at)?),
            "orphan_keep_s" => backend.orphan_keep_s = Some(number(value, 0, u64::MAX / 1000).map_err(at)?),
            "allow_fork_only_fence" => {
                backend.allow_fork_only_fence = truth(value).map_err(at)?;
            }
            "shut_down_after_s" => backend.shut_down_after_s = Some(number(value, 0, 24 * 3600).map_err(at)?),
            "image_bytes" => backend.image_bytes = Some(crate::units::parse_size(value).map_err(at)?),
            "reserve_bytes" => backend.reserve_bytes = Some(crate::units::parse_size(value).map_err(at)?),
            unknown => return Err(unknown_key(setting, unknown, &BACKEND_KEYS)),
        }
        Ok(())
    }
}

impl BackendConfig {
    /// What a `[[backend]]` without any key means, and what is served without one.
    pub fn new() -> Result<Self, ConfigError> {
        Ok(Self {
            name: BackendName::parse("pool").map_err(|error| ConfigError(error.to_string()))?,
            is_named: false,
            kind: BackendKind::Pool,
            directory: PathBuf::from("/var/lib/hawser/pool"),
            scope: None,
            max_volumes_per_node: None,
            orphan_keep_s: None,
            allow_fork_only_fence: false,
            shut_down_after_s: None,
            image_bytes: None,
            reserve_bytes: None,
        })
    }
}

/// The error for a key that nobody knows, with the one that was probably meant.
pub fn unknown_key(setting: &Setting, key: &str, known: &[&str]) -> ConfigError {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3));
    let hint = match nearest {
        Some((_, candidate)) => format!("did you mean {candidate:?}?"),
        None => format!("the known ones are {}", known.join(", ")),
    };
    ConfigError(format!("{}: unknown key {key:?}; {hint}", setting.origin))
}

pub fn wrong_value(setting: &Setting, expected: &str) -> ConfigError {
    ConfigError(format!("{}: {} is {:?}; {expected}", setting.origin, setting.key, setting.value))
}

fn one_of<T: Copy>(value: &str, known: &[(&str, T)]) -> Result<T, String> {
    known.iter().find(|(name, _)| *name == value).map(|(_, found)| *found).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        format!("it takes one of {}", names.join(", "))
    })
}

pub fn truth(value: &str) -> Result<bool, String> {
    one_of(value, &[("true", true), ("false", false)])
}

fn not_empty(value: &str) -> Result<String, String> {
    if value.is_empty() { Err("it must not be empty".to_owned()) } else { Ok(value.to_owned()) }
}

pub fn absolute(value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err("it takes an absolute path".to_owned()) }
}

/// Separated by commas; none at all switches I/O limits off.
fn cgroups(value: &str) -> Result<Vec<PathBuf>, String> {
    let parse = |name: &str| {
        let path = PathBuf::from(name.trim());
        let is_plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        (is_plain && !path.as_os_str().is_empty()).then_some(path)
    };
    let names: Option<_> = value.split(',').filter(|name| !name.trim().is_empty()).map(parse).collect();
    names.ok_or_else(|| {
        "it takes paths of cgroups below the root of their hierarchy, separated by commas, such as kubepods,kubepods.slice"
            .to_owned()
    })
}

/// The cgroups that the orchestrator keeps its workloads in, with the cgroupfs and the systemd driver.
pub fn default_cgroups(profile: Profile) -> Vec<PathBuf> {
    let names = match profile {
        Profile::Kubernetes => ["kubepods", "kubepods.slice"],
        Profile::Nomad => ["nomad", "nomad.slice"],
        Profile::Swarm | Profile::Docker => ["docker", "system.slice"],
    };
    names.map(PathBuf::from).to_vec()
}

pub fn number(value: &str, low: u64, high: u64) -> Result<u64, String> {
    value
        .parse()
        .ok()
        .filter(|n| (low..=high).contains(n))
        .ok_or_else(|| format!("it takes a whole number from {low} to {high}"))
}

fn log_level(value: &str) -> Result<String, String> {
    match crate::logging::filter(value) {
        Ok(_) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err("it takes error, warn, info, debug, trace or a filter such as info,pool=debug".to_owned()),
    }
}

fn listen(value: &str) -> Result<Listen, String> {
    if value == "off" {
        return Ok(Listen::Off);
    }
    if let Some(path) = value.strip_prefix("unix://") {
        return absolute(path).map(Listen::Unix);
    }
    let (address, may_leave) = match value.strip_prefix("insecure:") {
        Some(address) => (address, true),
        None => (value, false),
    };
    match address.parse::<SocketAddr>() {
        Ok(address) if may_leave || address.ip().is_loopback() => Ok(Listen::Tcp(address)),
        Ok(_) => Err(format!(
            "it is served without encryption, so it takes a loopback address such as 127.0.0.1:9808, or unix:///a/path, or \
             off; write insecure:{address} where whoever reaches that address may read it"
        )),
        Err(_) => Err("it takes a loopback address such as 127.0.0.1:9808, unix:///a/path, or off".to_owned()),
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}
