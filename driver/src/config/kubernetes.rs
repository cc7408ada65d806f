//! `[kubernetes]`: which objects of the cluster are this installation's.

use super::keys::{Raw, truth, unknown_key, wrong_value};
use super::{ConfigError, Mode, Setting};
use ::kubernetes::Names;

/// What has been set so far of `[kubernetes]`.
#[derive(Debug, Default)]
pub struct RawKubernetes {
    enabled: Option<bool>,
    namespace: Option<String>,
    name: Option<String>,
}

pub const KUBERNETES_KEYS: [&str; 3] = ["enabled", "name", "namespace"];
/// RFC 1123, as Kubernetes checks its names.
const MAX_LABEL_BYTES: usize = 63;

impl RawKubernetes {
    pub fn apply(&mut self, key: &str, setting: &Setting) -> Result<(), ConfigError> {
        let value = setting.value.as_str();
        let at = |expected: String| wrong_value(setting, &expected);
        match key {
            "enabled" => self.enabled = Some(truth(value).map_err(at)?),
            "namespace" => self.namespace = Some(label(value).map_err(at)?),
            // The longest suffix of an object's name is "-supervisor", and a service account's is "-node".
            "name" => self.name = Some(label(value).map_err(at)?),
            unknown => return Err(unknown_key(setting, unknown, &KUBERNETES_KEYS)),
        }
        Ok(())
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(false)
    }
}

impl Raw {
    /// `None` unless it is enabled; what is set beside `enabled = false` waits for it.
    pub fn kubernetes(&mut self, mode: Mode) -> Result<Option<Names>, ConfigError> {
        if !self.kubernetes.is_enabled() {
            return Ok(None);
        }
        if mode == Mode::All {
            return Err(ConfigError(
                "kubernetes.enabled is true and mode is \"all\": in Kubernetes the controller and the nodes are processes of their own; set mode to controller or node"
                    .to_owned(),
            ));
        }
        if let Some(given) = self.agents.first() {
            return Err(ConfigError(format!(
                "{}: kubernetes.enabled is true, so agents are found by the pods of nodes; take [[agents]] out",
                given.origin
            )));
        }
        match (self.kubernetes.namespace.take(), self.kubernetes.name.take()) {
            (Some(namespace), Some(name)) => Ok(Some(Names { namespace, name })),
            (namespace, _) => {
                let missing = if namespace.is_none() { "namespace" } else { "name" };
                Err(ConfigError(format!(
                    "kubernetes.enabled is true and kubernetes.{missing} is not set (HAWSER_KUBERNETES_{}): it says which objects of the cluster are this installation's",
                    missing.to_ascii_uppercase()
                )))
            }
        }
    }
}

fn label(value: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (first, last) = (value.bytes().next(), value.bytes().last());
    let is_label = first.is_some_and(is_plain)
        && last.is_some_and(is_plain)
        && value.len() <= MAX_LABEL_BYTES
        && value.bytes().all(|byte| is_plain(byte) || byte == b'-');
    if is_label {
        return Ok(value.to_owned());
    }
    Err(format!("it takes a name of Kubernetes: at most {MAX_LABEL_BYTES} of a-z, 0-9 and - inside"))
}
