//! What an error becomes on the wire.

use crate::Rpc;
use tonic::{Code, Status};
use volume::{Error, ErrorKind};

/// The status for `error` in a call of `rpc`. The message is the whole chain of causes on one line.
pub fn status(rpc: Rpc, error: &Error) -> Status {
    Status::new(code(rpc, error.kind()), one_line(&error.chain()))
}

/// CSI 1.13: "Error Scheme" and the error table of each call. Codes also steer what orchestrators do next: the
/// official sidecars and kubelet take everything but CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, RESOURCE_EXHAUSTED and
/// ABORTED as "nothing was done".
fn code(rpc: Rpc, kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => {
            if is_making(rpc) {
                Code::AlreadyExists
            } else {
                // A call that makes nothing has no such code in its table; the state is in its way.
                Code::FailedPrecondition
            }
        }
        // CSI, "Error Scheme": ABORTED is "operation pending for volume"; the caller backs off and retries.
        ErrorKind::Busy => Code::Aborted,
        // ControllerPublishVolume: "Volume published to another node". Nomad retries this code and fails the
        // allocation for most others; Swarm unpublishes elsewhere and retries at once.
        ErrorKind::Held => Code::FailedPrecondition,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::OutOfRange => Code::OutOfRange,
        // CreateVolume: "unable to provision in accessible_topology" (external-provisioner then asks for another
        // node); CreateSnapshot since 1.13: no space; ControllerPublishVolume: the node is full.
        ErrorKind::Exhausted => Code::ResourceExhausted,
        // UNIMPLEMENTED says that the whole call is missing (`Runtime::unimplemented`). Here the call is there, and what is
        // asked for is nothing that this storage can do: of a request, a wrong argument; of a node, a wrong state.
        ErrorKind::Unsupported => {
            if is_of_node(rpc) {
                Code::FailedPrecondition
            } else {
                Code::InvalidArgument
            }
        }
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Corrupt => Code::DataLoss,
        // Not PERMISSION_DENIED, which CSI keeps for what the secrets of a request do not allow: the driver itself
        // lacks a privilege, and an administrator must act before a retry can help.
        ErrorKind::PermissionDenied => Code::FailedPrecondition,
        // ListVolumes and ListSnapshots: an invalid starting_token is ABORTED; the caller lists from the start.
        ErrorKind::BadPageToken => Code::Aborted,
        ErrorKind::Internal => {
            if is_forgotten_when_final(rpc) {
                // INTERNAL would be final: if the claim (or pod) is then deleted, no DeleteVolume (or NodeUnstage)
                // follows, and whatever this call had already made would leak. UNAVAILABLE keeps the caller at it.
                Code::Unavailable
            } else {
                Code::Internal
            }
        }
    }
}

fn is_making(rpc: Rpc) -> bool {
    matches!(
        rpc,
        Rpc::CreateVolume
            | Rpc::CreateSnapshot
            | Rpc::CreateVolumeGroupSnapshot
            | Rpc::ControllerPublishVolume
            | Rpc::NodeStageVolume
            | Rpc::NodePublishVolume
    )
}

fn is_forgotten_when_final(rpc: Rpc) -> bool {
    matches!(
        rpc,
        Rpc::CreateVolume
            | Rpc::CreateSnapshot
            | Rpc::CreateVolumeGroupSnapshot
            | Rpc::NodeStageVolume
            | Rpc::NodePublishVolume
    )
}

fn is_of_node(rpc: Rpc) -> bool {
    rpc.as_str().starts_with("Node")
}

/// gRPC sends the message as a header: what is not printable ASCII takes three bytes there, and proxies and clients
/// limit headers (8 KiB is common). The beginning says what was attempted, the end is the cause; both are kept.
fn one_line(message: &str) -> String {
    const LIMIT: usize = 1800;
    let cost = |c: char| if matches!(c, ' '..='~') && c != '%' { 1 } else { 3 * c.len_utf8() };
    let clean: Vec<char> = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.iter().map(|&c| cost(c)).sum::<usize>() <= LIMIT {
        return clean.into_iter().collect();
    }
    let fits = |chars: &mut dyn Iterator<Item = char>| {
        let mut left = LIMIT / 2 - 5;
        chars.map_while(|c| left.checked_sub(cost(c)).map(|rest| left = rest)).count()
    };
    let head = fits(&mut clean.iter().copied());
    let tail = fits(&mut clean.iter().rev().copied());
    let part = |chars: &[char]| chars.iter().collect::<String>();
    format!("{} ... {}", part(&clean[..head]), part(&clean[clean.len() - tail..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each kind becomes, and for which calls it becomes something else.
    type Exceptions = &'static [(Rpc, Code)];
    const TABLE: [(ErrorKind, Code, Exceptions); 15] = [
        (ErrorKind::InvalidArgument, Code::InvalidArgument, &[]),
        (ErrorKind::NotFound, Code::NotFound, &[]),
        (
            ErrorKind::AlreadyExists,
            Code::FailedPrecondition,
            &[
                (Rpc::CreateVolume, Code::AlreadyExists),
                (Rpc::CreateSnapshot, Code::AlreadyExists),
                (Rpc::CreateVolumeGroupSnapshot, Code::AlreadyExists),
                (Rpc::ControllerPublishVolume, Code::AlreadyExists),
                (Rpc::NodeStageVolume, Code::AlreadyExists),
                (Rpc::NodePublishVolume, Code::AlreadyExists),
            ],
        ),
        (ErrorKind::Busy, Code::Aborted, &[]),
        (ErrorKind::Held, Code::FailedPrecondition, &[]),
        (ErrorKind::FailedPrecondition, Code::FailedPrecondition, &[]),
        (ErrorKind::OutOfRange, Code::OutOfRange, &[]),
        (ErrorKind::Exhausted, Code::ResourceExhausted, &[]),
        (
            ErrorKind::Unsupported,
            Code::InvalidArgument,
            &[
                (Rpc::NodeStageVolume, Code::FailedPrecondition),
                (Rpc::NodeUnstageVolume, Code::FailedPrecondition),
                (Rpc::NodePublishVolume, Code::FailedPrecondition),
                (Rpc::NodeUnpublishVolume, Code::FailedPrecondition),
                (Rpc::NodeGetVolumeStats, Code::FailedPrecondition),
                (Rpc::NodeGetVolumeHealth, Code::FailedPrecondition),
                (Rpc::NodeGetStorageHealth, Code::FailedPrecondition),
                (Rpc::NodeExpandVolume, Code::FailedPrecondition),
                (Rpc::NodeGetCapabilities, Code::FailedPrecondition),
                (Rpc::NodeGetInfo, Code::FailedPrecondition),
            ],
        ),
        (ErrorKind::Unavailable, Code::Unavailable, &[]),
        (ErrorKind::Timeout, Code::DeadlineExceeded, &[]),
        (ErrorKind::Corrupt, Code::DataLoss, &[]),
        (ErrorKind::PermissionDenied, Code::FailedPrecondition, &[]),
        (ErrorKind::BadPageToken, Code::Aborted, &[]),
        (
            ErrorKind::Internal,
            Code::Internal,
            &[
                (Rpc::CreateVolume, Code::Unavailable),
                (Rpc::CreateSnapshot, Code::Unavailable),
                (Rpc::CreateVolumeGroupSnapshot, Code::Unavailable),
                (Rpc::NodeStageVolume, Code::Unavailable),
                (Rpc::NodePublishVolume, Code::Unavailable),
            ],
        ),
    ];

    #[test]
    fn every_kind_in_every_call() {
        for (kind, usual, others) in TABLE {
            for &rpc in Rpc::ALL {
                let expected = others.iter().find(|(other, _)| *other == rpc).map_or(usual, |(_, code)| *code);
                let found = status(rpc, &Error::new(kind, "x"));
                assert_eq!(found.code(), expected, "{kind} in {rpc}");
                assert_ne!(found.code(), Code::Ok);
            }
        }
    }

    #[test]
    fn messages_are_one_short_line() {
        let cause = std::io::Error::other("first\nsecond");
        let error = Error::io("open the pool", cause).context("create volume pool.v1");
        let message = status(Rpc::CreateVolume, &error).message().to_owned();
        assert_eq!(message, "create volume pool.v1: open the pool: first second");

        for filler in ["x", "ж", "%", "\u{1F600}"] {
            let long = Error::internal(format!("begin {} end", filler.repeat(5000)));
            let message = status(Rpc::Probe, &long).message().to_owned();
            assert!(message.starts_with("begin ") && message.ends_with(" end"), "{message}");
            let encoded: usize =
                message.bytes().map(|b| if matches!(b, b' '..=b'~') && b != b'%' { 1 } else { 3 }).sum();
            assert!(encoded < 2048, "{encoded}");
        }
    }
}
