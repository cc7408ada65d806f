//! Who may do what: each component has a token of its own. The API server signs its own certificate, which is also the
//! authority that clients trust.

use super::network;
use crate::failure::{Context, Result};
use crate::lab::kernel::program;
use serde_json::json;
use std::path::{Path, PathBuf};

pub(super) struct Credentials {
    directory: PathBuf,
    /// Name, user and groups, and token.
    users: Vec<(String, String)>,
}

impl Credentials {
    /// Makes tokens for the control plane and the nodes, and the key that signs the tokens of service accounts.
    pub(super) fn create(directory: &Path, nodes: &[&str]) -> Result<Self> {
        let mut users = Vec::new();
        let mut lines = String::new();
        let control = [
            ("admin", "admin", "system:masters"),
            ("controller-manager", "system:kube-controller-manager", ""),
            ("scheduler", "system:kube-scheduler", ""),
        ];
        let all = control.into_iter().map(|(name, user, group)| (name.to_owned(), user.to_owned(), group));
        let nodes = nodes.iter().map(|node| ((*node).to_owned(), format!("system:node:{node}"), "system:nodes"));
        for (name, user, group) in all.chain(nodes) {
            let token = uuid::Uuid::new_v4().simple().to_string();
            lines.push_str(&format!("{token},{user},{name},\"{group}\"\n"));
            users.push((name, token));
        }
        let made = Self { directory: directory.to_owned(), users };
        std::fs::write(made.tokens(), lines)?;
        let (private, public) = (made.private_key(), made.public_key());
        let (private, public) = (private.to_string_lossy(), public.to_string_lossy());
        program("openssl", &["genrsa", "-out", &private, "2048"]).context(|| "making a key".to_owned())?;
        program("openssl", &["rsa", "-in", &private, "-pubout", "-out", &public])?;
        Ok(made)
    }

    pub(super) fn tokens(&self) -> PathBuf {
        self.directory.join("tokens.csv")
    }

    pub(super) fn private_key(&self) -> PathBuf {
        self.directory.join("service-accounts.key")
    }

    pub(super) fn public_key(&self) -> PathBuf {
        self.directory.join("service-accounts.pub")
    }

    /// Written by the API server at its first start.
    pub(super) fn authority(&self) -> PathBuf {
        self.directory.join("apiserver.crt")
    }

    pub(super) fn kubeconfig(&self, name: &str) -> Result<PathBuf> {
        let token = self.users.iter().find(|(user, _)| user == name).map(|(_, token)| token);
        let token = token.ok_or_else(|| format!("{name} has no token"))?;
        let server = json!({"server": format!("https://{}", network::HOST), "certificate-authority": self.authority()});
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": server}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
            "current-context": "lab",
        });
        let path = self.directory.join(format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}
