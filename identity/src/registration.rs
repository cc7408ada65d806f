//! How kubelet finds the plugin: it calls this on a socket in its `plugins_registry`, so no sidecar is needed.

use crate::NAME;
use csi_proto::registration::registration_server::Registration;
use csi_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use std::path::Path;
use tonic::{Request, Response, Status};

pub struct RegistrationService {
    endpoint: String,
}

impl RegistrationService {
    /// `endpoint`: the CSI socket by the path at which kubelet sees it.
    pub fn new(endpoint: &Path) -> Self {
        Self { endpoint: endpoint.display().to_string() }
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: NAME.to_owned(),
            endpoint: self.endpoint.clone(),
            // CSI's, not the driver's: kubelet takes any 1.x.
            supported_versions: vec!["1.0.0".to_owned(), "1.13.0".to_owned()],
        }))
    }

    /// Kubelet tries again by itself, so a refusal is only told to whoever reads the log.
    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("registered with kubelet");
        } else {
            tracing::error!(error = status.error, "kubelet refuses to register the driver");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_kubelet_is_told() {
        let service = RegistrationService::new(Path::new("/var/lib/kubelet/plugins/csi.hawser.dev/csi.sock"));
        let info = service.get_info(Request::new(InfoRequest {})).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.hawser.dev"));
        assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/csi.hawser.dev/csi.sock");
        assert!(info.supported_versions.iter().all(|version| version.starts_with("1.")));
        for status in [
            RegistrationStatus { plugin_registered: true, error: String::new() },
            RegistrationStatus { plugin_registered: false, error: "no".to_owned() },
        ] {
            assert!(service.notify_registration_status(Request::new(status)).await.is_ok());
        }
    }
}
