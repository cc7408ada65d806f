//! etcd, API server, controller manager, scheduler.

use super::credentials::Credentials;
use super::place::Place;
use super::process::{Daemon, wait_until};
use super::{NODES, SPARE_NODES, Tools, network};
use crate::failure::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(super) struct ControlPlane {
    pub(super) credentials: Credentials,
    /// The administrator's kubeconfig.
    pub(super) admin: PathBuf,
    /// None while it is away.
    manager: Mutex<Option<Daemon>>,
    directory: PathBuf,
    tools: Tools,
    logs: PathBuf,
    _daemons: Vec<Daemon>,
}

const MANAGER: &str = "kube-controller-manager";
const ETCD: &str = "http://127.0.0.1:2379";
const START_LIMIT: Duration = Duration::from_secs(120);

impl ControlPlane {
    /// The API server answers when this returns.
    pub(super) fn start(place: &Place, tools: &Tools) -> Result<Self> {
        let directory = place.directory("control")?;
        let credentials = Credentials::create(&directory, &[&NODES[..], &SPARE_NODES].concat())?;
        let logs = place.logs();
        let etcd = Daemon::start("etcd", etcd(&directory), logs)?;
        let mut server = Daemon::start("kube-apiserver", api_server(tools, &directory, &credentials)?, logs)?;
        let admin = credentials.kubeconfig("admin")?;
        let kubectl = tools.find("kubectl")?;
        wait_until("the API server", START_LIMIT, || {
            server.ensure_running()?;
            let mut ask = Command::new(&kubectl);
            ask.arg("--kubeconfig").arg(&admin).args(["get", "--raw", "/readyz", "--request-timeout=5s"]);
            let answer = ask.output()?;
            Ok(if answer.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned())
            })
        })?;
        let manager = Daemon::start(MANAGER, manager_command(tools, &directory, &credentials)?, logs)?;
        let scheduler = Daemon::start("kube-scheduler", scheduler(tools, &directory, &credentials)?, logs)?;
        Ok(Self {
            credentials,
            admin,
            manager: Mutex::new(Some(manager)),
            directory,
            tools: tools.clone(),
            logs: logs.to_owned(),
            _daemons: vec![scheduler, server, etcd],
        })
    }

    /// Kills the controller manager and starts it again.
    pub(super) fn restart_manager(&self) -> Result<()> {
        let mut manager = self.manager.lock().unwrap_or_else(PoisonError::into_inner);
        *manager = None;
        let again = manager_command(&self.tools, &self.directory, &self.credentials)?;
        *manager = Some(Daemon::start(MANAGER, again, &self.logs)?);
        Ok(())
    }
}

fn etcd(directory: &Path) -> Command {
    let mut etcd = Command::new("etcd");
    etcd.arg("--data-dir").arg(directory.join("etcd")).arg("--unsafe-no-fsync");
    etcd.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
    etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"]);
    etcd
}

fn api_server(tools: &Tools, directory: &Path, credentials: &Credentials) -> Result<Command> {
    let mut server = tools.command("kube-apiserver")?;
    server.arg(format!("--etcd-servers={ETCD}")).arg(format!("--cert-dir={}", directory.display()));
    server.args(["--secure-port=443", "--bind-address=0.0.0.0", "--allow-privileged=true"]);
    server.arg(format!("--advertise-address={}", network::HOST));
    server.arg(format!("--service-cluster-ip-range={}", network::SERVICES));
    server.arg("--authorization-mode=Node,RBAC").arg(format!("--token-auth-file={}", credentials.tokens().display()));
    server.arg("--service-account-issuer=https://kubernetes.default.svc");
    server.arg(format!("--service-account-key-file={}", credentials.public_key().display()));
    server.arg(format!("--service-account-signing-key-file={}", credentials.private_key().display()));
    // Nodes have no names that anybody could look up.
    server.arg("--kubelet-preferred-address-types=InternalIP");
    Ok(server)
}

fn manager_command(tools: &Tools, directory: &Path, credentials: &Credentials) -> Result<Command> {
    let mut manager = client(tools, MANAGER, directory, &credentials.kubeconfig("controller-manager")?)?;
    manager.arg("--use-service-account-credentials");
    manager.arg(format!("--root-ca-file={}", credentials.authority().display()));
    manager.arg(format!("--service-account-private-key-file={}", credentials.private_key().display()));
    Ok(manager)
}

fn scheduler(tools: &Tools, directory: &Path, credentials: &Credentials) -> Result<Command> {
    client(tools, "kube-scheduler", directory, &credentials.kubeconfig("scheduler")?)
}

fn client(tools: &Tools, name: &str, directory: &Path, kubeconfig: &Path) -> Result<Command> {
    let mut command = tools.command(name)?;
    for option in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        command.arg(format!("--{option}={}", kubeconfig.display()));
    }
    command.args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
    command.arg(format!("--cert-dir={}", directory.join(name).display()));
    Ok(command)
}
