//! The calls of a volume's life, and which of them undoes which.

use tonic::Code;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Create,
    ControllerPublish,
    NodeStage,
    NodePublish,
    NodeUnpublish,
    NodeUnstage,
    ControllerUnpublish,
    Delete,
}

impl Step {
    pub const ALL: [Self; 8] = [
        Self::Create,
        Self::ControllerPublish,
        Self::NodeStage,
        Self::NodePublish,
        Self::NodeUnpublish,
        Self::NodeUnstage,
        Self::ControllerUnpublish,
        Self::Delete,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CreateVolume",
            Self::ControllerPublish => "ControllerPublishVolume",
            Self::NodeStage => "NodeStageVolume",
            Self::NodePublish => "NodePublishVolume",
            Self::NodeUnpublish => "NodeUnpublishVolume",
            Self::NodeUnstage => "NodeUnstageVolume",
            Self::ControllerUnpublish => "ControllerUnpublishVolume",
            Self::Delete => "DeleteVolume",
        }
    }

    /// The call that takes back what this one did; of one that takes back, itself.
    pub fn undone_by(self) -> Self {
        match self {
            Self::Create => Self::Delete,
            Self::ControllerPublish => Self::ControllerUnpublish,
            Self::NodeStage => Self::NodeUnstage,
            Self::NodePublish => Self::NodeUnpublish,
            Self::NodeUnpublish | Self::NodeUnstage | Self::ControllerUnpublish | Self::Delete => self,
        }
    }
}

/// Whether an orchestrator asks again at once: other work is under way, nobody answers, or it took too long (CSI,
/// "Error Scheme"; tonic gives CANCELLED when its own timeout passes).
pub fn is_asked_again(code: Code) -> bool {
    matches!(code, Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// Whether a CreateVolume that was refused so may have made a volume all the same.
pub fn may_have_happened(code: Code) -> bool {
    is_asked_again(code) || matches!(code, Code::Internal | Code::Unknown | Code::DataLoss)
}

/// Whether asking again can change nothing.
pub fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::NotFound | Code::InvalidArgument | Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated
    )
}
