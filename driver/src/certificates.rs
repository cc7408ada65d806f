//! `hawser certificates`: what agents and controllers know each other by, for who has no authority of their own.

use crate::cli::CertificatesArgs;
use crate::output::Output;
use agent::{Authority, Role, Validity};
use serde_json::json;
use volume::{NodeId, Result};

/// Keeps the authority that is there; certificates are made anew.
pub fn make(args: &CertificatesArgs, output: Output) -> Result<()> {
    let nodes: Vec<NodeId> = args.nodes.iter().map(|node| NodeId::parse(node)).collect::<Result<_>>()?;
    let directory = &args.directory;
    let authority = Authority::ensure(directory)?;
    let validity = Validity::days(args.days);
    // One process may be both, and the supervisor runs inside the controller.
    let controller = authority.issue(directory, "controller", &[Role::Controller, Role::Supervisor], validity)?;
    let mut made = vec![controller];
    for node in nodes {
        made.push(authority.issue(directory, &format!("node-{node}"), &[Role::Node(node)], validity)?);
    }
    let entries: Vec<_> =
        made.iter().map(|files| json!({"ca": files.ca, "cert": files.cert, "key": files.key})).collect();
    let lines: Vec<_> = made.iter().map(|files| format!("{}\n{}", files.cert.display(), files.key.display())).collect();
    let text = format!(
        "{}\nEach process needs its own .crt and .key, and ca.crt. Keep ca.key away from all of them: it makes new ones.",
        lines.join("\n")
    );
    output.print(&json!({"certificates": entries}), &text);
    Ok(())
}
