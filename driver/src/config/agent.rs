//! `[agent]` and `[[agents]]`: how a controller and the pools of other machines find and know each other.

use super::keys::{Raw, absolute, number, unknown_key, wrong_value};
use super::{ConfigError, Mode, Setting};
use agent::{AgentAddress, CredentialFiles};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use volume::NodeId;

/// `[agent]`, whole: nothing listens and nothing connects without certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSettings {
    /// Where this node's backends are served to a controller.
    pub listen: Option<SocketAddr>,
    /// `None` where they come from Kubernetes.
    pub files: Option<CredentialFiles>,
    pub heartbeat: Duration,
}

/// What has been set so far of `[agent]`.
#[derive(Debug, Default)]
pub struct RawAgent {
    listen: Option<SocketAddr>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    heartbeat_ms: Option<u64>,
}

/// What has been set so far of one `[[agents]]`.
#[derive(Debug, Default)]
pub struct RawAddress {
    pub node: Option<NodeId>,
    pub address: Option<String>,
    /// Where it begins, for errors.
    pub origin: String,
}

pub const AGENT_KEYS: [&str; 5] = ["ca", "cert", "heartbeat_ms", "key", "listen"];
pub const AGENTS_KEYS: [&str; 2] = ["address", "node"];
const DEFAULT_HEARTBEAT_MS: u64 = 250;

impl RawAgent {
    pub fn apply(&mut self, key: &str, setting: &Setting) -> Result<(), ConfigError> {
        let value = setting.value.as_str();
        let at = |expected: String| wrong_value(setting, &expected);
        match key {
            "listen" => {
                let expected = || at("it takes an address and a port such as 0.0.0.0:9809".to_owned());
                self.listen = Some(value.parse().map_err(|_| expected())?);
            }
            "ca" => self.ca = Some(absolute(value).map_err(at)?),
            "cert" => self.cert = Some(absolute(value).map_err(at)?),
            "key" => self.key = Some(absolute(value).map_err(at)?),
            "heartbeat_ms" => self.heartbeat_ms = Some(number(value, 50, 10_000).map_err(at)?),
            unknown => return Err(unknown_key(setting, unknown, &AGENT_KEYS)),
        }
        Ok(())
    }

    /// `None` when nothing of it is used. `has_authority`: without files, there is another one to get certificates from.
    pub fn finish(
        self,
        mode: Mode,
        has_agents: bool,
        has_authority: bool,
    ) -> Result<Option<AgentSettings>, ConfigError> {
        if self.listen.is_some() && mode == Mode::Controller {
            return Err(ConfigError(
                "agent.listen is set and mode is \"controller\": it is a node that serves its pool to others"
                    .to_owned(),
            ));
        }
        let files = match (self.ca, self.cert, self.key) {
            (Some(ca), Some(cert), Some(key)) => Some(CredentialFiles { ca, cert, key }),
            (None, None, None) if self.listen.is_none() && !has_agents => return Ok(None),
            (None, None, None) if has_authority => None,
            (ca, cert, key) => {
                let given = [("ca", ca.is_some()), ("cert", cert.is_some()), ("key", key.is_some())];
                let missing: Vec<_> = given.iter().filter(|(_, given)| !given).map(|(name, _)| *name).collect();
                return Err(ConfigError(format!(
                    "[agent] lacks {}: agents and controllers know each other by ca, cert and key, and nothing listens on or connects over a network without them (to make some: hawser certificates)",
                    missing.join(" and ")
                )));
            }
        };
        let heartbeat = Duration::from_millis(self.heartbeat_ms.unwrap_or(DEFAULT_HEARTBEAT_MS));
        Ok(Some(AgentSettings { listen: self.listen, files, heartbeat }))
    }

    pub fn listens(&self) -> bool {
        self.listen.is_some()
    }
}

impl RawAddress {
    pub fn apply(&mut self, key: &str, setting: &Setting) -> Result<(), ConfigError> {
        let value = setting.value.as_str();
        match key {
            "node" => {
                let node = NodeId::parse(value).map_err(|error| wrong_value(setting, &error.to_string()))?;
                self.node = Some(node);
            }
            "address" => {
                let port = value.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
                if port.is_none_or(|port| port.parse::<u16>().is_err()) {
                    return Err(wrong_value(setting, "it takes a host and a port such as 10.0.0.1:9809"));
                }
                self.address = Some(value.to_owned());
            }
            unknown => return Err(unknown_key(setting, unknown, &AGENTS_KEYS)),
        }
        Ok(())
    }
}

impl Raw {
    pub fn agents(&mut self) -> Result<Vec<AgentAddress>, ConfigError> {
        let mut agents: Vec<AgentAddress> = Vec::new();
        for RawAddress { node, address, origin } in self.agents.drain(..) {
            let (Some(node), Some(address)) = (node, address) else {
                return Err(ConfigError(format!("{origin}: an entry of agents needs a node and an address")));
            };
            if agents.iter().any(|known| known.node == node) {
                return Err(ConfigError(format!("{origin}: the agent of node {node} is given twice")));
            }
            agents.push(AgentAddress { node, address });
        }
        Ok(agents)
    }
}
