//! What is said of a lost node that is not failed over: by `hawser failover ls`, and by an event at the node.

use super::installed::hawser_at_controller;
use crate::failure::Result;
use crate::kubernetes::space::Space;
use std::time::Instant;

/// Until both say why.
pub(in crate::kubernetes) fn wait_refused(space: &Space, node: &str, why: &str) -> Result<()> {
    let (lab, began) = (space.lab()?, Instant::now());
    let said = space.look("hawser failover ls says why", || {
        // A controller that was on the node is replaced meanwhile.
        let said =
            hawser_at_controller(lab, &[node], &["failover", "ls"]).unwrap_or_else(|failure| failure.to_string());
        Ok(standing(&said, node).filter(|line| line.contains(why)).map(str::to_owned).ok_or(said))
    })?;
    space.time("from the loss to the reason in hawser failover ls", began.elapsed());
    println!("{}: {said}", space.name);
    space.look("an event at the node says why", || {
        let events = space.cluster.list("/api/v1/namespaces/default/events")?;
        let of_node = events
            .iter()
            .filter(|event| event["involvedObject"]["kind"] == "Node" && event["involvedObject"]["name"] == *node);
        let mut notes = of_node.map(|event| event["message"].as_str().unwrap_or_default());
        Ok(if notes.any(|note| note.contains(why)) { Ok(()) } else { Err("no event".to_owned()) })
    })?;
    space.time("from the loss to an event at the node", began.elapsed());
    Ok(())
}

/// Until `hawser failover ls` has nothing to say of how the node stands.
pub(in crate::kubernetes) fn wait_nothing_said(space: &Space, node: &str) -> Result<()> {
    let lab = space.lab()?;
    space.look("nothing said of the node any more", || {
        let said = hawser_at_controller(lab, &[], &["failover", "ls"])?;
        Ok(if standing(&said, node).is_none() { Ok(()) } else { Err(said) })
    })
}

/// What `hawser failover ls` says of how the node stands.
fn standing<'a>(said: &'a str, node: &str) -> Option<&'a str> {
    said.lines().find(|line| line.starts_with(&format!("{node}: ")))
}
